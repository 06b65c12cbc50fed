"""The flags of the three scripts. Those of training and of the layer losses are made from the fields of their settings,
`TrainConfig` and `LayerLosses`."""

import argparse
from dataclasses import fields
from pathlib import Path

from minikd.cli.defaults import DEFAULT_COLUMNS, DEFAULTS, default
from minikd.cli.flag_types import integer, label_names, names, non_empty, path, real
from minikd.config import TrainConfig
from minikd.losses import SOFT_LOSSES
from minikd.report.tables import CRITERIA
from minikd.techniques.layer_losses import LayerLosses
from minikd.techniques.lora import TARGETS

DATA_DIR = Path(__file__).parents[2] / "data"


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line without the page of usage before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


# fmt: off
def add_data_flags(parser: argparse.ArgumentParser, default_text: str = "") -> None:
    """Which corpus, from where, truncated at what length. `default_text` replaces the defaults named in the help."""
    add = parser.add_argument_group("data").add_argument
    trained = f"{default_text}, else " if default_text else ""
    add("--dataset", type=non_empty, default="sample", metavar="imdb|sst2|fpb|sample|PATH",
        help="corpus; or a CSV, TSV or JSONL file, or a folder with train, validation and test files. A file is split "
        "80/10/10 into train, validation and test; without a validation file a tenth of train is used. Each label is "
        "split in proportion, copies of a text stay together, no text that is set aside appears inside a training "
        f"text, and the split is the same in every run (default: {default_text or 'sample'})")
    add("--text-column", type=non_empty, metavar="NAME",
        help=f"your own data and files of texts: the column of texts (default: {trained}text or sentence)")
    add("--label-column", type=non_empty, metavar="NAME",
        help=f"your own data: the column of labels, one class a text (default: {trained}label)")
    add("--encoding", type=non_empty, metavar="NAME",
        help="your own data: the encoding of its files, such as cp1252 (Windows) or latin-1; a byte-order mark wins "
        f"(default: {trained and 'as recorded, for the data of the first model; else '}utf-8)")
    add("--data-dir", type=path, default=DATA_DIR, metavar="DIR",
        help="where archives are looked for and downloaded to "
        f"(default: {default_text or 'the folder data beside the scripts'})")
    add("--fpb-agreement", choices=("50", "66", "75", "all"), default="50",
        help=f"Financial PhraseBank: least percentage of annotators who agree (default: {default_text or '50'})")
    add("--max-length", type=integer(3), metavar="N",
        help="tokens per text, [CLS] and [SEP] counted; longer texts are truncated "
        f"(default: {default_text or 'by corpus, see below'})")
    add("--label-order", type=label_names, metavar="NAME,NAME,…",
        help="the data's labels in the order of the model's outputs, for models whose config.json has other names; "
        "with --text and --input: the names of the outputs (default: by name, LABEL_0 being the label 0; else, for up "
        "to 8 labels, the order that clearly fits the validation split; else an error)")


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where and in which number format to compute."""
    add = parser.add_argument_group("device").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="where to compute; auto: a GPU if there is one (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="format of the matrix products; auto: bf16 where the hardware has it, fp16 on a CUDA GPU without it, "
        "else fp32 (default: auto)")


def add_training_flags(parser: argparse.ArgumentParser, whose: str = "") -> None:
    """How to train: the fields of TrainConfig, and whether to continue an interrupted run. `whose`, such as
    "the students' ", says which models --epochs, --max-steps and --lr are for, where there are several."""
    add = parser.add_argument_group("training").add_argument
    by_corpus = {"epochs": "by corpus, see below", "batch_size": "32", "lr": "by corpus, see below; adapters 5e-4"}
    for field in fields(TrainConfig):
        words = whose if field.name in ("epochs", "max_steps", "lr") else ""
        default = {"default": None, "shown": by_corpus[field.name]} if field.name in by_corpus else {}
        add_setting(add, field, words, **default)
    add("--compile", action="store_true", help="train with torch.compile (slow start, then faster)")
    add("--resume", action="store_true", help="continue an interrupted run of the same command")
    add("--save-minutes", type=real(0), default=5.0, metavar="X",
        help="save the state of a training every X minutes, or less often where that would take 1 %% of the time, for "
        "--resume after a kill; 0: after each epoch alone (default: 5)")
    add("--track", choices=("wandb", "tensorboard"),
        help="send log.jsonl there too, line by line, and at the end the test figures (default: neither)")


def add_setting(add, field, words: str = "", **default) -> None:
    """The flag of a field made by `minikd.config.setting`, with `words` before its help text. `default` and `shown`
    replace the field's own default, and how the help text shows it."""
    about = field.metadata
    least = about["least"] if about["above"] is None else about["above"]
    number = integer(least) if field.type is int else real(least, about["most"], about["above"] is not None)
    kind, metavar = (non_empty, "NAME") if field.type is str else (number, "N" if field.type is int else "X")
    shown = default.get("shown", field.default if field.type is str else f"{field.default:g}")
    add(f"--{field.name.replace('_', '-')}", type=kind, metavar=metavar, default=default.get("default", field.default),
        help=f"{words}{about['help']} (default: {shown})")


