"""Forward passes without gradients: device, precision, and the logits of many texts."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minikd.batching import TokenizedSplit, make_batches, plan_by_tokens
from minikd.distributed import check_device, share, sum_of_all, world_size
from minikd.errors import MinikdError
from minikd.model import Classifier

# Tokens in a batch without gradients: a CPU's caches hold the activations of few, a GPU wants much work at once.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """auto | cpu | cuda | mps -> a device that is there. Raises MinikdError for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in (*available, "auto"):
        raise MinikdError(f"`device` {name!r}: must be auto, cpu, cuda or mps")
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise MinikdError(
            f"`device` {name}: this machine, or this build of torch {torch.__version__}, has none; use auto"
        )
    check_device(torch.device(name))
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """auto | fp32 | bf16 | fp16 -> (precision, reason in words). Raises MinikdError if the device cannot do it.

    bf16 has fp32's range and needs no loss scaling; fp16 does. Weights and optimizer state stay in fp32 and matrix
    products run in the short format, as in Micikevicius et al. 2018.
    """
    if name not in (*DTYPES, "auto"):
        raise MinikdError(f"`precision` {name!r}: must be auto, fp32, bf16 or fp16")
    if name == "fp16" and device.type != "cuda":
        raise MinikdError(f"`precision` fp16: {device.type} has no fast fp16; use bf16, fp32 or auto")
    if name == "bf16" and device.type == "mps":
        raise MinikdError("`precision` bf16: not supported on mps; use fp32 or auto")
    if name != "auto":
        return name, "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has bf16 units"
        return "fp16", "this GPU has no bf16 units; fp16 with loss scaling"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16", "this CPU has bf16 instructions"
    return "fp32", f"this {device.type} has no fast bf16"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a forward pass runs in `precision`; does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


@contextmanager
def forward_only(device: torch.device, precision: str) -> Iterator[None]:
    """The context for passes without gradients over many batches, in `precision`.

    no_grad rather than inference_mode: autocast keeps the converted weights for the next pass only outside
    inference_mode, and converting them all is half the time of a single short text. (It keeps those of trainable
    parameters; frozen ones, and the slices of the last layer's query-key-value matrix, are converted in each pass.)
    """
    with torch.no_grad(), autocast(device, precision):
        yield


def versions(weights: Iterable[Tensor]) -> list[tuple]:
    """What tells whether the weights are still the same: to be compared by `unchanged`. Writes through `.data` are not
    seen."""
    return [(weight, weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]


def unchanged(before: list[tuple], now: list[tuple]) -> bool:
    """Whether `versions` of then and now are those of the same tensors, at the same place, with the same values."""
    return len(before) == len(now) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, now))


def converted(model: Classifier, precision: str) -> Classifier:
    """A twin of the model whose linear layers hold their weights in the format of `precision`, as autocast converts
    them anew in each call. It shares all other memory with the model, and does not follow later changes of it.

    The classifier's output layer is computed in fp32.
    """
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("classifier")]
    short = [parameter for layer in layers for parameter in layer.parameters()]
    memo: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(p): nn.Parameter(p.detach().to(DTYPES[precision]), requires_grad=False) for p in short}
    return copy.deepcopy(model, memo)


def compute_logits(
    model: Classifier, split: TokenizedSplit, device: torch.device, precision: str, desc: str = ""
) -> Tensor:
    """Logits of every example in the split's own order, fp32 (N, C) on the CPU; `desc` shows a progress bar.

    The pass itself runs in order of length, its batches shared out among the processes; the model is in eval mode
    during it, and left in the mode it had (its own
    `training` tells which). Raises MinikdError for logits that are not finite.
    """
    was_training = model.training
    if was_training:  # a walk over all modules, which takes as long as a layer on a single short text
        model.eval()
    plan = share(plan_by_tokens(split.lengths, CPU_TOKENS if device.type == "cpu" else GPU_TOKENS, device))
    rows = []
    bar = tqdm(total=len(split), desc=desc, unit="ex", disable=not desc, leave=False)
    try:
        with bar, forward_only(device, precision):
            for batch in make_batches(split, plan, device):
                rows.append(model(batch.input_ids, batch.attention_mask).logits.float())
                bar.update(min(len(batch.index) * world_size(), len(split) - bar.n))  # the others are as far
    finally:
        if was_training:
            model.train()
    logits = torch.zeros(len(split), len(model.config.labels))
    if rows:
        logits[torch.cat([torch.from_numpy(index) for index in plan])] = torch.cat(rows).cpu()
    sum_of_all(logits)  # the other processes' rows
    if not logits.isfinite().all():
        raise MinikdError(
            f"{desc or 'the model'}: it gives logits that are not finite; its training diverged, or "
            f"`precision` {precision} is too narrow for it"
        )
    return logits
