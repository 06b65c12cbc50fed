"""Hugging Face's model folders to and from our classifier, and a student cut from a teacher's layers.

A folder holds config.json and model.safetensors (or, from older days, pytorch_model.bin). The tables below are the
whole difference in naming. transformers' modeling_bert.py and modeling_distilbert.py are the authority for the
right-hand column.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from minikd.config import EncoderConfig
from minikd.files import UserError, atomic_write, write_json
from minikd.model import Classifier

# One line a module: our name, Hugging Face's name. "*" is the layer's number. qkv[0], [1] and [2] are the thirds of our
# fused query-key-value matrix.
BERT = """
encoder.embeddings.word_embeddings        bert.embeddings.word_embeddings
encoder.embeddings.position_embeddings    bert.embeddings.position_embeddings
encoder.embeddings.token_type_embeddings  bert.embeddings.token_type_embeddings
encoder.embeddings.LayerNorm              bert.embeddings.LayerNorm
encoder.layers.*.attention.qkv[0]         bert.encoder.layer.*.attention.self.query
encoder.layers.*.attention.qkv[1]         bert.encoder.layer.*.attention.self.key
encoder.layers.*.attention.qkv[2]         bert.encoder.layer.*.attention.self.value
encoder.layers.*.attention.output         bert.encoder.layer.*.attention.output.dense
encoder.layers.*.attention_norm           bert.encoder.layer.*.attention.output.LayerNorm
encoder.layers.*.feed_forward.intermediate  bert.encoder.layer.*.intermediate.dense
encoder.layers.*.feed_forward.output      bert.encoder.layer.*.output.dense
encoder.layers.*.feed_forward_norm        bert.encoder.layer.*.output.LayerNorm
pooler                                    bert.pooler.dense
classifier                                classifier
"""

DISTILBERT = """
encoder.embeddings.word_embeddings        distilbert.embeddings.word_embeddings
encoder.embeddings.position_embeddings    distilbert.embeddings.position_embeddings
encoder.embeddings.LayerNorm              distilbert.embeddings.LayerNorm
encoder.layers.*.attention.qkv[0]         distilbert.transformer.layer.*.attention.q_lin
encoder.layers.*.attention.qkv[1]         distilbert.transformer.layer.*.attention.k_lin
encoder.layers.*.attention.qkv[2]         distilbert.transformer.layer.*.attention.v_lin
encoder.layers.*.attention.output         distilbert.transformer.layer.*.attention.out_lin
encoder.layers.*.attention_norm           distilbert.transformer.layer.*.sa_layer_norm
encoder.layers.*.feed_forward.intermediate  distilbert.transformer.layer.*.ffn.lin1
encoder.layers.*.feed_forward.output      distilbert.transformer.layer.*.ffn.lin2
encoder.layers.*.feed_forward_norm        distilbert.transformer.layer.*.output_layer_norm
pooler                                    pre_classifier
classifier                                classifier
"""

# Tensors that a classifier does not need: the pre-training heads, and a buffer that old versions saved.
IGNORED = re.compile(
    r"cls\.predictions\.|cls\.seq_relationship\.|vocab_(transform|layer_norm|projector)\."
    r"|(.*\.)?embeddings\.position_ids$"
)
# The only tensors that a file may lack, and only where it has no classifier: a pre-trained encoder.
HEAD = ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias")


def name_map(config: EncoderConfig) -> list[tuple[str, int | None, str]]:
    """The table, spelled out: (our tensor, third of it or None, their tensor) for every tensor of this shape."""
    rows = []
    for line in (BERT if config.model_type == "bert" else DISTILBERT).strip().splitlines():
        ours, theirs = line.split()
        if "token_type" in ours and not config.type_vocab_size:
            continue
        third = int(ours[-2]) if ours.endswith("]") else None
        ours = ours.removesuffix(f"[{third}]")
        for layer in range(config.num_hidden_layers) if "*" in ours else [0]:
            for kind in ("weight",) if ours.endswith("_embeddings") else ("weight", "bias"):
                rows.append(
                    (f"{ours}.{kind}".replace("*", str(layer)), third, f"{theirs}.{kind}".replace("*", str(layer)))
                )
    return rows


def to_hugging_face(model: Classifier) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names, on the CPU."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = {}
    for ours, third, theirs in name_map(model.config):
        tensors[theirs] = _part(state[ours], third).clone(memory_format=torch.contiguous_format)
    return tensors


def _part(tensor: Tensor, third: int | None) -> Tensor:
    """A view of one third of a fused tensor, or the tensor itself."""
    return tensor if third is None else tensor.chunk(3)[third]


def load_tensors(model: Classifier, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copies tensors under Hugging Face's names into `model`, all of them or none.

    Returns (our names of head tensors that the file lacks, names in the file that were ignored). Raises UserError that
    names the tensors where one is unknown, missing or of another shape.
    """
    prefix = f"{model.config.model_type}."
    rename = {}  # the name in our table -> the name in the file
    for name in tensors:
        known = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if known.startswith(("embeddings.", "encoder.", "transformer.", "pooler.")):  # an encoder saved alone
            known = prefix + known
        if known in rename:
            raise UserError(f"tensors {rename[known]} and {name} are the same tensor under two names")
        rename[known] = name
    ignored = [name for name in rename if IGNORED.match(name)]
    wanted = name_map(model.config)
    unknown = sorted(rename.keys() - {theirs for _, _, theirs in wanted} - set(ignored))
    may_lack = () if "classifier.weight" in rename else HEAD  # a trained head must be whole
    missing = [theirs for ours, _, theirs in wanted if theirs not in rename and ours not in may_lack]
    for problem, names in (("does not know", unknown), ("misses", missing)):
        if names:
            raise UserError(
                f"the configuration {problem} {len(names)} tensor(s): {', '.join(names[:5])}"
                + (", …" if len(names) > 5 else "")
            )

    state, new = model.state_dict(), []
    for ours, third, theirs in wanted:
        if theirs not in rename:
            new.append(ours)
            continue
        target = _part(state[ours], third)
        if tensors[rename[theirs]].shape != target.shape:
            raise UserError(
                f"tensor {rename[theirs]} has shape {list(tensors[rename[theirs]].shape)}, "
                f"but config.json asks for {list(target.shape)}"
            )
    with torch.no_grad():
        for ours, third, theirs in wanted:
            if ours not in new:
                _part(state[ours], third).copy_(
                    tensors[rename[theirs]]
                )  # copy_ also turns fp16 files into fp32 parameters
    return new, ignored


