"""The shape of an encoder, BERT's or DistilBERT's, and the settings of a training.

The families differ in the activation of the head, in a dropout after the attention, in the dropout before the
classifier, and in segment embeddings, which DistilBERT lacks. Each is a field or a property here, so that `model.py`
needs one encoder only. Their config.json is read and written in `minikd/checkpoints/config_json.py`.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from minikd.errors import MinikdError

DISTILBERT_CONSTANTS = {
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-12,
}  # DistilBERT's config.json lacks these fields of BERT

FORMATS = ("int8", "int4")  # of quantisation


@dataclass(frozen=True)
class EncoderConfig:
    """Names and defaults are those of Hugging Face's BertConfig, hence of bert-base-uncased; but for the last two."""

    model_type: str = "bert"  # or "distilbert": which family's head, dropouts and file layout
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # segments A and B; 0 where the model has none (DistilBERT)
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: the same as hidden_dropout_prob
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0  # the row of the embeddings that is not trained; None: all are
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # id2label in config.json
    quantization: str | None = None  # "int8" or "int4" (quantize.py); quantization_config in config.json

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            wanted = type(getattr(EncoderConfig, name))
            if name == "pad_token_id" and value is None:
                continue
            if wanted is int and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise MinikdError(f"config: {name} must be a whole number of at least 0, not {value!r}")
            if wanted is float and not (isinstance(value, (int, float)) and value >= 0):
                raise MinikdError(f"config: {name} must be a number of at least 0, not {value!r}")
            if (
                name.endswith(("_prob", "_dropout"))
                and value is not None
                and not (isinstance(value, (int, float)) and 0 <= value < 1)
            ):
                raise MinikdError(f"config: {name} must be a probability in [0, 1), not {value!r}")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) == 0:
                raise MinikdError(f"config: {name} must be at least 1")
        if self.quantization not in (None, *FORMATS):
            raise MinikdError(f"config: quantization must be one of {', '.join(FORMATS)}, not {self.quantization!r}")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise MinikdError(f"config: pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        if self.model_type == "distilbert" and any(getattr(self, n) != v for n, v in DISTILBERT_CONSTANTS.items()):
            raise MinikdError(f"config: a DistilBERT has {DISTILBERT_CONSTANTS}")
        if self.hidden_size % self.num_attention_heads:
            raise MinikdError(
                f"config: hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if not self.labels or len(set(self.labels)) < len(self.labels):  # a bare encoder's config may list one alone
            raise MinikdError(f"config: a classifier needs two or more different labels, not {list(self.labels)}")

    @property
    def head_activation(self) -> str:
        """BERT's pooler ends in tanh; DistilBERT's pre_classifier, the same matrix at the same place, in ReLU."""
        return "tanh" if self.model_type == "bert" else "relu"

    @property
    def attention_output_dropout(self) -> float:
        """BERT drops out after the attention's output projection; DistilBERT does not."""
        return self.hidden_dropout_prob if self.model_type == "bert" else 0.0

    @property
    def head_dropout(self) -> float:
        """The dropout between the pooled [CLS] vector and the classifier."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def with_labels(self, labels: Iterable[str]) -> "EncoderConfig":
        return replace(self, labels=tuple(labels))


def same_shape(one: EncoderConfig, other: EncoderConfig) -> bool:
    """Whether the weights of one fit the other, labels and dropouts apart."""
    return all(getattr(one, name) == getattr(other, name) for name in (
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size",
    ))  # fmt: skip


# Named shapes; the comment gives the parameters of the classifier with two labels.
BERT_BASE = EncoderConfig()  # 109,483,778: bert-base-uncased
BERT_6_LAYERS = EncoderConfig(num_hidden_layers=6)  # 66,956,546: half of BERT-base
BERT_SMALL = EncoderConfig(  # 28,764,674: google/bert_uncased_L-4_H-512_A-8
    num_hidden_layers=4, hidden_size=512, num_attention_heads=8, intermediate_size=2048
)
DISTILBERT = EncoderConfig(  # 66,955,010: distilbert-base-uncased
    model_type="distilbert", num_hidden_layers=6, type_vocab_size=0, classifier_dropout=0.2
)


def bert_like(hidden: int, layers: int, like: EncoderConfig) -> EncoderConfig:
    """A shape of BERT's proportions: heads of 64 (32 in narrow models) and a feed-forward network four times the width.

    Vocabulary, positions and labels are those of `like`. Raises MinikdError for a width that heads do not fill.
    """
    head_size = 64 if hidden % 64 == 0 and hidden >= 512 else 32
    if hidden % head_size:
        raise MinikdError(f"`hidden` {hidden}: must be a multiple of {head_size}, the size of an attention head")
    return replace(
        BERT_BASE,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // head_size,
        intermediate_size=4 * hidden,
        vocab_size=like.vocab_size,
        max_position_embeddings=like.max_position_embeddings,
        pad_token_id=like.pad_token_id,
        labels=like.labels,
    )


def setting(default: Any, help: str, least: float = 0, most: float = math.inf, above: float | None = None) -> Any:
    """A field of a dataclass of settings, such as `TrainConfig`: its default, its help text, and, of a number, its
    range, [least, most] or (above, most].

    The scripts make their flags from these fields.
    """
    return field(default=default, metadata={"help": help, "least": least, "most": most, "above": above})


def check_settings(settings: Any) -> None:
    """Raises MinikdError where a number in a dataclass of settings is out of its range."""
    for one in fields(settings):
        value, allowed = getattr(settings, one.name), one.metadata
        if one.type is str:
            continue
        kinds = (int,) if one.type is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        fits = fits and allowed["least"] <= value <= allowed["most"]
        if not fits or (allowed["above"] is not None and value <= allowed["above"]):
            wanted = "a whole number" if one.type is int else "a number"
            above = allowed["above"]
            wanted += f" of at least {allowed['least']:g}" if above is None else f" above {above:g}"
            wanted += f" and at most {allowed['most']:g}" if allowed["most"] < math.inf else ""
            raise MinikdError(f"`{one.name}` {value!r}: must be {wanted}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises MinikdError for a value out of its range."""

    epochs: int = setting(3, help="passes over the training set", least=1)
    max_steps: int = setting(0, help="optimizer steps in all, whatever `epochs` says; 0: as many as the epochs have")
    batch_size: int = setting(32, help="examples per forward pass", least=1)
    lr: float = setting(2e-5, help="peak learning rate", above=0)
    weight_decay: float = setting(0.01, help="AdamW's weight decay")
    warmup_ratio: float = setting(0.1, help="share of all steps in which the learning rate rises to its peak", most=1)
    grad_accum: int = setting(1, help="forward passes per optimizer step", least=1)
    clip: float = setting(1.0, help="largest norm of the gradient; 0: no clipping")
    label_smoothing: float = setting(0.0, help="share of a label's weight that is spread over all labels", most=1)
    patience: int = setting(
        0, help="stop after N epochs that are no better on validation, by accuracy and at a tie by loss; 0: never"
    )
    seed: int = setting(42, help="initial weights, order of batches, dropout; the split never changes")

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps in which so many examples are read once."""
        return math.ceil(math.ceil(examples / self.batch_size) / self.grad_accum)

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole training."""
        return self.max_steps or self.epochs * self.steps_per_epoch(examples)

    def total_epochs(self, examples: int) -> int:
        """Epochs of the whole training; with `max_steps`, the last one may end early."""
        return math.ceil(self.total_steps(examples) / self.steps_per_epoch(examples))

    def __post_init__(self) -> None:
        check_settings(self)
