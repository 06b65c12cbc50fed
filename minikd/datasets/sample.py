"""The embedded corpus: film reviews written by the grammar in data/sample/generate.py, with known label probabilities.

A row holds a text, the probability of `positive`, and a label drawn with it. So the best possible accuracy is known,
and how far a model's probabilities are from the true ones.
"""

import re
from pathlib import Path

import numpy as np

from minikd.datasets.rows import Layout, read_rows
from minikd.datasets.splits import Dataset, Split
from minikd.errors import MinikdError

PACKAGE = Path(__file__).resolve().parents[1]
# In the repository the corpus lies beside the package; an installed package has it inside (minikd/pyproject.toml).
FOLDER = PACKAGE / "sample" if (PACKAGE / "sample").exists() else PACKAGE.parent / "data" / "sample"
LABELS = ("negative", "positive")
PROBABILITY = re.compile(r"0(\.\d+)?|1(\.0+)?")
REMEDY = "write the corpus again with: python data/sample/generate.py"


def load(folder: Path = FOLDER) -> Dataset:
    """The three splits, each with `probabilities` (N, 2) float32 = [1 - p, p]. Raises MinikdError on a bad file."""
    return Dataset("sample", LABELS, *(read_split(Path(folder) / f"{s}.csv") for s in ("train", "validation", "test")))


def read_split(path: Path) -> Split:
    """One CSV file of the corpus. Raises MinikdError, which names the file and the line, if it is missing or broken."""
    try:
        rows = read_rows(path, Layout())
        positive = [row.label for row in read_rows(path, Layout(label_column="p_positive"))]
        for row, p in zip(rows, positive):
            if row.label not in LABELS:
                raise MinikdError(f"{path}, line {row.line}: the label {row.label!r} is neither negative nor positive")
            if not PROBABILITY.fullmatch(p):
                raise MinikdError(f"{path}, line {row.line}: p_positive is {p}, not a probability")
    except MinikdError as error:
        raise MinikdError(f"{error}; {REMEDY}") from None
    labels, p = [LABELS.index(row.label) for row in rows], np.array(positive, dtype=float)
    return Split([row.text for row in rows], labels, np.stack([1 - p, p], axis=1).astype(np.float32))


def bayes_accuracy(split: Split) -> float:
    """The accuracy on `split` of the classifier that knows the grammar: it answers the label of larger probability.

    Counted on the labels as drawn, on which models are judged too, and not the expectation mean(max(p, 1 - p)): luck in
    the draw then moves models and bound together. (The two differ by about 0.007 on 2,000 reviews.) p = 0.5 is
    answered `negative`, as argmax does. Raises ValueError if the probabilities are not known.
    """
    if split.probabilities is None:
        raise ValueError("bayes_accuracy needs a split whose label probabilities are known")
    return float(np.mean(split.probabilities.argmax(axis=1) == np.array(split.labels)))
