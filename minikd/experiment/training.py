"""train and distill: a classifier and a corpus in, a better classifier and, on request, a folder out."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minikd.batching import TokenizedSplit, concatenate, padding_share, plan_batches
from minikd.checkpoints.config_json import config_to_json
from minikd.checkpoints.pretrained import from_pretrained
from minikd.classifier import TextClassifier
from minikd.config import TrainConfig
from minikd.datasets import Dataset, Split
from minikd.distributed import by_first, world_size
from minikd.errors import MinikdError
from minikd.evaluation.costs import training_memory_mb
from minikd.experiment.caches import model_fingerprint, tokens_of
from minikd.experiment.running import Run, run_training
from minikd.experiment.runs import find_finished, finish
from minikd.experiment.teacher import online_logits, precomputed_logits
from minikd.files import check_writable
from minikd.losses import UNLABELLED, check_soft_loss
from minikd.model import Ensemble, count_parameters
from minikd.student import seeded
from minikd.techniques.layer_losses import LayerDistillation, LayerLosses
from minikd.techniques.lora import LoRA, add_lora, merge_lora, remove_lora, trainable_parameters, training_state_mb
from minikd.training import Loss, distillation_loss

Teacher = TextClassifier | Sequence[TextClassifier] | Tensor | np.ndarray


def train(
    model: TextClassifier,
    data: Dataset,
    config: TrainConfig = TrainConfig(),
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    lora: LoRA | None = None,
    run: Run | None = None,
) -> list[dict]:
    """Fine-tunes a classifier, in place, on the labels of `data.train`, and keeps the epoch that is best on
    `data.validation`. Returns one dictionary per epoch: epoch, step (optimizer steps done by its end),
    validation_accuracy, validation_loss, confusion (row = true label), seconds.

    `run_dir`: the folder that receives the model, run.json and log.jsonl; without it nothing is written. `resume`
    continues what was interrupted there, and uses what is finished, given the same data, first weights and settings.
    `lora`: train low-rank adapters and the head, all else frozen; they are merged at the end. `run` says the first two
    and more (`Run`). Raises MinikdError.
    """
    _check_data(data)
    return _train(model, data, data.train, config, _run(run, run_dir, resume, "model"), lora)


def distill(
    student: TextClassifier,
    teacher: Teacher,
    data: Dataset,
    config: TrainConfig = TrainConfig(),
    *,
    alpha: float = 0.5,
    T: float = 2.0,
    soft: str = "kl",
    run_dir: str | Path | None = None,
    resume: bool = False,
    online: bool = False,
    augmented: TokenizedSplit | None = None,
    layers: LayerLosses | None = None,
    lora: LoRA | None = None,
    run: Run | None = None,
) -> list[dict]:
    """Trains the student, in place, by `minikd.kd_loss`: alpha weighs the labels, 1 − alpha the teacher's outputs at
    temperature T. `soft` says how these are compared (`minikd.losses.SOFT_LOSSES`): kl, mse (of the logits, without T),
    dkd or dist (both for three labels and more). All else is as in `train`; but the student also learns from
    `data.unlabelled`, texts for which the teacher's outputs are all there is.

    `teacher`: a TextClassifier, whose labels must be the data's; several of them, whose probabilities at T are
    averaged (`minikd.losses.mean_teacher`); or the logits (N, C) of any other model, or (K, N, C) of several, on
    `data.transfer` (the training texts, then the unlabelled ones), in its order. They are computed once for all epochs;
    `online` has a TextClassifier compute them anew in each step instead, which takes its tokenizer to be the student's.

    `augmented`: altered training texts (`augmented_texts`), which are learned from like unlabelled ones and come after
    them; a teacher must read the same tokens. `layers` adds losses between hidden layers to `kd_loss`; the teacher, a
    single TextClassifier, is then online too. With `layers.logit_loss` 0, the first of two stages, no epoch is best by
    accuracy, and the last is kept. Raises MinikdError.
    """
    if not 0 <= alpha <= 1:
        raise MinikdError(f"`alpha` {alpha}: must be at least 0 and at most 1")
    if not 0 < T < float("inf"):
        raise MinikdError(f"`T` {T}: must be above 0")
    _check_data(data)
    check_soft_loss(soft, len(student.labels))
    run, alpha, T = _run(run, run_dir, resume, "student"), float(alpha), float(T)
    if isinstance(teacher, np.ndarray):
        teacher = torch.from_numpy(teacher)
    if not isinstance(teacher, Tensor):
        teacher = teacher.members if isinstance(teacher, TextClassifier) else list(teacher or [])
        if not (teacher and all(isinstance(one, TextClassifier) for one in teacher)):
            raise MinikdError("teacher: give a TextClassifier, a list of them, or logits (N, C)")
        if wrong := [one for one in teacher if one.labels != student.labels]:
            raise MinikdError(
                f"the teacher's labels {list(wrong[0].labels)} are not the student's {list(student.labels)}"
            )
    desc = "teacher logits" if run.progress else ""
    if layers:
        if isinstance(teacher, Tensor) or len(teacher) > 1:
            raise MinikdError("layers: take one TextClassifier as the teacher; averages and logits have no layers")
        key = model_fingerprint(teacher[0].model)
        loss: Loss = LayerDistillation(layers, student, teacher[0], config, alpha, T, soft)
    elif online:
        logits_of, key = online_logits(teacher, student)
        loss = distillation_loss(logits_of, alpha, T, config.label_smoothing, soft)
    else:
        logits, key = precomputed_logits(teacher, student, data, T, augmented, desc)
        loss = distillation_loss(logits, alpha, T, config.label_smoothing, soft)
    objective = Objective(loss, alpha, T, key, soft, layers)
    return _train(student, data, data.transfer, config, run, lora, objective, augmented)


def _run(run: Run | None, run_dir: str | Path | None, resume: bool, name: str) -> Run:
    """The `Run` that the arguments of `train` and `distill` ask for. Raises MinikdError where they contradict each
    other, and for a folder that cannot be written to."""
    if run is not None and (run_dir is not None or resume):
        raise MinikdError("run: says where and how already; leave out run_dir and resume, or run")
    if resume and run_dir is None:
        raise MinikdError("resume: of which run? give run_dir too")
    run = run or Run(None if run_dir is None else Path(run_dir), name, resume)
    if run.folder:
        by_first(check_writable, run.folder)
    return run


class Objective(NamedTuple):
    """What a student learns from besides the labels; by default nothing."""

    loss: Loss | None = None
    alpha: float = 1.0
    T: float = 1.0
    teacher: str = ""  # a key that tells teachers apart
    soft: str = "kl"
    layers: LayerLosses | None = None


def _train(
    classifier: TextClassifier,
    data: Dataset,
    split: Split,
    config: TrainConfig,
    run: Run,
    lora: LoRA | None,
    objective: Objective = Objective(),
    augmented: TokenizedSplit | None = None,
) -> list[dict]:
    """The history of a training on this split of the `data` and the augmented texts, after checks."""
    if classifier.labels != data.labels:
        raise MinikdError(
            f"the model's labels {list(classifier.labels)} are not the data's {list(data.labels)}: give "
            f"labels=data.labels to TextClassifier.load"
        )
    if isinstance(classifier.model, Ensemble):
        raise MinikdError("the model is an ensemble and cannot be trained; train its members")
    if quantization := classifier.model.config.quantization:
        raise MinikdError(f"the model is quantised ({quantization}) and cannot be trained; take its original")
    tokens, validation = (tokens_of(one, classifier, bool(run.folder)) for one in (split, data.validation))
    tokens = concatenate(tokens, augmented) if augmented else tokens
    # Both are set in every training: a caller may use one Run for several.
    run.keep_last = objective.layers is not None and not objective.layers.logit_loss
    more = run.folder and len(tokens) > len(data.train.texts)
    run.labelled = tokens_of(data.train, classifier).fingerprint if more else ""
    model = classifier.model
    try:
        return train_on_tokens(classifier, tokens, validation, config, run, lora, objective)
    finally:
        if lora:
            remove_lora(model)  # of a training that was stopped; else they have been merged


def _check_data(data: Dataset) -> None:
    if not isinstance(data, Dataset):
        raise MinikdError(f"data: give a Dataset (load_dataset, Dataset.from_examples), not a {type(data).__name__}")


def train_on_tokens(
    classifier: TextClassifier,
    tokens: TokenizedSplit,
    validation: TokenizedSplit,
    config: TrainConfig,
    run: Run,
    lora: LoRA | None = None,
    objective: Objective = Objective(),
) -> list[dict]:
    """The history of a training, which leaves its result in `classifier`, on the CPU; [] where the finished run in
    `run.folder` fits, and is used instead."""
    full = training_state_mb(classifier.model)
    if lora:
        with seeded(config.seed):  # the adapters' first weights
            add_lora(classifier.model, **asdict(lora))
    run.made_from = {
        "data": tokens.fingerprint,
        "validation": validation.fingerprint,
        "labels": list(classifier.labels),
        "initial_weights": model_fingerprint(classifier.model),
        "config": config_to_json(classifier.model.config),
        "teacher": objective.teacher,
        "settings": asdict(config) | {"alpha": objective.alpha, "T": objective.T, "precision": classifier.precision},
    }
    if objective.soft != "kl":  # so that runs of before there was a choice still fit
        run.made_from["settings"]["soft_loss"] = objective.soft
    run.made_from |= {"lora": asdict(lora) | {"targets": list(lora.targets)}} if lora else {}
    run.made_from |= {"layer_losses": asdict(objective.layers)} if objective.layers else {}
    if run.folder and by_first(find_finished, run):
        classifier.model, classifier.source = by_first(from_pretrained, run.folder), str(run.folder)
        run.tracking.start(run.folder, classifier.labels, run.arguments | run.made_from["settings"])
        return []
    if run.progress:
        _announce(run.name, classifier, tokens, config, full if lora else None)
    device, precision, peak = classifier.device, classifier.precision, None
    if run.folder:  # before there is a training that a kill could lose
        own = -(-config.batch_size // world_size())  # examples in a batch
        peak = by_first(training_memory_mb, classifier.model, tokens, own, device, precision, lora)
    trained = trainable_parameters(classifier.model)
    history = run_training(classifier.model, tokens, validation, config, objective.loss, run, device, precision)
    if run.folder:
        record: dict = {"trained_parameters": trained, "training_peak_mb": peak, "history": history}
        record |= {"labelled": run.labelled} if run.labelled else {}
        by_first(finish, run, classifier, record, classifier.source if lora else None)
    merge_lora(classifier.model)  # nothing to do without adapters
    classifier.source = str(run.folder) if run.folder else None
    classifier.model.cpu()  # a GPU's memory is for what trains next
    return history


def _announce(
    name: str, classifier: TextClassifier, tokens: TokenizedSplit, config: TrainConfig, full: float | None
) -> None:
    """Prints what is about to be trained, on what, and what it takes."""
    plan = plan_batches(tokens.lengths, config.batch_size, config.seed)
    total, trained = count_parameters(classifier.model), trainable_parameters(classifier.model)
    share = f" ({trained:,} of them trained, {trained / total:.1%})" if trained < total else ""
    without = int((tokens.labels == UNLABELLED).sum())
    unlabelled = f" ({without:,} of them unlabelled)" if without else ""
    filled = (tokens.lengths == classifier.max_length).mean()
    steps = config.total_steps(len(tokens))
    print(
        f"{name}: {total:,} parameters{share}, {len(tokens):,} examples{unlabelled}, {steps:,} steps "
        f"({steps / config.steps_per_epoch(len(tokens)):.3g} epochs), "
        f"{tokens.lengths.mean():.0f} tokens an example ({filled:.1%} fill all {classifier.max_length}; longer ones "
        f"are truncated); padding {padding_share(tokens.lengths, plan, classifier.device):.1%}; weights, gradients and "
        f"optimizer state at most {training_state_mb(classifier.model):,.0f} MiB"
        + (f" ({full:,.0f} MiB with all weights trained)" if full else "")
    )
