"""Valid files made invalid in many small ways, from a seed, to try what reads them."""

import copy
import json
import math
import struct

import numpy as np

# What a field may hold instead of what it should. JSON is Python's: it writes NaN, Infinity and half a surrogate pair.
ODD = [None, True, False, 0, 1, -1, 3, 2**31, 10**7, 10**12, 2**63, 10**30, 10**200, 0.5, -1.5, 1e300, math.nan,
       math.inf, "", "x", "0", "1" * 5000, "../../x", "/etc/passwd", "\x1b[2J", "\ud800", "a\nb", "\0", [], {}, [1],
       [[]], ["a"], {"a": 1}, {"0": 1}, [None], {"type": "x"}]  # fmt: skip
BYTES = [b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 5000, b"[" * 100_000, b"\x1b]0;x\x07", b"{}", b"[]", b"null"]


def mutated(value, random, times=None):
    """A copy of a JSON value with up to three changes: a value replaced, scaled, deleted, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(times or random.integers(1, 4)):
        holder = _some_holder(value, random)
        if not holder:
            return _odd(random)
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
            holder[key] = _odd(random)
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
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    return json.dumps(mutated(json.loads(content), random)).encode("utf-8", "surrogatepass")


def mutated_safetensors(content, random):
    """The bytes of a .safetensors file, with changes in the JSON of its header or in any bytes."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    size = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + size], random)
    length = len(header) if random.random() < 0.9 else int(random.integers(0, 2**40))
    return length.to_bytes(8, "little") + header + content[8 + size :]


def _some_holder(value, random):
    """A list or an object with content, somewhere in the value; None where there is none."""
    holders, level = [], [value]
    while level:
        found = [one for one in level if isinstance(one, list | dict) and one]
        holders += found
        level = [part for one in found for part in (one.values() if isinstance(one, dict) else one)][:200]
    return holders[random.integers(len(holders))] if holders else None


def _odd(random):
    return copy.deepcopy(_pick(ODD, random))


def _pick(values, random):
    return values[random.integers(len(values))]


def seeds(count):
    """So many generators of random numbers, each of its own seed, which is its `seed`."""
    return [(seed, np.random.default_rng(seed)) for seed in range(count)]
