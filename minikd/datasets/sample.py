"""The embedded corpus: film reviews written by the grammar in data/sample/generate.py, with known label probabilities.

Every row holds a text, a label drawn by a coin, and the probability with which the coin fell on `positive`. So the best
possible accuracy is known, and so is how far any model's probabilities are from the true ones.
"""

import csv
import io
from pathlib import Path

import numpy as np

from minikd.datasets import Dataset, Split
from minikd.errors import MinikdError

PACKAGE = Path(__file__).resolve().parents[1]
# In the repository the corpus lies beside the package; an installed package has it inside (minikd/pyproject.toml).
FOLDER = PACKAGE / "sample" if (PACKAGE / "sample").exists() else PACKAGE.parent / "data" / "sample"
LABELS = ("negative", "positive")
COLUMNS = ["text", "label", "p_positive"]
REMEDY = "write the corpus again with: python data/sample/generate.py"


def load(folder: Path = FOLDER) -> Dataset:
    """The three splits, each with `probabilities` (N, 2) float32 = [1 - p, p]. Raises MinikdError on a bad file."""
    return Dataset("sample", LABELS, *(read_split(Path(folder) / f"{s}.csv") for s in ("train", "validation", "test")))


def read_split(path: Path) -> Split:
    """One CSV file of the corpus. Raises MinikdError, which names the file and the line, if it is missing or broken."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise MinikdError(f"{path}: not UTF-8 at byte {error.start}; {REMEDY}") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts, labels, p_positive = [], [], []
    try:
        if next(rows, None) != COLUMNS:
            raise ValueError(f"the header is not {','.join(COLUMNS)}")
        for row in rows:
            review, label, p = row if len(row) == 3 else _refuse(f"{len(row)} columns instead of 3")
            if not review.strip():
                _refuse("an empty text")
            if label not in LABELS:
                _refuse(f"the label {label!r} is neither negative nor positive")
            if not 0 <= float(p) <= 1:
                _refuse(f"p_positive is {p}, not a probability")
            texts.append(review)
            labels.append(LABELS.index(label))
            p_positive.append(float(p))
        if not texts:
            _refuse("no reviews")
    except (ValueError, csv.Error) as error:
        raise MinikdError(f"{path}, line {max(rows.line_num, 1)}: {error}; {REMEDY}") from None
    p = np.array(p_positive)
    return Split(texts, labels, np.stack([1 - p, p], axis=1).astype(np.float32))


def _refuse(what: str):
    raise ValueError(what)


def bayes_accuracy(split: Split) -> float:
    """The accuracy on `split` of the classifier that knows the grammar: it answers the label of larger probability.

    It is counted on the labels as they were drawn, not taken as the expectation mean(max(p, 1 - p)). The models in a
    table are judged on the same drawn labels, so luck in the draw moves their accuracies and this bound together: the
    gap between them is then the models' own. (The two differ by about 0.007 on 2,000 reviews.) A score of exactly
    zero, p = 0.5, is answered `negative`, as argmax does. Raises ValueError if the probabilities are not known.
    """
    if split.probabilities is None:
        raise ValueError("bayes_accuracy needs a split whose label probabilities are known")
    return float(np.mean(split.probabilities.argmax(axis=1) == np.array(split.labels)))
