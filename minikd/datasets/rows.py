"""The rows of one of the user's files: CSV, TSV or JSONL, and .txt where only texts are wanted.

A row has a text and a label, which may be empty; other columns are ignored. A CSV file has quotation marks, as
spreadsheets write them, and commas, semicolons or tabs between its columns, or what a first line `sep=;`, as for Excel,
says. A TSV file has tabs and no quotation marks: a tab or line break always ends the field. A file is UTF-8 unless
`Layout.encoding` or a byte-order mark says otherwise.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minikd.datasets.decoding import WORKBOOK, decode
from minikd.errors import MinikdError
from minikd.files import parse_json, regular_file

DEFAULT_COLUMNS = {"text": ("text", "sentence"), "label": ("label",)}
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

Columns = dict[str, tuple[str, ...]]  # "text" and perhaps "label", each with the names that its column may have


@dataclass(frozen=True)
class Layout:
    """How files are to be read; None: the columns of `DEFAULT_COLUMNS`, and UTF-8."""

    text_column: str | None = None
    label_column: str | None = None
    encoding: str | None = None

    def columns(self, labelled: bool = True) -> Columns:
        """The names that the text column and, if `labelled`, the label column may have."""
        given = {"text": self.text_column} | ({"label": self.label_column} if labelled else {})
        return {kind: (name,) if name else DEFAULT_COLUMNS[kind] for kind, name in given.items()}


@dataclass(frozen=True)
class Row:
    line: int  # where it begins in its file, from 1
    text: str
    label: str = ""


def read_rows(path: Path, layout: Layout, labelled: bool = True, skip_empty: bool = False) -> list[Row]:
    """All rows of one file, in order. Without `labelled`, its labels are ignored, and a line of a .txt file is a text;
    with `skip_empty`, empty lines of it are ignored. Raises MinikdError naming the file and the line."""
    suffix = path.suffix.lower()
    formats = FORMATS if labelled else (*FORMATS, ".txt")
    if suffix not in formats:
        reason = OTHER_FORMATS.get(suffix, f"is not a {', '.join(formats)} file: give it the ending of its format")
        raise MinikdError(f"{path} {reason}")
    if suffix == ".txt" and layout.text_column:
        raise MinikdError(f"`text_column`: {path} has no columns; leave it out")
    try:
        content = regular_file(path).read_bytes()
    except OSError as error:
        raise MinikdError(f"{path} cannot be read: {error.strerror}") from error
    text = decode(content, path, layout.encoding)
    if suffix == ".txt":
        text = text.replace("\r\n", "\n").rstrip("\n")  # splitlines would end a line at U+2028 and others too
        lines = text.split("\n") if text.strip() else []
        rows = [_row(path, i, line) for i, line in enumerate(lines, start=1) if line.strip() or not skip_empty]
    elif suffix == ".jsonl":
        rows = list(parse_jsonl(text, path, layout.columns(labelled)))
    else:
        rows = list(parse_table(text, path, suffix, layout.columns(labelled)))
    if not rows:
        raise MinikdError(f"{path} has no examples: add some" if content else f"{path} is empty")
    return rows


def parse_table(text: str, where, suffix: str, wanted: Columns) -> Iterator[Row]:
    """Rows of CSV or TSV, as `suffix` says. Prints which delimiter and columns were recognised. Raises MinikdError."""
    csv.field_size_limit(2**31 - 1)  # the module's own limit, 131,072 characters, is shorter than some texts
    delimiters = DELIMITERS[suffix]
    if suffix == ".csv" and (given := SEPARATOR.match(text)):
        text, delimiters = text[given.end() :], given[1]  # the line stays, empty: lines are counted
    delimiter = _delimiter(text, where, suffix, delimiters, wanted)
    reader, header, line = _reader(text, suffix, delimiter), None, 1
    unquoted = " (a file with quotation marks around its fields is a .csv)" if suffix == ".tsv" else ""
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                pass  # an empty line, or a line of delimiters, which spreadsheets write for an empty row
            elif header is None:
                header = fields
                positions = _positions(header, f"{where}, line {line}, which must name the columns{unquoted}", wanted)
                _print_findings(where, suffix, delimiter, {kind: header[i] for kind, i in positions.items()}, wanted)
            elif len(fields) != len(header):
                counts = f"{len(fields)} fields where the header has {len(header)}"
                raise MinikdError(f"{where}, line {line}: {counts}: fix the row{unquoted}")
            else:
                yield _row(where, line, **{kind: fields[position] for kind, position in positions.items()})
            line = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise MinikdError(f"{where}, line {line}: {error} (an open quotation mark?): fix the row") from error


def parse_jsonl(text: str, where, wanted: Columns) -> Iterator[Row]:
    """Rows of one JSON object a line. Raises MinikdError."""
    for number, source in enumerate(text.split("\n"), start=1):
        if not source.strip():
            continue
        line = f"{where}, line {number}"
        try:
            record = parse_json(source, finite=False)  # Python writes NaN for a number that is missing
        except ValueError as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            remedy = f"an array? {ARRAY}" if source.lstrip().startswith("[") else "fix the line"
            raise MinikdError(f"{line}: not valid JSON ({reason}): {remedy}") from error
        if not isinstance(record, dict):
            raise MinikdError(f'{line}: not a JSON object such as {{"text": "…", "label": "…"}}: {ARRAY}')
        values = list(record.values())
        fields = {kind: values[position] for kind, position in _positions(list(record), line, wanted).items()}
        if not isinstance(fields["text"], str):
            raise MinikdError(f"{line}: the text is {json.dumps(fields['text'])[:40]}, not a string")
        if "label" in fields:
            fields["label"] = _json_label(fields["label"], line)
        if re.search("[\ud800-\udfff\0]", "".join(fields.values())):  # "\ud83d" alone is valid JSON, but no text
            raise MinikdError(f"{line}: a NUL or half a surrogate pair in it: fix the row")
        yield _row(where, number, **fields)


def _json_label(label, line: str) -> str:
    """The label as a table would hold it: null is empty. Raises MinikdError for what is no string, number or list."""
    if label is None:
        return ""
    if isinstance(label, list):
        return json.dumps(label)  # classes.py refuses it, as in a table
    finite = math.isfinite(label) if isinstance(label, float) else isinstance(label, (str, int))
    if not finite or isinstance(label, bool):
        raise MinikdError(f"{line}: the label is {json.dumps(label)[:40]}, neither a string nor a number")
    return str(label)


def _reader(text: str, suffix: str, delimiter: str):
    quoting = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)


def _delimiter(text: str, where, suffix: str, delimiters: str, wanted: Columns) -> str:
    """The one delimiter that gives the header the columns wanted; where none does, the one that gives it most columns.

    Raises MinikdError where several do.
    """
    headers: dict[str, list[str]] = dict.fromkeys(delimiters, [])
    for delimiter in delimiters:
        with suppress(csv.Error):  # a quotation mark before another delimiter
            headers[delimiter] = next((fields for fields in _reader(text, suffix, delimiter) if any(fields)), [])
    fitting = [delimiter for delimiter, header in headers.items()
               if all(len(_matches(header, accepted)) == 1 for accepted in wanted.values())]  # fmt: skip
    if len({tuple(headers[delimiter]) for delimiter in fitting}) > 1:  # a header of one column fits with all of them
        names = " and by ".join(DELIMITER_NAMES[delimiter] for delimiter in fitting)
        raise MinikdError(f"{where}: its columns may be separated by {names}: rename the columns that are not needed")
    return fitting[0] if fitting else max(headers, key=lambda delimiter: len(headers[delimiter]))


def _matches(names: list[str], accepted: tuple[str, ...]) -> list[int]:
    """Where an accepted name is among `names`: exactly, or else without regard to case and outer spaces."""
    exact = [position for position, name in enumerate(names) if name in accepted]
    folded = {name.strip().casefold() for name in accepted}
    return exact or [position for position, name in enumerate(names) if name.strip().casefold() in folded]


def _positions(names: list[str], where: str, wanted: Columns) -> dict[str, int]:
    """The position of each column wanted among `names`. Raises MinikdError."""
    found = {kind: _matches(names, accepted) for kind, accepted in wanted.items()}
    problems = {}
    for kind, accepted in wanted.items():
        if len(found[kind]) != 1:
            default = accepted == DEFAULT_COLUMNS[kind]
            sought = f"({' or '.join(accepted)})" if default else f"{accepted[0]!r} (given, or recorded in training)"
            problems[f"`{kind}_column` NAME"] = f"{'more than one' if found[kind] else 'no'} {kind} column {sought}"
    if problems:
        listed = str(names)[1:-1][:200]  # quoted and escaped: the message stays one line
        raise MinikdError(f"{where}: {' and '.join(problems.values())} among {listed}: give {' and '.join(problems)}")
    if "label" in found and found["text"] == found["label"]:
        raise MinikdError(f"{where}: `label_column` {wanted['label'][0]} is the text column: name another")
    return {kind: position for kind, (position,) in found.items()}


def _print_findings(where, suffix: str, delimiter: str, found: dict[str, str], wanted: Columns) -> None:
    """Prints the delimiter and the names of the columns found, where they are not the usual ones."""
    findings = [f"{kind} column {name.strip()!r}" for kind, name in found.items() if name not in wanted[kind]]
    if delimiter != DELIMITERS[suffix][0]:
        findings.insert(0, f"columns separated by {DELIMITER_NAMES.get(delimiter, repr(delimiter))}")
    if findings:
        print(f"{where}: {'; '.join(findings)}")


def _row(where, line: int, text: str, label: str = "") -> Row:
    row = Row(line, text.strip(), label.strip())
    if not row.text:
        raise MinikdError(f"{where}, line {line}: the text is empty: fill it in or remove the row")
    return row
