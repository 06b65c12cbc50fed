"""Valid files made invalid in many small ways, from a seed, to try what reads them."""

import copy
import gzip
import io
import json
import math
import struct
import tarfile
import zipfile

import numpy as np
import torch

# What a field may hold instead of what it should. JSON is Python's: it writes NaN, Infinity and half a surrogate pair.
ODD = [None, True, False, 0, 1, -1, 3, 2**31, 10**7, 10**12, 2**63, 10**30, 10**200, 0.5, -1.5, 1e300, math.nan,
       math.inf, "", "x", "0", "1" * 5000, "../../x", "/etc/passwd", "\x1b[2J", "\ud800", "a\nb", "\0", [], {}, [1],
       [[]], ["a"], {"a": 1}, {"0": 1}, [None], {"type": "x"}]  # fmt: skip
BYTES = [b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 5000, b"[" * 100_000, b"\x1b]0;x\x07", b"{}", b"[]", b"null",
         b"\n", b"\r", b'"', b",", b";", b"\t", b"sep=;\n", b"\xed\xa0\x80", b"PK\3\4", b"\xe2\x80\xae"]  # fmt: skip
TENSORS = [torch.zeros(0), torch.tensor(2.5), torch.full((3,), math.nan), torch.eye(3).to_sparse(),
           torch.zeros(1).expand(10**9), torch.empty(10**9, device="meta"), torch.ones(3, dtype=torch.complex64),
           torch.ones(3, dtype=torch.bool), torch.ones(16, 16, dtype=torch.int64)]  # fmt: skip
NAMES = ["", ".", "../../x", "/etc/passwd", "train.tsv", "train/pos/1_1.txt", "train/pos/" + "9" * 99 + "_1.txt",
         "__MACOSX/dev.tsv", "a" * 300, "\x1b[2J/dev.tsv", "test/neg/\u0665_1.txt", "C:\\dev.tsv"]  # fmt: skip


def mutated(value, random, odd=ODD):
    """A copy of a JSON value with up to three changes: a value replaced, scaled, deleted, repeated or renamed. `odd`:
    what it may be replaced by."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        holder = _some_holder(value, random)
        if not holder:
            return copy.deepcopy(_pick(odd, random))
        key = _pick(range(len(holder)) if isinstance(holder, list) else list(holder), random)
        change = random.integers(6)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[_pick(["", "x", "99", "-1", "\x1b[0m", *holder], random)] = holder.pop(key)
        elif change == 1:
            holder.extend([copy.deepcopy(holder[key])] * 3)
        elif change == 2 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = _pick([holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1000, 0], random)
        else:
            holder[key] = copy.deepcopy(_pick(odd, random))
    return value


def mutated_bytes(content, random):
    """The bytes with one to three changes: flipped, truncated, repeated, or odd ones put in."""
    content = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at, end = sorted(random.integers(0, len(content) + 1, 2))
        change = random.integers(5)
        if change == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << random.integers(8)
        elif change == 1:
            del content[at:]
        elif change == 2:
            content[at:at] = content[at:end][:1000]
        elif change == 3:
            content[at : at + random.integers(20)] = _pick(BYTES, random)
        elif len(content) >= 8:
            number = _pick([0, 1, 2**31, 2**63, 2**64 - 1, 10**7], random)
            content[at : at + 8] = struct.pack("<Q", number)
    return bytes(content)


def mutated_json(content, random):
    """The bytes of a JSON file, changed as JSON or, one in four times, as bytes."""
    try:
        value = None if random.random() < 0.25 else json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return mutated_bytes(content, random)
    return json.dumps(mutated(value, random)).encode("utf-8", "surrogatepass")


def mutated_lines(content, random):
    """The bytes of a file of JSON lines: one of them changed or, one in four times, any bytes."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    lines = content.split(b"\n")
    at = random.integers(len(lines))
    lines[at] = mutated_json(lines[at], random)
    return b"\n".join(lines)


