"""What need not be computed twice: the tokens of texts, and the logits of a model on them.

The user's cache ($XDG_CACHE_HOME/minikd, by default ~/.cache/minikd) may be deleted at any time. Everything in it is
named by a fingerprint of all that it depends on, so what is found is never stale. Where it cannot be written, the run
continues without it.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch
from torch import Tensor

import minikd
from minikd.batching import TokenizedSplit, tokenize, tokenized_split, tokens_fingerprint
from minikd.checkpoints.config_json import config_to_json
from minikd.classifier import TextClassifier
from minikd.datasets import Split
from minikd.distributed import by_first
from minikd.files import atomic_write, fingerprint, regular_file
from minikd.inference import compute_logits
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer

PART = 8192  # examples whose logits are kept as soon as they are there


def cache_folder() -> Path:
    """The folder of the user's cache. For a user without a home, one that cannot be made: nothing is kept."""
    home = os.path.expanduser("~")  # "~" where there is none
    cache = os.environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if home != "~" else os.devnull)
    return Path(cache) / "minikd"


def tokens_of(split: Split, classifier: TextClassifier, cache: bool = True) -> TokenizedSplit:
    """The split as the classifier reads it; with `cache`, kept in the user's cache."""
    if cache:
        return cached_tokens(split, classifier.tokenizer, classifier.max_length)
    return tokenize(split.texts, split.labels, classifier.tokenizer, classifier.max_length)


def cached_tokens(split: Split, tokenizer: Tokenizer, max_length: int) -> TokenizedSplit:
    """`minikd.batching.tokenize`, or what an earlier run left in the cache."""
    key = tokens_fingerprint(split.texts, tokenizer, max_length)
    ids, offsets = by_first(_read_tokens, split.texts, tokenizer, max_length, key)
    return tokenized_split(ids, offsets, split.labels, tokenizer, key)


def _read_tokens(texts: list[str], tokenizer: Tokenizer, max_length: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids and offsets that `key` names, from the cache or from the tokenizer."""
    path = cache_folder() / f"tokens-{key[:32]}.safetensors"
    try:
        tensors = safetensors_numpy.load_file(regular_file(path))
        ids, offsets = tensors["ids"], tensors["offsets"]
        found = _are_tokens(ids, offsets, len(texts), tokenizer, max_length)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        found = False
    if not found:
        ids, offsets = tokenizer.encode(texts, max_length, "tokenize")
        _write(path, safetensors_numpy.save({"ids": ids, "offsets": offsets}), "tokens")
    return ids, offsets


def _are_tokens(ids: np.ndarray, offsets: np.ndarray, texts: int, tokenizer: Tokenizer, max_length: int) -> bool:
    """Whether these arrays can be what `Tokenizer.encode` returns for so many texts: a file in the cache may be
    damaged, and other ids have no row in a model."""
    if (ids.dtype, offsets.dtype, ids.ndim, offsets.shape) != (np.int32, np.int64, 1, (texts + 1,)):
        return False
    lengths = np.diff(offsets)
    return (
        bool(((2 <= lengths) & (lengths <= max_length)).all())
        and (offsets[0], offsets[-1]) == (0, len(ids))
        and 0 <= ids.min(initial=0)
        and ids.max(initial=0) < tokenizer.vocab_size
    )


def cached_logits(
    model: Classifier,
    split: TokenizedSplit,
    device: torch.device,
    precision: str,
    desc: str = "",
    path: Path | None = None,
) -> Tensor:
    """`compute_logits`, or what an earlier call with the same model, tokens and precision left at `path` (None: in the
    user's cache).

    A model's logits on given texts never change: dropout is off. Rows are in the order of the split, so that shuffling
    cannot misalign them: look them up by an example's index. The file records how long computing them took
    (`caching_minutes`). A file at `path` that does not fit is replaced, and a line says so. Those of more than `PART`
    examples are computed and kept in parts: after a kill, the parts that are there are not computed again.
    """
    versions = f"{minikd.__version__} {torch.__version__} {device.type} {precision}"
    key = fingerprint("logits 2", versions, split.fingerprint, model_fingerprint(model))
    file = path or cache_folder() / f"logits-{key[:32]}.safetensors"
    logits, note = by_first(_read_logits, file, key, (len(split), len(model.config.labels)))
    if path and note:
        print(f"{desc}: {note}")
    if logits is None:
        logits = _compute_in_parts(model, split, device, precision, desc, file, key, atomic_write if path else _write)
    return logits


def _compute_in_parts(
    model: Classifier,
    split: TokenizedSplit,
    device: torch.device,
    precision: str,
    desc: str,
    file: Path,
    key: str,
    write: Callable[[Path, bytes], None],
) -> Tensor:
    """The logits (N, C), written to `file`; while it is unfinished, what is there of it to `file`.partial."""
    unfinished, total = file.with_name(f"{file.name}.partial"), len(split)
    done, _ = by_first(_read_logits, unfinished, key, None)
    parts, seconds = ([], 0.0) if done is None else ([done], 60 * (caching_minutes(unfinished) or 0.0))
    for start in range(sum(map(len, parts)), total, PART):
        began = time.perf_counter()
        part = split if total <= PART else split.part(start, min(start + PART, total))
        which = f"{desc}, part {start // PART + 1} of {-(-total // PART)}" if desc and total > PART else desc
        parts.append(compute_logits(model.to(device), part, device, precision, which))
        seconds += time.perf_counter() - began
        metadata = {"fingerprint": key, "seconds": f"{seconds:.3f}"}
        content = safetensors_torch.save({"logits": torch.cat(parts)}, metadata=metadata)
        by_first(write, file if start + PART >= total else unfinished, content)
    by_first(_remove, unfinished)
    return torch.cat(parts)


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def _read_logits(path: Path, key: str, shape: tuple[int, int] | None) -> tuple[Tensor | None, str]:
    """The logits in the file, if they are those that `key` names, else None; and what was found there, in words."""
    try:
        with safe_open(regular_file(path), "pt") as file:
            if file.metadata()["fingerprint"] != key:
                return None, f"{path} belongs to another model or other data; computing them anew"
            logits = file.get_tensor("logits")
            if (shape is None or logits.shape == shape) and logits.isfinite().all():
                return logits, f"read from {path}"
    except FileNotFoundError:
        return None, ""
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass
    return None, f"{path} is damaged or not a cache; computing them anew"


def caching_minutes(path: Path) -> float | None:
    """How long the logits at `path` took to compute, whenever that was; None where the file does not say."""
    try:
        with safe_open(regular_file(path), "pt") as file:
            return float(file.metadata()["seconds"]) / 60
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def model_fingerprint(model: Classifier) -> str:
    """SHA-256 of the model: its config (the same weights with more heads compute something else), and its weights by
    name and value."""
    config = json.dumps(config_to_json(model.config), sort_keys=True)  # as in a file: the same for a loaded model
    tensors = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in model.state_dict().items()}
    return fingerprint(config, *chain.from_iterable(tensors.items()))


def _write(path: Path, content: bytes, what: str = "logits") -> None:
    try:
        atomic_write(path, content)
    except OSError as error:
        print(f"{what} not cached: {path.parent} cannot be written ({error.strerror})")
