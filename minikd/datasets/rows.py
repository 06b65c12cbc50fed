"""The rows of one of the user's files: CSV, TSV or JSONL, and .txt where only texts are wanted.

A row has a text and a label; other columns are ignored. A CSV file has quotation marks, as spreadsheets write them, and
commas, semicolons or tabs between its columns, or what a first line `sep=;`, as for Excel, says. A TSV file has tabs
and no quotation marks: a tab or line break always ends the field. A file is UTF-8 unless `Layout.encoding` or a
byte-order mark says otherwise.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minikd.datasets.decoding import WORKBOOK, decode
from minikd.errors import MinikdError

TEXT_COLUMNS = ("text", "sentence")
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
SEPARATOR = re.compile(r'"?sep=([^"\w\r\n])"?(?=[\r\n])', re.IGNORECASE)
FORMATS = (*DELIMITERS, ".jsonl")
ARRAY = "write one object a line, without brackets and commas around them, to a .jsonl file"
OTHER_FORMATS = {
    ".txt": "has no labels: write a .csv file with the columns text and label",
    ".xls": WORKBOOK,
    ".xlsx": WORKBOOK,
    ".ods": WORKBOOK,
    ".json": f"is not read: {ARRAY}",
    ".parquet": "is not read: write a .csv file (pandas.read_parquet(…).to_csv(…, index=False))",
}


@dataclass(frozen=True)
class Layout:
    """How the user says that files are to be read; None: by the usual names, and as UTF-8."""

    text_column: str | None = None
    label_column: str | None = None
    encoding: str | None = None


USUAL = Layout()


@dataclass(frozen=True)
class Row:
    line: int  # where it begins in its file, from 1
    text: str
    label: str


def read_texts(path: Path, layout=USUAL) -> list[str]:
    """The texts of a file to be labelled, in order: a line each of a .txt file, else the text column of a CSV, TSV or
    JSONL file, which needs no labels. Raises MinikdError naming the file and the line."""
    return [row.text for row in read_rows(path, layout, labelled=False)]


def read_rows(path: Path, layout=USUAL, labelled: bool = True) -> list[Row]:
    """All rows of one file, in order; without `labelled`, the labels are not read and need not be there. Raises
    MinikdError naming the file and the line."""
    suffix = path.suffix.lower()
    formats = FORMATS if labelled else (*FORMATS, ".txt")
    if suffix not in formats:
        reason = OTHER_FORMATS.get(suffix, f"is not a {', '.join(formats)} file: give it the ending of its format")
        raise MinikdError(f"{path} {reason}")
    if suffix == ".txt" and layout.text_column:
        raise MinikdError(f"`text_column`: {path} has no columns; leave it out")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MinikdError(f"{path} cannot be read: {error.strerror}") from error
    if suffix == ".txt":
        # splitlines would end a line at U+2028 and others too
        text = decode(content, path, layout.encoding).replace("\r\n", "\n")
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        rows = [_row(number, line, None, path) for number, line in enumerate(lines, start=1)]
    elif suffix == ".jsonl":
        rows = list(parse_jsonl(content, path, layout, labelled))
    else:
        rows = list(parse_table(content, path, suffix, layout, labelled))
    if not rows:
        raise MinikdError(f"{path} has no examples: add some" if content else f"{path} is empty")
    return rows


def parse_table(content: bytes, where, suffix: str, layout=USUAL, labelled: bool = True) -> Iterator[Row]:
    """Rows of CSV or TSV, as `suffix` says. Prints which delimiter and columns were recognised. Raises MinikdError."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit, 131,072 characters, is shorter than some texts
    text = decode(content, where, layout.encoding)
    given = SEPARATOR.match(text) if suffix == ".csv" else None
    table = io.StringIO(text[given.end() :] if given else text, newline="")  # the line stays, empty: lines are counted
    delimiter = given[1] if given else _delimiter(table, where, suffix, layout, labelled)
    reader, header, line = _reader(table, suffix, delimiter), None, 1
    unquoted = " (a file with quotation marks around its fields is a .csv)" if suffix == ".tsv" else ""
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                pass  # an empty line, or a line of delimiters, which spreadsheets write for an empty row
            elif header is None:
                header, naming = fields, f"{where}, line {line}, which must name the columns{unquoted}"
                text_column, label_column = columns = _columns(header, naming, layout, labelled)
                _announce(where, suffix, delimiter, header, columns, layout)
            elif len(fields) != len(header):
                counts = f"{len(fields)} fields where the header has {len(header)}"
                raise MinikdError(f"{where}, line {line}: {counts}: fix the row{unquoted}")
            else:
                yield _row(line, fields[text_column], fields[label_column] if labelled else None, where)
            line = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise MinikdError(f"{where}, line {line}: {error} (an open quotation mark?): fix the row") from error


