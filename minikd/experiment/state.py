"""The state of an interrupted training run: stopping between two steps, saving everything, going on from there."""

import json
import signal
import time
from pathlib import Path

import torch

from minikd.checkpoints.reading import check_pickle
from minikd.distributed import by_first, rank, world_size
from minikd.errors import MinikdError, is_full_memory
from minikd.experiment.journal import are_figures
from minikd.files import atomic_file, regular_file
from minikd.training import TrainState

UNRECORDED = {"max_steps": 0, "soft_loss": "kl"}  # settings of runs that do not record them


class StopSignal:
    """Within the block, the first SIGINT or SIGTERM only sets `requested`, so that a step is never cut in half."""

    def __enter__(self):
        self.requested = False
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number, frame):
        self.requested = True
        if world_size() == 1:  # torchrun passes on a signal that the terminal has sent to all already
            self.__exit__()  # a second signal acts at once

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Saver:
    """Saves the state of a training, at most every so many minutes, and so that it takes at most 1 % of the time."""

    def __init__(self, path: Path, made_from: dict, command: str, minutes: float):
        self.path, self.origin, self.minutes = path, {"made_from": made_from, "command": command}, minutes
        self.last, self.seconds = time.monotonic(), 0.0  # when it was saved, and how long that took

    def is_due(self) -> bool:
        """Whether the state is to be saved although no epoch is over; never for 0 minutes. The first process says so,
        which writes it."""
        passed = time.monotonic() - self.last
        return rank() == 0 and bool(self.minutes) and passed >= max(60 * self.minutes, 99 * self.seconds)

    def save(self, training: TrainState) -> None:
        """Saves it now."""
        began = time.monotonic()
        save_state(self.path, self.origin, training)
        self.last = time.monotonic()
        self.seconds = self.last - began


def skipped_steps(training: TrainState) -> int:
    """How many steps changed nothing: in fp16 GradScaler leaves out those whose gradients are not finite."""
    taken = [state["step"] for state in training.optimizer.state.values()]
    return training.step - (int(torch.stack(taken).max()) if taken else 0)


def is_finite(training: TrainState) -> bool:
    """Whether all weights are finite, so that it is worth continuing from them."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in training.model.parameters()]).all())


def save_state(path: Path, origin: dict, training: TrainState) -> None:
    """Writes all that the rest of the training depends on, atomically, with its `origin`: made_from and command."""
    by_first(_write_state, path, origin | training.state_dict())


def _write_state(path: Path, state: dict) -> None:
    with atomic_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk, which torch hides behind an error of its own
                raise error.__context__ from None
            raise


def load_state(path: Path, made_from: dict) -> dict | None:
    """What `save_state` wrote, for `TrainState.load_state_dict`; None where there is no such file. Raises MinikdError
    for a damaged file, and for a training of other origin."""
    state = by_first(_read_state, path, made_from)
    if state is not None:
        before, now = 1 + len(state.get("rng_of_others", [])), world_size()
        others = f", saved by {before} processes, now {now}: the batches are the same, dropout's random numbers are not"
        print(f"resumed from {path} at step {state['step']}{others * (before != now)}")
    return state


def _read_state(path: Path, made_from: dict) -> dict | None:
    if not path.exists():
        return None
    try:
        check_pickle(regular_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        differs = differences(state["made_from"], made_from)
        missing = {"model", "optimizer", "scaler", "step", "history", "best", "rng", "cuda_rng"} - state.keys()
        if missing or not (differs or _is_state(state)):
            raise ValueError(missing)
        json.dumps(state["history"])  # which run.json will hold
    except Exception as error:  # torch.load alone raises half a dozen kinds for a broken file
        if is_full_memory(error):  # nothing is wrong with the file
            raise
        raise MinikdError(f"{path}: cannot be resumed from ({type(error).__name__}); run without `resume`") from None
    if differs:
        raise MinikdError(
            f"{path}: the run to resume was made from something else ({', '.join(differs)}); give the same settings "
            f"and the untrained model, or run without `resume`"
        )
    return state


def _is_state(state: dict) -> bool:
    """Whether the fields that torch does not check itself are of the kinds that `save_state` writes."""
    history, best, weights = state["history"], state["best"], state["model"]
    scores = [*history, *([best["scores"]] if best else [])]
    present = {"step": state["step"], "seconds": state.get("seconds", 0.0), "epoch": best["epoch"] if best else 0}
    moments = [*state["optimizer"]["state"].values()]
    tensors = [t for of in (weights, best["weights"] if best else {}, *moments) for t in of.values()]
    return (
        isinstance(state["step"], int)
        and all(map(are_figures, [*scores, present]))
        and all({"validation_accuracy", "validation_loss"} <= one.keys() for one in scores)
        and bool(history) == bool(best)
        and isinstance(state.get("rng_of_others", []), list)
        and all(tensor.layout == torch.strided for tensor in tensors)
        and all(one["step"].numel() == 1 for one in moments)
        and (not best or {n: t.shape for n, t in best["weights"].items()} == {n: t.shape for n, t in weights.items()})
    )


def origin_of(path: Path) -> tuple[str, dict | None]:
    """The command (`Run.command`) that saved the state at `path`, "" where that is not known or there is none; and what
    it was made from."""
    try:
        check_pickle(regular_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return (state["command"] if isinstance(state["command"], str) else ""), state["made_from"]
    except Exception:  # as above; `load_state` says what is wrong
        return "", None


def differences(old, new: dict) -> list[str]:
    """What differs between two records of what a run was made from, in words: 'data', 'lr 5e-05 → 0.0001'."""
    if not isinstance(old, dict) or not isinstance(old.get("settings"), dict):
        return ["no record"]
    old = {"config": new.get("config")} | old  # which older versions did not record
    names = dict.fromkeys((*new, *old))
    words = [name for name in names if name != "settings" and old.get(name) != new.get(name)]
    before, now = (UNRECORDED | one["settings"] for one in (old, new))
    return words + [f"{name} {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
