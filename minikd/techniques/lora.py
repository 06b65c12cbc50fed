"""Low-rank adaptation (LoRA; Hu et al. 2021, section 4): y = W x + b + (alpha / r) · B A dropout(x).

W and b are frozen; A (r × inputs) and B (outputs × r) learn. B starts at zero, so training starts from the model as it
was; afterwards (alpha / r) · B A can be added to W, and the adapters cost nothing. Must equal Hugging Face's PEFT in
every logit and gradient; tests/techniques/test_lora.py checks it. Its files: `minikd/checkpoints/adapters.py`.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from minikd.dropout import Dropout
from minikd.errors import MinikdError
from minikd.model import Classifier, SelfAttention

# target: the matrix of an encoder layer, and which third of it (None: all)
TARGETS = {
    "query": ("attention.qkv", 0),
    "key": ("attention.qkv", 1),
    "value": ("attention.qkv", 2),
    "attention_output": ("attention.output", None),
    "intermediate": ("feed_forward.intermediate", None),
    "ffn_output": ("feed_forward.output", None),
}


@dataclass(frozen=True)
class LoRA:
    """The arguments of `add_lora`: rank r, alpha of the scale alpha / r, dropout on the input, what gets an adapter."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")


class Adapter(nn.Module):
    """x -> (alpha / r) · B A dropout(x), the part that learns."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.dropout = Dropout(dropout)
        self.lora_A = nn.Linear(inputs, rank, bias=False)  # nn.Linear's own start is PEFT's: Kaiming uniform, a = √5
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(self.dropout(x)) * (self.alpha / self.rank))  # scaled where it is smallest


class LoRALinear(nn.Linear):
    """A linear layer with an adapter on all its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        (adapter,) = self.adapters.values()
        return super().forward(x) + adapter(x)


class LoRASelfAttention(SelfAttention):
    """Self-attention with adapters on some of query, key and value; each has a dropout pattern of its own."""

    def project(self, x: Tensor, cls_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        projected = dict(zip(("query", "key", "value"), super().project(x, cls_only)))
        for target, adapter in self.qkv.adapters.items():
            rows = x[:, :1] if cls_only and target == "query" else x
            projected[target] = projected[target] + adapter(rows)
        return tuple(projected.values())


def add_lora(model: Classifier, rank: int, alpha: float, dropout: float, targets) -> None:
    """Puts adapters on the projections that `targets` names (of TARGETS), in every layer, in place.

    Afterwards they and the head are trainable and all else is frozen; no output has changed yet. The head is the
    classifier and the pooler below it, which the pre-trained encoder has not learned for this task (or not at all).
    Raises MinikdError for an unknown target, a rank above a matrix's own or a dropout outside [0, 1); ValueError for a
    model that has adapters already.
    """
    if adapters(model):
        raise ValueError("the model has adapters already: merge_lora first")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise MinikdError(f"LoRA target {', '.join(unknown) or '(none)'}: choose from {', '.join(TARGETS)}")
    largest = min(min(_matrix(model, 0, target)[1].shape) for target in targets)
    if not 1 <= rank <= largest:
        raise MinikdError(f"LoRA rank {rank}: the adapted matrices of this model take 1 to {largest}")
    if not 0 <= dropout < 1:
        raise MinikdError(f"LoRA dropout {dropout}: must be a probability in [0, 1)")

    model.requires_grad_(False)
    model.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)
    ordered = [target for target in TARGETS if target in targets]  # one order: a seed gives the same A
    for layer, target in product(range(len(model.encoder.layers)), ordered):
        linear, weight = _matrix(model, layer, target)
        adapter = Adapter(linear.in_features, len(weight), rank, alpha, dropout)
        if not hasattr(linear, "adapters"):
            linear.adapters = nn.ModuleDict()
        linear.adapters[target] = adapter.to(weight.device, weight.dtype).train(linear.training)
    _match_classes(model)


def merge_lora(model: Classifier) -> None:
    """Adds each adapter's (alpha / r) · B A to its matrix and removes it, in place.

    Leaves an ordinary Classifier with the tensor names that it had before `add_lora`, all trainable. The sums are
    computed in fp64 and rounded once, so that the logits change by no more than the precision of the weights.
    """
    for (layer, target), adapter in adapters(model).items():
        _, weight = _matrix(model, layer, target)
        with torch.no_grad():
            A, B = (matrix.weight.cpu().double() for matrix in (adapter.lora_A, adapter.lora_B))  # mps has no fp64
            merged = weight.cpu().double() + adapter.alpha / adapter.rank * B @ A
            weight.copy_(merged.to(weight.dtype))
    remove_lora(model)


def remove_lora(model: Classifier) -> None:
    """Removes the adapters, in place: the encoder is what it was before `add_lora`, and all is trainable."""
    for layer, target in adapters(model):
        linear, _ = _matrix(model, layer, target)
        del linear.adapters[target]
        if not linear.adapters:
            del linear.adapters
    _match_classes(model)
    model.requires_grad_(True)


def adapters(model: Classifier) -> dict[tuple[int, str], Adapter]:
    """The model's adapters by (layer, target); empty where there are none."""
    found = {}
    for layer, target in product(range(len(model.encoder.layers)), TARGETS):
        linear, _ = _matrix(model, layer, target)
        if target in getattr(linear, "adapters", {}):
            found[layer, target] = linear.adapters[target]
    return found


def _matrix(model: Classifier, layer: int, target: str) -> tuple[nn.Linear, Tensor]:
    """The linear layer that holds a target, and the rows of its weight that are the target's."""
    name, third = TARGETS[target]
    linear = model.encoder.layers[layer].get_submodule(name)
    return linear, linear.weight if third is None else linear.weight.chunk(3)[third]


def _match_classes(model: Classifier) -> None:
    """Gives modules with adapters the class that applies them, and those without the plain one.

    A change of class, as torch.nn.utils.parametrize does it, keeps the tensors, their names and all references.
    """
    for block in model.encoder.layers:
        block.attention.__class__ = LoRASelfAttention if hasattr(block.attention.qkv, "adapters") else SelfAttention
        for linear in (block.attention.output, block.feed_forward.intermediate, block.feed_forward.output):
            linear.__class__ = LoRALinear if hasattr(linear, "adapters") else nn.Linear


def trainable_parameters(model: nn.Module) -> int:
    """Number of scalars that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def training_state_mb(model: nn.Module) -> float:
    """MiB that weights, gradients and AdamW's two moments take in training: a frozen weight has the first alone.

    An upper bound: so do word embeddings that the training texts do not use (`minikd.used_rows`).
    Activations come on top, and depend on the batch.
    """
    return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters()) / 2**20
