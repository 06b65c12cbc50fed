"""Files written whole or not at all, and read with care: anybody may have written them."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minikd.errors import MinikdError

MOST = 32 << 20  # bytes of a JSON file or a vocabulary: published ones have 2 MB; Python's objects take ten times that
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")  # with which a spreadsheet lets a formula begin
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


class CleanUp(ExitStack):
    """An ExitStack whose block ends with the error that was raised in it, also where a clean-up then fails too.

    The failed clean-up is added to that error as a note. Where there is no other error, its own is raised.
    """

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool | None:
        try:
            return super().__exit__(kind, error, traceback)
        except BaseException as second:
            if error is None:
                raise
            error.add_note(f"and a clean-up failed: {second!r}")
            return False


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the name `path` when the block ends, and only if it ends well.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and then take the name in one step
    (rename is atomic within a file system). A reader finds the old file or the whole new one, never a part. Raises
    OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A part of the name: with more around it, one of 255 bytes, the most that there may be, would be too long.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private to its owner
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # it must not hide the first error
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):  # None: of a failed write
            error.filename = str(path)
        raise


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Writes `content` to `path`, all of it or nothing. Raises OSError."""
    with atomic_file(path) as file:
        file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Raises OSError; ValueError or TypeError if JSON cannot hold it."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: str | Path, rows: list[dict]) -> None:
    """Writes `rows`, all with the same keys, to a .jsonl file or else as CSV, atomically. Raises OSError.

    In CSV, a text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay as they are.
    """
    if Path(path).suffix.lower() == ".jsonl":
        with atomic_file(path) as file:  # row by row: together, one emoji makes every character four bytes
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.writelines(line.encode(errors="surrogateescape") for line in lines)
        return
    rows = [{key: _no_formula(value) for key, value in row.items()} for row in rows]
    text = io.StringIO()
    # Every string is quoted: a lone carriage return in a text would else end the row.
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def _no_formula(value: Any) -> Any:
    """The value of a CSV cell, with an apostrophe in front where a spreadsheet would run it."""
    formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def regular_file(path: str | Path, most: int | None = None) -> Path:
    """The path of a regular file of at most `most` bytes. Raises OSError for a larger one, a missing one, and for a
    folder, pipe, socket or device, whose reader could wait for ever."""
    path = Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        folder = stat.S_ISDIR(found.st_mode)
        what = (errno.EISDIR, "Is a directory") if folder else (errno.EINVAL, "it is not a regular file")
        raise OSError(*what, str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EINVAL, f"it has {found.st_size:,} bytes, which is more than {most:,}", str(path))
    return path


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file of at most `MOST` bytes. Raises OSError; ValueError where it is not UTF-8."""
    return regular_file(path, MOST).read_text(encoding="utf-8")


def parse_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError for what is no JSON, and for what Python's module accepts or fails at
    in another way: NaN and infinity (if `finite`), numbers of hundreds of digits, half a surrogate pair, deep nesting.
    """
    try:
        value = json.loads(text, parse_constant=_number if finite else float, parse_float=_number, parse_int=_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(text: str) -> int | float:
    if len(text) > 300 or not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is too large, or no number")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def fingerprint(*parts: Any) -> str:
    """SHA-256 of `parts` (bytes, str, or anything with the buffer protocol), each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else memoryview(part).cast("B")
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def check_writable(folder: Path, setting: str = "`run_dir`") -> None:
    """Makes the folder that `setting` names. Raises MinikdError if nothing can be written to it: before hours of
    training, not after."""
    probe = folder / f".writable-{os.getpid()}{'-' * 100}"  # as long as the paths of what will be in it
    try:
        os.fsencode(folder).decode()
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise MinikdError(f"{setting} {folder}: cannot be written to ({error.strerror})") from None
    except UnicodeDecodeError:
        raise MinikdError(f"{setting} {folder}: a name that is not UTF-8 cannot be read again; give another") from None