def mutated_safetensors(content, random):
    """The bytes of a .safetensors file, with changes in the JSON of its header or in any bytes."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    size = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + size], random)
    length = len(header) if random.random() < 0.9 else int(random.integers(0, 2**40))
    return length.to_bytes(8, "little") + header + content[8 + size :]


def mutated_torch(content, random):
    """The bytes of a file of torch.save: an object in it replaced, the pickle's bytes changed, or any bytes."""
    way = random.random()
    if way < 0.25:
        return mutated_bytes(content, random)
    if way < 0.5:
        return _mutated_member(content, "data.pkl", random)
    try:
        value = mutated(torch.load(io.BytesIO(content), weights_only=True), random, ODD + TENSORS)
        torch.save(value, file := io.BytesIO())
    except Exception:  # of many kinds, where it was changed before
        return mutated_bytes(content, random)
    return file.getvalue()


def mutated_zip(content, random):
    """The bytes of a .zip: a member changed, renamed, packed in another way or with a claimed size, or any bytes."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    content = bytearray(_mutated_member(content, "", random))
    if random.random() < 0.3:  # of what the directory at the end says of a member: packed and unpacked size
        at = content.rfind(b"PK\1\2") + 20 + 4 * int(random.integers(2))
        if at < len(content) - 4:
            content[at : at + 4] = struct.pack("<I", _pick([0, 1, 10**6, 2**31, 2**32 - 1], random))
    return bytes(content)


def _mutated_member(content, ending, random):
    """A .zip with a change to a member whose name has this ending, or to its name."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        at = _pick([i for i, (name, _) in enumerate(members) if name.endswith(ending)], random)
        name, member = members[at]
        members[at] = name, mutated_bytes(member, random)
        if not ending and random.random() < 0.5:
            members.insert(at, (_pick([*NAMES, name], random), member))
        packing = zipfile.ZIP_STORED if ending else _pick([0, 8, 12, 14], random)
        with zipfile.ZipFile(file := io.BytesIO(), "w", packing) as archive:
            for name, member in members:
                archive.writestr(name, member)
    except Exception:  # of many kinds, where it was changed before
        return mutated_bytes(content, random)
    return file.getvalue()


def mutated_tar(content, random):
    """The bytes of a .tar.gz: what it says of a member changed, or any bytes before or after compression."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    try:
        plain = gzip.decompress(content)
        if random.random() < 0.25:
            return gzip.compress(mutated_bytes(plain, random), 1)
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            members = [(member, archive.extractfile(member).read()) for member in archive if member.isreg()]
        blocks, at = [], random.integers(len(members))
        for i, (member, data) in enumerate(members):
            if i == at:
                member.name, member.linkname = _pick([*NAMES, member.name], random), _pick(NAMES, random)
                member.type = _pick([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g"], random)
                member.size = _pick([member.size, 0, member.size + 1, 10**6, 8**11 - 1, 2**62], random)
                fields = {"GNU.sparse.size": "9" * 12, "GNU.sparse.map": "0,9999999999", "GNU.sparse.major": "1",
                          "path": "../../x", "size": "-1", "mtime": "nan", "hdrcharset": "x"}  # fmt: skip
                member.pax_headers = {key: fields[key] for key in fields if random.random() < 0.2}
            blocks += [member.tobuf(int(random.integers(3)), "utf-8", "surrogateescape"), data, bytes(-len(data) % 512)]
        return gzip.compress(b"".join(blocks) + bytes(1024), 1)
    except Exception:  # of many kinds, where it was changed before
        return mutated_bytes(content, random)


def _some_holder(value, random):
    """A list or an object with content, somewhere in the value; None where there is none."""
    holders, level = [], [value]
    while level:
        found = [one for one in level if isinstance(one, list | dict) and one]
        holders += found
        level = [part for one in found for part in (one.values() if isinstance(one, dict) else one)][:200]
    return holders[random.integers(len(holders))] if holders else None


def _pick(values, random):
    return values[random.integers(len(values))]


def seeds(count):
    """So many generators of random numbers, each of its own seed, which is its `seed`."""
    return [(seed, np.random.default_rng(seed)) for seed in range(count)]
