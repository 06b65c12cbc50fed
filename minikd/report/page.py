"""One HTML page that shows a split's examples with every model's probabilities, which a slider softens: the "dark
knowledge" of Hinton's talk of 2014, the soft targets of Hinton, Vinyals & Dean 2015.

The page is one file that opens from a disk and asks for nothing outside it. Its HTML, style and script are
page.html; this module fills in the data. A gzip stream in base64 holds the float32 logits, so that the page's
softmax is the model's own, and another the texts: base64 contains no character that could end a script element.

The page stays below LIMIT bytes where it can: long texts are truncated, and no example or number is left out, so that
accuracies, confusion matrices and filters are those of the whole split. The text search sees the truncated texts.
"""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from minikd.errors import MinikdError
from minikd.files import atomic_write
from minikd.report.drawing import looks

TEMPLATE = Path(__file__).with_suffix(".html")
LIMIT = 5_000_000  # bytes
SHORTEST = 80  # characters: texts are truncated to no less


def write_page(
    path,
    dataset: str,
    split: str,
    labels: tuple[str, ...],
    texts: list[str],
    true_labels: list[int],
    models: dict,
    *,
    T: float = 1.0,
    true_probabilities=None,
    about: dict[str, str] | None = None,
) -> str:
    """Writes the page to `path`, atomically. Returns what its reader should know of its size; "" if nothing.

    labels: the C names. texts, true_labels: N of each. models: name -> logits (N, C), a tensor or an array; the first
    is taken for the teacher. T: the temperature at which the page opens. true_probabilities (N, C), where they are
    known, become one more row, "truth", which the temperature does not change. about: name -> what to say of the model
    (`description`).

    Raises MinikdError if a model's logits are not finite, ValueError for shapes, label ids or T that make no sense, and
    OSError if the file cannot be written.
    """
    if not 0 < T < float("inf"):
        raise ValueError(f"the temperature T must be above 0, not {T}")
    if not models:
        raise ValueError("models: at least one is needed")
    shape, ids = (len(texts), len(labels)), np.array(true_labels, dtype=np.int64)
    if ids.shape != shape[:1] or not np.isin(ids, range(len(labels))).all():
        raise ValueError(f"true_labels must be {shape[0]} ids from 0 to {shape[1] - 1}, one per text")
    tables = {name: _table(name, logits, shape) for name, logits in models.items()}
    parts = [*tables.values(), ids.astype("<u4")]
    if true_probabilities is not None:
        parts.insert(-1, _table("true_probabilities", true_probabilities, shape))
    numbers = _packed(b"".join(part.tobytes() for part in parts))
    template, look = TEMPLATE.read_text(encoding="utf-8"), looks(models)
    packed, note = _fitting(texts, disagreement(tables), LIMIT - len(numbers) - len(template.encode()) - 10_000)
    meta = {
        "dataset": dataset,
        "split": split,
        "labels": list(labels),
        "models": list(models),
        "colors": [look[name]["color"] for name in models],
        "about": [(about or {}).get(name, "") for name in models],
        "examples": len(texts),
        "T": T,
        "truth": true_probabilities is not None,
        "note": note,
    }
    content = _fill(template, meta, numbers, packed)
    atomic_write(path, content)
    size = len(content.encode())
    large = f"{size / 1e6:.1f} MB, which a browser may be slow to open: show fewer models"
    return "; ".join([note] * bool(note) + [large] * (size > LIMIT))


def description(run: dict, layers: int, quantization: str | None = None) -> str:
    """A model's layers and how it was trained, as far as `run`, its run.json, says:
    "3 layers, distilled with alpha 0.5 and T 2"."""
    parts = [f"{layers} layer{'s' * (layers != 1)}", *([quantization] if quantization else [])]
    made_from = run.get("made_from") or {}
    settings = made_from.get("settings") or {}
    if settings and made_from.get("teacher"):
        soft = f" by the soft loss {settings['soft_loss']}" if "soft_loss" in settings else ""
        parts.append(f"distilled{soft} with alpha {settings['alpha']:g} and T {settings['T']:g}")
    elif settings:
        parts.append("trained on the labels alone")
    return ", ".join(parts)


def disagreement(tables: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) how far the two models that differ most are apart: the total variation distance ½ Σ |p − q| of their
    probabilities, 0 to 1. Of a single model: how unsure it is, 1 minus its largest probability."""
    probs = []
    for logits in tables.values():
        exp = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
        probs.append(exp / exp.sum(axis=1, keepdims=True))
    if len(probs) == 1:
        return 1 - probs[0].max(axis=1)
    return np.max([np.abs(p - q).sum(axis=1) / 2 for i, p in enumerate(probs) for q in probs[:i]], axis=0)


def _fitting(texts: list[str], order: np.ndarray, budget: int) -> tuple[str, str]:
    """The texts, packed, in at most `budget` bytes if that can be, and what was done for it, in words.

    Those of the examples that are highest in `order` stay whole, the others are truncated to one length. A truncated
    text is [its beginning, the length of the whole]."""
    lengths, ranked = np.array([len(text) for text in texts]), np.argsort(-order, kind="stable")
    whole = np.zeros(len(texts), dtype=bool)
    whole[ranked[np.cumsum(lengths[ranked]) <= budget / 8]] = True
    packed, note, length = _packed(_json(texts).encode("utf-8")), "", int(lengths.max(initial=0))
    while len(packed) > budget and length > SHORTEST:
        length = max(SHORTEST, int(0.97 * length * budget / len(packed)))
        cut = ~whole & (lengths > length)
        shown = [[text[:length], len(text)] if long else text for text, long in zip(texts, cut)]
        packed = _packed(_json(shown).encode("utf-8"))
        if cut.any():
            note = f"{cut.sum():,} of {len(texts):,} texts are truncated to {length} characters to keep this page small"
    return packed, note


def _table(name: str, values, shape: tuple[int, int]) -> np.ndarray:
    """The values as float32 of this shape; refused if they are of another one or not finite."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{name}: needs one row per text and one column per label, {shape}, not {tuple(values.shape)}")
    table = np.asarray(values, dtype="<f4")
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        raise MinikdError(f"{name}: its logits of example {finite.argmin()} are not finite; the model cannot be shown")
    return table


def _fill(template: str, meta: dict, numbers: str, texts: str) -> str:
    """The template with @POLICY@, @META@, @NUMBERS@ and @TEXTS@ replaced, in one pass: data is never searched."""
    values = {
        "POLICY": _policy(template),
        "META": _json(meta).replace("<", "\\u003c"),  # so that no name can close the script element
        "NUMBERS": numbers,
        "TEXTS": texts,
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