def from_pretrained(name_or_dir, labels=None) -> Classifier:
    """A classifier from a folder in Hugging Face's layout, or from a name on its hub.

    `labels`: the data's label names. A head in the file is matched to them by name (its rows are put in the data's
    order); a missing head is made new for them. Without `labels`, the file's own are kept. Prints one line that says
    what was loaded. Raises UserError that names the file and the field or tensor for everything that does not fit.
    """
    folder = model_folder(name_or_dir)
    path, tensors = read_tensors(folder)
    config = EncoderConfig.from_file(folder / "config.json")
    has_head = "classifier.weight" in tensors
    if labels is not None and not has_head:
        config = config.with_labels(labels)
    model = Classifier(config)
    try:
        new, ignored = load_tensors(model, tensors)
        if labels is not None and has_head:
            align_labels(model, labels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    print(
        f"loaded {path}: {len(tensors) - len(ignored)} tensors"
        + (f", {len(ignored)} ignored (pre-training heads, position_ids)" if ignored else "")
        + (f"; new, untrained: {', '.join(new)}" if new else "")
    )
    return model


def is_fine_tuned(name_or_dir) -> bool:
    """Whether the checkpoint has a classifier of its own, as opposed to a bare pre-trained encoder."""
    return "classifier.weight" in read_tensors(model_folder(name_or_dir))[1]


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file of a model folder and its tensors. Raises UserError where it is missing, cut or not a
    checkpoint."""
    path = folder / "model.safetensors"
    try:
        if path.exists():
            return path, safetensors_torch.load_file(path)
        path = folder / "pytorch_model.bin"
        if path.exists():  # weights_only: a pickle from elsewhere must not run code
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
                return path, tensors
            raise ValueError("not a dictionary of tensors")
    except SafetensorError as error:
        raise UserError(f"{path}: is cut short or damaged ({error}); fetch it again") from None
    except Exception as error:  # torch.load raises half a dozen kinds for a broken file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be loaded as weights ({reason[0]}); fetch it again") from None
    raise UserError(f"{folder}: has no model.safetensors or pytorch_model.bin; a model folder needs one of them")


def align_labels(model: Classifier, labels) -> None:
    """Puts the rows of the model's classifier into the order of `labels`, in place, and renames its labels.

    Names are compared without regard to case. LABEL_0, LABEL_1, … (what transformers writes when nobody named the
    labels) match any names, position by position. Raises UserError where the two sets differ.
    """
    own, labels = [label.lower() for label in model.config.labels], tuple(labels)
    generic = all(re.fullmatch(r"label_\d+", label) for label in own)
    if len(own) != len(labels) or not (generic or set(own) == {label.lower() for label in labels}):
        raise UserError(f"the model's labels {list(model.config.labels)} are not the data's {list(labels)}")
    if not generic:
        order = [own.index(label.lower()) for label in labels]
        with torch.no_grad():
            model.classifier.weight.copy_(model.classifier.weight[order].clone())
            model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config = model.config.with_labels(labels)


def save_pretrained(model: Classifier, folder) -> None:
    """Writes config.json and model.safetensors so that transformers' AutoModelForSequenceClassification loads them."""
    folder = Path(folder)
    write_json(folder / "config.json", model.config.to_dict())
    atomic_write(
        folder / "model.safetensors", safetensors_torch.save(to_hugging_face(model), metadata={"format": "pt"})
    )


def evenly_spaced_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Which teacher layers a student takes: first, last, and evenly between; 6 of 12 gives DistilBERT's 0, 2, 4, 7,
    9, 11."""
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"--student-layers {student_layers}: the teacher has {teacher_layers} layers to take from; "
            f"choose 1 to {teacher_layers}, or another --student-init"
        )
    step = (teacher_layers - 1) / max(student_layers - 1, 1)
    return [round(i * step) for i in range(student_layers)]


def student_from_teacher(teacher: Classifier, layers: list[int]) -> Classifier:
    """A student of the teacher's width: the given layers, embeddings and pooler copied, the classifier new."""
    count = teacher.config.num_hidden_layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise UserError(f"student layers {layers}: the teacher's layers are numbered 0 to {count - 1}")
    student = Classifier(replace(teacher.config, num_hidden_layers=len(layers)))
    student.encoder.embeddings.load_state_dict(teacher.encoder.embeddings.state_dict())
    for own, source in zip(student.encoder.layers, layers):
        own.load_state_dict(teacher.encoder.layers[source].state_dict())
    student.pooler.load_state_dict(teacher.pooler.state_dict())
    return student


def model_folder(name_or_dir) -> Path:
    """The folder itself, or the local copy of a model on Hugging Face's hub, fetched there on first use.

    Raises UserError that says which files to put where when neither can be had.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder
    name = str(name_or_dir)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UserError(f"{name}: no such model folder")

    from huggingface_hub import hf_hub_download  # imported here: slow, and most runs use a local folder
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RemoteEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, "config.json"))
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            try:
                hf_hub_download(name, file)
            except RemoteEntryNotFoundError:
                pass  # tokenizer.json or vocab.txt is enough; tokenizer.py complains where both are missing
            except OSError:  # offline: what an earlier run fetched is there, the rest was not on the hub then
                pass
        try:
            hf_hub_download(name, "model.safetensors")
        except EntryNotFoundError:  # not on the hub or, offline, not among what an earlier run fetched
            hf_hub_download(name, "pytorch_model.bin")
        return path.parent
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"{name}: neither a folder here nor to be fetched from the hub ({type(error).__name__}). Put its "
            f"config.json, model.safetensors (or pytorch_model.bin) and vocab.txt (or tokenizer.json) into a folder "
            f"and give its path"
        ) from None
