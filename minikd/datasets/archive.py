"""Find a corpus on the disk, or download its archive; read members without unpacking them."""

import gzip
import hashlib
import http.client
import lzma
import os
import re
import struct
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minikd.errors import MinikdError
from minikd.files import regular_file

# RuntimeError: a zip with a password or an unknown compression; the last ones: fields that make no sense
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
           ValueError, IndexError, struct.error)  # fmt: skip
TOO_LARGE = "it unpacks to far more than a corpus has"
BLOCK = 1 << 20  # bytes read at a time
MOST = 512 << 20  # bytes that an archive may unpack to; IMDb's, the largest, has 200 MB
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """Where a corpus is found: `data_dir`/`corpus`/ and then `data_dir`/ are searched for `archive` and `folder`."""

    corpus: str
    archive: str
    folder: str  # what the archive unpacks to
    url: str
    sha256: str


def locate(source: Source, data_dir) -> Path:
    """The archive or unpacked folder under `data_dir`, downloaded first if neither is there. Raises MinikdError."""
    for place in (Path(data_dir) / source.corpus, Path(data_dir)):
        for name in (source.archive, source.folder):
            if os.path.exists(place / name):  # unlike Path.exists, False in a folder that may not be read
                return place / name
    path = Path(data_dir) / source.corpus / source.archive
    download(source.url, path, source.sha256)
    return path


def damaged(path, why) -> MinikdError:
    """The error for a file that does not hold what it should."""
    remedy = "delete it so that it is downloaded again, or replace it"
    return MinikdError(f"{path} is incomplete or damaged ({why}): {remedy}")


def members(path: Path, pattern: str) -> Iterator[tuple[re.Match, bytes]]:
    """(match, content) of each file in a .tar.gz, a .zip or a folder whose path below `path` matches `pattern` fully.

    Nothing is written anywhere, so an archive with hostile member names can do no harm. The order is the archive's own.
    Raises MinikdError for an archive that cannot be read to its end, or that unpacks to more than `MOST` bytes.
    """
    matcher = re.compile(r"(?:.*/)?" + pattern)  # re-packed archives may have more or fewer folders above
    read = _folder_members if path.is_dir() else _zip_members if path.suffix == ".zip" else _tar_members
    try:
        yield from read(path, matcher)
    except DAMAGED as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise MinikdError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _folder_members(path: Path, matcher):
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if match := matcher.fullmatch(file.relative_to(path.parent).as_posix()):
                yield match, regular_file(file, MOST).read_bytes()


def _zip_members(path: Path, matcher):
    with zipfile.ZipFile(regular_file(path)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MOST:  # zipfile reads no more than these
            raise tarfile.TarError(TOO_LARGE)
        for name in archive.namelist():
            # macOS puts a second tree of metadata into the zips that it makes.
            if not name.startswith("__MACOSX/") and (match := matcher.fullmatch(name)):
                yield match, archive.read(name)


def _tar_members(path: Path, matcher):
    # "r|" reads straight through; a seekable tar of 100,000 members takes several times as long.
    with gzip.open(regular_file(path)) as file, tarfile.open(fileobj=(stream := Bounded(file)), mode="r|") as archive:
        for member in archive:
            if archive.offset > MOST:  # tarfile would go there for the next one, block by block, for ever
                raise tarfile.TarError(TOO_LARGE)
            # A sparse file claims a size that the archive does not have.
            if member.isfile() and not member.issparse() and (match := matcher.fullmatch(member.name)):
                yield match, archive.extractfile(member).read()
        while stream.read(BLOCK):  # gzip compares its checksum at the end of the stream, which tarfile does not reach
            pass


class Bounded:
    """Reads a stream, up to `MOST` bytes of it: a few of gzip's may stand for thousands of others."""

    def __init__(self, stream):
        self.stream, self.left = stream, MOST

    def read(self, size: int) -> bytes:
        content = self.stream.read(min(size, BLOCK))
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.TarError(TOO_LARGE)
        return content


def download(url: str, path, sha256: str) -> None:
    """Downloads `url` to `path`.part, which a later call continues, and renames it once its SHA-256 is right.

    Raises MinikdError when the address cannot be reached or the connection breaks (the part stays), and when the
    checksum is wrong (the part is deleted).
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists() or _sha256_of(part) != sha256:
            _fetch(url, part)
        found = _sha256_of(part)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        remedy = f"run again to continue from there, or fetch {url} and put it at {path}"
        raise MinikdError(f"{path.name} could not be downloaded ({reason}): {remedy}") from error
    if found != sha256:
        part.unlink()
        hashes = f"{found[:16]}…, not {sha256[:16]}…"
        raise MinikdError(f"{url} has the wrong SHA-256 ({hashes}), deleted: run again, or put a good copy at {path}")
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    """Downloads what `part` still lacks of `url`, or all of it where the server cannot continue."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "minikd"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        part.unlink()  # longer than the file, or as long with other bytes
        return _fetch(url, part)
    with response:
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if response.status != http.client.PARTIAL_CONTENT or not continues:
            done = 0  # the server ignores ranges and sends the file from its start
        total = done + response.length if response.length else None  # None where Content-Length is no number
        with (
            open(part, "ab" if done else "wb") as file,
            tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(BLOCK):
                file.write(chunk)
                bar.update(len(chunk))
            done = file.tell()
    if total and done < total:
        raise ConnectionError(f"the connection was cut at {done:,} of {total:,} bytes")


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