def add_layer_flags(parser: argparse.ArgumentParser) -> None:
    """The losses between hidden layers, and the schedule in two stages."""
    add = parser.add_argument_group("layer losses (the teacher then computes its layers and logits in each step)")
    for field in fields(LayerLosses):
        if field.name != "logit_loss":  # 1, or 0 in the first of two stages
            add_setting(add.add_argument, field)
    add.add_argument("--layer-epochs", type=integer(0), default=0, metavar="N",
        help="train in two stages, as TinyBERT and Wang et al. 2023 do: N epochs of the layer losses alone, then the "
        "loss on the logits alone; 0: both together (default: 0)")
    add.add_argument("--layer-lr", type=real(0, exclusive=True), metavar="X",
        help="peak learning rate of the first stage (default: that of --lr)")


def add_lora_flags(parser: argparse.ArgumentParser, whose: str, students: bool = False) -> None:
    """Whether and how to train low-rank adapters instead of all weights of `whose` model, and of the students."""
    add = parser.add_argument_group("low-rank adaptation (LoRA)").add_argument
    add("--lora-rank", type=integer(0), metavar="R",
        help=f"fine-tune adapters of rank R and the head of {whose}, all else frozen; 0: all weights (default: 0)")
    add("--lora-alpha", type=real(0, exclusive=True), metavar="X",
        help="adapters are scaled by this over R (default: 16)")
    add("--lora-dropout", type=real(0, 0.99), metavar="X", help="on the adapters' input (default: 0)")
    add("--lora-targets", type=names(*TARGETS), metavar="NAME,…",
        help=f"which projections get one, of {', '.join(TARGETS)} (default: query,value)")
    if students:
        add("--student-lora-rank", type=integer(0), metavar="R",
            help="the same for the students; 0: all weights (default: 0)")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """distill.py's two models: where they come from, and the student's shape."""
    add = parser.add_argument_group("teacher and student").add_argument
    add("--teacher", type=non_empty, nargs="+", metavar="NAME_OR_DIR",
        help="a fine-tuned classifier (used as it is) or a bare encoder (fine-tuned first); a folder or a name on the "
        "hub; several: their probabilities are averaged, and layers are those of the first; oracle: the true "
        "probabilities, known for the sample only (default: bert-base-uncased; for the sample a new 4-layer model)")
    add("--teacher-seeds", type=integer(1, 20), default=1, metavar="N",
        help="fine-tune N teachers of different seeds in this way, and average them (default: 1)")
    add("--teacher-epochs", type=integer(1), metavar="N",
        help="passes of the teacher over the training set (default: by corpus, see below)")
    add("--teacher-lr", type=real(0, exclusive=True), metavar="X",
        help="peak learning rate of the teacher (default: by corpus, see below; adapters 5e-4)")
    add("--teacher-base", type=non_empty, metavar="NAME_OR_DIR|random",
        help="the checkpoint that a fine-tuned --teacher was made from, whose layers the baseline takes (default: what "
        "its run.json or adapter_config.json says; for a model of BERT-base's shape and vocabulary, that)")
    add("--student", type=non_empty, metavar="NAME_OR_DIR",
        help="start the student from this pre-trained model (default: none: its shape follows from --student-layers)")
    add("--student-layers", type=integer(1), metavar="N",
        help="layers of the student; with a 768-wide teacher of bert-base-uncased's vocabulary, 4 means the published "
        "4-layer, 512-wide BERT; otherwise N layers are taken from the teacher, evenly spaced; students of the "
        "sample's own teacher are 128 wide (default: 4)")
    add("--take-layers", type=integer(0), nargs="+", metavar="I",
        help="take these layers of the teacher, numbered from 0 (default: evenly spaced ones)")
    add("--student-hidden", type=integer(32), metavar="H",
        help="width of the student (default: the teacher's, but for the shapes named at --student-layers)")
    add("--student-init", choices=("auto", "teacher", "checkpoint", "pretrained", "random"), default="auto",
        help="the distilled student's first weights: layers and head of the fine-tuned teacher, layers of the "
        "checkpoint that it was fine-tuned from, published weights of the student's shape, or random ones; auto: the "
        "first of teacher, pretrained and random that fits the shape. The baseline gets nothing from the fine-tuned "
        "teacher: where the student takes its layers, the baseline takes those of the checkpoint (default: auto)")


