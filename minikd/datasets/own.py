"""The user's own data: one file, which is divided here, or a folder with train, validation and test files.

minikd/datasets/rows.py says what a file may look like, minikd/datasets/classes.py which labels are refused.
"""

import os
import re
from pathlib import Path

from minikd.datasets.classes import WHOLE, check_classes, doubtful_labels, whole_number
from minikd.datasets.rows import FORMATS, USUAL, Layout, Row, read_rows
from minikd.datasets.splits import MINIMUM, Dataset, Split, make_dataset
from minikd.errors import MinikdError

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load(path, layout: Layout = USUAL, model_labels=None) -> Dataset:
    """A file, divided 80/10/10, or a folder whose validation file may be missing (a tenth of train is taken instead).

    The labels are those seen in training, sorted (as numbers, if all are whole numbers). With `model_labels` nothing
    is trained: no split or label needs a least number of examples, and if all labels seen are among the model's, the
    labels are the model's. Raises MinikdError.
    """
    path = Path(path)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    files = _split_files(path) if path.is_dir() else {"train": path}
    rows = {split: read_rows(file, layout) for split, file in files.items()}
    seen = {row.label for row in rows["train"]}
    if seen <= set(model_labels or ()):
        seen = set(model_labels)
    else:
        check_classes(rows["train"], files["train"])
    labels = _label_names(seen, files["train"])
    for warning in doubtful_labels(labels):
        print(f"{files['train']}: {warning}")
    splits = {split: _split(rows[split], labels, files[split]) for split in rows}
    minimum = MINIMUM if model_labels is None else 0
    given = splits.get("test"), splits.get("validation")
    return make_dataset(name, labels, splits["train"], *given, where=path, minimum=minimum)


def _split_files(folder: Path) -> dict[str, Path]:
    """The files of train, test and, if there is one, validation. Raises MinikdError."""
    files = {split: _find(folder, split) for split in SPLIT_NAMES}
    if files["train"] is None:
        raise MinikdError(f"{folder}: no train file (train.csv, train.tsv or train.jsonl): add one")
    if files["test"] is None:
        alone = f"or give {files['train']} alone"
        raise MinikdError(f"{folder}: no test file (test.csv, test.tsv or test.jsonl): add one, {alone}")
    return {split: file for split, file in files.items() if file}


def _find(folder: Path, split: str) -> Path | None:
    """The one file of `split` in `folder`, or None. Raises MinikdError where two could be meant."""
    files = [folder / (stem + suffix) for stem in SPLIT_NAMES[split] for suffix in FORMATS]
    files = [file for file in files if os.path.lexists(file)]
    if len(files) > 1:
        raise MinikdError(f"{folder}: both {files[0].name} and {files[1].name} could be the {split} split: keep one")
    return files[0] if files else None


def _label_names(written: set[str], where) -> list[str]:
    """The different labels, sorted; prints which are written as 1.0 and read as 1. Raises MinikdError for one alone."""
    labels = {whole_number(label) for label in written} if all(map(WHOLE.fullmatch, written)) else written
    if changed := sorted(written - labels):
        examples = ", ".join(f"{label!r} as {whole_number(label)!r}" for label in changed[:5])
        print(f"{where}: labels that are whole numbers are read as such: {examples}")
    if len(labels) < 2:
        raise MinikdError(f"{where}: every example has the label {labels.pop()!r}: at least two labels are needed")
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label) if whole else label)


def _split(rows: list[Row], labels: list[str], where) -> Split:
    ids = {label: position for position, label in enumerate(labels)}
    found = [ids.get(row.label, ids.get(whole_number(row.label))) for row in rows]
    if None in found:
        row, known = rows[found.index(None)], str(labels)[1:-1][:200]
        raise MinikdError(f"{where}, line {row.line}: label {row.label!r} does not occur in training ({known})")
    return Split([row.text for row in rows], found)
