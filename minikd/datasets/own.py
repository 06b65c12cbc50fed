"""The user's own data: one file, which is divided here, or a folder with train, validation and test files.

minikd/datasets/rows.py says what a file may look like, minikd/datasets/classes.py which labels are refused.
"""

import os
import re
from pathlib import Path

from minikd.datasets.classes import INTEGER, check_classes, doubtful_labels, integer_label
from minikd.datasets.rows import FORMATS, Layout, Row, read_rows
from minikd.datasets.splits import MINIMUM, Dataset, Split, make_dataset
from minikd.errors import MinikdError

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load(path, layout: Layout, model_labels=None, may_lack_labels: bool = False) -> Dataset:
    """A file, divided 80/10/10, or a folder whose validation file may be missing (a tenth of train is taken instead).

    Training rows whose label is empty are refused, or if they `may_lack_labels`, unlabelled texts. The labels are those
    seen in training, sorted (as numbers, if all are whole numbers). With `model_labels` nothing is trained: no split or
    label needs a least number of examples, and if all labels seen are among the model's, the labels are the model's.
    Raises MinikdError.
    """
    path = Path(path)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    name = os.fsencode(name).decode(errors="replace")  # of other bytes than UTF-8, which no picture can show
    files = _split_files(path) if path.is_dir() else {"train": path}
    rows = {split: read_rows(file, layout) for split, file in files.items()}
    for split, of_split in rows.items():
        if without := [row for row in of_split if not row.label]:
            _check_may_lack_label(may_lack_labels and split == "train", without[0], files[split])
    unlabelled = [row.text for row in rows["train"] if not row.label]
    rows["train"] = [row for row in rows["train"] if row.label]
    if not rows["train"]:
        raise MinikdError(f"{files['train']}: no row has a label: label some")
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
    data = make_dataset(name, labels, splits["train"], *given, where=path, minimum=minimum)
    return data.with_unlabelled(unlabelled, f"{path}, rows without a label")


def _check_may_lack_label(may: bool, row: Row, where) -> None:
    if not may:
        raise MinikdError(
            f"{where}, line {row.line}: the label is empty: fill it in or remove the row (only distill.py, and "
            f"load_dataset with unlabelled=(), take training texts without a label)"
        )


def _split_files(folder: Path) -> dict[str, Path]:
    """The files of train, test and, if there is one, validation. Raises MinikdError."""
    files = {}
    for split, stems in SPLIT_NAMES.items():
        found = [file for stem in stems for ending in FORMATS if os.path.lexists(file := folder / (stem + ending))]
        if len(found) > 1:
            both = f"{found[0].name} and {found[1].name}"
            raise MinikdError(f"{folder}: both {both} could be the {split} split: keep one")
        if found:
            files[split] = found[0]
        elif split != "validation":
            remedy = f"add one, or give {files['train']} alone" if files else "add one"
            raise MinikdError(f"{folder}: no {split} file ({split}.csv, {split}.tsv or {split}.jsonl): {remedy}")
    return files


def _label_names(written: set[str], where) -> list[str]:
    """The labels, sorted; prints which are written as 1.0 and read as 1. Raises MinikdError for fewer than two."""
    labels = {integer_label(label) for label in written} if all(map(INTEGER.fullmatch, written)) else written
    if changed := sorted(written - labels):
        examples = ", ".join(f"{label!r} as {integer_label(label)!r}" for label in changed[:5])
        print(f"{where}: labels that are whole numbers are read as such: {examples}")
    if len(labels) < 2:
        raise MinikdError(f"{where}: every example has the label {labels.pop()!r}: at least two labels are needed")
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label) if numbers else label)


def _split(rows: list[Row], labels: list[str], where) -> Split:
    """The split of these rows. Raises MinikdError for a label that is not among `labels`."""
    ids = {label: position for position, label in enumerate(labels)}
    found = [ids.get(row.label, ids.get(integer_label(row.label))) for row in rows]
    if None in found:
        row, known = rows[found.index(None)], str(labels)[1:-1][:200]
        raise MinikdError(f"{where}, line {row.line}: label {row.label!r} does not occur in training ({known})")
    return Split([row.text for row in rows], found)
