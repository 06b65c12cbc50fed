"""LoRA adapters on disk, in the layout of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

peft's PeftModel must read what is written here and the other way round; tests/techniques/test_lora.py checks it.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch

from minikd.checkpoints.hub import is_fine_tuned
from minikd.checkpoints.pretrained import HEAD, from_pretrained, name_map
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.files import atomic_write, write_json
from minikd.model import Classifier
from minikd.techniques.lora import TARGETS, adapters, add_lora, merge_lora

# adapter_config.json: the fields that are fine with any value, or with these; all others must be empty, for what they
# turn on (DoRA, another rank for some layers, …) changes the computation in a way that is not implemented here.
ANY_VALUE = {
    "r", "lora_alpha", "lora_dropout", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying",
    "exclude_modules", "inference_mode", "layers_pattern", "megatron_core", "modules_to_save", "peft_version",
    "qalora_group_size", "revision", "target_modules", "task_type",
}  # fmt: skip
THESE_VALUES = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


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
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    names = _adapter_names(model.config, targets) | _head_names(model.config)
    tensors = {theirs: state[ours] for theirs, ours in names.items()}
    metadata = {"format": "pt", "labels": json.dumps(model.config.labels)}  # PEFT has no field for them
    write_json(folder / "adapter_config.json", config)
    atomic_write(folder / "adapter_model.safetensors", safetensors_torch.save(tensors, metadata=metadata))


def load_adapters(model: Classifier, folder) -> None:
    """`add_lora` with the settings and tensors of a folder in PEFT's layout: all of them, or the model is unchanged.

    `model` must be the base on which they were trained. A pooler or classifier that the folder lacks stays as it is.
    Prints one line that says what was loaded. Raises MinikdError that names the file and the field or tensor.
    """
    path = Path(folder) / "adapter_model.safetensors"
    rank, alpha, dropout = _read_settings(Path(folder) / "adapter_config.json")
    try:
        tensors = safetensors_torch.load_file(path)
    except OSError:
        raise MinikdError(f"{path}: cannot be read; a folder of adapters needs this file") from None
    except SafetensorError as error:
        raise MinikdError(f"{path}: is incomplete or damaged ({error}); fetch it again") from None

    targets = [target for target in TARGETS if tensors.keys() & _adapter_names(model.config, [target]).keys()]
    head = {theirs: ours for theirs, ours in _head_names(model.config).items() if theirs in tensors}
    names = _adapter_names(model.config, targets) | head
    unknown, missing = sorted(tensors.keys() - names.keys()), sorted(names.keys() - tensors.keys())
    for problem, wrong in (("holds tensors that this model has no place for", unknown), ("lacks tensors", missing)):
        if wrong:
            raise MinikdError(f"{path}: {problem}: {', '.join(wrong[:3])}" + (", …" if len(wrong) > 3 else ""))
    try:
        with torch.device("meta"):  # a twin without memory tells the shapes before the model is touched
            twin = Classifier(model.config)
            add_lora(twin, rank, alpha, dropout, targets)
    except MinikdError as error:
        raise MinikdError(f"{path}: {error}") from None
    shapes = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    for theirs, ours in names.items():
        if tensors[theirs].shape != shapes[ours]:
            found, wanted = list(tensors[theirs].shape), list(shapes[ours])
            raise MinikdError(f"{path}: tensor {theirs} has shape {found}, but rank and model ask for {wanted}")

    add_lora(model, rank, alpha, dropout, targets)
    state = model.state_dict()
    with torch.no_grad():
        for theirs, ours in names.items():
            state[ours].copy_(tensors[theirs])
    kept = [ours for theirs, ours in _head_names(model.config).items() if theirs not in head]
    print(
        f"loaded {path}: rank {rank} on {', '.join(targets)}"
        + (f"; not in it and left as they were: {', '.join(kept)}" if kept else "")
    )


def base_model(name_or_dir) -> str | None:
    """The checkpoint that a folder of adapters was trained on, as the folder names it; None for other folders and
    names. Raises MinikdError for adapters that name none."""
    path = Path(name_or_dir) / "adapter_config.json"
    if not path.is_file():
        return None
    _read_settings(path)
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise MinikdError(f"{path}: does not name its base model; add base_model_name_or_path, a folder or a name")
    return base


def load_adapted(folder) -> Classifier:
    """The base model of a folder of adapters, with them merged in.

    Its labels are those that `save_adapters` recorded. PEFT records none: then they are those of a fine-tuned base, or
    else LABEL_0, LABEL_1, …. Raises MinikdError as `from_pretrained` and `load_adapters` do, and where neither base nor
    adapters have a classifier.
    """
    path, base = Path(folder) / "adapter_model.safetensors", base_model(folder)
    try:
        with safe_open(path, "pt") as file:
            bias, labels = "base_model.model.classifier.bias", json.loads((file.metadata() or {}).get("labels", "[]"))
            outputs = len(file.get_tensor(bias)) if bias in file.keys() else 0
    except (OSError, SafetensorError, ValueError):
        raise MinikdError(f"{path}: is missing or damaged; fetch it again") from None
    if not outputs and not is_fine_tuned(base):
        raise MinikdError(f"{path}: has no classifier, and neither has its base model {base}; fine-tune it first")
    model = from_pretrained(base, labels=labels or [f"LABEL_{i}" for i in range(outputs)])
    load_adapters(model, folder)
    merge_lora(model)
    if labels:
        model.config = model.config.with_labels(labels)
    return model


def _read_settings(path: Path) -> tuple[int, float, float]:
    """(rank, alpha, dropout) of an adapter_config.json. Raises MinikdError that names the file and the field."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror}); a folder of adapters needs this file") from None
    except ValueError as error:
        raise MinikdError(f"{path}: is not JSON ({error})") from None
    if not isinstance(fields, dict) or not {"peft_type", "r", "lora_alpha"} <= fields.keys():
        raise MinikdError(f"{path}: is not LoRA's adapter_config.json (it lacks some of peft_type, r, lora_alpha)")
    for name, value in fields.items():
        if value not in THESE_VALUES[name] if name in THESE_VALUES else value and name not in ANY_VALUE:
            raise MinikdError(f"{path}: {name} {value!r} is not implemented: minikd has plain LoRA only")
    rank, alpha, dropout = fields["r"], fields["lora_alpha"], fields.get("lora_dropout", 0.0)
    for name, value in (("r", rank), ("lora_alpha", alpha), ("lora_dropout", dropout)):
        if type(value) not in ((int,) if name == "r" else (int, float)):  # a bool is an int to isinstance
            raise MinikdError(f"{path}: {name} must be a number, not {value!r}")
    return rank, alpha, dropout


