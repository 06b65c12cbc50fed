"""The interval against scipy's bootstrap and in simulated experiments; McNemar's p against scipy's binomial test."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from minikd.significance import compare, mcnemar, paired_bootstrap, sentence


def answers(seeds=1, examples=400, only_a=0.1, only_b=0.05, seed=0):
    """Correctness (S, N) of two models; `only_a` and `only_b` are the shares of examples that one alone has right."""
    case = np.random.default_rng(seed).choice(4, p=[only_a, only_b, 0.7, 0.3 - only_a - only_b], size=(seeds, examples))
    return (case == 0) | (case == 2), (case == 1) | (case == 2)


def bootstrap_by_loop(a, b, resamples=4000):
    """Every resample drawn as the definition says: seeds with replacement, examples with replacement."""
    random, (seeds, examples) = np.random.default_rng(1), a.shape
    difference = a.astype(int) - b
    drawn = [
        difference[random.integers(0, seeds, seeds)][:, random.integers(0, examples, examples)].mean()
        for _ in range(resamples)
    ]
    return np.quantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_interval_equals_a_plain_resampling_loop(seeds):
    a, b = answers(seeds)
    a[-1, :60] = True  # the seeds differ, so that drawing them matters
    difference, low, high = paired_bootstrap(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    expected = bootstrap_by_loop(a, b)
    # Both ends are quantiles of thousands of draws: their Monte-Carlo error is some 3 % of the interval's width.
    assert (low, high) == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))


def test_interval_equals_scipys_paired_bootstrap():
    a, b = answers()
    theirs = stats.bootstrap(
        (a[0].astype(float), b[0].astype(float)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=5000,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(2),
    ).confidence_interval
    # A quantile is a multiple of one example in 400, 0.0025: the two may be one such step apart.
    assert paired_bootstrap(a, b, confidence=0.9)[1:] == pytest.approx((theirs.low, theirs.high), abs=0.0026)


@pytest.mark.parametrize("probability", [0.04, 0.0])
def test_interval_covers_the_true_difference_in_95_percent_of_experiments(probability):
    true = probability - 0.04
    intervals = [
        paired_bootstrap(*answers(1, 1000, probability, 0.04, seed), resamples=1000)[1:] for seed in range(400)
    ]
    assert 0.92 <= np.mean([low <= true <= high for low, high in intervals]) <= 0.98


def test_pairing_narrows_the_interval_where_the_models_know_the_same_examples():
    a, b = answers(only_a=0.02, only_b=0.01)
    apart = np.random.default_rng(0).permutation(b, axis=1)  # the same accuracies, the pairs torn apart
    _, low, high = paired_bootstrap(a, b)
    _, low_apart, high_apart = paired_bootstrap(a, apart)
    assert high - low < 0.5 * (high_apart - low_apart)


def test_seeds_that_differ_widen_the_interval_and_seeds_that_agree_do_not():
    a, b = answers(1, 2000)
    agreeing = paired_bootstrap(a.repeat(4, axis=0), b.repeat(4, axis=0))
    assert agreeing == pytest.approx(paired_bootstrap(a, b), abs=0.002)
    better, worse = np.concatenate([a, b, a, b]), np.concatenate([b, a, b, a])  # + for two seeds, − for two
    difference, low, high = paired_bootstrap(better, worse)
    assert difference == 0 and low < agreeing[1] - agreeing[2] and high > agreeing[2] - agreeing[1]


def test_interval_is_the_same_for_the_same_seed_and_takes_the_opposite_sign_when_models_swap():
    a, b = answers(3)
    assert paired_bootstrap(a, b) == paired_bootstrap(torch.from_numpy(a), torch.from_numpy(b))
    assert paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)
    difference, low, high = paired_bootstrap(b, a)
    assert (-difference, -high, -low) == pytest.approx(paired_bootstrap(a, b), abs=0.002)


def test_ten_seeds_of_25_000_examples_without_a_common_pattern_are_affordable():
    random = np.random.default_rng(0)
    a, b = random.random((10, 25_000)) < 0.6, random.random((10, 25_000)) < 0.5
    difference, low, high = paired_bootstrap(a, b, resamples=500)
    assert 0.09 < low < difference < high < 0.11


@pytest.mark.parametrize(
    "only_a, only_b",
    [(0, 0), (0, 1), (1, 1), (3, 2), (0, 20), (12, 30), (100, 100), (600, 500), (4000, 4200), (0, 5000), (9000, 3000)],
)
def test_mcnemar_equals_the_exact_binomial_test(only_a, only_b):
    case = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [only_a, only_b, 40, 9]))
    a, b = (case == 0) | (case == 2), (case == 1) | (case == 2)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == (only_a, only_b, pytest.approx(expected, rel=1e-9, abs=1e-300))
    assert mcnemar(b, a) == (only_b, only_a, mcnemar(a, b)[2])


def test_mcnemar_by_hand():
    a, b = np.array([True, True, True, True, False, True]), np.array([False, False, False, False, True, True])
    assert mcnemar(a, b) == (4, 1, 2 * (1 + 5) / 2**5)


def test_identical_models_differ_by_nothing():
    a, _ = answers(3)
    assert paired_bootstrap(a, a) == (0, 0, 0)
    assert compare(a, a)["seeds"] == [{"only_a": 0, "only_b": 0, "p": 1.0}] * 3
    assert "+0.00 points" in sentence(compare(a, a)) and "includes 0" in sentence(compare(a, a))


def test_comparison_holds_both_answers_and_survives_json():
    a, b = answers(2)
    found = compare(torch.from_numpy(a), torch.from_numpy(b))
    difference, low, high = paired_bootstrap(a, b)
    assert found == {
        "difference": difference,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "seeds": [dict(zip(("only_a", "only_b", "p"), mcnemar(a[s], b[s]))) for s in range(2)],
        "examples": 400,
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_sentence_says_whether_the_interval_includes_zero():
    tests = [{"only_a": 9, "only_b": 1, "p": 0.0216}, {"only_a": 40, "only_b": 1, "p": 3e-11}]
    found = {"difference": 0.0138, "low": 0.0031, "high": 0.025, "confidence": 0.95, "seeds": tests, "examples": 25000}
    assert sentence(found) == (
        "distilled − baseline: +1.38 points of accuracy (95% interval +0.31 to +2.50, paired bootstrap over "
        "25,000 examples and 2 seeds). The interval excludes 0: distilled is the better one; "
        "McNemar's p per seed: 0.022, <0.001."
    )
    assert "−0.20 to +2.50" in sentence(found | {"low": -0.002}) and "+0.00 to" in sentence(found | {"low": -1e-9})
    assert "includes 0: this test does not show that either is better" in sentence(found | {"low": -0.002})
    worse = sentence(found | {"difference": -0.02, "low": -0.03, "high": -0.01, "seeds": tests[:1]}, "A", "B")
    assert worse.startswith("A − B: −2.00 points") and "1 seed)" in worse
    assert "excludes 0: B is the better one, as far as one seed can tell; McNemar's p: 0.022." in worse


def test_anything_but_paired_booleans_is_refused():
    a, b = answers(2)
    with pytest.raises(ValueError, match="boolean"):
        paired_bootstrap(a.astype(int), b)  # predictions, say, instead of predicted == labels
    for wrong in (b[:1], b[:, :-1]):
        with pytest.raises(ValueError, match="one shape"):
            compare(a, wrong)
    with pytest.raises(ValueError, match="with examples in it"):
        mcnemar(a[0, :0], b[0, :0])
