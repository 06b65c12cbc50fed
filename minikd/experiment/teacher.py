"""The teacher of an experiment: its copy among the results, and what it knows of the training texts."""

import time
from pathlib import Path

import torch
from torch import Tensor

from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.load import save_classifier
from minikd.classifier import TextClassifier
from minikd.datasets import Dataset
from minikd.experiment.caches import cached_logits, caching_minutes, tokens_of
from minikd.experiment.runs import TRAINING_COSTS, discard_interrupted, environment, publish, read_run
from minikd.files import write_json


def teacher_logits(teacher: TextClassifier | None, data: Dataset, cache: Path) -> Tensor:
    """The teacher's logits (N, C) on the training texts, from the file `cache` if it fits, else computed and kept.

    Those of the oracle (None) are log p: at any T, the student that fits them best has p itself as its probabilities.
    """
    if teacher is None:
        return torch.from_numpy(data.train.probabilities).clamp_min(1e-6).log()
    tokens = tokens_of(data.train, teacher)
    logits = cached_logits(teacher.model, tokens, teacher.device, teacher.precision, "teacher logits", cache)
    teacher.model.cpu()  # a GPU's memory is for the students
    return logits


def logits_file(output: Path) -> Path:
    """Where an experiment keeps its teacher's logits."""
    return output / "teacher-logits.safetensors"


def copy_teacher(teacher: TextClassifier, source: str, folder: Path, arguments: dict) -> None:
    """Copies a teacher that needed no training to `folder`, with its labels in the data's order."""
    teacher.source = str(folder)
    if folder.exists() and folder.samefile(model_folder(source)):
        print(f"teacher: {source} is fine-tuned already and is used as it is")
        return
    print(f"teacher: {source} is fine-tuned already and is used as it is; a copy goes to {folder}")
    discard_interrupted("teacher", folder)
    (folder / "log.jsonl").unlink(missing_ok=True)  # of an older teacher; the copy has none
    save_classifier(teacher.model, teacher.tokenizer, folder / ".partial")
    original = read_run(Path(source) if base_model(source) else model_folder(source))
    record = {key: original[key] for key in TRAINING_COSTS if key in original}
    if original.get("history"):  # without confusion matrices: their labels may come in another order
        record["history"] = [{k: v for k, v in epoch.items() if k != "confusion"} for epoch in original["history"]]
        record["validation"] = (original.get("made_from") or original).get("validation")  # on which split
    record |= {"name": "teacher", "copied_from": source, "arguments": arguments}
    write_json(folder / ".partial/run.json", record | environment(teacher.device))
    publish(folder)


def add_times(rows: list[dict], models: dict[str, list[TextClassifier]], cache: Path | None, began: float) -> list[str]:
    """The names of what this run found finished, so that its own time is without theirs. Adds to the rows how long the
    logits in `cache` and the whole run took."""
    found = [name for name, seeds in models.items() if any(_trained_before(began, one) for one in seeds)]
    for row in rows:
        if row["name"] == "teacher" and cache:
            row["caching_minutes"] = caching_minutes(cache)
            if cache.stat().st_mtime < began:
                found.append("the teacher's logits")
        if row["name"] == "distilled":
            row["run_minutes"] = (time.time() - began) / 60
    return found


def _trained_before(moment: float, model: TextClassifier) -> bool:
    """Whether the model was trained before `moment` (in seconds of `time.time()`), or elsewhere: copied from another
    folder, or put there by the user, without a run.json."""
    run = Path(model.source or "") / "run.json"
    return "copied_from" in read_run(run.parent) or not run.exists() or run.stat().st_mtime < moment
