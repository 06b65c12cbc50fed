"""From the bytes of one of the user's files to its text."""

import codecs
import re

from minikd.errors import MinikdError

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WORKBOOK = "is a workbook: save its sheet as CSV (in Excel: “CSV UTF-8”)"


def decode(content: bytes, where, encoding: str | None = None) -> str:
    """The text, in the encoding of its byte-order mark, else in `encoding`, else in UTF-8. Raises MinikdError."""
    if content.startswith(b"PK\3\4"):
        raise MinikdError(f"{where} {WORKBOOK}")
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if marked in ("utf-16", "utf-32"):
        print(f"{where}: read as {marked.upper()}, as its byte-order mark says")
    used = marked or encoding or "utf-8"
    try:
        text = content.decode(used)
    except UnicodeDecodeError as error:
        # error.object and not content: the codec counts its positions after the mark
        line = error.object[: error.start].decode(error.encoding, "ignore").count("\n") + 1
        name = "UTF-8" if error.encoding == "utf-8" else used
        remedy = "give its encoding (`encoding` cp1252 is Excel's in Western Europe) or save it as UTF-8"
        raise MinikdError(
            f"{where}, line {line}: not {name} (byte 0x{error.object[error.start]:02x}): {remedy}"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise MinikdError(
            f"`encoding` {encoding}: not an encoding of texts that Python knows, such as cp1252"
        ) from error
    if not marked and encoding and codecs.lookup(encoding).name != "utf-8" and _is_utf_8(content):
        print(f"{where}: is valid UTF-8, and read as {encoding} as asked for")
    if bad := re.search("[\0\ud800-\udfff]", text):
        what, remedy = f"half a surrogate pair, read as {used}", "fix the row, or give the file's own encoding"  # utf-7
        if bad[0] == "\0":
            what = "a NUL byte, which no text has"
            remedy = "save the file as UTF-8, or give its encoding (`encoding` utf-16-le?)"
        line = text.count("\n", 0, bad.start()) + 1
        raise MinikdError(f"{where}, line {line}: {what}: {remedy}")
    return text


def _is_utf_8(content: bytes) -> bool:
    """Whether the bytes are UTF-8 and more than ASCII: in another encoding this practically never happens."""
    try:
        return not content.isascii() and bool(content.decode("utf-8"))
    except UnicodeDecodeError:
        return False
