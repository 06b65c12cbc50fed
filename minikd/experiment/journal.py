"""log.jsonl: a line for every tenth step and for each epoch of a training."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from minikd.files import atomic_write, parse_json, regular_file

# Of a line, and of an epoch in run.json; others are not read as numbers, or may be missing.
FIGURES = ("step", "epoch", "loss", "lr", "validation_loss", "validation_accuracy", "seconds")


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl; [] where there is none. A training line has "loss", a validation line
    "validation_loss". A line that was truncated when the run was killed is left out, and so is any other that no
    training writes."""
    path, lines = folder / "log.jsonl", []
    text = regular_file(path).read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError):
            lines.append(parse_json(line))
    return [
        line for line in lines if are_figures(line) and "epoch" in line and line.keys() & {"loss", "validation_loss"}
    ]


def are_figures(line: object) -> bool:
    """Whether this is a record whose figures, as far as it has them, are numbers."""
    return isinstance(line, dict) and all(is_number(line.get(key, 0)) for key in FIGURES)


def is_number(value: object) -> bool:
    """Whether this is a finite number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def open_log(folder: Path, step: int) -> TextIO:
    """The log.jsonl of a training, open for the lines after `step`: what a stopped run wrote beyond its saved state is
    dropped."""
    lines = [json.dumps(line) + "\n" for line in read_log(folder) if line.get("step", 1) <= step]
    atomic_write(folder / "log.jsonl", "".join(lines))
    return (folder / "log.jsonl").open("a", encoding="utf-8")
