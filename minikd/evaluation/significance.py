"""Is one model really better than another, or was it luck? Two answers from the same test examples, and how small a
difference such a test can find at all (`detectable_difference`).

The first is an interval for the difference in accuracy. For one pair of models it covers the choice of test examples
(Bonett & Price 2012); for several pairs, trained with different seeds, the choice of seeds as well (a two-way analysis
of variance, whose parts are combined as in Howe 1974). `python tests/coverage_of_intervals.py` simulates how often
these intervals hold the true difference. The second answer is McNemar's test, a p-value for each pair of models
(McNemar 1947; Dietterich 1998).

Correctness is boolean, (S, N): S seeds, that is pairs of training runs, by N test examples; arrays or CPU tensors.
The difference in correctness is 1 where only model a is right, −1 where only b is, and 0 where both or neither are.
"""

import functools
import math
from statistics import NormalDist

import numpy as np

# With fewer test examples, chance alone moves an accuracy of 50 % by more than 10 points (`chance_margin`).
TOO_FEW = 97


def compare(a, b) -> dict:
    """Both answers for correctness (S, N) of models a and b, ready for JSON, as fractions of accuracy.

    {"difference", "low", "high", "confidence", "method", "detectable", "seeds": [{"only_a", "only_b", "p"}, …],
    "examples": N}

    Raises ValueError for shapes that differ, no examples, or anything but booleans.
    """
    a, b = np.atleast_2d(a, b)  # (N,) is one seed
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"correctness must be boolean (predicted == labels), not {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"both models need one shape (S, N) with examples in it, not {a.shape} and {b.shape}")
    counts = [(int((one & ~two).sum()), int((two & ~one).sum())) for one, two in zip(a, b)]
    difference = a.astype(np.int8) - b
    return _record(counts, a.shape[1], interval(difference), detectable_difference(difference))


def compare_counts(only_a: int, only_b: int, examples: int) -> dict:
    """`compare` for one pair of models, from the numbers of examples that only a and only b has right, out of all.

    Results files hold these, so that the interval of an earlier version can be renewed without its models.
    """
    limits = paired_interval(only_a, only_b, examples)
    return _record([(only_a, only_b)], examples, limits, paired_detectable(only_a, only_b, examples))