def parse_jsonl(content: bytes, where, layout=USUAL, labelled: bool = True) -> Iterator[Row]:
    """Rows of one JSON object a line. Raises MinikdError."""
    for line, source in enumerate(decode(content, where, layout.encoding).split("\n"), start=1):
        if not source.strip():
            continue
        try:
            record = json.loads(source)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            remedy = f"an array? {ARRAY}" if source.lstrip().startswith("[") else "fix the line"
            raise MinikdError(f"{where}, line {line}: not valid JSON ({reason}): {remedy}") from error
        if not isinstance(record, dict):
            raise MinikdError(f'{where}, line {line}: not a JSON object such as {{"text": "…", "label": "…"}}: {ARRAY}')
        values = list(record.values())
        text_column, label_column = _columns(list(record), f"{where}, line {line}", layout, labelled)
        text, label = values[text_column], values[label_column] if labelled else ""
        if not isinstance(text, str):
            raise MinikdError(f"{where}, line {line}: the text is {json.dumps(text)[:40]}, not a string")
        if isinstance(label, list):
            label = json.dumps(label)  # as it would be in a table; classes.py refuses both
        finite = math.isfinite(label) if isinstance(label, float) else isinstance(label, (str, int))
        if not finite or isinstance(label, bool):
            kind = "neither a string nor a number"
            raise MinikdError(f"{where}, line {line}: the label is {json.dumps(label)[:40]}, {kind}")
        if re.search("[\ud800-\udfff\0]", text + str(label)):  # "\ud83d" alone is valid JSON, but no text
            raise MinikdError(f"{where}, line {line}: a NUL or half a surrogate pair in it: fix the row")
        yield _row(line, text, str(label) if labelled else None, where)


def _reader(table: io.StringIO, suffix: str, delimiter: str):
    table.seek(0)
    quoting = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    return csv.reader(table, delimiter=delimiter, quoting=quoting, strict=True)


def _delimiter(table: io.StringIO, where, suffix: str, layout: Layout, labelled: bool) -> str:
    """The one delimiter that gives the header the columns wanted; where none does, the one that gives it most columns.

    Raises MinikdError where several do.
    """
    headers = {}
    for delimiter in DELIMITERS[suffix]:
        try:
            headers[delimiter] = next((fields for fields in _reader(table, suffix, delimiter) if any(fields)), [])
        except csv.Error:  # a quotation mark before another delimiter
            headers[delimiter] = []
    fitting = [
        delimiter
        for delimiter, header in headers.items()
        if all(len(_positions(header, accepted)) == 1 for accepted in _wanted(layout, labelled).values())
    ]
    if len({tuple(headers[delimiter]) for delimiter in fitting}) > 1:  # a header of one column fits with all of them
        names = " and by ".join(DELIMITER_NAMES[delimiter] for delimiter in fitting)
        raise MinikdError(f"{where}: its columns may be separated by {names}: rename the columns that are not needed")
    return fitting[0] if fitting else max(headers, key=lambda delimiter: len(headers[delimiter]))


def _wanted(layout: Layout, labelled: bool) -> dict[str, tuple[str, ...]]:
    """The names that the text column and, if `labelled`, the label column may have."""
    text = (layout.text_column,) if layout.text_column else TEXT_COLUMNS
    return {"text": text} | ({"label": (layout.label_column or "label",)} if labelled else {})


def _positions(names: list[str], accepted: tuple[str, ...]) -> list[int]:
    """Where an accepted name is among `names`: exactly, or else without regard to case and outer spaces."""
    exact = [position for position, name in enumerate(names) if name in accepted]
    folded = {name.strip().casefold() for name in accepted}
    return exact or [position for position, name in enumerate(names) if name.strip().casefold() in folded]


def _columns(names: list[str], where, layout: Layout, labelled: bool) -> list[int | None]:
    """Positions of the text and of the label column (None unless `labelled`) among `names`. Raises MinikdError."""
    found, problems, flags = [], [], []
    for kind, accepted in _wanted(layout, labelled).items():
        positions = _positions(names, accepted)
        if len(positions) != 1:
            given = getattr(layout, f"{kind}_column")
            sought = f"{given!r} (given, or recorded in training)" if given else f"({' or '.join(accepted)})"
            problems.append(f"{'more than one' if positions else 'no'} {kind} column {sought}")
            flags.append(f"`{kind}_column` NAME")
        found += positions
    if problems:
        listed = str(names)[1:-1][:200]  # quoted and escaped: the message stays one line
        raise MinikdError(f"{where}: {' and '.join(problems)} among {listed}: give {' and '.join(flags)}")
    if labelled and found[0] == found[1]:
        raise MinikdError(f"{where}: `label_column` {layout.label_column} is the text column: name another")
    return found if labelled else [*found, None]


def _announce(where, suffix: str, delimiter: str, header: list[str], columns: list[int | None], layout: Layout) -> None:
    """Prints what was recognised, where it is not what a user would expect anyway."""
    notes = (
        []
        if delimiter == DELIMITERS[suffix][0]
        else [f"columns separated by {DELIMITER_NAMES.get(delimiter, repr(delimiter))}"]
    )
    for (kind, accepted), column in zip(_wanted(layout, True).items(), columns):
        if column is not None and header[column] not in accepted:
            notes.append(f"{kind} column {header[column].strip()!r}")
    if notes:
        print(f"{where}: {'; '.join(notes)}")


def _row(line: int, text: str, label: str | None, where) -> Row:
    row = Row(line, text.strip(), (label or "").strip())
    if not row.text or (not row.label and label is not None):
        empty = "label" if row.text else "text"
        raise MinikdError(f"{where}, line {line}: the {empty} is empty: fill it in or remove the row")
    return row
