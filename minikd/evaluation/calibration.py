"""Calibration: is a model right as often as it says? (Guo, Pleiss, Sun & Weinberger 2017; Brier 1950)

Pure functions, computed in fp64: a confidence of 1 − 1e-9 is not yet 1, and in fp32 it would be.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15  # as in Guo et al. 2017
TEMPERATURES = 0.05, 20.0  # where fit_temperature looks


def calibration_metrics(logits: Tensor, labels: Tensor) -> dict:
    """ece, brier, nll and reliability (all below) of logits (N, C) against label ids (N,), ready for JSON."""
    probs = logits.double().softmax(dim=-1)
    return {
        "ece": expected_calibration_error(probs, labels),
        "brier": brier_score(probs, labels),
        "nll": negative_log_likelihood(logits, labels),
        "reliability": reliability_curve(probs, labels),
    }


def reliability_curve(probs: Tensor, labels: Tensor, bins: int = BINS) -> list[list]:
    """[count, mean confidence, accuracy] of each bin, for probabilities (N, C) and label ids (N,).

    Confidence is the largest probability. Bin i of `bins` equal widths holds the confidences in (i/bins, (i+1)/bins],
    so 1 falls into the last; an empty bin is [0, None, None]. A calibrated model has confidence = accuracy in every
    bin (Guo et al. 2017, section 2). Raises ValueError for no examples, other shapes, or a probability that is NaN.
    """
    _check(probs, labels)
    confidence = probs.double().amax(dim=-1)  # (N,)
    correct = probs.argmax(dim=-1) == labels
    edges = torch.arange(1, bins, dtype=torch.float64) / bins  # the inner ones: each the double nearest to i/bins
    index = torch.bucketize(confidence, edges)  # edges[index − 1] < confidence <= edges[index]
    counts = torch.bincount(index, minlength=bins)
    means = [torch.bincount(index, weights=value.double(), minlength=bins) / counts for value in (confidence, correct)]
    rows = zip(counts.tolist(), *(mean.tolist() for mean in means))
    return [[count, mean, accuracy] if count else [0, None, None] for count, mean, accuracy in rows]


def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """ECE: |accuracy − mean confidence| averaged over the bins of `reliability_curve`, each weighted by its count.

    0 is calibrated, and so is a model that knows nothing but the base rates: ECE says nothing about accuracy, Brier
    score and NLL do. For probabilities (N, C) and label ids (N,) (Guo et al. 2017, equation 3).
    """
    filled = [row for row in reliability_curve(probs, labels, bins) if row[0]]
    return sum(count * abs(accuracy - confidence) for count, confidence, accuracy in filled) / len(labels)


def brier_score(probs: Tensor, labels: Tensor) -> float:
    """Squared distance of probabilities (N, C) to the one-hot labels (N,), summed over classes, mean over examples.

    0 is perfect, 2 is certain and always wrong, as Brier (1950) defined it. scikit-learn's `brier_score_loss` of two
    classes looks at the positive one alone and is half of this.
    """
    _check(probs, labels)
    return (probs.double() - F.one_hot(labels, probs.shape[1])).square().sum(dim=-1).mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean −log p(true label) in nats, for logits (N, C) and label ids (N,).

    It starts from logits because a probability that has rounded to 0 would make it infinite.
    """
    _check(logits, labels)
    return F.cross_entropy(logits.double(), labels).item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the NLL of softmax(logits / T), for logits (N, C) and label ids (N,) of a validation split.

    Temperature scaling (Guo et al. 2017, section 4.2). T > 1 where the model was too sure of itself; predictions and
    accuracy stay the same. The NLL is convex in 1/T, so its slope has one zero, found by bisection in log T to the
    precision of fp64. T stays in [0.05, 20]: the lower bound where every prediction is right, as the NLL then falls
    until T is 0, and the upper one where the logits are worse than chance. Raises ValueError as `reliability_curve`.
    """
    _check(logits, labels)
    logits = logits.double()
    excess = logits - logits.gather(1, labels[:, None])  # (N, C): NLL = mean over N of logsumexp(excess / T)

    def slope(T):  # of the NLL, as a function of 1/T
        return ((excess / T).softmax(dim=-1) * excess).sum(dim=-1).mean().item()

    low, high = TEMPERATURES  # bisection ends at one of them where the slope keeps its sign
    for _ in range(60):
        T = math.sqrt(low * high)
        low, high = (T, high) if slope(T) > 0 else (low, T)
    return T


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            f"wanted scores (N, C) and labels (N,) with N > 0, not {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("the scores to calibrate hold a value that is not finite")
