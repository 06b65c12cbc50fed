"""Is one model really better than another, or was it luck? Two answers from the same test examples.

The paired bootstrap gives an interval for the difference in accuracy (Efron & Tibshirani 1993, chapter 13; Koehn 2004;
Dror et al. 2018), McNemar's test a p-value for one pair of models (McNemar 1947; Dietterich 1998). To both,
an example that both models have right, or both wrong, says nothing about the difference.

Correctness is boolean, (S, N): S seeds, that is pairs of training runs, by N test examples; arrays or CPU tensors.
"""

import numpy as np


def compare(a, b) -> dict:
    """Correctness (S, N) of models a and b -> both answers, ready for JSON, as fractions of accuracy.

    {"difference", "low", "high", "confidence", "seeds": [{"only_a", "only_b", "p"}, …], "examples": N}
    """
    a, b = _correctness(a, b)
    difference, low, high = paired_bootstrap(a, b, confidence=0.95)
    tests = [dict(zip(("only_a", "only_b", "p"), mcnemar(*pair))) for pair in zip(a, b)]
    interval = {"difference": difference, "low": low, "high": high, "confidence": 0.95}
    return interval | {"seeds": tests, "examples": a.shape[1]}


def paired_bootstrap(
    a, b, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(accuracy of a − accuracy of b, low, high): the percentile interval over `resamples`, for correctness (S, N).

    Each resample draws N examples with replacement, the same for both models and all seeds, and S seeds with
    replacement, run s of a staying with run s of b. With S > 1 the interval thus speaks of another test set and other
    seeds (the pigeonhole bootstrap, Owen 2007), but roughly: too wide where the seeds hardly differ, too narrow where
    they differ far more than the test set can blur, since a few seeds are a small sample. With S = 1 it speaks of
    another test set alone, for these two training runs.

    No example is drawn one by one. Given the seeds, an example counts as one of the 2S + 1 integers from −S to S, and
    how often each is drawn is multinomial: the same distribution, in a fraction of the time.

    Raises ValueError for shapes that differ, no examples, or anything but booleans.
    """
    a, b = _correctness(a, b)
    seeds, examples = a.shape
    random = np.random.default_rng(seed)
    patterns, counts = np.unique(a.astype(np.int8) - b, axis=1, return_counts=True)  # (S, K), (K,): few are distinct
    draws = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # (resamples, S): times each is drawn
    totals = []
    for times, repeats in zip(*np.unique(draws, axis=0, return_counts=True)):
        values = (times.astype(np.float32) @ patterns.astype(np.float32)).astype(np.int64)  # (K,), in −S … S
        shares = np.bincount(values + seeds, weights=counts, minlength=2 * seeds + 1) / examples
        totals.append(random.multinomial(examples, shares, size=repeats) @ np.arange(-seeds, seeds + 1))
    low, high = np.quantile(np.concatenate(totals), [(1 - confidence) / 2, (1 + confidence) / 2]) / a.size
    return (int(a.sum()) - int(b.sum())) / a.size, float(low), float(high)


def mcnemar(a, b) -> tuple[int, int, float]:
    """(examples only a has right, only b has right, p) for the correctness (N,) of two models on the same examples.

    p is that of the exact two-sided binomial test: were the models equally good, each example on which one is right
    and the other wrong would be a toss of a fair coin. Without any, p is 1. Exact at every count: the binomial sum
    is one of Python's integers, and only the quotient is rounded.

    Raises ValueError as `paired_bootstrap` does.
    """
    (a,), (b,) = _correctness(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    tosses = only_a + only_b
    tail = ways = 1  # ways = C(tosses, k), summed over k = 0 … the smaller count
    for k in range(min(only_a, only_b)):
        ways = ways * (tosses - k) // (k + 1)
        tail += ways
    return only_a, only_b, min(1.0, 2 * tail / 2**tosses)


def sentence(comparison: dict, name_a: str = "distilled", name_b: str = "baseline") -> str:
    """What `compare` found, in plain words: the difference, the interval, the verdict, and McNemar's p per seed."""
    low, high, seeds = comparison["low"], comparison["high"], len(comparison["seeds"])
    if low <= 0 <= high:
        verdict = "includes 0: this test does not show that either is better"
    else:
        verdict = f"excludes 0: {name_a if low > 0 else name_b} is the better one"
        verdict += ", as far as one seed can tell" if seeds == 1 else ""
    p_values = ", ".join("<0.001" if test["p"] < 0.001 else f"{test['p']:.3f}" for test in comparison["seeds"])
    return (
        f"{name_a} − {name_b}: {_points(comparison['difference'])} points of accuracy "
        f"({comparison['confidence']:.0%} interval {_points(low)} to {_points(high)}, paired bootstrap over "
        f"{comparison['examples']:,} examples and {seeds} seed{'s' * (seeds > 1)}). The interval {verdict}; "
        f"McNemar's p{' per seed' * (seeds > 1)}: {p_values}."
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+z.2f}".replace("-", "−")


def _correctness(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Both as boolean arrays (S, N); (N,) is one seed."""
    a, b = np.atleast_2d(a, b)
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"correctness must be boolean (predicted == labels), not {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"both models need one shape (S, N) with examples in it, not {a.shape} and {b.shape}")
    return a, b
