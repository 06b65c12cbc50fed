"""The user's own data: a CSV, TSV or JSONL file, or a folder with train, validation and test files.

A row has a text (column `text` or `sentence`) and a label (column `label`: a name or a whole number); other columns are
ignored. Files are UTF-8. CSV has quotation marks as spreadsheets write them; TSV has none: a tab or line break always
ends the field.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minikd.datasets.splits import Dataset, Split, assemble
from minikd.files import UserError

TEXT_COLUMNS = ("text", "sentence")
FORMATS = (".csv", ".tsv", ".jsonl")
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Row:
    line: int  # where it begins in its file, from 1
    text: str
    label: str


def load(path) -> Dataset:
    """A file, divided 80/10/10, or a folder whose validation file may be missing (a tenth of train is taken instead).

    The labels are those seen in training, sorted (as numbers, if all are whole numbers). Raises UserError.
    """
    path = Path(path)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if not path.is_dir():
        rows = read_rows(path)
        labels = _label_names(rows, path)
        return assemble(name, labels, _split(rows, labels, path), where=path)
    files = {split: _find(path, split) for split in SPLIT_NAMES}
    if files["train"] is None:
        raise UserError(f"{path}: no train file (train.csv, train.tsv or train.jsonl): add one")
    if files["test"] is None:
        alone = f"or give {files['train']} alone"
        raise UserError(f"{path}: no test file (test.csv, test.tsv or test.jsonl): add one, {alone}")
    rows = {split: read_rows(file) for split, file in files.items() if file}
    labels = _label_names(rows["train"], files["train"])
    splits = {split: _split(rows[split], labels, files[split]) for split in rows}
    return assemble(name, labels, splits["train"], splits["test"], splits.get("validation"), where=path)


def read_texts(path: Path) -> list[str]:
    """The texts of a file to be labelled, in order: a line each of a .txt file, else the text column of a CSV, TSV or
    JSONL file, which needs no labels. Raises UserError naming the file and the line."""
    return [row.text for row in read_rows(path, labelled=False)]


def read_rows(path: Path, labelled: bool = True) -> list[Row]:
    """All rows of one file, in order; without `labelled`, whether it has labels or not, and without them. Raises
    UserError naming the file and the line."""
    suffix = path.suffix.lower()
    formats = FORMATS if labelled else (*FORMATS, ".txt")
    if suffix not in formats:
        raise UserError(f"{path}: not a {', '.join(formats)} file: give it the ending that says its format")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if suffix == ".txt":
        text = _decode(content, path).replace("\r\n", "\n")  # splitlines would end a line at U+2028 and others too
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        rows = [_row(number, line, None, path) for number, line in enumerate(lines, start=1)]
    elif suffix == ".jsonl":
        rows = list(parse_jsonl(content, path, labelled))
    else:
        rows = list(parse_table(content, path, "\t" if suffix == ".tsv" else ",", labelled))
    if not rows:
        raise UserError(f"{path} has no examples: add some" if content else f"{path} is empty")
    return rows


def parse_table(content: bytes, where, delimiter: str, labelled: bool = True) -> Iterator[Row]:
    """Rows of CSV (delimiter ",", quoted) or TSV (delimiter tab, never quoted). Raises UserError."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit, 131,072 characters, is shorter than some texts
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    table = io.StringIO(_decode(content, where), newline="")
    reader = csv.reader(table, delimiter=delimiter, quoting=quoting, strict=True)
    header, line = None, 1
    try:
        for fields in reader:
            if header is None and fields:
                header = [name.strip() for name in fields]
                text_column, label_column = _columns(header, where, labelled)
            elif fields and len(fields) != len(header):
                counts = f"{len(fields)} fields where the header has {len(header)}"
                raise UserError(f"{where}, line {line}: {counts}: mend the row")
            elif fields:
                yield _row(line, fields[text_column], fields[label_column] if labelled else None, where)
            line = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise UserError(f"{where}, line {line}: {error} (an open quotation mark?): mend the row") from error


def parse_jsonl(content: bytes, where, labelled: bool = True) -> Iterator[Row]:
    """Rows of one JSON object a line. Raises UserError."""
    for line, source in enumerate(_decode(content, where).split("\n"), start=1):
        if not source.strip():
            continue
        try:
            record = json.loads(source)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{where}, line {line}: not valid JSON ({reason}): mend the line") from error
        if not isinstance(record, dict):
            raise UserError(f'{where}, line {line}: not a JSON object such as {{"text": "…", "label": "…"}}')
        values = list(record.values())
        text_column, label_column = _columns(list(record), f"{where}, line {line}", labelled)
        text, label = values[text_column], values[label_column] if labelled else ""
        if not isinstance(text, str):
            raise UserError(f"{where}, line {line}: the text is {json.dumps(text)[:40]}, not a string")
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            kind = "neither a string nor a whole number"
            raise UserError(f"{where}, line {line}: the label is {json.dumps(label)[:40]}, {kind}")
        if re.search("[\ud800-\udfff\0]", text + str(label)):  # "\ud83d" alone is valid JSON, but no text
            raise UserError(f"{where}, line {line}: a NUL or half a surrogate pair in it: mend the row")
        yield _row(line, text, str(label) if labelled else None, where)


def _decode(content: bytes, where) -> str:
    """UTF-8, with or without the mark that spreadsheets put in front."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object and not content: the codec counts its positions after the mark
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}): save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{where}, line {line}: a NUL byte, which no text has: save the file as plain UTF-8")
    return text


def _columns(names: list[str], where, labelled: bool) -> list[int | None]:
    """Positions of the text column and, if `labelled`, of the label column among `names`."""
    found = []
    for kind, accepted in (("text", TEXT_COLUMNS), ("label", ("label",))):
        if kind == "label" and not labelled:
            return [*found, None]
        positions = [position for position, name in enumerate(names) if name in accepted]
        if len(positions) != 1:
            listed = str(names)[1:-1][:200]  # quoted and escaped: the message stays one line
            problem = f"{'more than one' if positions else 'no'} {kind} column ({' or '.join(accepted)})"
            raise UserError(f"{where}: {problem} among {listed}: name exactly one so")
        found.append(positions[0])
    return found


def _row(line: int, text: str, label: str | None, where) -> Row:
    row = Row(line, text.strip(), (label or "").strip())
    if not row.text or (not row.label and label is not None):
        empty = "label" if row.text else "text"
        raise UserError(f"{where}, line {line}: the {empty} is empty: fill it in or remove the row")
    return row


def _find(folder: Path, split: str) -> Path | None:
    """The one file of `split` in `folder`, or None. Raises UserError where two could be meant."""
    files = [folder / (stem + suffix) for stem in SPLIT_NAMES[split] for suffix in FORMATS]
    files = [file for file in files if os.path.lexists(file)]
    if len(files) > 1:
        raise UserError(f"{folder}: both {files[0].name} and {files[1].name} could be the {split} split: keep one")
    return files[0] if files else None


def _label_names(rows: list[Row], where) -> list[str]:
    labels = {row.label for row in rows}
    if len(labels) < 2:
        raise UserError(f"{where}: every example has the label {labels.pop()!r}: at least two labels are needed")
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label) if whole else label)


def _split(rows: list[Row], labels: list[str], where) -> Split:
    ids = {label: position for position, label in enumerate(labels)}
    for row in rows:
        if row.label not in ids:
            known = str(labels)[1:-1][:200]
            raise UserError(f"{where}, line {row.line}: label {row.label!r} does not occur in training ({known})")
    return Split([row.text for row in rows], [ids[row.label] for row in rows])
