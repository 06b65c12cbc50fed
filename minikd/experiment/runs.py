"""A training run on disk: what it was made from, when it is finished, and when it can be used again.

A run's folder is a model folder in Hugging Face's layout plus run.json and log.jsonl. While it is being made,
everything is in FOLDER/.partial; at the end that becomes FOLDER/.finished, whose files move up, run.json last. So a
folder with a run.json is complete, and a run that was killed while its files moved loses nothing.
"""

import platform
import shutil
import uuid
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch

import minikd
from minikd.batching import SORTED_TOGETHER
from minikd.checkpoints.adapters import save_adapters
from minikd.checkpoints.load import save_classifier
from minikd.classifier import TextClassifier
from minikd.errors import MinikdError
from minikd.experiment.journal import are_figures, is_number
from minikd.experiment.running import Run
from minikd.experiment.state import differences, origin_of
from minikd.experiment.torchrun import remember_beginning
from minikd.files import atomic_write, parse_json, read_text, regular_file, write_json
from minikd.techniques.lora import merge_lora

# What run.json records of a training's costs (`minikd.experiment.recorded.training_costs`).
TRAINING_COSTS = ("trained_parameters", "training_peak_mb", "training_memory_mb")


def begin(output: Path, resume: bool) -> str:
    """A name for the command whose models go to `output`, which OUTPUT/.command keeps: with `resume` that of the
    command that is continued, where it is known. Removes what was being written to `output` when a process was
    killed."""
    path = output / ".command"
    remove_unfinished(output)
    if not (resume and path.exists()):
        atomic_write(path, uuid.uuid4().hex)
    remember_beginning()
    return regular_file(path).read_text(encoding="utf-8", errors="replace")


def remove_unfinished(folder: Path) -> None:
    """Removes files that were being written to the folder when a process was killed (`atomic_file`). No other run
    writes there now (`only_run_in`)."""
    for unfinished in folder.glob(".*.????????.tmp"):
        unfinished.unlink(missing_ok=True)


def find_finished(run: Run) -> bool:
    """Whether `run.folder` holds a finished run of the same origin that is to be used again (`run.reuse`, or
    `run.resume`). Prints what it found, and what differs. Raises MinikdError where it must fit (`run.resume`) and does
    not, unless an earlier command has made it. What an interrupted run left there is discarded, unless it is to be
    resumed.
    """
    folder = run.folder
    finish_publishing(folder)
    for written in (folder, run.partial):
        remove_unfinished(written)
    command, made_from = origin_of(run.partial / "state.pt")
    if run.command and command not in ("", run.command):
        if differences(made_from, run.made_from | {"chunk": SORTED_TOGETHER}):
            discard_interrupted(run.name, folder, ": an earlier command left it")
    needed = ("run.json", "model.safetensors", "tokenizer.json")
    if (run.reuse or run.resume) and all((folder / file).exists() for file in needed):
        differs = ", ".join(differences(read_run(folder).get("made_from"), run.made_from))
        if not differs:
            print(f"{run.name}: using {folder}, made from the same settings")
            return True
        earlier = run.command and read_run(folder).get("command") not in (None, "", run.command)
        if run.resume and not run.partial.exists() and not earlier:
            raise MinikdError(
                f"`resume`: {folder} was made from other settings ({differs}); give the same settings and the "
                f"untrained model, or run without `resume` to train it anew"
            )
        print(f"{run.name}: {folder} was made from other settings ({differs}); training anew")
    if not run.resume:
        discard_interrupted(run.name, folder, " (resuming continues one of the same settings)")
    elif not (run.partial / "state.pt").exists():
        print(f"{run.name}: nothing to resume in {folder}; training from the start")
    return False


def finish(run: Run, classifier: TextClassifier, record: dict, adapter_base: str | None = None) -> None:
    """Leaves a trained classifier in `run.folder`, with `record` in its run.json. LoRA adapters are merged into it;
    with `adapter_base`, the checkpoint they were trained on, they are saved in FOLDER/adapter too, in PEFT's layout."""
    if adapter_base:
        save_adapters(classifier.model, run.partial / "adapter", adapter_base)
    merge_lora(classifier.model)  # nothing to do without adapters
    save_classifier(classifier.model, classifier.tokenizer, run.partial)
    own = {"name": run.name, "made_from": run.made_from, "command": run.command, "arguments": run.arguments}
    write_json(run.partial / "run.json", own | record | environment(classifier.device))
    publish(run.folder)


def discard_interrupted(name: str, folder: Path, hint: str = "") -> None:
    """Removes what an interrupted run left in `folder`, and says so."""
    finish_publishing(folder)  # of a run that was finished, not interrupted
    if (folder / ".partial").exists():
        print(f"{name}: the interrupted run in {folder} is discarded{hint}")
        shutil.rmtree(folder / ".partial")


def publish(folder: Path) -> None:
    """Moves the files of a finished run from FOLDER/.partial into `folder`, in place of those of an older run.

    With the first rename the run is finished: after a kill in what follows, `finish_publishing` does the rest.
    """
    (folder / ".partial").replace(folder / ".finished")
    finish_publishing(folder)


def finish_publishing(folder: Path) -> None:
    """Does what is left of a `publish` into `folder` that was killed; mostly nothing.

    A kill never leaves a mixture of two runs that looks like a model: run.json, which says that a folder is complete,
    and the weights are the first of the old files to go, and run.json is the last of the new ones to come.
    """
    finished = folder / ".finished"
    if not finished.exists():
        return
    if (finished / "config.json").exists():  # it moves first: nothing has been moved yet
        for name in ("run.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
    order = {"config.json": 0, "run.json": 2}
    for path in sorted(finished.iterdir(), key=lambda path: order.get(path.name, 1)):
        if path.name != "state.pt" and path.suffix != ".tmp":  # .tmp: a file that was being written at a kill
            path.replace(folder / path.name)
    shutil.rmtree(finished)


def read_run(folder: Path) -> dict:
    """The run.json of a folder; {} where there is none that can be read, or a field of it is of another kind."""
    try:
        run = parse_json(read_text(folder / "run.json"))
        return run if _is_run(run) else {}
    except (OSError, ValueError, AttributeError, TypeError):  # the last two: of what is no list or object
        return {}


def _is_run(run: dict) -> bool:
    """Whether the fields that are read again are of the kinds that a training writes."""
    made_from, history = run.get("made_from") or {}, run.get("history") or []
    settings = made_from.get("settings") or {}
    texts = [run.get(name, "") for name in ("name", "command", "copied_from")] + [settings.get("soft_loss", "")]
    texts += ["" if (split := (made_from or run).get("validation")) is None else split]
    numbers = [run.get(name) or 0 for name in TRAINING_COSTS]
    numbers += [settings.get(name, None if settings and made_from.get("teacher") else 1.0) for name in ("alpha", "T")]
    return (
        isinstance(run.get("arguments"), dict)
        and isinstance(run.get("versions") or {}, dict)
        and all(isinstance(text, str) for text in texts)
        and all(map(is_number, numbers))
        and all(map(are_figures, history))
    )


def environment(device: torch.device) -> dict:
    """Versions and machine, as run.json and results.json record them."""
    packages = {package.__name__: package.__version__ for package in (torch, tokenizers, numpy, safetensors)}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {_processor()}",
        "threads": torch.get_num_threads(),
        "versions": {"minikd": minikd.__version__, "python": platform.python_version()} | packages,
    }


def _processor() -> str:
    """The processor's name; Linux tells it in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
