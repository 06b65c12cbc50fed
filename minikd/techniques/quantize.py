"""Quantisation of a finished model: 8- or 4-bit weights in place of 32-bit ones, without any training or data.

A weight is stored as an integer q, and rows or groups of weights share a scale: w ≈ scale · q (Jacob et al. 2018;
scales per token and per group of weights: Yao et al. 2022). Rounding changes a weight by at most half a scale, so the
error depends on how few weights share a scale, and on the largest of them (int4 clips it where that pays).

int8 (for speed on a CPU): one scale per row of a matrix, and in each pass one per token of its input, which is rounded
to 8 bits as well ("dynamic", W8A8). The product of integers is exact, in 32 bits. The two scales are multiplied in
afterwards, because they do not depend on the index that is summed over:
    y[t, o] = Σ_i x[t, i] · w[o, i]  ≈  scale_x[t] · scale_w[o] · Σ_i q_x[t, i] · q_w[o, i]
A short text that is alone in its batch has one scale for all its tokens: torch then rounds, multiplies and scales in
one operation. Its logits are therefore not quite those that it has in company.

int4 (for size): groups of up to 128 weights of a row share a scale, because 15 steps are too coarse for a whole row;
two weights share a byte. In a pass they are first turned into floating point.

The word embeddings, half of a small model, are quantised like matrices. LayerNorms, biases, the few position and
segment embeddings and the classifier stay in fp32.
"""

import re
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.inference import unchanged, versions
from minikd.model import Classifier, SelfAttention

GROUP = 128  # most weights that share a scale in int4
TOKENS = 1024  # multiplied at a time in int8, to save memory
SHORT = 256  # tokens of a single text up to which packed weights are the faster way
# Without instructions for products of 8-bit numbers (VNNI), sums of two of them in 16 bits could overflow.
CAN_PACK = (
    "x86" in torch.backends.quantized.supported_engines
    and hasattr(torch, "_make_per_channel_quantized_tensor")
    and torch.cpu._is_vnni_supported()
)
QUANTIZED = re.compile(r"word_embeddings|attention\.(qkv|output)|feed_forward\.(intermediate|output)|pooler")


def quantize(model: Classifier, format: str) -> Classifier:
    """A copy of `model` for inference, on the CPU, with its matrices and word embeddings in "int8" or "int4".

    Raises MinikdError for a model that is quantised already, has weights that are not finite, or (int4) a matrix of odd
    width.
    """
    if model.config.quantization:
        raise MinikdError(f"the model is quantised already ({model.config.quantization})")
    quantized = new_model(replace(model.config, quantization=format))
    state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    for name, module in quantized.named_modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            if not state[f"{name}.weight"].isfinite().all():
                raise MinikdError(f"{name}.weight: holds values that are not finite; they cannot be quantised")
            convert = to_int8 if format == "int8" else to_int4
            state[f"{name}.weight"], state[f"{name}.scale"] = convert(state[f"{name}.weight"])
    quantized.load_state_dict(state)
    return quantized.eval()


