"""What the folders of finished runs say of them: costs of training, validation figures, loss curves."""

import statistics
from pathlib import Path

from minikd.experiment.journal import read_log
from minikd.experiment.runs import TRAINING_COSTS, read_run


def training_costs(folder: str | None) -> dict:
    """What the run that made the model in the folder recorded, if it did.

    trained_parameters
    optimizer_steps     that were done, also those after the epoch whose weights were kept
    training_minutes    of its steps and validations; of a run that was stopped and resumed, of all its parts, less the
                        steps that a kill lost. Steps and minutes of a distilled student include its first stage
    training_peak_mb    peak memory of such a training in a process of its own
    training_memory_mb  in runs of older versions: peak memory with all else that the process held
    """
    run = read_run(Path(folder)) if folder else {}
    costs = {key: run[key] for key in TRAINING_COSTS if run.get(key) is not None}
    histories = [run["history"]] if run.get("history") else []
    # By the folder's name: the chosen student of a sweep has another one.
    if histories and folder and Path(folder).name == "distilled" and run["arguments"].get("layer_epochs"):
        histories.append(read_run(Path(folder).parent / "first-stage").get("history") or [])
    if histories:
        costs["training_minutes"] = sum(epoch.get("seconds", 0.0) for history in histories for epoch in history) / 60
        lasts = [history[-1] for history in histories if history]
        if all("step" in last for last in lasts):  # older runs do not say
            costs["optimizer_steps"] = sum(last["step"] for last in lasts)
    return costs


def best_validation(folders: list[str | None]) -> dict:
    """What the runs in the folders, of one model with several seeds, reached on their validation split:
    `validation_accuracy`, of the epoch whose weights were kept (of several seeds, a list), and `validated_on`, that
    split's fingerprint. {} where one of them does not say, or where they differ in the split."""
    runs = [read_run(Path(folder)) if folder else {} for folder in folders]
    splits = {(run.get("made_from") or run).get("validation") for run in runs}
    reached = [[epoch.get("validation_accuracy") for epoch in run.get("history") or [{}]] for run in runs]
    if any(None in of_run for of_run in reached) or None in splits or len(splits) > 1:
        return {}
    best = [max(of_run) for of_run in reached]
    return {"validation_accuracy": best if len(best) > 1 else best[0], "validated_on": splits.pop()}


def loss_curves(folder: Path, points: int = 200) -> dict:
    """The curves in a run's log.jsonl: train [[epoch, loss], …], thinned to about `points` means of neighbours;
    validation [[epoch, accuracy, loss], …]; and the settings of that loss: alpha (1 without a teacher), T,
    label_smoothing and, if it is not kl, soft_loss. {} where there is no log."""
    lines = read_log(folder)
    train = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    size = -(-len(train) // points) or 1
    groups = [train[i : i + size] for i in range(0, len(train), size)]
    keys = ("epoch", "validation_accuracy", "validation_loss")
    validation = [[line[key] for key in keys] for line in lines if set(keys) <= line.keys()]
    if not validation:
        return {}
    thinned = [[statistics.mean(column) for column in zip(*group)] for group in groups]
    curves: dict = {"train": thinned, "validation": validation}
    made_from = read_run(folder).get("made_from") or {}
    settings = (made_from.get("settings") or {}) | ({} if made_from.get("teacher") else {"alpha": 1.0, "T": 1.0})
    if "label_smoothing" in settings:
        keys = ("alpha", "T", "label_smoothing", "soft_loss")
        curves["settings"] = {key: settings[key] for key in keys if key in settings}
    return curves
