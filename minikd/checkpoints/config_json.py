"""The config.json of Hugging Face's BERT and DistilBERT, read and written.

Must agree with transformers' BertConfig and DistilBertConfig, whose fields have different names.
"""

from dataclasses import asdict
from pathlib import Path

from minikd.checkpoints.reading import read_json, reading
from minikd.config import DISTILBERT_CONSTANTS, FORMATS, EncoderConfig
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

# What would change the computation in a way that model.py does not implement: field -> the values that are fine.
IMPLEMENTED = {
    "hidden_act": ("gelu",),  # the exact, erf-based GELU; "gelu_new" and others are different functions
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "problem_type": ("single_label_classification", None),
}
MOST_LABELS = 100_000  # without names: a number in a file must not fill the memory
NO_CONFIG = "is not a model's config.json ({})"


def config_from_json(fields: dict) -> EncoderConfig:
    """The shape that the fields of a config.json describe; those that do not change a classifier's logits are ignored.

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
        ours |= {"num_hidden_layers": 6, "classifier_dropout": 0.2}
    for name in EncoderConfig.__dataclass_fields__:
        if name not in ("model_type", "labels", "quantization") and fields.get(names.get(name, name)) is not None:
            ours[name] = fields[names.get(name, name)]
    if "pad_token_id" in fields:
        ours["pad_token_id"] = fields["pad_token_id"]  # null means none; in other fields it means the default
    return EncoderConfig(**ours | (DISTILBERT_CONSTANTS if model_type == "distilbert" else {}))


def config_to_json(config: EncoderConfig) -> dict:
    """The config.json fields with which transformers builds the same classifier."""
    names = DISTILBERT_NAMES if config.model_type == "distilbert" else {}
    architecture = {"bert": "BertForSequenceClassification", "distilbert": "DistilBertForSequenceClassification"}
    fields = {"architectures": [architecture[config.model_type]], names.get("hidden_act", "hidden_act"): "gelu"}
    fields |= {names.get(name, name): value for name, value in asdict(config).items()}
    del fields["labels"], fields["quantization"]
    if config.quantization:
        fields["quantization_config"] = {"quant_method": "minikd", "format": config.quantization}
        # transformers ignores a method that it does not know, and would take whole numbers for weights
        fields["model_type"] = f"minikd_{config.model_type}"
    if config.model_type == "distilbert":
        fields = {name: value for name, value in fields.items() if name not in DISTILBERT_CONSTANTS}
        fields["seq_classif_dropout"] = config.head_dropout
    fields["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
    fields["label2id"] = {label: i for i, label in enumerate(config.labels)}
    return fields


def read_config(path: Path) -> EncoderConfig:
    """The shape in a config.json. Raises MinikdError that names the file for a missing, broken or unsupported one."""
    fields = read_json(path, NO_CONFIG)
    with reading(path, NO_CONFIG):
        return config_from_json(fields)


def _labels(fields: dict) -> tuple[str, ...]:
    """id2label where the file has it, else generic names, as many as num_labels says (two by default)."""
    id2label = fields.get("id2label")
    if id2label:
        if not isinstance(id2label, dict) or not all(isinstance(name, str | int | float) for name in id2label.values()):
            raise MinikdError("id2label must be an object of id: name")
        return tuple(str(id2label[i]) for i in sorted(id2label, key=int))
    count = fields.get("num_labels") or fields.get("_num_labels") or 2
    if not isinstance(count, int) or not 0 < count <= MOST_LABELS:
        raise MinikdError(f"num_labels must be a whole number from 1 to {MOST_LABELS:,}, not {count!r}")
    return tuple(f"LABEL_{i}" for i in range(count))


def _quantization(fields: dict) -> str | None:
    """int8 or int4 where the file is of a model that minikd has quantised. Raises MinikdError for others' formats."""
    wanted = fields.get("quantization_config")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("quant_method") != "minikd" or wanted.get("format") not in FORMATS:
        raise MinikdError(f"quantization_config {wanted} is not implemented: minikd reads only what it has quantised")
    return wanted["format"]
