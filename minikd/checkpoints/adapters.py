"""LoRA adapters on disk, in the layout of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

peft's PeftModel must read what is written here and the other way round; tests/techniques/test_lora.py checks it.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors import torch as safetensors_torch

from minikd.checkpoints.hub import is_fine_tuned, read_weights
from minikd.checkpoints.pretrained import HEAD, NameMap, check_tensors, copy_tensors, from_pretrained, name_map
from minikd.checkpoints.reading import read_json, reading
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.files import atomic_write, parse_json, write_json
from minikd.model import Classifier
from minikd.techniques.lora import TARGETS, adapters, add_lora, merge_lora

# The values that the fields of an adapter_config.json may have. Other fields must be empty, for what they turn on
# (DoRA, another rank for some layers, …) changes the computation in a way that is not implemented here.
ANY_VALUE = {
    "r", "lora_alpha", "lora_dropout", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying",
    "exclude_modules", "inference_mode", "layers_pattern", "megatron_core", "modules_to_save", "peft_version",
    "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
ONE_OF = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian")}

# The shortest endings of Hugging Face's names that mean the matrices of a target and no others, in BERT and DistilBERT.
# BERT's feed-forward output needs one a layer (*), for output.dense is the attention's as well.
TARGET_MODULES = {
    "query":            ("query", "q_lin"),
    "key":              ("key", "k_lin"),
    "value":            ("value", "v_lin"),
    "attention_output": ("attention.output.dense", "out_lin"),
    "intermediate":     ("intermediate.dense", "lin1"),
    "ffn_output":       ("*.output.dense", "lin2"),
}  # fmt: skip


def save_adapters(model: Classifier, folder, base_model_name: str | None) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which peft's PeftModel and `load_adapters` read.

    They hold the adapters and the whole head. `base_model_name`: the checkpoint on which they were trained, a folder or
    a name on the hub. `folder` must not be a model's: transformers would apply the adapters on top of those weights.
    Raises ValueError for a model without adapters.
    """
    present, folder = adapters(model), Path(folder)
    if not present:
        raise ValueError("the model has no adapters: add_lora first")
    adapter = next(iter(present.values()))
    targets = list(dict.fromkeys(target for _, target in present))
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base_model_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout.p,
        "target_modules": target_modules(model.config, targets),
        "modules_to_save": ["pooler" if model.config.model_type == "bert" else "pre_classifier", "classifier"],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    rows, state = _adapter_map(model.config, targets) + _head_map(model.config), model.state_dict()
    tensors = {theirs: state[ours].cpu().contiguous() for ours, _, theirs in rows}
    metadata = {"format": "pt", "labels": json.dumps(model.config.labels)}  # PEFT has no field for them
    write_json(folder / "adapter_config.json", config)
    atomic_write(folder / "adapter_model.safetensors", safetensors_torch.save(tensors, metadata=metadata))


def load_adapters(model: Classifier, folder) -> None:
    """`add_lora` with the settings and tensors of a folder in PEFT's layout: all of them, or the model is unchanged.

    `model` must be the base on which they were trained. A pooler or classifier that the folder lacks stays as it is.
    Prints one line that says what was loaded. Raises MinikdError that names the file and the field or tensor.
    """
    settings, path = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    fields, tensors, config = _read_config(settings), read_weights(path), model.config
    targets = [target for target in TARGETS if any(row[2] in tensors for row in _adapter_map(config, [target]))]
    targets = targets or list(TARGETS)  # of a file without any: the error names what it holds instead
    head = [row for row in _head_map(config) if row[2] in tensors]
    rows = _adapter_map(config, targets) + head
    arguments = fields["r"], fields["lora_alpha"], fields.get("lora_dropout", 0.0), targets
    with torch.device("meta"):  # a twin without memory tells the shapes before the model is touched
        twin = Classifier(config)
    with reading(settings), torch.device("meta"):
        add_lora(twin, *arguments)
    with reading(path):
        check_tensors(twin.state_dict(), tensors, rows)
    add_lora(model, *arguments)
    copy_tensors(model.state_dict(), tensors, rows)
    kept = [row[0] for row in _head_map(config) if row not in head]
    print(
        f"loaded {path}: rank {fields['r']} on {', '.join(targets)}"
        + (f"; not in it and left as they were: {', '.join(kept)}" if kept else "")
    )


