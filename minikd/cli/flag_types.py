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
    return _number(int, f"a whole number of at least {least}", least, most)


def real(least: float, most: float = math.inf, exclusive: bool = False):
    """An argparse type: a finite number in [least, most], or in (least, most] if `exclusive`."""
    wanted = f"a number {'above' if exclusive else 'of at least'} {least:g}"
    smallest = math.nextafter(least, math.inf) if exclusive else least
    return _number(float, wanted, smallest, most)


def _number(kind: type, wanted: str, least: float, most: float):
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or value == math.inf:
            limit = f" and at most {most}" if most < 2**31 - 1 or value > most else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}{limit}")
        return value

    return parse


def names(*choices: str):
    """An argparse type: a comma-separated list of names among `choices`."""

    def parse(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        if not found or not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}: choose one or more of {', '.join(choices)}")
        return found

    return parse


def label_names(text: str) -> list[str]:
    """An argparse type: two or more different names, separated by commas and quoted as in CSV."""
    found = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if len(found) < 2 or "" in found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: give two or more different names with commas between them")
    return found
