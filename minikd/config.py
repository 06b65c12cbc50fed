"""The shape of an encoder, read from and written to the config.json of Hugging Face's BERT and DistilBERT.

Must agree with transformers' BertConfig and DistilBertConfig. The two families differ in the names of their fields
and in four points of behaviour, each of which is a field or a property here, so that `model.py` needs one encoder
only.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minikd.errors import MinikdError

# ours (BERT's names)            DistilBERT's names
DISTILBERT_NAMES = {
    "hidden_size":                  "dim",
    "num_hidden_layers":            "n_layers",
    "num_attention_heads":          "n_heads",
    "intermediate_size":            "hidden_dim",
    "hidden_dropout_prob":          "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout":           "seq_classif_dropout",
    "hidden_act":                   "activation",
}  # fmt: skip

DISTILBERT_CONSTANTS = {
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-12,
}  # fields of BERT that its config.json does not have

FORMATS = ("int8", "int4")  # of quantisation

# What would change the computation in a way that model.py does not implement: field -> the values that are fine.
IMPLEMENTED = {
    "hidden_act": ("gelu",),  # the exact, erf-based GELU; "gelu_new" and others are different functions
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "problem_type": ("single_label_classification", None),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Field names and defaults are BertConfig's; the defaults are those of bert-base-uncased."""

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
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # id2label in the file
    quantization: str | None = None  # "int8" or "int4" (quantize.py); quantization_config in the file

    def __post_init__(self):
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

    @classmethod
    def from_dict(cls, fields: dict) -> "EncoderConfig":
        """Reads the fields of a config.json. Fields that do not change a classifier's computation are ignored.

        Raises MinikdError naming the field for anything that minikd does not implement.
        """
        # Files from before 2020 may lack model_type; the field names tell the family.
        model_type = fields.get("model_type") or ("distilbert" if "dim" in fields else "bert")
        if isinstance(model_type, str) and fields.get("quantization_config"):
            model_type = model_type.removeprefix("minikd_")
        if model_type not in ("bert", "distilbert"):
            raise MinikdError(f"model_type {model_type!r} is not implemented: minikd reads bert and distilbert")
        names = DISTILBERT_NAMES if model_type == "distilbert" else {}
        for name, fine in IMPLEMENTED.items():
            value = fields.get(names.get(name, name), fine[0])
            if value not in fine:
                raise MinikdError(f"{names.get(name, name)} {value!r} is not implemented: minikd has {fine[0]!r} only")

        ours = {"model_type": model_type, "labels": _labels(fields), "quantization": _quantization(fields)}
        if model_type == "distilbert":
            ours |= {"num_hidden_layers": 6, "classifier_dropout": 0.2} | DISTILBERT_CONSTANTS
            fields = {name: value for name, value in fields.items() if name not in DISTILBERT_CONSTANTS}
        for name in cls.__dataclass_fields__:
            if name not in ("model_type", "labels", "quantization") and fields.get(names.get(name, name)) is not None:
                ours[name] = fields[names.get(name, name)]
        if "pad_token_id" in fields:
            ours["pad_token_id"] = fields["pad_token_id"]  # null means none; in other fields it means the default
        return cls(**ours)

    def to_dict(self) -> dict:
        """The config.json fields with which transformers builds the same classifier."""
        names = DISTILBERT_NAMES if self.model_type == "distilbert" else {}
        architecture = {"bert": "BertForSequenceClassification", "distilbert": "DistilBertForSequenceClassification"}
        fields = {"architectures": [architecture[self.model_type]], names.get("hidden_act", "hidden_act"): "gelu"}
        fields |= {names.get(name, name): value for name, value in asdict(self).items()}
        del fields["labels"], fields["quantization"]
        if self.quantization:
            fields["quantization_config"] = {"quant_method": "minikd", "format": self.quantization}
            # transformers passes over a method that it does not know, and would take whole numbers for weights
            fields["model_type"] = f"minikd_{self.model_type}"
        if self.model_type == "distilbert":
            fields = {name: value for name, value in fields.items() if name not in DISTILBERT_CONSTANTS}
            fields["seq_classif_dropout"] = self.head_dropout
        fields["id2label"] = {str(i): label for i, label in enumerate(self.labels)}
        fields["label2id"] = {label: i for i, label in enumerate(self.labels)}
        return fields

    @classmethod
    def from_file(cls, path) -> "EncoderConfig":
        """Reads a config.json. Raises MinikdError that names the file for a missing, broken or unsupported one."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise MinikdError(
                f"{path}: cannot be read ({error.strerror}); a model folder needs a config.json"
            ) from None
        except MinikdError as error:
            raise MinikdError(f"{path}: {error}") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise MinikdError(f"{path}: is not a model's config.json ({error})") from None

    def with_labels(self, labels) -> "EncoderConfig":
        return replace(self, labels=tuple(labels))


def same_shape(one: EncoderConfig, other: EncoderConfig) -> bool:
    """Whether the weights of one fit the other, labels and dropouts apart."""
    return all(getattr(one, name) == getattr(other, name) for name in (
        "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size",
    ))  # fmt: skip


def _labels(fields: dict) -> tuple[str, ...]:
    """id2label where the file has it, else generic names, as many as num_labels says (two by default)."""
    id2label = fields.get("id2label")
    if id2label:
        return tuple(str(id2label[i]) for i in sorted(id2label, key=int))
    return tuple(f"LABEL_{i}" for i in range(fields.get("num_labels") or fields.get("_num_labels") or 2))


def _quantization(fields: dict) -> str | None:
    """int8 or int4 where the file is of a model that minikd has quantised. Raises MinikdError for others' formats."""
    wanted = fields.get("quantization_config")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("quant_method") != "minikd" or wanted.get("format") not in FORMATS:
        raise MinikdError(f"quantization_config {wanted} is not implemented: minikd reads only what it has quantised")
    return wanted["format"]


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
        raise MinikdError(f"hidden size {hidden}: must be a multiple of {head_size}, the size of an attention head")
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
