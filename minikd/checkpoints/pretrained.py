"""Hugging Face's checkpoints to our classifier and back.

The table below is nearly the whole difference in naming; old names and missing prefixes are in `load_tensors`.
transformers' modeling_bert.py and modeling_distilbert.py are the authority for the second and third column.
"""

import re
from pathlib import Path

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from minikd.checkpoints.config_json import config_to_json, read_config
from minikd.checkpoints.hub import model_folder, read_tensors
from minikd.checkpoints.reading import reading
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.files import atomic_write, write_json
from minikd.model import Classifier
from minikd.techniques.quantize import QUANTIZED, new_model

# One line a module: our name, BERT's, DistilBERT's; in a state_dict they begin with encoder., bert. and distilbert.
# "*" is the layer's number; qkv[0], [1] and [2] are the thirds of our fused query-key-value matrix.
ENCODER = """
embeddings.word_embeddings          embeddings.word_embeddings                  embeddings.word_embeddings
embeddings.position_embeddings      embeddings.position_embeddings              embeddings.position_embeddings
embeddings.token_type_embeddings    embeddings.token_type_embeddings            -
embeddings.LayerNorm                embeddings.LayerNorm                        embeddings.LayerNorm
layers.*.attention.qkv[0]           encoder.layer.*.attention.self.query        transformer.layer.*.attention.q_lin
layers.*.attention.qkv[1]           encoder.layer.*.attention.self.key          transformer.layer.*.attention.k_lin
layers.*.attention.qkv[2]           encoder.layer.*.attention.self.value        transformer.layer.*.attention.v_lin
layers.*.attention.output           encoder.layer.*.attention.output.dense      transformer.layer.*.attention.out_lin
layers.*.attention_norm             encoder.layer.*.attention.output.LayerNorm  transformer.layer.*.sa_layer_norm
layers.*.feed_forward.intermediate  encoder.layer.*.intermediate.dense          transformer.layer.*.ffn.lin1
layers.*.feed_forward.output        encoder.layer.*.output.dense                transformer.layer.*.ffn.lin2
layers.*.feed_forward_norm          encoder.layer.*.output.LayerNorm            transformer.layer.*.output_layer_norm
"""
POOLER = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}
# Tensors that a classifier does not need: the pre-training heads, and a buffer that old versions saved.
IGNORED = re.compile(
    r"cls\.predictions\.|cls\.seq_relationship\.|vocab_(transform|layer_norm|projector)\."
    r"|(.*\.)?embeddings\.position_ids$"
)
# The only tensors that a file may lack, and only where it has no classifier: a pre-trained encoder.
HEAD = ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # 8-bit ones mean nothing without their scales

NameMap = list[tuple[str, int | None, str]]  # our tensor, which third of it or None, Hugging Face's tensor


def name_map(config: EncoderConfig) -> NameMap:
    """The table, spelled out for every tensor of a model of this shape."""
    column = {"bert": 1, "distilbert": 2}[config.model_type]
    table = [line.split() for line in ENCODER.strip().splitlines()]
    modules = [(f"encoder.{line[0]}", f"{config.model_type}.{line[column]}") for line in table]
    modules += [("pooler", POOLER[config.model_type]), ("classifier", "classifier")]
    rows = []
    for ours, theirs in modules:
        if "token_type" in ours and not config.type_vocab_size:
            continue
        third = int(ours[-2]) if ours.endswith("]") else None
        ours = ours.removesuffix(f"[{third}]")
        for layer in range(config.num_hidden_layers) if "*" in ours else [0]:
            kinds = ("weight",) if ours.endswith("_embeddings") else ("weight", "bias")
            if config.quantization and QUANTIZED.search(ours):
                kinds += ("scale",)  # transformers has no such tensor: these files are for minikd alone
            own, other = ours.replace("*", str(layer)), theirs.replace("*", str(layer))
            rows += [(f"{own}.{kind}", third, f"{other}.{kind}") for kind in kinds]
    return rows


