"""The figures of quality of finished models, and how models compare. Their costs are measured in costs.py."""

from itertools import repeat
from operator import truediv

import torch
from torch import Tensor

from minikd.datasets import Split
from minikd.evaluation.calibration import calibration_metrics
from minikd.evaluation.significance import compare
from minikd.metrics import classification_metrics, confusion_matrix, kl_to_truth

# An experiment's students. The control starts as the distilled one does, and is trained as the baseline is.
STUDENTS = ("distilled", "control", "baseline")


def quality(logits: Tensor, split: Split) -> dict:
    """How good predictions are: all of `classification_metrics` and `calibration_metrics`, the confusion matrix (row =
    true label), and `kl_to_truth` where the true probabilities are known."""
    labels, predicted = torch.tensor(split.labels), logits.argmax(dim=-1)
    figures = classification_metrics(labels, predicted, logits.shape[1]) | calibration_metrics(logits, labels)
    figures["confusion"] = confusion_matrix(labels, predicted, logits.shape[1]).tolist()
    if split.probabilities is not None:
        figures["kl_to_truth"] = kl_to_truth(logits, torch.from_numpy(split.probabilities))
    return figures


def likeness_to_teacher(logits: Tensor, teacher: Tensor) -> dict:
    """How closely a model follows the teacher, from the logits (N, C) of both on the same examples: the two figures of
    Stanton et al. 2021.

    `teacher_agreement`: the share of the examples to which both give the same label. `kl_to_teacher`: the mean
    KL(softmax(teacher) ‖ softmax(model)) in nats, at T = 1.
    """
    return {
        "teacher_agreement": (logits.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean().item(),
        "kl_to_teacher": kl_to_truth(logits, teacher.double().softmax(dim=-1)),
    }


def figures_of(name: str, logits: dict[str, list[Tensor]], split: Split) -> dict:
    """A model's `quality` and, where there is another one named "teacher", its likeness to that: of several seeds,
    merged. One teacher is compared with every seed, several with the seed of the same place; where their numbers do
    not fit, there is no likeness."""
    own, teachers = logits[name], logits.get("teacher", []) if name != "teacher" else []
    figures = [quality(one, split) for one in own]
    teachers = teachers * len(own) if len(teachers) == 1 else teachers
    if len(teachers) == len(own):
        figures = [found | likeness_to_teacher(*pair) for found, *pair in zip(figures, own, teachers)]
    return merge_seeds(figures)


def compare_students(logits: dict[str, list[Tensor]], split: Split) -> dict:
    """Whether the students differ by more than chance, as far as there are models of these names.

    significance  distilled − baseline, by `compare`
    comparisons   where there is a control, which starts as the distilled student and learns from the labels alone, the
                  two parts of that: [{"models": ["distilled", "control"], …}, {"models": ["control", "baseline"], …}],
                  what the loss gives and what the start gives
    """
    labels = torch.tensor(split.labels)
    right = {name: torch.stack(logits[name]).argmax(dim=-1) == labels for name in STUDENTS if name in logits}  # (S, N)
    parts = [pair for pair in (STUDENTS[:2], STUDENTS[1:]) if right.keys() >= set(pair)]
    comparisons = [{"models": [a, b], **compare(right[a], right[b])} for a, b in parts]
    whole = right.keys() >= {"distilled", "baseline"}
    return ({"significance": compare(right["distilled"], right["baseline"])} if whole else {}) | (
        {"comparisons": comparisons} if comparisons else {}
    )


def merge_seeds(figures: list[dict]) -> dict:
    """One dictionary from those of several seeds: lists of values; the sum of confusion matrices; pooled bins."""
    if len(figures) == 1:
        return figures[0]
    merged = {key: [one[key] for one in figures] for key in figures[0]}
    merged["confusion"] = torch.tensor(merged["confusion"]).sum(dim=0).tolist()
    merged["reliability"] = [_pool(bins) for bins in zip(*merged["reliability"])]
    return merged


def _pool(bins) -> list:
    """Bins of several reliability curves, [count, mean confidence, accuracy] each, as one."""
    filled = [one for one in bins if one[0]]
    count = sum(one[0] for one in filled)
    if not count:
        return [0, None, None]
    # + 0.0 raises where a damaged file has a text, which would else be repeated as often as it has a count
    return [count, *(sum(one[0] * (one[i] + 0.0) for one in filled) / count for i in (1, 2))]


def compare_with_first(row: dict, first: dict) -> dict:
    """What a smaller model keeps and saves against the first one; None where one of them lacks the figure,
    or for a ratio to 0.

    Of experiment E4: `retention` and `f1_retention`, its accuracy and F1 over the first's; `speed_up` in batches of
    128; `parameter_fraction`; and `efficiency_ratio`, retention over parameter fraction. Of E5: `accuracy_change` and
    `weighted_f1_change`, in points; and as fractions of the first's (−0.49: 49 % less) `latency_change` and
    `throughput_change` in batches of 100, `parameter_change`, `size_change`. Of E3: `latency_1_change`, one at a time,
    and `memory_change`, of inference.
    """

    def points(key):
        return _each(lambda mine, its: 100 * (mine - its), row.get(key), first.get(key))

    def change(key):
        return _each(lambda mine, its: mine / its - 1, row.get(key), first.get(key))

    def ratio(key):
        return _each(truediv, row.get(key), first.get(key))

    return {
        "accuracy_change": points("accuracy"),
        "weighted_f1_change": points("weighted_f1"),
        "latency_1_change": change("latency_1_ms"),
        "latency_change": change("batch_100_ms"),
        "throughput_change": change("throughput"),
        "parameter_change": change("parameters"),
        "size_change": change("size_mb"),
        "memory_change": change("peak_memory_mb"),
        "retention": ratio("accuracy"),
        "f1_retention": ratio("f1"),
        "speed_up": _each(truediv, first.get("batch_128_ms"), row.get("batch_128_ms")),
        "parameter_fraction": ratio("parameters"),
        "efficiency_ratio": _each(truediv, ratio("accuracy"), ratio("parameters")),
    }


def _each(formula, mine, its):
    """`formula` of two figures; where one is a list over seeds, of each of its values. None where it has no value."""
    if mine is None or its is None:
        return None
    try:
        if not isinstance(mine, list) and not isinstance(its, list):
            return formula(mine, its)
        return [formula(a, b) for a, b in zip(*(v if isinstance(v, list) else repeat(v) for v in (mine, its)))]
    except ZeroDivisionError:
        return None
