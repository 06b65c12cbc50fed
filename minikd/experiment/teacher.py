"""The teacher of an experiment: its copy among the results, and what it knows of the training texts."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minikd.batching import Batch, TokenizedSplit, concatenate
from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.load import save_classifier
from minikd.classifier import TextClassifier
from minikd.datasets import Dataset
from minikd.distributed import by_first
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_logits, caching_minutes, model_fingerprint, tokens_of
from minikd.experiment.runs import TRAINING_COSTS, discard_interrupted, environment, publish, read_run
from minikd.files import fingerprint, write_json
from minikd.inference import autocast, compute_logits
from minikd.losses import mean_teacher
from minikd.techniques.augment import Augmentation, augment


def augmented_texts(teacher: TextClassifier, data: Dataset, settings: Augmentation, seed: int) -> TokenizedSplit:
    """Altered versions of the training texts (`minikd.techniques.augment`), for `distill`: words are swapped with the
    nearest in this teacher's table of word embeddings. A new model must be trained first: its table is random."""
    table = teacher.model.encoder.embeddings.word_embeddings.weight.detach()
    tokens = tokens_of(data.train, teacher)
    return by_first(augment, tokens, teacher.tokenizer, table, settings, seed)  # rounding may differ between machines


def teacher_logits(
    teachers: list[TextClassifier], data: Dataset, caches: dict[str, Path], augmented: TokenizedSplit | None = None
) -> Tensor:
    """The logits of K teachers on `data.transfer` and the augmented texts, (K, N, C), each from its file if that fits,
    else computed and kept.

    Those of the oracle (no teacher) are log p, (N, C), less their mean over the labels, as of `mean_teacher`: at any T,
    the student that fits them best has p itself as its probabilities.
    """
    if not teachers:
        log_p = torch.from_numpy(data.train.probabilities).clamp_min(1e-6).log()
        return log_p - log_p.mean(dim=-1, keepdim=True)
    logits = []
    for teacher, (name, cache) in zip(teachers, caches.items()):
        tokens = tokens_of(data.transfer, teacher)
        tokens = concatenate(tokens, augmented) if augmented else tokens
        logits.append(cached_logits(teacher.model, tokens, teacher.device, teacher.precision, f"{name} logits", cache))
        teacher.model.cpu()  # a GPU's memory is for the students
    return torch.stack(logits)


def logits_files(output: Path, names: list[str]) -> dict[str, Path]:
    """Where an experiment keeps the logits of its teachers, by their name."""
    return {name: output / f"{name.replace('teacher', 'teacher-logits')}.safetensors" for name in names}


def precomputed_logits(
    teacher: Tensor | list[TextClassifier],
    student: TextClassifier,
    data: Dataset,
    T: float,
    augmented: TokenizedSplit | None,
    desc: str,
) -> tuple[Tensor, str]:
    """The teacher's logits (N, C) on `data.transfer` and the augmented texts, on the student's device, and a key that
    tells teachers apart; `desc` shows a progress bar."""
    if isinstance(teacher, Tensor):
        logits = teacher.detach()
    else:
        logits = torch.stack([_logits_of(one, student, data, augmented, desc) for one in teacher])
    if logits.ndim == 3:  # of several teachers
        logits = mean_teacher(logits, T) if len(logits) > 1 else logits[0]
    texts = len(data.transfer.texts) + (len(augmented) if augmented else 0)
    if logits.shape != (texts, len(data.labels)) or not logits.isfinite().all():
        raise MinikdError(
            f"the teacher's logits have shape {tuple(logits.shape)} (or are not finite): needed are a row for each of "
            f"the {texts} training, unlabelled and augmented texts and a column for each of {len(data.labels)} labels"
        )
    logits = logits.float().contiguous().to(student.device)
    return logits, fingerprint(logits.cpu().numpy())