def to_hugging_face(model: Classifier) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names, on the CPU. Raises ValueError for a model with LoRA adapters,
    which have no place in that layout."""
    state, rows = model.state_dict(), name_map(model.config)
    unnamed = state.keys() - {ours for ours, _, _ in rows}
    if unnamed:
        raise ValueError(f"{min(unnamed)} has no name in Hugging Face's layout: merge_lora first")
    return {
        theirs: _part(state[ours].cpu(), third).clone(memory_format=torch.contiguous_format)
        for ours, third, theirs in rows
    }


def _part(tensor: Tensor, third: int | None) -> Tensor:
    """A view of one third of a fused tensor, or the tensor itself."""
    return tensor if third is None else tensor.chunk(3)[third]


def load_tensors(model: Classifier, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copies tensors under Hugging Face's names into `model`, all of them or none.

    Returns (our names of head tensors that the file lacks, names in the file that were ignored). Raises MinikdError
    that names the tensors where one is unknown, missing or of another shape.
    """
    name_in_file = {}  # by the name in our table
    for name in tensors:
        theirs = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if theirs.startswith(("embeddings.", "encoder.", "transformer.", "pooler.")):  # an encoder saved alone
            theirs = f"{model.config.model_type}.{theirs}"
        if theirs in name_in_file:
            raise MinikdError(f"tensors {name_in_file[theirs]} and {name} are the same tensor under two names")
        name_in_file[theirs] = name
    ignored = [name for name in name_in_file if IGNORED.match(name)]
    found = {theirs: tensors[name] for theirs, name in name_in_file.items() if theirs not in ignored}
    may_lack = () if "classifier.weight" in found else HEAD  # a trained head must be whole
    rows = [row for row in name_map(model.config) if row[2] in found or row[0] not in may_lack]
    check_tensors(model.state_dict(), found, rows)
    copy_tensors(model.state_dict(), found, rows)
    return [name for name in may_lack if name not in {ours for ours, _, _ in rows}], ignored


def check_tensors(state: dict[str, Tensor], tensors: dict[str, Tensor], rows: NameMap) -> None:
    """Raises MinikdError where `tensors` are not exactly those of the right-hand column of `rows`, in the shapes that
    `state` has for the left-hand one (`name_map`), and in numbers of the same kind."""
    names = [theirs for _, _, theirs in rows]
    unknown, missing = sorted(tensors.keys() - set(names)), [name for name in names if name not in tensors]
    for problem, wrong in (("does not know", unknown), ("misses", missing)):
        if wrong:
            listed = ", ".join(wrong[:5]) + (", …" if len(wrong) > 5 else "")
            raise MinikdError(f"the configuration {problem} {len(wrong)} tensor(s): {listed}")
    for ours, third, theirs in rows:
        found, wanted = tensors[theirs], _part(state[ours], third)
        if found.shape != wanted.shape:
            shapes = f"has shape {list(found.shape)}, but the configuration asks for {list(wanted.shape)}"
            raise MinikdError(f"tensor {theirs} {shapes}")
        if found.dtype != wanted.dtype and not {found.dtype, wanted.dtype} <= {*FLOATS}:
            raise MinikdError(f"tensor {theirs} holds {found.dtype}, but the configuration asks for {wanted.dtype}")


@torch.no_grad()
def copy_tensors(state: dict[str, Tensor], tensors: dict[str, Tensor], rows: NameMap) -> None:
    """Copies `tensors` that passed `check_tensors` into `state`."""
    for ours, third, theirs in rows:
        _part(state[ours], third).copy_(tensors[theirs])  # also turns fp16 files into fp32 parameters


def from_pretrained(name_or_dir, labels=None) -> Classifier:
    """A classifier, quantised or not, from a folder in Hugging Face's layout, or from a name on its hub.

    `labels`: those of a new head, where the file has none. A head in the file keeps its own labels and their order
    (label_order.py brings them into the data's). Prints one line that says what was loaded. Raises MinikdError that
    names the file and the field or tensor for everything that does not fit.
    """
    folder = model_folder(name_or_dir)
    path, tensors = read_tensors(folder)
    config = read_config(folder / "config.json")
    if config.num_hidden_layers > len(tensors):  # or names for all of them would fill the memory
        layers = f"num_hidden_layers is {config.num_hidden_layers:,}"
        raise MinikdError(f"{folder / 'config.json'}: {layers}, but {path.name} has {len(tensors):,} tensors")
    if labels is not None and "classifier.weight" not in tensors:
        config = config.with_labels(labels)
    elif len(config.labels) < 2:
        raise MinikdError(
            f"{folder / 'config.json'}: a classifier needs two or more different labels, not {list(config.labels)}"
        )
    # A twin without memory first: a config.json may claim any size, and the weights tell whether it is true.
    with reading(folder / "config.json", "asks for a model that cannot be made ({})"), torch.device("meta"):
        twin = new_model(config)
    with reading(path):
        load_tensors(twin, tensors)
        model = new_model(config)
        new, ignored = load_tensors(model, tensors)
    print(
        f"loaded {path}: {len(tensors) - len(ignored)} tensors"
        + (f", {len(ignored)} ignored (pre-training heads, position_ids)" if ignored else "")
        + (f"; new, untrained: {', '.join(new)}" if new else "")
    )
    return model


def save_pretrained(model: Classifier, folder) -> None:
    """Writes config.json and model.safetensors so that transformers' AutoModelForSequenceClassification loads them."""
    write_json(Path(folder) / "config.json", config_to_json(model.config))
    content = safetensors_torch.save(to_hugging_face(model), metadata={"format": "pt"})
    atomic_write(Path(folder) / "model.safetensors", content)
