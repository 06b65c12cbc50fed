"""The interval by hand, against other formulas, and in simulated experiments; McNemar's p against scipy's binomial."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from coverage_of_intervals import coverage, detections
from scipy import stats

from minikd.evaluation.significance import (
    TOO_FEW,
    chance_margin,
    compare,
    compare_counts,
    detectable_difference,
    interval,
    mcnemar,
    paired_detectable,
    paired_interval,
    t_quantile,
    two_way_interval,
)
from minikd.experiment.results import complete
from minikd.report.sentences import sentence
from minikd.report.tables import notes


def answers(seeds=1, examples=400, only_a=0.1, only_b=0.05, seed=0):
    """Correctness (S, N) of two models; `only_a` and `only_b` are the shares of examples that one alone has right."""
    case = np.random.default_rng(seed).choice(4, p=[only_a, only_b, 0.7, 0.3 - only_a - only_b], size=(seeds, examples))
    return (case == 0) | (case == 2), (case == 1) | (case == 2)


def difference_of(a, b):
    return a.astype(np.int8) - b


def half_width(limits):
    return (limits[1] - limits[0]) / 2


SETTINGS = [*itertools.product((1, 2, 3, 5, 10), (484, 2000), (0.0, 0.01, 0.03)), (10, 25_000, 0.01)]


@pytest.mark.parametrize(("seeds", "examples", "spread"), SETTINGS)
def test_the_interval_holds_the_true_difference_in_95_percent_of_simulated_experiments(seeds, examples, spread):
    repeats = 60 if examples < 10_000 else 10  # of each of 8 kinds of experiment
    found = np.mean(coverage(seeds, examples, spread, repeats))
    error = math.sqrt(0.95 * 0.05 / (8 * repeats))  # standard error of a share of 95 %: one point, or 2.4
    assert found >= 0.95 - 3 * error
    if seeds >= 5:  # nor does it buy this by being too wide, beyond what t costs with so few seeds
        assert found <= 0.975 + 3 * error


@pytest.mark.parametrize("examples", [3, 10, 30, 100])
def test_one_pairs_interval_keeps_its_promise_on_few_examples(examples):
    """Not simulated: the coverage is the sum of the probabilities of all counts whose interval holds the truth."""
    total = examples + 1
    counts = np.array([(a, b, examples - a - b) for a in range(total) for b in range(total - a)])
    low, high = np.array([paired_interval(int(a), int(b), examples) for a, b, _ in counts]).T
    for disagreement, share in itertools.product((0.01, 0.05, 0.2, 0.5), (0.5, 0.65, 0.95)):
        a, b = disagreement * share, disagreement * (1 - share)
        probability = stats.multinomial.pmf(counts, examples, [a, b, 1 - a - b])
        assert probability[(low <= a - b) & (a - b <= high)].sum() > 0.94


def test_one_pairs_interval_is_walds_after_adding_an_example_for_each_model():
    a, b = answers()
    values = np.concatenate([difference_of(a, b)[0], [1, -1]])
    half = stats.norm.ppf(0.95) * values.std() / math.sqrt(402)
    expected = values.mean() - half, values.mean() + half
    assert interval(difference_of(a, b), confidence=0.9) == pytest.approx(expected)


def test_one_pairs_interval_by_hand():
    # (312 + 1) / 25002 − (252 + 1) / 25002 = 0.0023998; its variance is (566 / 25002 − 0.0023998²) / 25002.
    assert paired_interval(312, 252, 25_000) == pytest.approx((0.0023998 - 0.0018647, 0.0023998 + 0.0018647), abs=2e-7)
    assert paired_interval(252, 312, 25_000) == pytest.approx((-0.0042645, -0.0005351), abs=2e-7)  # models swapped


def test_an_earlier_record_is_renewed_from_its_counts_alone():
    a, b = answers()
    (test,) = compare(a, b)["seeds"]
    assert compare_counts(test["only_a"], test["only_b"], 400) == compare(a, b)
    for wrong in ((-1, 0, 10), (6, 5, 10), (0, 0, 0)):
        with pytest.raises(ValueError, match="counts must fit"):
            compare_counts(*wrong)


def test_mean_squares_are_those_of_a_two_way_table_by_hand():
    difference = np.array([[1, 1], [1, -1]])
    table = np.array([[1, 1, 1, -1], [1, -1, 1, -1]])  # with the two added examples; its mean is 0.25
    ms_seeds = 4 * ((0.5 - 0.25) ** 2 + (0 - 0.25) ** 2)  # 0.5
    ms_examples = 2 * ((1 - 0.25) ** 2 * 2 + (0 - 0.25) ** 2 + (-1 - 0.25) ** 2) / 3  # 5.5 / 3
    ms_residual = (((table - 0.25) ** 2).sum() - ms_seeds - 3 * ms_examples) / 3  # 1.5 / 3
    assert (ms_seeds, ms_examples, ms_residual) == pytest.approx((0.5, 5.5 / 3, 0.5))
    half = math.sqrt(((stats.t.ppf(0.7, 1) ** 2) * 0.5 + stats.norm.ppf(0.7) ** 2 * (5.5 / 3 - 0.5)) / 8)
    low, high = two_way_interval(difference, confidence=0.4)
    floor = math.sqrt(stats.norm.ppf(0.7) ** 2 * 5.5 / 3 / 8)
    assert half > floor and (low, high) == pytest.approx((0.25 - half, 0.25 + half))


def test_seeds_that_differ_get_students_t():
    random = np.random.default_rng(0)
    true = np.array([-0.1, 0.0, 0.02, 0.1, 0.13])  # far more than what 20,000 examples blur
    difference = (random.random((5, 20_000)) < 0.2 + true[:, None]).astype(np.int8)
    difference -= random.random((5, 20_000)) < 0.2
    means = difference.mean(axis=1)
    expected = stats.t.interval(0.95, 4, means.mean(), means.std(ddof=1) / math.sqrt(5))
    assert two_way_interval(difference) == pytest.approx(expected, abs=0.001)


def test_seeds_that_agree_leave_the_interval_of_the_examples():
    a, b = answers()
    same = difference_of(a, b).repeat(4, axis=0)  # four pairs with the same answers: no evidence beyond that of one
    assert two_way_interval(same) == pytest.approx(interval(same[:1]), abs=1e-4)


def test_the_interval_is_never_narrower_than_that_of_the_examples():
    one = difference_of(*answers(1))
    shifted = np.concatenate([one, np.roll(one, 200, axis=1)])
    assert shifted.mean(axis=1).std() == 0  # the two pairs have the same accuracies, but on different examples
    assert half_width(two_way_interval(shifted)) >= 1.96 * shifted.mean(axis=0).std() / math.sqrt(402)


def test_a_negative_component_counts_as_none():
    one = np.repeat([1, -1, 0], [20, 20, 360])
    opposite = np.stack([one, -one])  # examples whose means differ less than chance explains; seeds with equal means
    ms_residual = 2 * 40 / 401
    assert half_width(two_way_interval(opposite)) == pytest.approx(1.96 * math.sqrt(ms_residual / (2 * 402)), rel=1e-3)


def test_two_seeds_give_a_wide_interval_and_more_a_narrower_one():
    random = np.random.default_rng(1)
    difference = np.sign(random.normal(size=(2, 2000)) + [[-0.05], [0.05]]).astype(np.int8)
    difference[:, 600:] = 0
    two, six = two_way_interval(difference), two_way_interval(np.tile(difference, (3, 1)))
    assert half_width(two) > 2.5 * half_width(six) and two[0] < 0 < two[1]


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_models_that_agree_on_every_example_are_not_known_to_be_equal(seeds):
    same = np.zeros((seeds, 484), dtype=np.int8)
    low, high = interval(same)
    assert low == -high and 0.004 < high < 0.007  # some three examples of 484, the "rule of three"
    assert interval(same[:, :1])[1] > 0.7


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_one_example_decides_nothing_and_limits_are_possible_differences(seeds):
    low, high = interval(np.ones((seeds, 1), dtype=np.int8))
    assert -1 <= low < 0 < high <= 1
    assert interval(-np.ones((seeds, 3000), dtype=np.int8))[0] == -1.0


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_deterministic_and_takes_the_opposite_sign_when_models_swap(seeds):
    a, b = answers(seeds)
    found, again = compare(a, b), compare(torch.from_numpy(a), torch.from_numpy(b))
    assert found == again
    swapped = compare(b, a)
    assert (swapped["difference"], swapped["low"], swapped["high"]) == pytest.approx(
        (-found["difference"], -found["high"], -found["low"])
    )


def test_pairing_narrows_the_interval_where_the_models_know_the_same_examples():
    a, b = answers(3, only_a=0.02, only_b=0.01)
    apart = np.random.default_rng(0).permutation(b, axis=1)  # the same accuracies, the pairs torn apart
    assert half_width(interval(difference_of(a, b))) < 0.5 * half_width(interval(difference_of(a, apart)))


POWER = [*itertools.product((3, 5), (484, 2000), (0.0, 0.02)), (1, 484, 0.0), (1, 2000, 0.0)]


@pytest.mark.parametrize(("seeds", "examples", "spread"), POWER)
def test_the_detectable_difference_is_found_in_4_of_5_simulated_experiments(seeds, examples, spread):
    found = np.mean(detections(seeds, examples, spread, repeats=400))  # 1,600 experiments: chance moves it by ±0.02
    assert 0.75 <= found <= 0.85


def test_one_pairs_detectable_difference_by_hand():
    # z = 1.95996 + 0.84162 = 2.80158, z² = 7.84888; with 98 + 2 of 998 + 2 examples p is 0.1: √(0.1 / 1007.84888)
    assert paired_detectable(60, 38, 998) == pytest.approx(2.80158 * math.sqrt(0.1 / 1007.84888), rel=1e-5)
    found = paired_detectable(60, 38, 998)
    assert found == pytest.approx(2.80158 * math.sqrt((0.1 - found**2) / 1000), rel=1e-5)  # so many standard errors
    assert paired_detectable(38, 60, 998) == found == detectable_difference(np.repeat([[1, -1, 0]], (60, 38, 900), 1))
    assert paired_detectable(0, 0, 998) == pytest.approx(7.84888 / 1007.84888, rel=1e-5)  # eight examples, on one side
    assert paired_detectable(60, 38, 998, confidence=0.9) < found < paired_detectable(60, 38, 998, power=0.9)


def test_the_detectable_difference_of_several_seeds_has_the_quantiles_of_the_interval():
    random = np.random.default_rng(0)
    true = np.array([-0.1, 0.0, 0.02, 0.1, 0.13])  # far more than what 20,000 examples blur: seeds alone count
    difference = (random.random((5, 20_000)) < 0.2 + true[:, None]).astype(np.int8)
    difference -= random.random((5, 20_000)) < 0.2
    error = difference.mean(axis=1).std(ddof=1) / math.sqrt(5)
    expected = (stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)) * error
    assert detectable_difference(difference) == pytest.approx(expected, abs=0.001)
    same = difference_of(*answers()).repeat(4, axis=0)  # the same answers with every seed: examples alone count
    assert detectable_difference(same) == pytest.approx(detectable_difference(same[:1]), rel=0.02)
    ten = difference_of(*answers(10))
    assert detectable_difference(ten) > half_width(two_way_interval(ten))
    assert detectable_difference(np.array([[1, 1], [-1, 1]], dtype=np.int8)) == 1.0


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 200])
@pytest.mark.parametrize("probability", [0.025, 0.5, 0.8, 0.975, 0.995])
def test_quantiles_of_students_t_are_scipys(degrees, probability):
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "only_a, only_b",
    [(0, 0), (0, 1), (1, 1), (3, 2), (0, 20), (12, 30), (100, 100), (600, 500), (4000, 4200), (0, 5000), (9000, 3000)],
)
def test_mcnemar_equals_the_exact_binomial_test(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_mcnemar_by_hand():
    a, b = np.array([True, True, True, True, False, True]), np.array([False, False, False, False, True, True])
    assert compare(a, b)["seeds"] == [{"only_a": 4, "only_b": 1, "p": 2 * (1 + 5) / 2**5}]


def test_identical_models_differ_by_nothing():
    a, _ = answers(3)
    assert compare(a, a)["difference"] == 0
    assert compare(a, a)["seeds"] == [{"only_a": 0, "only_b": 0, "p": 1.0}] * 3
    assert "+0.00 points" in sentence(compare(a, a)) and "includes 0" in sentence(compare(a, a))


@pytest.mark.parametrize(("seeds", "method"), [(1, "Bonett-Price"), (2, "two-way analysis of variance")])
def test_comparison_holds_both_answers_and_survives_json(seeds, method):
    a, b = answers(seeds)
    a[0, :100] = True  # the seeds differ
    found = compare(torch.from_numpy(a), torch.from_numpy(b))
    low, high = interval(difference_of(a, b))
    counts = [((a[s] & ~b[s]).sum(), (b[s] & ~a[s]).sum()) for s in range(seeds)]
    assert found == {
        "difference": pytest.approx(a.mean() - b.mean()),
        "low": low,
        "high": high,
        "confidence": 0.95,
        "method": method,
        "detectable": detectable_difference(difference_of(a, b)),
        "seeds": [{"only_a": one, "only_b": two, "p": mcnemar(int(one), int(two))} for one, two in counts],
        "examples": 400,
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


TESTS = [{"only_a": 9, "only_b": 1, "p": 0.0216}, {"only_a": 40, "only_b": 1, "p": 3e-11}]
FOUND = {"difference": 0.0138, "low": 0.0031, "high": 0.025, "confidence": 0.95,
         "method": "two-way analysis of variance", "seeds": TESTS, "examples": 25000}  # fmt: skip


def test_sentence_speaks_of_training_runs_like_these_where_there_are_several():
    assert sentence(FOUND) == (
        "distilled − baseline: +1.38 points of accuracy (95% interval +0.31 to +2.50, two-way analysis of variance "
        "over 25,000 examples and 2 seeds). The interval excludes 0: in training runs like these, distilled is better "
        "on average; McNemar's p per seed: 0.022, <0.001."
    )
    includes = sentence(FOUND | {"low": -0.002})
    assert "includes 0: this test does not show that training runs like these make either better; McNemar" in includes
    assert "−0.20 to +2.50" in includes and "+0.00 to" in sentence(FOUND | {"low": -1e-9})
    worse = sentence(FOUND | {"difference": -0.02, "low": -0.03, "high": -0.01}, "A", "B")
    assert worse.startswith("A − B: −2.00 points") and "in training runs like these, B is better on average" in worse


def test_sentence_speaks_of_this_pair_of_models_where_there_is_one():
    one = FOUND | {"seeds": TESTS[:1], "method": "Bonett-Price"}
    assert sentence(one) == (
        "distilled − baseline: +1.38 points of accuracy (95% interval +0.31 to +2.50, Bonett-Price over "
        "25,000 examples and 1 seed). The interval excludes 0: of this pair of models, distilled is the better one "
        "(other training runs may differ); McNemar's p: 0.022."
    )
    worse = sentence(one | {"difference": -0.02, "low": -0.03, "high": -0.01})
    assert "of this pair of models, baseline is the better one (other training runs" in worse
    assert "includes 0: this test does not show which of this pair of models is better;" in sentence(one | {"low": -1})


def test_sentence_says_how_small_a_difference_such_experiments_find():
    found = sentence(FOUND | {"detectable": 0.01862})
    assert found == sentence(FOUND) + " A true difference of 1.86 points would be found in 4 of 5 such experiments."
    assert "4 of 5" in sentence(compare(*answers())) and "4 of 5" not in sentence(compare(*answers()), too_few=True)


def test_an_earlier_records_sentence_names_the_method_that_made_it():
    old = {key: value for key, value in FOUND.items() if key != "method"}
    text = sentence(old)
    assert "(95% interval +0.31 to +2.50, paired bootstrap over 25,000 examples and 2 seeds)" in text
    assert "excludes 0, but a bootstrap of so few seeds is too narrow for a verdict; McNemar" in text
    assert "of this pair of models, distilled is the better one" in sentence(old | {"seeds": TESTS[:1]})


def shown(comparison):
    """The sentence on a comparison in a report, to which `complete` adds what the record lacks."""
    results = {"dataset": "films", "split": "test", "examples": comparison["examples"], "precision": "fp32",
               "device": "cpu", "threads": 1, "models": [{"name": "distilled"}], "arguments": {}}  # fmt: skip
    lines = notes(complete(results | {"significance": comparison})).splitlines()
    return next(line for line in lines if line.startswith("distilled − baseline"))


def test_too_few_examples_get_no_verdict():
    all_right, all_wrong = np.ones((1, 96), dtype=bool), np.zeros((1, 96), dtype=bool)
    text = shown(compare(all_right, all_wrong))
    assert "So few examples allow no verdict; McNemar's p: <0.001." in text and "better" not in text
    enough = np.ones((1, 97), dtype=bool)
    assert "distilled is the better one" in shown(compare(enough, ~enough))


def test_too_few_is_where_chance_moves_an_accuracy_by_more_than_ten_points():
    assert chance_margin(TOO_FEW) <= 0.10 < chance_margin(TOO_FEW - 1)
    assert chance_margin(3) == pytest.approx(0.5658, abs=1e-4)


def test_anything_but_paired_booleans_is_refused():
    a, b = answers(2)
    with pytest.raises(ValueError, match="boolean"):
        compare(a.astype(int), b)  # predictions, say, instead of predicted == labels
    with pytest.raises(ValueError, match="boolean"):
        compare(a, b.astype(int))
    for wrong in (b[:1], b[:, :-1]):
        with pytest.raises(ValueError, match="one shape"):
            compare(a, wrong)
    with pytest.raises(ValueError, match="with examples in it"):
        compare(a[:, :0], b[:, :0])


def test_a_record_of_one_seed_from_an_earlier_version_gets_the_present_interval():
    present = compare_counts(40, 20, 500)
    new = ("method", "detectable")
    old = {key: value for key, value in present.items() if key not in new} | {"low": -0.5, "high": 0.5}
    assert shown(old) == shown(present) and "Bonett-Price" in shown(old)