def _logits_of(
    teacher: TextClassifier, student: TextClassifier, data: Dataset, augmented: TokenizedSplit | None, desc: str
) -> Tensor:
    """A teacher's logits (N, C) on `data.transfer` and the augmented texts, on the CPU."""
    logits = teacher.logits(data.transfer.texts, desc=desc)
    if augmented:
        if teacher.tokenizer.vocab != student.tokenizer.vocab:
            raise MinikdError("augmented: the teacher's tokenizer is not the student's; leave it out")
        more = compute_logits(teacher.model, augmented, teacher.device, teacher.precision, desc)
        logits = torch.cat((logits, more))
    teacher.model.cpu()  # a GPU's memory is for the student
    return logits


def online_logits(
    teacher: Tensor | list[TextClassifier], student: TextClassifier
) -> tuple[Callable[[Batch], Tensor], str]:
    """The function batch -> teacher's logits (B, C), computed in each step, and the key."""
    if isinstance(teacher, Tensor) or len(teacher) > 1:
        raise MinikdError("online: takes one TextClassifier as the teacher")
    (one,) = teacher
    if one.tokenizer.vocab != student.tokenizer.vocab:
        raise MinikdError("online: the teacher's tokenizer is not the student's; leave it out")
    model = one.model.eval().to(student.device)

    def logits_of(batch: Batch) -> Tensor:
        with torch.no_grad(), autocast(student.device, student.precision):
            return model(batch.input_ids, batch.attention_mask).logits

    return logits_of, model_fingerprint(model)


def copy_teacher(teacher: TextClassifier, folder: Path, arguments: dict) -> None:
    """Copies a teacher that needed no training to `folder`, with its labels in the data's order."""
    by_first(_copy_teacher, teacher, folder, arguments)
    teacher.source = str(folder)


def _copy_teacher(teacher: TextClassifier, folder: Path, arguments: dict) -> None:
    source = str(teacher.source)
    if folder.exists() and folder.samefile(model_folder(source)):
        print(f"{folder.name}: {source} is fine-tuned already and is used as it is")
        return
    print(f"{folder.name}: {source} is fine-tuned already and is used as it is; a copy goes to {folder}")
    discard_interrupted(folder.name, folder)
    (folder / "log.jsonl").unlink(missing_ok=True)  # of an older teacher; the copy has none
    save_classifier(teacher.model, teacher.tokenizer, folder / ".partial")
    original = read_run(Path(source) if base_model(source) else model_folder(source))
    record = {key: original[key] for key in TRAINING_COSTS if key in original}
    if original.get("history"):  # without confusion matrices: their labels may come in another order
        record["history"] = [{k: v for k, v in epoch.items() if k != "confusion"} for epoch in original["history"]]
        record["validation"] = (original.get("made_from") or original).get("validation")  # on which split
    record |= {"name": folder.name, "copied_from": source, "arguments": arguments}
    write_json(folder / ".partial/run.json", record | environment(teacher.device))
    publish(folder)


def add_times(
    rows: list[dict], models: dict[str, list[TextClassifier]], caches: dict[str, Path], began: float
) -> list[str]:
    """The names of what this run found finished, so that its own time is without theirs. Adds to the rows how long the
    logits in `caches` and the whole run took."""
    found = [name for name, seeds in models.items() if any(_trained_before(began, one) for one in seeds)]
    for row in rows:
        if cache := caches.get(row["name"]):
            row["caching_minutes"] = caching_minutes(cache)
            if cache.stat().st_mtime < began:
                found.append(f"the {row['name']}'s logits")
        if row["name"] == "distilled":
            row["run_minutes"] = max(time.time() - began, 0) / 60  # a clock may have been set back
    return found


def _trained_before(moment: float, model: TextClassifier) -> bool:
    """Whether the model was trained before `moment` (in seconds of `time.time()`), or elsewhere: copied from another
    folder, or put there by the user, without a run.json."""
    if not model.source:  # an ensemble, whose members count
        return False
    run = Path(model.source) / "run.json"
    return "copied_from" in read_run(run.parent) or not run.exists() or run.stat().st_mtime < moment