def _hugging_face_paths(config: EncoderConfig, target: str) -> dict[str, str]:
    """A target's matrix in every layer: Hugging Face's name -> ours, both without ".weight"."""
    name, third = TARGETS[target]
    rows = [row for row in name_map(config) if row[0].endswith(f".{name}.weight") and row[1] == third]
    return {theirs.removesuffix(".weight"): ours.removesuffix(".weight") for ours, _, theirs in rows}


def _adapter_names(config: EncoderConfig, targets) -> dict[str, str]:
    """PEFT's name of every tensor of the adapters -> the name in our state_dict."""
    return {
        f"base_model.model.{theirs}.{matrix}.weight": f"{ours}.adapters.{target}.{matrix}.weight"
        for target in targets
        for theirs, ours in _hugging_face_paths(config, target).items()
        for matrix in ("lora_A", "lora_B")
    }


def _head_names(config: EncoderConfig) -> dict[str, str]:
    """PEFT's name of every tensor of the head, which it saves whole -> ours."""
    return {f"base_model.model.{theirs}": ours for ours, _, theirs in name_map(config) if ours in HEAD}


def target_modules(config: EncoderConfig, targets) -> list[str]:
    """The shortest endings of Hugging Face's names that mean these projections and nothing else: query, q_lin, ….

    BERT's feed-forward output needs one a layer, 0.output.dense, because output.dense is the attention's as well.
    """
    everything = [theirs.removesuffix(".weight") for _, _, theirs in name_map(config)]
    found = []
    for target in targets:
        own = _hugging_face_paths(config, target)
        for path in own:
            parts = path.split(".")
            endings = [".".join(parts[-count:]) for count in range(1, len(parts))]
            found.append(next(e for e in endings if all(n in own for n in everything if f".{n}".endswith(f".{e}"))))
    return list(dict.fromkeys(found))
