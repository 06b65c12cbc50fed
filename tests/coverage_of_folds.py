"""How often the 95 % interval over folds holds the true difference, and what other intervals would do.

    python tests/coverage_of_folds.py

In the first table logistic regressions are trained on the overlapping training sets of K folds: model a sees some of
the features, model b others. Where the two sets are equally good, the true difference is 0; else it is the mean over
the experiments. Each model is trained on a random part of its training set, which stands for all that makes one
training run differ from the next. In the second table there are no models: each fold's true difference is drawn from a
normal distribution, whose standard deviation is the "spread". Takes three minutes of a processor's time.
"""

import itertools
import math
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minikd.evaluation.folds import fold_interval
from minikd.evaluation.significance import paired_interval, t_quantile


class Setting(NamedTuple):
    """An experiment with logistic regressions."""

    examples: int
    K: int
    common: int  # features that both models see
    own: int  # further ones that one model sees
    weight: float  # of these, where that of the common features is 1
    weight_b: float  # the same for model b
    part: float  # of its training set that a model sees


SETTINGS = (
    Setting(5000, 10, 18, 2, 0.4, 0.4, 1.0),
    Setting(5000, 10, 18, 2, 0.6, 0.3, 1.0),
    Setting(5000, 10, 20, 0, 0, 0, 0.5),
    Setting(5000, 10, 20, 0, 0, 0, 0.1),
    Setting(5000, 10, 18, 2, 0.7, 0.3, 0.1),
    Setting(5000, 5, 20, 0, 0, 0, 0.1),
    Setting(1000, 10, 18, 2, 0.6, 0.3, 1.0),
    Setting(1000, 10, 20, 0, 0, 0, 0.3),
    Setting(500, 5, 30, 10, 1.0, 1.0, 1.0),
    Setting(300, 3, 20, 2, 1.0, 1.0, 0.5),
)
SPREADS = (0.0, 0.003, 0.005, 0.01, 0.02, 0.05)


def logistic(x, y, weights):
    """The coefficients (K, D) of K logistic regressions by Newton's method, of which each gives the examples (N, D)
    the weights (K, N); with the ridge penalty ½|w|²."""
    outer = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    w = np.zeros((len(weights), x.shape[1]))
    for _ in range(5):
        p = 1 / (1 + np.exp(-np.clip(w @ x.T, -30, 30)))
        hessian = ((weights * p * (1 - p)) @ outer).reshape(-1, *[x.shape[1]] * 2) + np.eye(x.shape[1])
        w += np.linalg.solve(hessian, ((weights * (y - p)) @ x - w)[..., None])[..., 0]
    return w


def regressions(random, setting):
    """The differences in correctness, an array for each fold, of an experiment with new examples."""
    common, own = setting.common, setting.own
    x = random.normal(size=(setting.examples, common + 2 * own))
    true = np.repeat([1.0, setting.weight, setting.weight_b], [common, own, own])
    y = random.random(setting.examples) < 1 / (1 + np.exp(-2.5 * x @ true / np.linalg.norm(true)))
    fold = random.permutation(setting.examples) % setting.K
    right = []
    for features in (np.r_[: common + own], np.r_[:common, common + own : common + 2 * own]):
        seen = random.random((setting.K, setting.examples)) < setting.part
        w = logistic(x[:, features], y, (fold != np.arange(setting.K)[:, None]) & seen)
        right.append(((w[fold] * x[:, features]).sum(axis=1) > 0) == y)
    difference = right[0].astype(np.int8) - right[1]
    return [difference[fold == k] for k in range(setting.K)]


def drawn(random, examples, K, spread, mean, disagreement):
    """The same without models: they disagree on a share `disagreement` of the examples, and more where the true
    difference of a fold asks for it."""
    differences = []
    for true in random.normal(mean, spread, K):
        both, uniform = max(disagreement, abs(true)), random.random(examples // K)
        differences.append((uniform < (both + true) / 2).astype(np.int8) - (uniform > 1 - (both - true) / 2))
    return differences


def intervals(differences):
    """(low, high) by name: ours; Nadeau & Bengio's; t over the folds; and that of a single test set."""
    K, sizes, means = len(differences), np.array(list(map(len, differences))), np.array([d.mean() for d in differences])
    training, together = sizes.sum() * (K - 1) / K, np.concatenate(differences)
    t = t_quantile(0.975, K - 1) * means.std(ddof=1)
    half = {"Nadeau & Bengio": t * math.sqrt(1 / K + 1 / (K - 1)), "t": t / math.sqrt(K)}
    found = {"ours": fold_interval(differences, training)}
    found |= {name: (means.mean() - width, means.mean() + width) for name, width in half.items()}
    return found | {"one test set": paired_interval((together > 0).sum(), (together < 0).sum(), len(together))}


def coverage(experiments, true):
    """{name of an interval: (share of experiments in which it holds the true difference, mean half-width)}."""
    limits = [intervals(one) for one in experiments]
    return {
        name: (np.mean([low <= true <= high for low, high in of]), np.mean([(high - low) / 2 for low, high in of]))
        for name in limits[0]
        for of in [[one[name] for one in limits]]
    }


def of_regressions(setting, repeats):
    """`coverage` for logistic regressions, the share of examples on which they disagree, and the true difference; the
    same at every call."""
    random = np.random.default_rng(zlib.crc32(repr(setting).encode()))
    experiments = [regressions(random, setting) for _ in range(repeats)]
    together = np.stack([np.concatenate(one) for one in experiments])
    true = 0.0 if setting.weight == setting.weight_b else together.mean()
    return coverage(experiments, true), np.abs(together).mean(), true


def of_draws(examples, K, spread, mean, disagreement, repeats):
    """`coverage` for differences that are drawn; the same at every call."""
    random = np.random.default_rng(zlib.crc32(repr((examples, K, spread, mean, disagreement)).encode()))
    return coverage([drawn(random, examples, K, spread, mean, disagreement) for _ in range(repeats)], mean)


def main():
    names = list(of_draws(100, 5, 0, 0, 0.1, 1))
    print("Coverage in %, and in brackets the mean half-width in points.\n")
    print("| examples | folds | features | part | disagree | true |" + "".join(f" {name} |" for name in names))
    print("| ---: | ---: | :-- | ---: | ---: | ---: |" + " ---: |" * len(names))
    for setting in SETTINGS:
        repeats = 400 if setting.examples > 2000 else 1000
        found, disagreement, true = of_regressions(setting, repeats)
        features = f"{setting.common} + {setting.own}, weights {setting.weight:g} and {setting.weight_b:g}"
        line = f"| {setting.examples:,} | {setting.K} | {features} | {setting.part:g} "
        line += f"| {100 * disagreement:.1f} | {100 * true:.2f} |"
        print(line + "".join(f" {100 * share:.1f} ({100 * half:.2f}) |" for share, half in found.values()), flush=True)
    print("\n| folds of 4,846 | spread |" + "".join(f" {name} |" for name in names))
    print("| ---: | ---: |" + " ---: |" * len(names))
    for K, spread in itertools.product((3, 5, 10), SPREADS):
        kinds = [(mean, disagreement) for mean in (0.0, 0.01) for disagreement in (0.03, 0.1)]
        found = [of_draws(4846, K, spread, *kind, 1000) for kind in kinds]
        cells = ""
        for name in names:
            share, half = np.mean([one[name] for one in found], axis=0)
            cells += f" {100 * share:.1f} ({100 * half:.2f}) |"
        print(f"| {K} | {100 * spread:g} |{cells}", flush=True)


if __name__ == "__main__":
    main()
