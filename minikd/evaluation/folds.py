"""Is one model really better than another, where each of K folds tested a pair of models of its own?

Every example was tested once, so that the choice of examples blurs the difference as in a single test set of them all.
What else differs between the folds is their training: other seeds, and other training sets, which overlap. An interval
that takes the folds for independent is therefore too narrow where the training set matters much, and how much it does
no estimate from the folds themselves can tell (Bengio & Grandvalet 2004, "No unbiased estimator of the variance of
k-fold cross-validation"). Nadeau & Bengio (2003, "Inference for the generalization error") enlarge the variance between
folds by the factor 1 + K · n_test / n_train. Their formula was made for test sets that overlap too, and takes the luck
of the test examples, most of that variance, for luck of the training: with 10 folds it makes an interval half as wide
again as it should be. Here only the part that comes from training is enlarged.
`python tests/coverage_of_folds.py` simulates both. (The nested cross-validation of Bates, Hastie & Tibshirani 2023,
"Cross-validation: what does it estimate and how well does it do it?", needs no such factor, but many times the
trainings.)
"""

import math
from statistics import NormalDist

import numpy as np

from minikd.evaluation.significance import t_quantile

METHOD = "one-way analysis of variance"


def compare_folds(counts: list[tuple[int, int, int]], training_examples: float) -> dict:
    """The difference in accuracy of models a and b over K folds, with its interval, ready for JSON.

    `counts`: of each fold the numbers of examples that only its model a, and only its model b, has right, and of all
    that it tested. `training_examples`: of a fold, on average. Returns {"difference", "low", "high", "confidence",
    "method", "detectable", "folds": K, "examples": of all folds}; "detectable" is the true difference that 4 of 5 such
    experiments would find: (q(confidence) + q(power)) standard errors, with the two parts and quantiles of
    `fold_interval`. It is rough where the folds differ by chance, as one experiment's standard error is.
    """
    differences = [np.repeat([1, -1, 0], [a, b, examples - a - b]) for a, b, examples in counts]
    total, (low, high) = sum(examples for _, _, examples in counts), fold_interval(differences, training_examples)
    z, t = NormalDist().inv_cdf, lambda probability: t_quantile(probability, len(counts) - 1)
    detectable = _half_width(differences, training_examples, z(0.975) + z(0.8), t(0.975) + t(0.8))
    return {
        "difference": sum(a - b for a, b, _ in counts) / total,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "method": METHOD,
        "detectable": min(detectable, 1.0),
        "folds": len(counts),
        "examples": total,
    }


def fold_interval(
    differences: list[np.ndarray], training_examples: float, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) for the difference in accuracy of training runs like these K ≥ 2, on other examples.

    `differences`: for each fold the differences in correctness (N,), or (S, N) of several seeds. Examples are nested in
    folds: difference[k, n] = mean + fold[k] + example[n]. The mean square between folds has the expectation
    N·Var(fold) + Var(example), that within folds Var(example) (one-way analysis of variance with random effects;
    Searle, Casella & McCulloch 1992, chapter 3). With n examples in all, the squared half-width is the sum of two
    parts, each with its own quantile as in `two_way_interval` (Howe 1974):

        examples: z² · MS(within) / n
        training: t² · (1 + n / n_train) · (MS(between) − MS(within)) / n, or 0 where this is negative

    t has K − 1 degrees of freedom, and n / n_train is K · n_test / n_train: the factor of Nadeau & Bengio. Two examples
    are added within the folds, as in `paired_interval`. In simulations it holds the true difference in 95 to 98 of 100
    experiments of 5 or 10 folds, and in 92 to 97 of 3 folds.
    """
    level, folds = (1 + confidence) / 2, len(differences)
    half = _half_width(differences, training_examples, NormalDist().inv_cdf(level), t_quantile(level, folds - 1))
    examples = [np.atleast_2d(one).mean(axis=0) for one in differences]
    mean = float(sum(one.sum() for one in examples)) / (sum(map(len, examples)) + 2)
    return max(mean - half, -1.0), min(mean + half, 1.0)


def _half_width(differences: list[np.ndarray], training_examples: float, z: float, t: float) -> float:
    """The half-width of `fold_interval` for the quantiles z of the examples and t of the training."""
    of_folds = [np.atleast_2d(one).mean(axis=0) for one in differences]  # (N,) each: the mean over the fold's seeds
    folds, sizes = len(of_folds), np.array([len(one) for one in of_folds])
    means, total = np.array([one.mean() for one in of_folds]), sizes.sum()
    grand = (sizes * means).sum() / total
    between = (sizes * (means - grand) ** 2).sum() / (folds - 1)
    squares = sum(((one - mean) ** 2).sum() for one, mean in zip(of_folds, means))
    within = (squares + 2) / (total + 2 - folds)  # the two added examples are 1 and −1
    training = max(between - within, 0) * (1 + total / training_examples)
    return math.sqrt((z**2 * within + t**2 * training) / (total + 2))