def base_model(name_or_dir) -> str | None:
    """The checkpoint that a folder of adapters was trained on, as the folder names it; None for other folders and
    names. Raises MinikdError for adapters that name none."""
    path = Path(name_or_dir) / "adapter_config.json"
    if not path.is_file():
        return None
    base = _read_config(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise MinikdError(f"{path}: does not name its base model; add base_model_name_or_path, a folder or a name")
    return base


def load_merged(folder) -> Classifier:
    """The base model of a folder of adapters, with them merged in.

    Its labels are those that `save_adapters` recorded. PEFT records none: then they are those of a fine-tuned base, or
    else LABEL_0, LABEL_1, …. Raises MinikdError as `from_pretrained` and `load_adapters` do, and where neither base nor
    adapters have a classifier.
    """
    path, base = Path(folder) / "adapter_model.safetensors", base_model(folder)
    outputs = len(read_weights(path).get("base_model.model.classifier.bias", ()))
    with reading(path, "is damaged ({}); fetch it again"), safe_open(path, "pt") as file:
        labels = parse_json((file.metadata() or {}).get("labels", "[]"))
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise MinikdError("its labels are no list of names")
    if not outputs and not is_fine_tuned(base):
        raise MinikdError(f"{path}: has no classifier, and neither has its base model {base}; fine-tune it first")
    model = from_pretrained(base, labels=labels or [f"LABEL_{i}" for i in range(outputs)])
    if model.config.quantization:
        raise MinikdError(
            f"{base}: is quantised ({model.config.quantization}); adapters are for the model it was made of"
        )
    if labels and len(labels) != model.classifier.out_features:
        raise MinikdError(f"{path}: names {len(labels)} labels for the {model.classifier.out_features} of {base}")
    load_adapters(model, folder)
    merge_lora(model)
    if labels:
        model.config = model.config.with_labels(labels)
    return model


def _read_config(path: Path) -> dict:
    """The fields of an adapter_config.json. Raises MinikdError that names the file and the field."""
    fields = read_json(path, "is not LoRA's adapter_config.json ({})")
    with reading(path):
        for name in ("peft_type", "r", "lora_alpha"):
            if name not in fields:
                raise MinikdError(f"is not LoRA's adapter_config.json ({name} is missing)")
        for name, value in fields.items():
            if value not in ONE_OF[name] if name in ONE_OF else value and name not in ANY_VALUE:
                raise MinikdError(f"{name} {value!r} is not implemented: minikd has plain LoRA only")
        for name, kinds in (("r", (int,)), ("lora_alpha", (int, float)), ("lora_dropout", (int, float))):
            if type(fields.get(name, 0)) not in kinds:  # a bool is an int to isinstance
                raise MinikdError(f"{name} must be a number, not {fields[name]!r}")
    return fields


def _adapter_map(config: EncoderConfig, targets) -> NameMap:
    """As `name_map`, for the adapters of these targets: (our tensor, None, PEFT's)."""
    return [
        (f"{ours.removesuffix('weight')}adapters.{target}.{matrix}.weight", None,
         f"base_model.model.{theirs.removesuffix('weight')}{matrix}.weight")
        for target in targets
        for ours, third, theirs in name_map(config)
        if third == TARGETS[target][1] and ours.endswith(f".{TARGETS[target][0]}.weight")
        for matrix in ("lora_A", "lora_B")
    ]  # fmt: skip


def _head_map(config: EncoderConfig) -> NameMap:
    """As `name_map`, for the head, which PEFT saves whole."""
    return [(ours, None, f"base_model.model.{theirs}") for ours, _, theirs in name_map(config) if ours in HEAD]


def target_modules(config: EncoderConfig, targets) -> list[str]:
    """PEFT's `target_modules` for these targets: endings of Hugging Face's names."""
    endings = [TARGET_MODULES[target][config.model_type == "distilbert"] for target in targets]
    layers = range(config.num_hidden_layers)
    return [e.replace("*", str(layer)) for e in endings for layer in (layers if "*" in e else [0])]
