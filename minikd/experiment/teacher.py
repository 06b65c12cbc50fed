"""The teacher of an experiment: its copy among the results, and what it knows of the training texts."""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.load import save_classifier
from minikd.classifier import TextClassifier
from minikd.datasets import Dataset
from minikd.experiment.caches import cached_logits, cached_tokens, caching_minutes
from minikd.experiment.runs import environment, finish_publishing, publish, read_run, trained_before
from minikd.files import write_json


def teacher_knowledge(teacher: TextClassifier | None, data: Dataset, cache: Path) -> Tensor:
    """The teacher's logits (N, C) on the training texts, from the file `cache` if it fits, else computed and kept.

    Those of the oracle (None) are log p: at any T, the student that fits them best has p itself as its probabilities.
    """
    if teacher is None:
        return torch.from_numpy(data.train.probabilities).clamp_min(1e-6).log()
    tokens = cached_tokens(data.train, teacher.tokenizer, teacher.max_length)
    logits = cached_logits(teacher.model, tokens, teacher.device, teacher.precision, "teacher logits", cache)
    teacher.model.cpu()  # a GPU's memory is for the students
    return logits


def logits_file(output: Path) -> Path:
    """Where an experiment keeps its teacher's logits."""
    return output / "teacher-logits.safetensors"


def keep_copy(teacher: TextClassifier, source: str, folder: Path, arguments: dict) -> None:
    """Leaves a teacher that needed no training in `folder` too, with its labels in the data's order."""
    teacher.source = str(folder)
    if folder.exists() and folder.samefile(model_folder(source)):
        print(f"teacher: {source} is fine-tuned already and is used as it is")
        return
    print(f"teacher: {source} is fine-tuned already and is used as it is; a copy goes to {folder}")
    partial = folder / ".partial"
    if partial.exists():  # of another teacher that was being trained here
        print(f"teacher: the interrupted run in {folder} is discarded")
        shutil.rmtree(partial, ignore_errors=True)
    finish_publishing(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)  # the copy brings none
    save_classifier(teacher.model, teacher.tokenizer, partial)
    record = {"name": "teacher", "copied_from": source, "arguments": arguments}
    own = Path(source) if base_model(source) else model_folder(source)
    write_json(partial / "run.json", training_of(own) | record | environment(teacher.device))
    publish(partial, folder)


def training_of(folder: Path) -> dict:
    """What the run.json of a model says of its training's costs, for that of a copy; {} where it has none.

    Its confusion matrices are left out: their labels may come in another order than the copy's.
    """
    run = read_run(folder)
    costs = {key: run[key] for key in ("trained_parameters", "training_peak_mb", "training_memory_mb") if key in run}
    if run.get("history"):
        costs["history"] = [{k: v for k, v in epoch.items() if k != "confusion"} for epoch in run["history"]]
    return costs


def add_times(rows: list[dict], models: dict[str, list[TextClassifier]], cache: Path | None, began: float) -> list[str]:
    """Puts into the rows how long the logits in `cache` and the whole run took. Returns the names of what this run
    found finished: that time is not in its own."""
    found = [name for name, seeds in models.items() if any(trained_before(began, Path(one.source)) for one in seeds)]
    for row in rows:
        if row["name"] == "teacher" and cache:
            row["caching_minutes"] = caching_minutes(cache)
            if cache.stat().st_mtime < began:
                found.append("the teacher's logits")
        if row["name"] == "distilled":
            row["run_minutes"] = (time.time() - began) / 60
    return found
