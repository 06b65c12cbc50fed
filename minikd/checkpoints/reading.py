"""Files that others wrote: whatever is wrong with one is a MinikdError, one line that names the file."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minikd.errors import MinikdError, is_full_memory
from minikd.files import parse_json, read_text

LONGEST_NAME = 50_000  # bytes without a space in a pickle: those of hundreds of tensors have fewer


@contextmanager
def reading(path: Path, fault: str | None = None) -> Iterator[None]:
    """Within the block, a MinikdError gets the name of the file in front, and an OSError becomes a MinikdError.

    With `fault`, so does every other error: "is damaged ({})", with the reason in place of {}. The block should do
    little else than parse, for the libraries have many kinds of errors for a file that they cannot read.
    """
    try:
        yield
    except MinikdError as error:
        raise MinikdError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from None
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror or error}); this file is needed") from None
    except BaseException as error:
        if is_full_memory(error):
            raise MinikdError(f"{path}: does not fit into the memory that is free") from None
        known = isinstance(error, Exception) or type(error).__name__ == "PanicException"  # of a library in Rust
        if fault is None or not known:
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MinikdError(f"{path}: {fault.format(reason[0])}") from None


def read_json(path: Path, fault: str = "is damaged ({})") -> dict:
    """The object in a JSON file. Raises MinikdError as `reading` does."""
    with reading(path, fault):
        content = parse_json(read_text(path))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        return content


def check_pickle(path: Path) -> None:
    """Raises ValueError for a file of torch.save that torch.load would unpack to more than its size, or over which it
    would sit for hours: it searches the name of what it does not know in the square of the length."""
    if not zipfile.is_zipfile(path):  # as before torch 1.6
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, or its parts overlap")
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    if any(len(word) > LONGEST_NAME for pickled in pickles for word in pickled.split()):
        raise ValueError("a name in it is too long")
