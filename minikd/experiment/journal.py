"""log.jsonl: a line for every tenth step and for each epoch of a training."""

import json
from contextlib import suppress
from pathlib import Path

from minikd.files import atomic_write


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl; [] where there is none. A training line has "loss", a validation line
    "validation_loss". A line that was truncated when the run was killed is left out.
    """
    path, lines = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def open_log(path: Path, step: int):
    """Opens log.jsonl for writing after `step`: lines that a stopped run wrote beyond its saved state are dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if step and path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                kept += [line] if json.loads(line)["step"] <= step else []
            except (ValueError, KeyError, TypeError):
                pass  # cut short when the run was killed
    atomic_write(path, "".join(line + "\n" for line in kept))
    return path.open("a", encoding="utf-8")