def new_model(config: EncoderConfig) -> Classifier:
    """A classifier of this shape: with random weights, or where the config says that it is quantised, with zeros."""
    if config.quantization is None:
        return Classifier(config)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = Classifier(config)
    for name, module in list(model.named_modules()):
        if QUANTIZED.search(name) and isinstance(module, (nn.Linear, nn.Embedding)):
            kind = QuantizedLinear if isinstance(module, nn.Linear) else QuantizedEmbedding
            model.set_submodule(name, kind(*module.weight.shape, config.quantization))
    for layer in model.encoder.layers:
        layer.attention.__class__ = QuantizedSelfAttention
    model.to_empty(device=torch.get_default_device()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) -> int8 (N, I) and their scales (N, 1): the largest of each row becomes ±127."""
    # One pass each for the largest and the smallest value: in fp32 faster than abs(), which makes a copy.
    largest = torch.maximum(weight.amax(dim=-1, keepdim=True), -weight.amin(dim=-1, keepdim=True))
    scale = largest.float().clamp_min(1e-12) / 127
    return (weight * (1 / scale)).round_().to(torch.int8), scale


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) -> uint8 (N, I/2), two weights a byte, and fp16 scales (N, groups).

    The scale of a group is the one of eleven candidates with the smallest squared error: clipping its few largest
    weights often pays, because all others are then rounded more finely. Raises MinikdError for an odd width I.
    """
    if weight.shape[1] % 2:
        raise MinikdError(f"int4: a matrix is {weight.shape[1]} wide; two weights share a byte: the width must be even")
    groups = weight.unflatten(1, (-1, group_size(weight.shape[1])))  # (N, groups, size)
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-6)
    best = torch.full_like(largest, torch.inf)
    q, scale = torch.zeros_like(groups), torch.zeros_like(largest)
    for clip in torch.linspace(1, 0.5, 11):
        candidate = (largest * clip / 7).half().float()
        rounded = (groups / candidate).round_().clamp_(-8, 7)
        error = (rounded * candidate - groups).square().sum(dim=-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        q, scale = torch.where(better, rounded, q), torch.where(better, candidate, scale)
    if not best.isfinite().all():
        raise MinikdError("int4: a weight is too large for the scales, which are in fp16")
    nibbles = (q.flatten(1) + 8).to(torch.uint8)  # 0 to 15
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale.squeeze(-1).half()


def group_size(width: int) -> int:
    """The weights of a row that share a scale in int4: the largest divisor of its width up to 128."""
    return next(size for size in range(min(GROUP, width), 0, -1) if width % size == 0)


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """The fp32 values (…, I) of what `to_int8` (int8) or `to_int4` (uint8) returned."""
    if weight.dtype == torch.uint8:
        weight = torch.stack((weight & 15, weight >> 4), dim=-1).flatten(-2).to(torch.int8) - 8
    return (weight.unflatten(-1, (scale.shape[-1], -1)) * scale.float()[..., None]).flatten(-2)


def _parameters(rows: int, width: int, format: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and scale of the right shapes and types, still without values."""
    if format == "int8":
        weight, scale = torch.zeros(rows, width, dtype=torch.int8), torch.ones(rows, 1)
    else:
        weight = torch.zeros(rows, width // 2, dtype=torch.uint8)
        scale = torch.ones(rows, width // group_size(width), dtype=torch.float16)
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(scale, requires_grad=False)


class QuantizedEmbedding(nn.Module):
    """Token ids (B, N) -> fp32 vectors (B, N, I): only the rows that are looked up are dequantised."""

    def __init__(self, rows: int, width: int, format: str):
        super().__init__()
        self.weight, self.scale = _parameters(rows, width, format)

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize(self.weight[ids], self.scale[ids])


class QuantizedLinear(nn.Module):
    """x (…, I) -> x · Wᵀ + bias (…, O), or only the outputs of some `rows` of W.

    int8 on a CPU multiplies integers and gives fp32; otherwise the weights are dequantised, and autocast decides.
    torch's product of int8 is fast on processors with instructions for it (VNNI and the like), and slow on others.
    """

    def __init__(self, rows: int, width: int, format: str):
        super().__init__()
        self.weight, self.scale = _parameters(rows, width, format)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False)
        self.packed: dict[tuple, Any] = {}
        self.packed_from: list[tuple] = []

    def pack(self, rows: slice) -> Any:
        """These rows of weights and biases in the order in which the processor reads them, made on first use."""
        weights = versions(self.parameters())
        if not unchanged(self.packed_from, weights):
            self.packed, self.packed_from = {}, weights
        key = rows.start, rows.stop
        if key not in self.packed:
            weight, scale = self.weight[rows], self.scale[rows].flatten().double()
            with warnings.catch_warnings(action="ignore"):  # torch means to remove its tensors of quantised values
                weight = torch._make_per_channel_quantized_tensor(weight, scale, torch.zeros(len(weight)).long(), 0)
                self.packed[key] = torch.ops.quantized.linear_prepack(weight, self.bias[rows])
        return self.packed[key]

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        if CAN_PACK and len(x) == 1 and x.shape[-2] <= SHORT and self.weight.dtype == torch.int8 and x.is_cpu:
            return torch.ops.quantized.linear_dynamic(x.float(), self.pack(rows))
        weight, scale, bias = self.weight[rows], self.scale[rows], self.bias[rows]
        if weight.dtype != torch.int8 or x.device.type != "cpu":  # on a GPU, _int_mm needs large batches
            return F.linear(x, dequantize(weight, scale), bias)
        x, leading = x.flatten(0, -2), x.shape[:-1]  # (T, I)
        y = x.new_empty(len(x), len(weight), dtype=torch.float32)  # (T, O)
        for some_x, some_y in zip(x.split(TOKENS), y.split(TOKENS)):
            q, x_scale = to_int8(some_x)
            product = torch._int_mm(q, weight.t()).float()  # exact before it is scaled
            torch.addcmul(bias, product.mul_(x_scale), scale.t(), out=some_y)
        return y.unflatten(0, leading)


class QuantizedSelfAttention(SelfAttention):
    """Self-attention whose query-key-value matrix is a QuantizedLinear."""

    def project(self, x: Tensor, cls_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not cls_only:
            return self.qkv(x).chunk(3, dim=-1)
        hidden_size = x.shape[-1]
        k, v = self.qkv(x, slice(hidden_size, None)).chunk(2, dim=-1)
        return self.qkv(x[:, :1], slice(hidden_size)), k, v
