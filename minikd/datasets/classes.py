"""Whether a column of labels holds classes, and how many examples each class has.

Three kinds of columns are refused:

- numbers of which one has a fraction, "3.7" or "3,7": a quantity to predict, which a classifier cannot;
- cells that hold several labels: a list in brackets, or labels joined by ; , or | of which each also occurs alone
  ("sports;politics" beside "sports" and "politics"), or which occur in two orders ("a;b" and "b;a"); the class names
  "Books, new" and "Books, used" are accepted;
- more different labels than half the rows: too few examples of a label to learn from.
"""

import re
from collections import Counter

from minikd.datasets.rows import Row
from minikd.datasets.splits import Dataset
from minikd.errors import MinikdError

NUMBER = re.compile(r"[-+]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][-+]?[0-9]+)?")
INTEGER = re.compile(r"(-?[0-9]+)(\.0*)?")  # pandas writes whole numbers as 1.0 where one of the column is missing
LIST = re.compile(r"\[(\s*|.*['\",].*|[0-9\s.]+)\]", re.DOTALL)  # JSON, Python, numpy; and not the name [NEG]
FEW = 10  # training examples of a label: fewer are warned of


def check_classes(rows: list[Row], where) -> None:
    """Raises MinikdError, with the line, where the labels of `rows` are no classes by the rules above; `where` is the
    file."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.label, row)
    remedy = "give each text one class (rename classes that only look so), or name another column by `label_column`"
    fraction = next((row for row in first.values() if not INTEGER.fullmatch(row.label)), None)
    if fraction and all(NUMBER.fullmatch(label) for label in first):
        what = f"the label {fraction.label!r} is a number with a fraction, as of a quantity to predict"
        raise MinikdError(f"{where}, line {fraction.line}: {what}; only classes can be predicted: {remedy}")
    if several := _first_with_several(first):
        raise MinikdError(f"{where}, line {several.line}: {several.label[:60]!r} looks like several labels: {remedy}")
    if 1 < len(rows) / 2 < len(first):
        what = f"{len(first):,} different labels in {len(rows):,} rows, the first {rows[0].label[:60]!r}"
        raise MinikdError(f"{where}: {what}: they look like texts, identifiers or quantities: {remedy}")


def _first_with_several(first: dict[str, Row]) -> Row | None:
    """The first row whose label is a list of labels; `first` has each label with the row in which it occurs first."""
    orders: dict[tuple, list[str]] = {}
    for label, row in first.items():
        if LIST.fullmatch(label):
            return row
        for separator in ";,|":
            pieces = [piece.strip() for piece in label.split(separator)]
            if len(pieces) > 1 and all(piece in first for piece in pieces):
                return row
            if orders.setdefault((separator, *sorted(pieces)), pieces) != pieces:
                return row
    return None


def integer_label(label: str) -> str:
    """The label; of a whole number that is written as 1.0, without the point: 1."""
    match = INTEGER.fullmatch(label)
    return match[1] if match else label


def doubtful_labels(labels: list[str]) -> list[str]:
    """A warning for labels that differ in case alone, and one for the label nan."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(label.casefold(), []).append(label)
    warnings = []
    if several := ["/".join(names) for names in alike.values() if len(names) > 1]:
        warnings.append(f"warning: labels that differ in case alone are different classes: {', '.join(several[:5])}")
    if "nan" in alike:
        warnings.append(f"warning: {alike['nan'][0]!r} is taken as a class: remove its rows if their label is missing")
    return warnings


def label_counts(data: Dataset) -> str:
    """How many examples of each label there are in train + validation + test; of many labels, the extremes."""
    counts = _counts(data)
    shown = {label: f"{label}: {' + '.join(f'{count:,}' for count in numbers)}" for label, numbers in counts.items()}
    if len(shown) <= 20:
        return f"labels (train + validation + test): {'; '.join(shown.values())}"
    ordered = [shown[label] for label in sorted(counts, key=lambda label: -counts[label][0])]
    extremes = "; ".join([*ordered[:5], "…", *ordered[-5:]])
    return f"{len(shown)} labels (train + validation + test): {extremes}"


def rare_labels(data: Dataset) -> str:
    """A warning that names the labels with too few examples to learn or to judge; empty if there are none."""
    rare = [
        f"{label!r} ({train} training, {validation} validation, {test} test)"
        for label, (train, validation, test) in _counts(data).items()
        if train < FEW or not validation or not test
    ]
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return f"warning: few examples of {', '.join(rare[:5])}{more}: figures for them mean little" if rare else ""


def _counts(data: Dataset) -> dict[str, list[int]]:
    """For each label its examples in train, validation and test."""
    of_splits = [Counter(split.labels) for split in (data.train, data.validation, data.test)]
    return {name: [counts[label] for counts in of_splits] for label, name in enumerate(data.labels)}
