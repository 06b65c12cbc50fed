"""A classifier with its tokenizer, from a model folder or the hub, and back."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from minikd.checkpoints.adapters import base_model, load_merged
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.label_order import match_labels
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.classifier import check_tokenizer
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer


def load_classifier(
    name_or_dir: str | Path,
    labels: tuple[str, ...] | None = None,
    label_order: Sequence[str] | None = None,
    on_validation: Callable[[Classifier, Tokenizer], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Classifier, Tokenizer]:
    """The model, quantised or not, and the tokenizer of a folder in Hugging Face's layout, of a folder of LoRA
    adapters, or of a name on the hub.

    With `labels`, a bare encoder gets a new head, and the outputs of a head that is there are put into this order
    (`match_labels`, which explains the other two). Raises MinikdError.
    """
    base = base_model(name_or_dir)  # of a folder of LoRA adapters
    model = load_merged(name_or_dir) if base else from_pretrained(name_or_dir, labels)
    tokenizer = load_tokenizer(model_folder(base or name_or_dir))
    check_tokenizer(tokenizer, model.config, str(name_or_dir), max_length=0)
    if labels is not None:
        answers = on_validation and (lambda: on_validation(model, tokenizer))
        match_labels(model, name_or_dir, tuple(labels), label_order, answers)
    return model, tokenizer


def save_classifier(model: Classifier, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes both so that transformers' AutoModelForSequenceClassification and AutoTokenizer load them."""
    save_pretrained(model, folder)
    save_tokenizer(tokenizer, folder, model.config.model_type, model.config.max_position_embeddings)
