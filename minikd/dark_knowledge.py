"""One HTML page that shows a split's examples with every model's softened probabilities: the "dark knowledge" of
Hinton's talk of 2014, the soft targets of Hinton, Vinyals & Dean 2015.

The page is one file that opens from a disk and asks for nothing outside it. Its HTML, style and script are
dark_knowledge.html; this module fills in the data. A gzip stream in base64 holds the float32 logits, so that the page's
softmax is the model's own, and another the texts: base64 contains no character that could end a script element.
"""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minikd.files import UserError, atomic_write

TEMPLATE = Path(__file__).with_suffix(".html")


def write_page(
    path,
    dataset: str,
    split: str,
    labels: tuple[str, ...],
    texts: list[str],
    true_labels: list[int],
    models: dict[str, Tensor],
    T: float = 2.0,
    true_probabilities: Tensor | None = None,
) -> None:
    """Writes the page to `path`, atomically.

    labels: the C names. texts, true_labels: N of each. models: name -> logits (N, C); the first is taken for the
    teacher. T: the temperature at which the page opens. true_probabilities (N, C), where they are known, become one
    more row, "truth".

    Raises UserError if a model's logits are not finite, ValueError for shapes, label ids or T that make no sense, and
    OSError if the file cannot be written.
    """
    if not 0 < T < float("inf"):
        raise ValueError(f"the temperature T must be above 0, not {T}")
    if not models:
        raise ValueError("models: at least one is needed")
    shape = (len(texts), len(labels))
    ids = np.array(true_labels, dtype=np.int64)
    if ids.shape != shape[:1] or ids.size and not 0 <= ids.min() <= ids.max() < len(labels):
        raise ValueError(f"true_labels must be {shape[0]} ids from 0 to {shape[1] - 1}, one per text")
    tables = {name: _table(name, logits, shape) for name, logits in models.items()}
    for name, logits in tables.items():
        if not np.isfinite(logits).all():
            broken = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise UserError(f"{name}: its logits of example {broken} are not finite; the model cannot be shown")
    parts = list(tables.values())
    if true_probabilities is not None:
        parts.append(_table("true_probabilities", true_probabilities, shape))
    numbers = b"".join(part.tobytes() for part in [*parts, ids.astype("<u4")])
    meta = {
        "dataset": dataset,
        "split": split,
        "labels": list(labels),
        "models": list(models),
        "examples": len(texts),
        "T": T,
        "truth": true_probabilities is not None,
    }
    atomic_write(path, _fill(TEMPLATE.read_text(encoding="utf-8"), meta, numbers, texts))


def _table(name: str, values: Tensor, shape: tuple[int, int]) -> np.ndarray:
    if tuple(values.shape) != shape:
        raise ValueError(f"{name}: needs one row per text and one column per label, {shape}, not {tuple(values.shape)}")
    return torch.as_tensor(values).detach().float().cpu().numpy().astype("<f4")


def _fill(template: str, meta: dict, numbers: bytes, texts: list[str]) -> str:
    """The template with @POLICY@, @META@, @NUMBERS@ and @TEXTS@ replaced, in one pass: data is never searched."""
    values = {
        "POLICY": _policy(template),
        "META": _json(meta).replace("<", "\\u003c"),  # so that no name can close the script element
        "NUMBERS": _packed(numbers),
        "TEXTS": _packed(_json(texts).encode("utf-8")),
    }
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], template)


def _policy(template: str) -> str:
    """A Content-Security-Policy that runs the template's own script and style, known by their hashes, and loads
    nothing."""

    def source(tag: str) -> str:
        content = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[1]
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value) -> str:
    """JSON in which a lone surrogate, which is no character and which UTF-8 cannot hold, is U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(value, ensure_ascii=False))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")
