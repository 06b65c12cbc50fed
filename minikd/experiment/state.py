"""The state of an interrupted training run: stopping between two steps, saving everything, going on from there."""

import json
import signal
from pathlib import Path

import torch

from minikd.errors import MinikdError
from minikd.files import atomic_file, atomic_write


class StopSignal:
    """Within the block, the first SIGINT or SIGTERM only sets `requested`, so that a step is never cut in half."""

    def __enter__(self):
        self.requested = False
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number, frame):
        self.requested = True
        self.__exit__()  # a second signal acts at once

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def save_state(
    path: Path, made_from: dict, model, optimizer, scaler, step: int, history: list, best, seconds: float
) -> None:
    """Writes all that the rest of the run depends on, atomically. Batches follow from seed, epoch and step. `seconds`:
    how long the epoch that is not over yet has taken so far."""
    state = {
        "made_from": made_from,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "step": step,
        "history": history,
        "best": best,
        "seconds": seconds,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, which torch hides behind an error of its own
                raise error.__context__ from None
            raise


def load_state(path: Path, made_from: dict, model, optimizer, scaler) -> tuple[int, list, dict | None, float]:
    """Restores what `save_state` wrote; returns (step, history, best, seconds). Raises MinikdError where it does not
    fit."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        differs = differences(state["made_from"], made_from)
        if not differs:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["cuda_rng"])
            result = state["step"], state["history"], state["best"], state.get("seconds", 0.0)
    except Exception as error:  # torch.load alone raises half a dozen kinds for a broken file
        raise MinikdError(f"{path}: cannot be resumed from ({type(error).__name__}); run without --resume") from None
    if differs:
        raise MinikdError(
            f"{path}: the run to resume was made from something else ({', '.join(differs)}); give the same flags, or "
            f"run without --resume"
        )
    print(f"resumed from {path} at step {result[0]}")
    return result


def differences(old, new: dict) -> list[str]:
    """What differs between two records of what a run was made from, in words: 'data', 'lr 5e-05 → 0.0001'."""
    if not isinstance(old, dict) or not isinstance(old.get("settings"), dict):
        return ["no record"]
    old = {"config": new.get("config")} | old  # which older versions did not record
    names = dict.fromkeys((*new, *old))
    words = [name for name in names if name != "settings" and old.get(name) != new.get(name)]
    return words + [
        f"{name} {old['settings'].get(name)} → {value}"
        for name, value in new["settings"].items()
        if old["settings"].get(name) != value
    ]


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
