"""A sweep over alpha and T: a student for every pair, and the best of them by validation."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from minikd.batching import TokenizedSplit
from minikd.classifier import TextClassifier
from minikd.distributed import by_first
from minikd.evaluation.calibration import calibration_metrics
from minikd.experiment.runs import discard_interrupted, publish
from minikd.inference import compute_logits
from minikd.report.tables import best_cell


def run_sweep(
    alphas: list[float],
    temperatures: list[float],
    distil: Callable[[float, float, Path, str], TextClassifier],
    validation: TokenizedSplit,
    output: Path,
    choose: str = "accuracy",
) -> dict:
    """{"cells": [{alpha, T, validation_accuracy, validation_loss, validation_ece}, …], "choose": …, "chosen": {alpha,
    T}}: the figures of a student for each pair, trained by `distil(alpha, T, folder, name)` in output/sweep.

    `choose` says by which figure the best is chosen (`best_cell`); the test split is not looked at. The chosen student
    is copied to output/distilled.
    """
    cells, labels = [], torch.from_numpy(validation.labels)
    for alpha, T in product(dict.fromkeys(alphas), dict.fromkeys(temperatures)):  # a value given twice counts once
        student = distil(alpha, T, output / "sweep" / f"alpha-{alpha}-T-{T}", f"alpha {alpha:g}, T {T:g}")
        logits = compute_logits(student.model.to(student.device), validation, student.device, student.precision)
        student.model.cpu()  # a GPU's memory is for the next one
        figures = calibration_metrics(logits, labels)
        cells.append({
            "alpha": alpha,
            "T": T,
            "validation_accuracy": (logits.argmax(dim=-1) == labels).double().mean().item(),
            "validation_loss": figures["nll"],
            "validation_ece": figures["ece"],
        })  # fmt: skip
    best = best_cell(cells, choose)
    for cell in cells:
        mark = f" ← chosen by {choose}" if cell is best else ""
        print(
            f"alpha {cell['alpha']:<4g} T {cell['T']:<4g} validation accuracy {cell['validation_accuracy']:.4f}, "
            f"loss {cell['validation_loss']:.4f}, ECE {cell['validation_ece']:.4f}{mark}"
        )
    by_first(publish_copy, output / "sweep" / f"alpha-{best['alpha']}-T-{best['T']}", output / "distilled")
    return {"cells": cells, "choose": choose, "chosen": {"alpha": best["alpha"], "T": best["T"]}}


def publish_copy(source: Path, folder: Path) -> None:
    """Makes `folder` a copy of the finished run in `source`, in place of an older run."""
    if folder.is_symlink():  # what it points to stays as it is
        folder.unlink()
    discard_interrupted(folder.name, folder)
    shutil.copytree(source, folder / ".partial")
    publish(folder)
