"""Experiment tracking (`--track`): the lines of log.jsonl, and at the end the test figures, sent to Weights & Biases or
TensorBoard as well.

log.jsonl is always written and stays the one source. A run that is resumed or reused sends its log from the first
line, so that a tracker holds each step once, however often the run was interrupted. A tracker that fails later on
costs one line of warning and never the run.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from minikd.distributed import rank
from minikd.errors import MinikdError
from minikd.experiment.journal import read_log
from minikd.files import parse_json, read_text, write_json

# key in log.jsonl: name of the curve
CURVES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "examples_per_second": "cost/examples_per_second",
    "memory_mb": "cost/peak_memory_mb",
    "seconds": "cost/seconds_per_epoch",
}


class Tracking:
    """The tracked runs of one command; does nothing where `kind` is None.

    `kind` is wandb or tensorboard, `output` the command's output folder. A context manager: the runs stay open until
    its end, because the test figures come last, and are closed also after an error or Ctrl-C. Of several processes, the
    first one tracks.
    Raises MinikdError where the package is not installed.
    """

    def __init__(self, kind: str | None, output: Path):
        kind = kind if rank() == 0 else None
        self.kind, self.output = kind, output
        self.runs = {}  # name: the open run, or None once it failed
        try:
            if kind == "wandb":
                from wandb import init  # noqa: F401 (a mere folder "wandb", as runs leave it, can be imported as well)
            elif kind == "tensorboard":
                import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MinikdError(f"`track` {kind}: needs the package {kind} ({error}): pip install {kind}") from None

    def start(
        self, folder: Path, labels: tuple[str, ...], config: dict, log_folder: Path | None = None
    ) -> Callable[[dict], None] | None:
        """Opens a run for the model in `folder`, named by its place in the output folder, and sends the log that is
        there. Returns the function that takes further lines of the log, or None where nothing is tracked.

        `log_folder` is where log.jsonl is, if not in `folder`. `config` is what the service shows as the run's
        configuration. Raises MinikdError if the first run of a command cannot be opened; later, when there is training
        to lose, warns.
        """
        if self.kind is None:
            return None
        open_run = {"tensorboard": TensorBoardRun, "wandb": WandbRun}[self.kind]
        name, lines = self._name(folder), read_log(log_folder or folder)
        try:
            self.runs[name] = open_run(name, labels, config, self.output, lines[:1])
        except Exception as error:  # each service has exceptions of its own
            if not self.runs:
                hint = "; run `wandb login`, or set WANDB_MODE=offline" if self.kind == "wandb" else ""
                raise MinikdError(f"`track` {self.kind}: cannot start ({_one_line(error)}){hint}") from None
            self._give_up(name, error)
        self._call(name, lambda run: [run.log(line) for line in lines])
        return lambda line: self._call(name, lambda run: run.log(line))

    def summary(self, folder: Path, row: dict, seed: int = 0) -> None:
        """Sends the test figures of the model in `folder`: those of the given seed, counted from 0, in its row of
        results.json. Does nothing for a model without a run."""
        figures, confusion = _test_figures(row, seed)
        self._call(self._name(folder), lambda run: run.summary(figures, confusion))

    def summaries(self, models: dict[str, list], rows: list[dict]) -> None:
        """`summary` of every model in a comparison, by name a classifier for each seed."""
        for row in rows:
            for seed, classifier in enumerate(models[row["name"]]):
                if classifier.source:  # an ensemble has no run
                    self.summary(Path(classifier.source), row, seed)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        for name in self.runs:
            self._call(name, lambda run: run.close(failed=error is not None))

    def _name(self, folder: Path) -> str:
        output = self.output.resolve()
        return folder.resolve().relative_to(output).as_posix() if folder.resolve() != output else output.name

    def _call(self, name: str, action: Callable) -> None:
        if self.runs.get(name) is None:
            return
        try:
            action(self.runs[name])
        except Exception as error:  # a full disk, no network, an error of the service: none is worth the run
            self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self.runs[name] = None
        text = f"{self.kind}: {name} is no longer tracked ({_one_line(error)}); log.jsonl has everything"
        tqdm.write(text, file=sys.stderr)


class TensorBoardRun:
    """A run in OUTPUT/tensorboard/NAME. Its older event files are replaced: the log is sent from its first line."""

    def __init__(self, name: str, labels: tuple[str, ...], config: dict, output: Path, _):
        from torch.utils.tensorboard import SummaryWriter

        events = output / "tensorboard" / name
        for old in events.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer, self.labels, self.step = SummaryWriter(str(events), flush_secs=10), labels, 0
        self.writer.add_text("config", "    " + json.dumps(config, indent=2).replace("\n", "\n    "))

    def log(self, line: dict) -> None:
        self.step = line["step"]
        curves = _curves(line)
        for i, counts in enumerate(line.get("confusion", [])):
            if sum(counts):
                curves[f"recall/{self.labels[i]}"] = counts[i] / sum(counts)
        self._write(curves, "validation", line.get("confusion"))

    def summary(self, figures: dict, confusion: list | None) -> None:
        self._write(figures, "test", confusion)

    def close(self, failed: bool) -> None:
        self.writer.close()  # writes what is still in its queue

    def _write(self, scalars: dict, split: str, confusion: list | None) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, self.step)
        if confusion is not None:  # a table, not a picture: no matplotlib is needed, and the counts can be copied
            names = [label.replace("|", "\\|") for label in self.labels]
            rows = [["true ↓ predicted →", *names], ["---", *("---:" for _ in names)]]
            rows += [[name, *map(str, counts)] for name, counts in zip(names, confusion)]
            text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            self.writer.add_text(f"{split}/confusion", text, self.step)


class WandbRun:
    """A run of W&B's project $WANDB_PROJECT (default: minikd), in a group named after the output folder.

    W&B's own variables hold (WANDB_MODE, WANDB_ENTITY, WANDB_DIR, …), but for a run's name and id, as a command has
    several runs. OUTPUT/wandb-runs.json keeps each run's id beside the first line of its log, whose throughput no other
    training has: the same first line, the same run.
    """

    def __init__(self, name: str, labels: tuple[str, ...], config: dict, output: Path, first_line: list[dict]):
        import wandb

        self.wandb, self.labels, self.name, self.known = wandb, labels, name, output / "wandb-runs.json"
        before = self._ids().get(name)
        self.noted = before is not None and first_line == [before["log begins"]]  # the run is continued
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "minikd"),
            group=os.environ.get("WANDB_RUN_GROUP", output.resolve().name),
            name=name,
            id=before["id"] if self.noted else secrets.token_hex(6),
            resume="allow" if self.noted else None,
            dir=os.environ.get("WANDB_DIR", output),
            config=config,
            reinit="create_new",  # teacher and students are runs of one process
            settings=wandb.Settings(console="off"),  # what the process prints is of all runs
        )

    def log(self, line: dict) -> None:
        if not self.noted:
            write_json(self.known, self._ids() | {self.name: {"id": self.run.id, "log begins": line}})
            self.noted = True
        if line["step"] < self.run.starting_step:  # the service has it, from before the run was interrupted
            return
        self.run.log(_curves(line) | {"epoch": line["epoch"]} | self._chart("validation", line), step=line["step"])

    def summary(self, figures: dict, confusion: list | None) -> None:
        self.run.summary.update(figures)
        self.run.log(self._chart("test", {"confusion": confusion}))

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))

    def _ids(self) -> dict:
        try:
            known = parse_json(read_text(self.known))
            return {name: run for name, run in known.items() if {"id", "log begins"} <= run.keys()}
        except (OSError, ValueError, AttributeError, TypeError):  # none yet, or damaged
            return {}

    def _chart(self, split: str, figures: dict) -> dict:
        """The service's own chart of a confusion matrix, from counts."""
        if figures.get("confusion") is None:
            return {}
        columns = ["Actual", "Predicted", "nPredictions"]  # the chart's names
        rows = [[a, p, n] for a, row in zip(self.labels, figures["confusion"]) for p, n in zip(self.labels, row)]
        fields, title = dict(zip(columns, columns)), {"title": f"confusion matrix, {split}"}
        table = self.wandb.Table(columns=columns, data=rows)
        return {f"{split}/confusion": self.wandb.plot_table("wandb/confusion_matrix/v1", table, fields, title)}


def _curves(line: dict) -> dict[str, float]:
    return {tag: line[key] for key, tag in CURVES.items() if line.get(key) is not None}


def _test_figures(row: dict, seed: int) -> tuple[dict[str, float], list | None]:
    """The figures of one seed, and its confusion matrix; none where the row has the sum over several seeds."""
    values = {key: value for key, value in row.items() if key not in ("confusion", "reliability")}
    several = any(isinstance(value, list) for value in values.values())
    values = {key: value[seed] if isinstance(value, list) else value for key, value in values.items()}
    figures = {f"test/{key}": value for key, value in values.items() if isinstance(value, int | float)}
    return figures, None if several else row.get("confusion")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
