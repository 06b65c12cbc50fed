"""Drives the training loop: progress bar, log.jsonl, saved state, tracking, and stopping between two steps."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minikd.batching import SORTED_TOGETHER, TokenizedSplit
from minikd.config import TrainConfig
from minikd.distributed import any_of_all, from_all, rank
from minikd.errors import MinikdError, is_full_memory
from minikd.evaluation.memory import peak_memory_mb, reset_peak_memory, return_freed_memory
from minikd.experiment.journal import open_log
from minikd.experiment.progress import Estimate
from minikd.experiment.state import Saver, StopSignal, is_finite, load_state, skipped_steps
from minikd.experiment.tracking import Tracking
from minikd.files import CleanUp
from minikd.model import Classifier
from minikd.training import Loss, Progress, TrainState, fit

LOG_EVERY = 10  # optimizer steps
RETURN_MEMORY_EVERY = 100  # optimizer steps
# For a training that diverged. The state before it stays, but belongs to these settings: it would diverge again.
REMEDY = "run again without `resume`, with a smaller `lr` or `precision` fp32"


@dataclass
class Run:
    """A training as its caller sees it: where its files go, and how it is watched."""

    folder: Path | None = None  # of the finished model; None: nothing is written
    name: str = "model"  # in messages, in the progress bar and in run.json
    resume: bool = False  # continue an interrupted training in the folder, and use a finished one
    reuse: bool = False  # use a finished one that fits, or train
    command: str = ""  # of which it is a part (`begin`): with `resume`, what another one left here is replaced
    save_minutes: float = 5.0  # how often the state is saved within an epoch; 0: only at its end
    compile: bool = False  # train torch.compile's version of the model
    labelled: str = ""  # fingerprint of the labelled texts, where others are learned from too
    keep_last: bool = False  # keep the last epoch rather than the one that is best on validation
    progress: bool = True  # show a progress bar and lines about the epochs
    tracking: Tracking = field(default_factory=lambda: Tracking(None, Path()))
    arguments: dict = field(default_factory=dict)  # what run.json records as the caller's settings
    made_from: dict = field(default_factory=dict)  # all that decides the result; a state of other origin is refused

    def __post_init__(self) -> None:
        self.folder = None if self.folder is None else Path(self.folder)

    @property
    def partial(self) -> Path | None:
        """Where the files are while the training is not finished."""
        return self.folder and self.folder / ".partial"


def run_training(
    model: Classifier,
    data: TokenizedSplit,
    validation: TokenizedSplit,
    config: TrainConfig,
    loss: Loss | None,
    run: Run,
    device: torch.device,
    precision: str,
) -> list[dict]:
    """Trains `model` by `minikd.training.fit`. Returns one dictionary per epoch: epoch, step (the optimizer steps done
    by its end), validation_accuracy, validation_loss, confusion, and the seconds of its steps and validation (of an
    epoch that was stopped and resumed, of both parts).

    With `run.folder`, log.jsonl and, after each epoch, every `run.save_minutes` and on SIGINT or SIGTERM, state.pt go
    to `run.partial`; `run.resume` continues from there, provided that the state records the same settings and
    `run.made_from`. torch's random numbers continue as before the call. Raises MinikdError for a loss or validation
    logits that are not finite and for a state that cannot be resumed, KeyboardInterrupt when stopped.
    """
    folder = run.partial
    # SORTED_TOGETHER too: a state from the middle of an epoch continues that epoch's plan
    made_from = {"settings": asdict(config)} | run.made_from | {"chunk": SORTED_TOGETHER}
    saved = load_state(folder / "state.pt", made_from) if folder and run.resume else None
    step, history = (saved["step"], saved["history"]) if saved else (0, [])
    per_epoch = config.steps_per_epoch(len(data))
    signals = folder is not None and threading.current_thread() is threading.main_thread()

    with advice_on_memory(run.name, config), CleanUp() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        steps = fit(model, data, validation, config, loss, device=device, precision=precision, compile=run.compile,
                    keep_last=run.keep_last, saved=saved)  # fmt: skip
        stack.enter_context(closing(steps))
        stop = stack.enter_context(StopSignal() if signals else nullcontext())
        journal = stack.enter_context(closing(Journal(run, model.config.labels, made_from["settings"], step)))
        display = stack.enter_context(closing(Display(run, config, data, validation, step / per_epoch)))
        saver = Saver(folder / "state.pt", made_from, run.command, run.save_minutes) if folder else None
        reset_peak_memory(device)
        for done in steps:
            history, epoch_is_over = done.state.history, done.scores is not None
            journal.write(done, device)
            display.show(done)
            if device.type == "cpu" and done.state.step % RETURN_MEMORY_EVERY == 0:
                return_freed_memory()
            ends_epoch = done.state.step % per_epoch == 0 or done.state.step == done.total_steps
            wanted = stop is not None and stop.requested, saver is not None and saver.is_due()
            stopping, due = any_of_all(*wanted)
            due = due or stopping
            if due or ends_epoch:  # one that diverged must not replace the last good state, and is named by its step
                journal.check(done.state)
            if not epoch_is_over and (ends_epoch or not due):
                continue  # the last step of an epoch waits for its validation
            if saver:
                saver.save(done.state)
            if stopping:
                total = f"step {done.state.step} of {done.total_steps}"
                raise KeyboardInterrupt(f"{run.name}: stopped at {total}; `resume` continues")
        if len(history) < config.total_epochs(len(data)):
            display.say(f"{run.name}: no better epoch in the last {config.patience}; stopping early")
    return history


@contextmanager
def advice_on_memory(name: str, config: TrainConfig) -> Iterator[None]:
    """Within the block, an error that means full memory becomes a MinikdError that says which settings need less."""
    try:
        yield
    except Exception as error:
        if not is_full_memory(error):
            raise
        half = f"`batch_size` {config.batch_size // 2} with `grad_accum` {2 * config.grad_accum}"
        same = " (as many examples a step)" * (config.batch_size % 2 == 0)
        half = f"{half}{same}, or " if config.batch_size > 1 else ""
        raise MinikdError(f"{name}: the memory is full; try {half}a smaller `max_length`, without `resume`") from None


class Display:
    """The progress bar of a run, and the lines above it."""

    def __init__(self, run: Run, config: TrainConfig, data: TokenizedSplit, validation: TokenizedSplit, epoch: float):
        self.name, self.epochs, self.shown = run.name, config.total_epochs(len(data)), run.progress and rank() == 0
        whole = config.total_steps(len(data)) / config.steps_per_epoch(len(data))  # epochs, perhaps with a fraction
        total = round(whole * len(data))
        self.bar = tqdm(total=total, initial=min(round(epoch * len(data)), total), unit="ex", desc=run.name,
                        dynamic_ncols=True, disable=not self.shown)  # fmt: skip
        tokens = len(data.ids) + len(validation.ids) / 3  # of an epoch; validation has no backward pass
        what = f"{run.name}: {'the rest of ' if epoch else ''}{round(whole, 2):.10g} epochs"
        self.estimate = Estimate(what, tokens * (whole - epoch))

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self.shown:
            with suppress(OSError):  # nobody reads it any more: no reason to lose a training
                self.bar.write(line)

    def close(self) -> None:
        """Ends the bar."""
        with suppress(OSError):
            self.bar.close()

    def show(self, done: Progress) -> None:
        """Moves the bar; after an epoch, prints its figures."""
        if done.scores:
            skipped = skipped_steps(done.state) if done.state.scaler.is_enabled() else 0
            note = f"; {skipped} of {done.state.step} steps skipped, beyond the range of fp16" if skipped else ""
            self.say(
                f"{self.name}: epoch {done.scores['epoch']} of {self.epochs}, validation accuracy "
                f"{done.scores['validation_accuracy']:.4f}, loss {done.scores['validation_loss']:.4f}{note}"
            )
            return
        with suppress(OSError):
            self.bar.update(done.examples)
        if line := self.estimate.after_step(done.tokens):
            self.say(line)
        if done.state.step % LOG_EVERY == 0 or done.state.step == done.total_steps:
            with suppress(OSError):
                self.bar.set_postfix_str(f"loss {float(done.loss):.3f}, lr {done.lr:.1e}")


class Journal:
    """log.jsonl of a run, and its tracker, which gets the same lines."""

    def __init__(self, run: Run, labels: tuple[str, ...], settings: dict, step: int):
        self.name, self.file = run.name, None
        self.track: Callable[[dict], None] | None = None
        if run.folder and run.partial and rank() == 0:
            self.file = open_log(run.partial, step)
            self.track = run.tracking.start(run.folder, labels, run.arguments | settings, run.partial)
        self.since, self.examples = time.perf_counter(), 0
        self.losses: list[Tensor] = []  # of the steps that are not yet known to be finite

    def write(self, done: Progress, device: torch.device) -> None:
        """Writes a line for the epoch, or for every tenth step and the last. Raises MinikdError for a loss that is not
        finite."""
        self.examples += done.examples
        if done.scores:
            scaling = done.state.scaler.is_enabled()
            self._record(done.scores | ({"skipped_steps": skipped_steps(done.state)} if scaling else {}))
            self.since, self.examples = time.perf_counter(), 0
            return
        self.losses.append(done.loss)
        if done.state.step % LOG_EVERY == 0 or done.state.step == done.total_steps:
            loss = self._last_loss(done.state)
            line = {"step": done.state.step, "epoch": done.epoch, "loss": loss, "lr": done.lr}
            now = time.perf_counter()
            speed = {"examples_per_second": self.examples / (now - self.since)}
            memory = max(from_all(peak_memory_mb(device)))  # of the largest process
            self._record(line | speed | {"memory_mb": memory})
            self.since, self.examples = now, 0

    def check(self, training: TrainState) -> None:
        """Raises MinikdError where the weights are not finite."""
        if not is_finite(training):
            self._last_loss(training)
            raise MinikdError(f"{self.name}: weights are not finite after step {training.step}; {REMEDY}")

    def _last_loss(self, training: TrainState) -> float:
        """The last finite loss since the line before. Raises MinikdError for the first that is not finite; in fp16,
        where GradScaler leaves out such a step, only if all are."""
        losses = torch.stack(self.losses).tolist() if self.losses else []  # waits for the device once for all
        self.losses = []
        finite = [loss for loss in losses if math.isfinite(loss)]
        if len(finite) < len(losses) and not (finite and training.scaler.is_enabled()):
            first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
            step = training.step - len(losses) + 1 + first
            raise MinikdError(f"{self.name}: the loss became {losses[first]} at step {step}; {REMEDY}")
        return finite[-1] if finite else 0.0

    def _record(self, line: dict) -> None:
        if self.file is not None:
            try:
                self.file.write(json.dumps(line) + "\n")
                self.file.flush()
            except OSError as error:  # of a full disk, which does not name the file
                error.filename = self.file.name
                raise
        if self.track:
            self.track(line)

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
