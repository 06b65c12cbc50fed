"""The defaults per corpus: training settings, and the sizes of the sample's own models."""

from pathlib import Path

from minikd.config import EncoderConfig

# What a flag that is not given means, per corpus. Pre-trained teachers take BERT's small rates (Devlin et al. 2019,
# appendix A.3); small students want larger ones (Turc et al. 2019). The sample's models start from random weights.
DEFAULTS = {
    #          max_length  batch_size  teacher_epochs  teacher_lr  epochs    lr
    "sample":     (64,         32,           3,           4e-4,       2,    6e-4),
    "imdb":      (256,         32,           2,           2e-5,       4,    5e-5),
    "sst2":      (128,         32,           3,           2e-5,       4,    5e-5),
    "fpb":       (128,         32,           4,           3e-5,       6,    5e-5),
    "(yours)":   (256,         32,           3,           2e-5,       4,    5e-5),
}  # fmt: skip
LORA_LR = 5e-4  # RoBERTa-base on SST-2 in Hu et al. 2021, table 9: adapters start at zero and want a large rate
DEFAULT_COLUMNS = ("max_length", "batch_size", "teacher_epochs", "teacher_lr", "epochs", "lr")

# The sample is small enough for models of its own, whose vocabulary is learned from it.
SAMPLE_VOCABULARY = 2000
SAMPLE_TEACHER = EncoderConfig(
    num_hidden_layers=4,
    hidden_size=256,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,  # three passes over clean, varied texts: too few to need regularisation
    attention_probs_dropout_prob=0.0,
    initializer_range=0.04,  # narrower than BERT, so its weights start wider; the student's still more
)
SAMPLE_STUDENT = dict(hidden_size=128, num_attention_heads=4, intermediate_size=512, initializer_range=0.06)


def default(name: str, dataset: str | None):
    """The corpus's default for one of DEFAULT_COLUMNS."""
    return DEFAULTS.get(dataset, DEFAULTS["(yours)"])[DEFAULT_COLUMNS.index(name)]


def corpus_name(dataset: str) -> str:
    """The corpus's name, or that of the user's file or folder: what its default output folder is called."""
    path = Path(dataset).resolve()
    return dataset if dataset in DEFAULTS else path.name if path.is_dir() else path.stem