def interval(difference: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for the difference in accuracy, from differences in correctness (S, N): one of the two below."""
    if len(difference) == 1:
        only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
        return paired_interval(only_a, only_b, difference.shape[1], confidence)
    return two_way_interval(difference, confidence)


def paired_interval(only_a: int, only_b: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for one pair of models and other test examples. It says nothing of other training runs.

    The adjusted Wald interval of Bonett & Price (2012), recommended by Fagerland, Lydersen & Laake (2014): that of the
    normal approximation, after adding two examples, one that only a has right and one that only b has right. It keeps
    its coverage with few examples, and has a width where the models agree on every example.
    """
    if not 0 <= only_a + only_b <= examples or min(only_a, only_b) < 0 or examples < 1:
        raise ValueError(f"{only_a} and {only_b} of {examples} examples: counts must fit")
    a, b = (only_a + 1) / (examples + 2), (only_b + 1) / (examples + 2)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((a + b - (a - b) ** 2) / (examples + 2))
    return max(a - b - half, -1.0), min(a - b + half, 1.0)


def two_way_interval(difference: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for pairs of models from other seeds, tested on other examples; `difference` is (S, N), S ≥ 2.

    Seeds and examples are crossed: difference[s, n] = mean + seed[s] + example[n] + residual[s, n]. The mean square of
    seeds has the expectation N·Var(seed) + Var(residual), that of examples S·Var(example) + Var(residual) (two-way
    analysis of variance with random effects and one observation per cell; Searle, Casella & McCulloch 1992,
    chapter 4), so that the variance of the grand mean is the sum of two parts, divided by S·N:

        seeds and residual: MS(seeds), which S − 1 degrees of freedom estimate
        examples:           MS(examples) − MS(residual), or 0 where this is negative

    Each part has its own quantile, Student's t with S − 1 degrees of freedom and the normal one, and the squares of
    the two half-widths add up (Howe 1974; Zou & Donner 2008). One t for the sum (Satterthwaite 1946) would be too
    narrow where two or three seeds happen to agree. The seeds' half-width is at least what the residual alone gives,
    so that the interval is never narrower than that of the examples. With two seeds it is very wide, as t is 12.7. Two
    examples are added as in `paired_interval`, in all seeds.
    """
    t, z = t_quantile((1 + confidence) / 2, len(difference) - 1), NormalDist().inv_cdf((1 + confidence) / 2)
    mean, half = _mean_and_half_width(difference, t, z)
    return max(mean - half, -1.0), min(mean + half, 1.0)


def detectable_difference(difference: np.ndarray, confidence: float = 0.95, power: float = 0.8) -> float:
    """The true difference in accuracy whose interval would exclude 0 in a share `power` of experiments like this one,
    from its differences in correctness (S, N).

    The standard formula of sample sizes (Lachin 1981), solved for the difference: (q(confidence) + q(power)) standard
    errors, where q(confidence) is the interval's own quantile, of which `two_way_interval` has two, and q(power) that
    of `power` from the same distribution. For one pair see `paired_detectable`. The standard errors are those of this
    experiment, so that with few seeds the figure is rough; and as the sum of two quantiles of t is an approximation,
    three seeds find 78 % of such differences rather than 80 %.
    """
    if len(difference) == 1:
        only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
        return paired_detectable(only_a, only_b, difference.shape[1], confidence, power)
    level, degrees = (1 + confidence) / 2, len(difference) - 1
    t = t_quantile(level, degrees) + t_quantile(power, degrees)
    z = NormalDist().inv_cdf(level) + NormalDist().inv_cdf(power)
    return min(_mean_and_half_width(difference, t, z)[1], 1.0)


def paired_detectable(only_a: int, only_b: int, examples: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """`detectable_difference` for one pair of models, which disagree in correctness on a share p of the examples.

    A true difference d has the standard error √((p − d²) / N) (as in Connor 1987). Where d is z = q(confidence) +
    q(power) of these, d = z √(p / (N + z²)). Where that is more than p, as models that disagree so rarely cannot differ
    so much, p is d itself: d = z² / (N + z²). p and N count two more examples, as `paired_interval` does.
    """
    total, z = examples + 2, NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    share = (only_a + only_b + 2) / total
    return max(z * math.sqrt(share / (total + z**2)), z**2 / (total + z**2))


def _mean_and_half_width(difference: np.ndarray, t: float, z: float) -> tuple[float, float]:
    """The mean of differences in correctness (S, N), S ≥ 2, and the half-width of `two_way_interval` around it for the
    quantiles t of the seeds and z of the examples; both with the two added examples."""
    seeds = len(difference)
    extra = np.tile(np.array([1, -1], dtype=difference.dtype), (seeds, 1))
    difference = np.concatenate([difference, extra], axis=1)  # (S, N + 2)
    examples = difference.shape[1]
    mean, by_seed, by_example = difference.mean(), difference.mean(axis=1), difference.mean(axis=0)
    residual = difference - by_seed[:, None] - by_example + mean  # (S, N + 2)
    ms_seeds = examples * by_seed.var(ddof=1)
    ms_examples = seeds * by_example.var(ddof=1)
    ms_residual = (residual**2).sum() / ((seeds - 1) * (examples - 1))
    of_seeds = max(t**2 * ms_seeds, z**2 * ms_residual)
    of_examples = z**2 * max(ms_examples - ms_residual, 0)
    return float(mean), math.sqrt((of_seeds + of_examples) / (seeds * examples))


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with a whole number of degrees of freedom, to six digits.

    With t = √degrees · tan(angle), the density of the angle is proportional to cos(angle)^(degrees − 1).
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(np.interp(probability, area / area[-1], angles))


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's p for the numbers of examples that only model a, and only model b, has right.

    That of the exact two-sided binomial test: were the models equally good, each example on which one is right
    and the other wrong would be a toss of a fair coin. Without any, p is 1. Exact at every count: the binomial sum
    is one of Python's integers, and only the quotient is rounded.
    """
    tosses = only_a + only_b
    tail = ways = 1  # ways = C(tosses, k), summed over k = 0 … the smaller count
    for k in range(min(only_a, only_b)):
        ways = ways * (tosses - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**tosses)


def chance_margin(examples: int) -> float:
    """How far chance alone moves an accuracy of 50 % on so many examples: half the width of its 95 % interval."""
    return NormalDist().inv_cdf(0.975) * math.sqrt(0.25 / examples)


def _record(counts: list[tuple[int, int]], examples: int, limits: tuple[float, float], detectable: float) -> dict:
    return {
        "difference": sum(one - two for one, two in counts) / (len(counts) * examples),
        "low": limits[0],
        "high": limits[1],
        "confidence": 0.95,
        "method": "Bonett-Price" if len(counts) == 1 else "two-way analysis of variance",
        "detectable": detectable,
        "seeds": [{"only_a": one, "only_b": two, "p": mcnemar(one, two)} for one, two in counts],
        "examples": examples,
    }
