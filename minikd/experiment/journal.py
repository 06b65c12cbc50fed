"""log.jsonl: a line for every tenth step and for each epoch of a training."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from minikd.files import atomic_write


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl; [] where there is none. A training line has "loss", a validation line
    "validation_loss". A line that was truncated when the run was killed is left out."""
    path, lines = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def open_log(folder: Path, step: int) -> TextIO:
    """The log.jsonl of a training, open for the lines after `step`: what a stopped run wrote beyond its saved state is
    dropped."""
    lines = [json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step]
    atomic_write(folder / "log.jsonl", "".join(lines))
    return (folder / "log.jsonl").open("a", encoding="utf-8")
