"""Forward passes: device and precision, the logits of a whole split, and the cache of a teacher's logits."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor
from tqdm import tqdm

import minikd
from minikd.batching import TokenizedSplit, cache_folder, make_batches, plan_by_tokens
from minikd.errors import MinikdError
from minikd.files import atomic_write, fingerprint
from minikd.model import Classifier

# Tokens in a batch without gradients: a CPU's caches hold the activations of few, a GPU wants much work at once.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """auto | cpu | cuda | mps -> a device that is there. Raises MinikdError for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise MinikdError(
            f"--device {name}: this machine, or this build of torch {torch.__version__}, has none; use auto"
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """auto | fp32 | bf16 | fp16 -> (precision, reason in words). Raises MinikdError if the device cannot do it.

    bf16 has fp32's range and needs no loss scaling; fp16 does. Weights and optimizer state stay in fp32 and matrix
    products run in the short format, as in Micikevicius et al. 2018.
    """
    if name == "fp16" and device.type != "cuda":
        raise MinikdError(f"--precision fp16: {device.type} has no fast fp16; use bf16, fp32 or auto")
    if name == "bf16" and device.type == "mps":
        raise MinikdError("--precision bf16: not supported on mps; use fp32 or auto")
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
def forward_only(device: torch.device, precision: str):
    """The context for passes without gradients over many batches, in `precision`.

    In it autocast converts a weight once for all passes, if it is a parameter that could be trained (a frozen one, and
    the slices of the last layer's query-key-value matrix, are converted in each pass); in torch.inference_mode it would
    convert all of them in every pass, which is half the time of a single short text.
    """
    with torch.no_grad(), autocast(device, precision):
        yield


def predict(
    model: Classifier,
    split: TokenizedSplit,
    device: torch.device,
    precision: str,
    desc: str = "",
) -> Tensor:
    """Logits of every example in the split's own order, fp32 (N, C) on the CPU; `desc` shows a progress bar.

    The pass itself runs in order of length; the model is in eval mode during it, and left in the mode it had.
    Raises MinikdError for logits that are not finite.
    """
    was_training = model.training
    model.eval()
    plan = plan_by_tokens(split.lengths, CPU_TOKENS if device.type == "cpu" else GPU_TOKENS, device)
    rows = []
    bar = tqdm(total=len(split), desc=desc, unit="ex", disable=not desc, leave=False)
    with bar, forward_only(device, precision):
        for batch in make_batches(split, plan, device):
            rows.append(model(batch.input_ids, batch.attention_mask).logits.float())
            bar.update(len(batch.index))
    by_length = torch.cat(rows).cpu()
    if not by_length.isfinite().all():
        raise MinikdError(
            f"{desc or 'the model'}: it gives logits that are not finite; its training diverged, or "
            f"--precision {precision} is too narrow for it"
        )
    model.train(was_training)
    logits = torch.empty(by_length.shape)
    logits[torch.cat([torch.from_numpy(index) for index in plan])] = by_length
    return logits


def predict_once(
    model: Classifier, split: TokenizedSplit, device: torch.device, precision: str, desc: str = ""
) -> Tensor:
    """`predict`, or what an earlier call with the same weights, texts and precision left in the cache.

    To evaluate a split takes minutes, and a model's logits on it never change: comparing finished models again, or
    going on after an interruption, need not repeat it. The cache is that of the tokens ($XDG_CACHE_HOME/minikd).
    """
    versions = f"{minikd.__version__} {torch.__version__} {device.type} {precision}"
    key = fingerprint("logits 1", versions, split.fingerprint, model_fingerprint(model))
    path = cache_folder() / f"logits-{key[:32]}.safetensors"
    try:
        return _checked(safetensors_torch.load_file(path)["logits"], model, split)
    except (OSError, SafetensorError, KeyError, ValueError):
        logits = predict(model.to(device), split, device, precision, desc=desc)
    try:
        atomic_write(path, safetensors_torch.save({"logits": logits}))
    except OSError as error:
        print(f"logits not cached: {path.parent} cannot be written ({error.strerror})")
    return logits


def teacher_logits(
    teacher: Classifier, split: TokenizedSplit, path: Path, device: torch.device, precision: str
) -> Tensor:
    """The teacher's logits (N, C) on the training split, from the cache at `path` if it fits, else computed and cached.

    It fits when data, tokenizer, length, precision, and the teacher's weights and config are the same, by fingerprint.
    One pass serves every epoch and every student, because dropout is off in the teacher and its inputs never change.
    Rows are in the order of the split, so that shuffling cannot misalign them: look them up by an example's index. The
    file records how long computing them took (`caching_minutes`).
    """
    key = fingerprint(split.fingerprint, model_fingerprint(teacher), precision)
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()["fingerprint"] == key:
                logits = _checked(file.get_tensor("logits"), teacher, split)
                print(f"teacher logits: read from {path}")
                return logits
        print(f"teacher logits: {path} belongs to another teacher or other data; computing them anew")
    except FileNotFoundError:
        pass  # none yet
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        print(f"teacher logits: {path} is damaged or not a cache; computing them anew")
    started = time.perf_counter()
    logits = predict(teacher.to(device), split, device, precision, desc="teacher logits")
    metadata = {"fingerprint": key, "seconds": f"{time.perf_counter() - started:.3f}"}
    atomic_write(path, safetensors_torch.save({"logits": logits}, metadata=metadata))
    return logits


def caching_minutes(path: Path) -> float | None:
    """How long the logits in the cache at `path` took to compute, whenever that was; None where no cache says so."""
    try:
        with safe_open(path, "pt") as file:
            return float(file.metadata()["seconds"]) / 60
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _checked(logits: Tensor, model: Classifier, split: TokenizedSplit) -> Tensor:
    """Logits from a cache. Raises ValueError where they cannot be this model's on this split."""
    if logits.shape != (len(split), len(model.config.labels)) or not logits.isfinite().all():
        raise ValueError("not the logits of this model on this split")
    return logits


def model_fingerprint(model: Classifier) -> str:
    """SHA-256 of the model: its config (the same weights with more heads compute something else), and its weights by
    name and value."""
    tensors = model.state_dict()
    return fingerprint(
        json.dumps(model.config.to_dict(), sort_keys=True),  # as in a file: the same for a model that was loaded again
        *(part for name in tensors for part in (name, tensors[name].detach().cpu().contiguous().numpy())),
    )