def add_distillation_flags(parser: argparse.ArgumentParser) -> None:
    """The loss, the source of the teacher's logits, and how often the experiment is repeated."""
    add = parser.add_argument_group("distillation").add_argument
    add("--alpha", type=real(0, 1), nargs="+", default=[0.5], metavar="X",
        help="weight of the hard loss, against the labels; 1 − alpha weighs the soft loss, against the teacher "
        "(default: 0.5)")
    add("--T", type=real(0.01, 100), nargs="+", default=[2.0], metavar="X",
        help="temperature of the soft loss (default: 2); several values of --alpha or --T: a student is trained for "
        "each pair, and the one that is best on validation is kept")
    add("--soft-loss", choices=tuple(SOFT_LOSSES), default="kl",
        help="how the student's outputs are compared with the teacher's: kl, as in the formula; mse, the squared "
        "difference of the logits, without T; dkd or dist, for three labels and more (default: kl)")
    add("--choose", choices=tuple(CRITERIA), default="accuracy",
        help="by which figure of the validation split a sweep chooses its pair: accuracy, negative log-likelihood, or "
        "expected calibration error; ties go to the lower negative log-likelihood (default: accuracy)")
    add("--teacher-logits", choices=("cache", "online"), default="cache",
        help="compute them once for all epochs, or anew in each step (default: cache)")
    add("--unlabelled", type=non_empty, action="append", default=[],
        metavar="imdb|imdb-sentences|FILE",
        help="distil on these texts too, by the soft loss alone, as they have no label: a file (.txt, a text a line; "
        ".csv, .tsv, .jsonl), the 50,000 unlabelled reviews of IMDb, or 100,000 sentences of these; may be repeated. "
        "Rows of your own data whose label is empty are used in the same way. Texts that are also in validation or "
        "test are left out (default: none)")
    add("--augment", type=integer(0, 100), default=0, metavar="N",
        help="distil also on N altered versions of each training text, by the soft loss alone: words masked, words "
        "swapped with their nearest neighbours in the teacher's table of word embeddings, parts of long texts "
        "(Tang et al. 2019) (default: 0)")
    add("--no-baseline", action="store_true",
        help="leave out the baseline: the same student, trained on the labels alone")
    add("--controls", action="store_true",
        help="train a third model, the control: it starts as the distilled student does and sees the labels alone; so "
        "the gain over the baseline is divided into what the start gives and what the loss gives")
    add("--equal-steps", action=argparse.BooleanOptionalAction, default=True,
        help="give baseline and control as many optimizer steps as the distilled student has, where these are more: "
        "unlabelled or altered texts make its epochs longer, and --layer-epochs gives it two stages (default: on)")
    add("--seeds", type=integer(1, 100), default=1, metavar="N",
        help="train the students N times, with seeds --seed, --seed + 1, …: mean ± std, and whether the difference is "
        "more than chance (default: 1)")
    add("--folds", type=integer(2, 100), metavar="K",
        help="for data without a test set of their own: divide all examples into K folds, repeat the whole experiment, "
        "the teacher too, for each fold, which is its test set, and pool the figures: mean ± std, and whether the "
        "difference is more than chance; fold by fold --seed grows by 1 (default: none)")
# fmt: on


def defaults_text(columns=DEFAULT_COLUMNS, headings=None) -> str:
    """The table of per-corpus defaults, for the end of --help; `headings`, where the flags have other names."""
    rows = [("", *(headings or columns)), *((name, *(default(one, name) for one in columns)) for name in DEFAULTS)]
    return "\n".join(["defaults per corpus:", *("  " + "".join(f"{value:>15}" for value in row) for row in rows)])
