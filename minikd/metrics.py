"""Quality of predictions, as scikit-learn defines it, and the distance to known probabilities."""

import torch
from torch import Tensor
from torch.nn import functional as F


def confusion_matrix(labels: Tensor, predicted: Tensor, num_labels: int) -> Tensor:
    """(C, C) counts: row = true label, column = predicted label. `labels` and `predicted` are ids of shape (N,)."""
    return torch.bincount(labels * num_labels + predicted, minlength=num_labels**2).view(num_labels, num_labels)


def classification_metrics(labels: Tensor, predicted: Tensor, num_labels: int) -> dict[str, float]:
    """accuracy, f1, precision, recall, weighted_f1 of predictions (N,) against labels (N,).

    With two labels, f1, precision and recall are those of label 1, the positive one; with more, the unweighted mean
    over the labels (macro average). weighted_f1 weighs each label's F1 by its number of examples. A quotient 0/0
    counts as 0. Equal to scikit-learn's with zero_division=0 and all labels listed.
    """
    matrix = confusion_matrix(labels, predicted, num_labels).double()
    hits, support = matrix.diagonal(), matrix.sum(dim=1)
    precision = _divide(hits, matrix.sum(dim=0))  # (C,) each
    recall = _divide(hits, support)
    f1 = _divide(2 * hits, matrix.sum(dim=0) + support)
    pick = (lambda per_label: per_label[1]) if num_labels == 2 else torch.mean
    return {
        "accuracy": _divide(hits.sum(), matrix.sum()).item(),
        "f1": pick(f1).item(),
        "precision": pick(precision).item(),
        "recall": pick(recall).item(),
        "weighted_f1": _divide((f1 * support).sum(), support.sum()).item(),
    }


def kl_to_truth(logits: Tensor, probabilities: Tensor) -> float:
    """Mean KL(true probabilities ‖ softmax(logits)) in nats, for (N, C) each.

    It is the log-loss that a model pays, on average, for not knowing the truth: 0 is perfect; a model that always says
    1/C pays log C minus the entropy of the truth.
    """
    true, log_probs = probabilities.double(), F.log_softmax(logits.double(), dim=-1)
    return (torch.special.xlogy(true, true) - true * log_probs).sum(dim=-1).mean().item()


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)
