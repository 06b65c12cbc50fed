"""The interval over folds: by hand, by its properties, and in simulated experiments with overlapping training sets."""

import json
import math

import numpy as np
import pytest
from coverage_of_folds import Setting, of_draws, of_regressions
from scipy import stats

from minikd.evaluation.folds import compare_folds, fold_interval
from minikd.evaluation.significance import paired_interval


def folds(*counts):
    """Differences in correctness: for each fold the numbers of 1, −1 and 0."""
    return [np.repeat([1, -1, 0], one) for one in counts]


def half_width(limits):
    return (limits[1] - limits[0]) / 2


# 200 experiments each: a share of 95 % has a standard error of 1.5 points.
@pytest.mark.parametrize("spread", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("mean", [0.0, 0.01])
def test_it_holds_the_true_difference_of_folds_that_are_drawn(spread, mean):
    share, half = of_draws(4846, 10, spread, mean, 0.05, 200)["ours"]
    assert 0.95 - 3 * 0.0154 <= share
    if not spread:  # at most a fifth wider than that of a test set of as many examples, and so not too cautious
        assert half < 1.25 * 1.96 * math.sqrt(0.05 / 4846)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(1000, 10, 4, 2, 0.6, 0.6, 1.0),  # all of the training set: its overlap is all that links the folds
        Setting(1000, 10, 6, 0, 0, 0, 0.1),  # a random tenth of it: training runs that differ much
        Setting(1000, 10, 4, 2, 0.8, 0.4, 0.5),  # model a is better
    ],
    ids=str,
)
def test_it_holds_the_true_difference_of_regressions_on_overlapping_training_sets(setting):
    found, _, _ = of_regressions(setting, 200)
    assert 0.95 - 3 * 0.0154 <= found["ours"][0]
    assert found["ours"][1] < 0.9 * found["Nadeau & Bengio"][1]


def test_the_two_parts_by_hand():
    differences = folds((3, 1, 6), (1, 1, 8), (6, 0, 4), (0, 2, 8))  # means 0.2, 0, 0.6, −0.2; grand mean 0.15
    between = 10 * (0.05**2 + 0.15**2 + 0.45**2 + 0.35**2) / 3
    within = ((4 - 10 * 0.2**2) + 2 + (6 - 10 * 0.6**2) + (2 - 10 * 0.2**2) + 2) / (42 - 4)
    z, t = stats.norm.ppf(0.95), stats.t.ppf(0.95, 3)
    assert between > within
    half = math.sqrt((z**2 * within + t**2 * (1 + 40 / 25) * (between - within)) / 42)
    assert fold_interval(differences, 25, confidence=0.9) == pytest.approx((6 / 42 - half, 6 / 42 + half), rel=1e-5)


def test_folds_that_agree_leave_the_interval_of_one_test_set():
    same = fold_interval(folds(*[(20, 10, 470)] * 10), 4000)
    assert same == pytest.approx(paired_interval(200, 100, 5000), rel=0.01)
    assert half_width(fold_interval(folds(*[(0, 0, 500)] * 10), 4000)) > 0.0003  # nor are equal answers equal models


def test_folds_that_differ_more_than_examples_explain_widen_it_by_students_t_and_the_overlap():
    means = np.array([0.02, 0.04, -0.06, 0.1, 0.0])
    differences = folds(*[(round(10_000 * (0.2 + m)), 2_000, 6_000 - round(10_000 * m)) for m in means])
    variance = means.var(ddof=1) * (1 / 5 + 0.2 / 0.7)  # Nadeau & Bengio
    half = half_width(fold_interval(differences, 35_000))
    assert half == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(variance), rel=0.02)
    assert half_width(fold_interval(differences, 20_000)) > 1.1 * half  # smaller training sets: more of the overlap


def test_several_seeds_of_a_fold_count_by_their_mean():
    random = np.random.default_rng(0)
    seeds = [random.integers(-1, 2, size=(3, size)) for size in (50, 60, 40)]
    assert fold_interval(seeds, 100) == fold_interval([one.mean(axis=0) for one in seeds], 100)
    assert fold_interval([one[:1] for one in seeds], 100) == fold_interval([one[0] for one in seeds], 100)


def test_the_record_holds_what_the_report_says_and_survives_json():
    counts = [(30, 20, 480), (25, 25, 490), (40, 10, 485)]
    found = compare_folds(counts, 900)
    differences = folds(*[(a, b, n - a - b) for a, b, n in counts])
    low, high = fold_interval(differences, 900)
    assert found == {
        "difference": pytest.approx(40 / 1455), "low": low, "high": high, "confidence": 0.95,
        "method": "one-way analysis of variance", "detectable": found["detectable"], "folds": 3, "examples": 1455,
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    swapped = compare_folds([(b, a, n) for a, b, n in counts], 900)
    assert (swapped["low"], swapped["high"]) == pytest.approx((-high, -low))
    assert swapped["detectable"] == found["detectable"]


def test_the_detectable_difference_by_hand():
    counts = [(600, 200, 1000), (300, 300, 1000), (500, 100, 1000)]  # means 0.4, 0, 0.4; grand mean 4 / 15
    between = 1000 * (2 * (2 / 15) ** 2 + (4 / 15) ** 2) / 2
    within = ((800 - 160) + 600 + (600 - 160) + 2) / (3002 - 3)
    z, t = (law.ppf(0.975) + law.ppf(0.8) for law in (stats.norm, stats.t(2)))
    half = math.sqrt((z**2 * within + t**2 * (1 + 3000 / 9e5) * (between - within)) / 3002)
    assert half < 1
    assert compare_folds(counts, 9e5)["detectable"] == pytest.approx(half, rel=1e-5)


def test_four_of_five_experiments_find_the_detectable_difference():
    random = np.random.default_rng(0)

    def experiment(true):
        a = random.binomial(485, 0.025 + true / 2, 10)
        return compare_folds([(int(one), int(random.binomial(485, 0.025 - true / 2)), 485) for one in a], 3927)

    detectable = np.mean([experiment(0)["detectable"] for _ in range(300)])
    assert 0.009 < detectable < 0.013  # about 1.1 points for models that disagree on 5 % of 4,850 examples
    assert np.mean([experiment(detectable)["low"] > 0 for _ in range(600)]) == pytest.approx(0.8, abs=0.06)
