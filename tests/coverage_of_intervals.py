"""How often the 95 % interval of a difference in accuracy holds the true difference, in simulated experiments.

    python tests/coverage_of_intervals.py

An experiment is S pairs of training runs, all tested on the same N examples. Each pair's true difference is drawn from
a normal distribution, whose standard deviation is the "spread". With one pair, the interval should hold that pair's
own true difference; with several, the mean of the distribution. Takes one to two minutes of a processor's time.
"""

import itertools
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minikd.evaluation.significance import detectable_difference, interval

SEEDS, EXAMPLES = (1, 2, 3, 5, 10), (484, 872, 2000, 25_000)
SPREADS = (0.0, 0.005, 0.01, 0.02, 0.03)
KINDS = tuple(itertools.product((0.0, 0.01), (0.05, 0.2), (0.1, 0.9)))  # true mean, disagreement, likeness


def experiment(random, seeds, examples, spread, mean, disagreement, likeness):
    """(difference in correctness (S, N) of −1, 0, 1; true difference of each pair (S,)).

    The two models of a pair disagree on a share `disagreement` of all possible examples (more where the true difference
    asks for it). `likeness` is the correlation between the pairs' answers to one example: near 1, all pairs disagree
    on the same examples; near 0, each pair on its own.
    """
    true = random.normal(mean, spread, seeds)
    both = np.maximum(disagreement, abs(true))
    only_a, only_b = (both + true) / 2, (both - true) / 2
    # A uniform number decides each answer. Often it is the example's, the same for all pairs; otherwise a new one.
    common, own = random.random(examples, np.float32), random.random((seeds, examples), np.float32)
    uniform = np.where(random.random((seeds, examples), np.float32) < np.sqrt(likeness), common, own)
    return (uniform < only_a[:, None]).astype(np.int8) - (uniform > 1 - only_b[:, None]), true


def coverage(seeds, examples, spread, repeats):
    """The share of intervals that hold the true difference, for each of KINDS; the same at every call."""
    random = np.random.default_rng(zlib.crc32(repr((seeds, examples, spread)).encode()))
    shares = []
    for mean, disagreement, likeness in KINDS:
        hits = 0
        for _ in range(repeats):
            difference, true = experiment(random, seeds, examples, spread, mean, disagreement, likeness)
            low, high = interval(difference)
            hits += low <= (true[0] if seeds == 1 else mean) <= high
        shares.append(hits / repeats)
    return shares


def detections(seeds, examples, spread, repeats):
    """The share of experiments whose interval lies above 0, where the true difference is the one that
    `detectable_difference` promises to find in 80 % of them; for each disagreement and likeness of KINDS.

    The promise is the root mean square of those of `repeats` other experiments, as each is rough by itself. A pair's
    own true difference is that of all pairs: with one pair, spread has no meaning.
    """
    random = np.random.default_rng(zlib.crc32(repr(("power", seeds, examples, spread)).encode()))
    shares = []
    for _, *kind in KINDS[: len(KINDS) // 2]:
        pilots = [experiment(random, seeds, examples, spread, 0.0, *kind)[0] for _ in range(repeats)]
        true = np.sqrt(np.mean([detectable_difference(pilot) ** 2 for pilot in pilots]))
        found = [interval(experiment(random, seeds, examples, spread, true, *kind)[0])[0] > 0 for _ in range(repeats)]
        shares.append(np.mean(found))
    return shares


def main():
    print("Coverage in %: mean over the kinds of experiment (true difference 0 or 1 point, disagreement 5 or 20 %,")
    print("likeness 0.1 or 0.9), and in brackets the lowest of them. Spread: std of the true difference, in points.")
    print("1,000 experiments of each kind (200 with 25,000 examples), so that chance moves a mean by ±0.5 (±1.1) and a")
    print("single kind by ±1.4 (±3.0).\n")
    print("| seeds | examples |" + "".join(f" spread {100 * spread:g} |" for spread in SPREADS))
    print("| ---: | ---: |" + " ---: |" * len(SPREADS))
    for seeds, examples in itertools.product(SEEDS, EXAMPLES):
        repeats = 1000 if examples < 10_000 else 200
        found = [coverage(seeds, examples, spread, repeats) for spread in SPREADS]
        cells = "".join(f" {100 * np.mean(shares):.1f} ({100 * min(shares):.1f}) |" for shares in found)
        print(f"| {seeds} | {examples:,} |{cells}", flush=True)


if __name__ == "__main__":
    main()
