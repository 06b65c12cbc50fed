"""The kinds of values that flags take; argparse reports what these refuse."""

import argparse
import csv
import math
from pathlib import Path


def non_empty(text: str) -> str:
    """An argparse type: a name or path that is not empty (as an unset shell variable would be)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def path(text: str) -> Path:
    """An argparse type: a path that is not empty."""
    return Path(non_empty(text))


def integer(least: int, most: int = 2**31 - 1):
    """An argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            wanted = f"of at least {least}" + (f" and at most {most}" if value is not None and value > most else "")
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return value

    return parse


def real(least: float, most: float = math.inf, exclusive: bool = False):
    """An argparse type: a finite number in [least, most], or in (least, most] if `exclusive`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)) or (exclusive and value == least):
            wanted = f"above {least:g}" if exclusive else f"of at least {least:g}"
            wanted += f" and at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {wanted}")
        return value

    return parse


def names(*choices: str):
    """An argparse type: a comma-separated list of names among `choices`."""

    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in found if name not in choices]
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"{text!r}: choose one or more of {', '.join(choices)}")
        return found

    return parse


def label_names(text: str) -> list[str]:
    """An argparse type: two or more different names, separated by commas and quoted as in CSV."""
    found = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if len(found) < 2 or "" in found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: give two or more different names with commas between them")
    return found
