"""Calibration by hand, against a plain loop over examples, against scikit-learn, and by its properties."""

import json
import math

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from minikd.evaluation.calibration import (
    brier_score,
    calibration_metrics,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)


def experiment(examples=500, classes=3, scale=2.0, seed=0):
    """Logits (N, C) in fp64, and labels drawn from their softmax: a calibrated model, up to the luck of the draw."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(examples, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def ece_by_loop(probs, labels, bins):
    """Each example is put into the bin (lo, hi] that holds it, one at a time."""
    members = [[] for _ in range(bins)]
    for row, label in zip(probs.tolist(), labels.tolist()):
        confidence = max(row)
        for i in range(bins):
            if i / bins < confidence <= (i + 1) / bins:
                members[i].append((confidence, row.index(confidence) == label))
    assert sum(map(len, members)) == len(labels)
    gaps = [abs(sum(c for c, _ in one) - sum(right for _, right in one)) for one in members]
    return sum(gaps) / len(labels)


def test_curve_and_ece_by_hand():
    probs = torch.tensor([[0.75, 0.25], [0.125, 0.875], [0.625, 0.375], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1])  # right, wrong, right, right, wrong (a tie goes to the first label)
    curve = reliability_curve(probs, labels, bins=4)
    assert curve == [[0, None, None], [1, 0.5, 0.0], [2, 0.6875, 1.0], [2, 0.9375, 0.5]]
    assert expected_calibration_error(probs, labels, bins=4) == (0.5 + 2 * 0.3125 + 2 * 0.4375) / 5


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_ece_equals_a_plain_loop_over_examples(classes, bins):
    for seed in range(5):
        for dtype in (torch.float32, torch.float64):
            logits, _ = experiment(120, classes, scale=3, seed=seed)
            labels = experiment(120, classes, scale=0, seed=seed)[1]  # unrelated to the logits: badly calibrated
            probs = logits.to(dtype).softmax(-1)
            probs[0], probs[1] = 1 / classes, torch.eye(classes)[seed % classes]  # no idea, and certainty
            ece = expected_calibration_error(probs, labels, bins)
            assert ece == pytest.approx(ece_by_loop(probs, labels, bins), abs=1e-12)


@pytest.mark.parametrize("bins", [10, 15])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(bins):
    for i in range(1, bins + 1):
        edge = torch.tensor([[i / bins]], dtype=torch.float64)
        just_above = torch.nextafter(edge, torch.full_like(edge, 2))
        for confidence, index in ((edge, i - 1), (just_above, min(i, bins - 1))):  # 1 and a rounding error is still 1
            counts = [row[0] for row in reliability_curve(confidence, torch.tensor([0]), bins)]
            assert counts == [int(j == index) for j in range(bins)]
    assert reliability_curve(torch.tensor([[0.0]]), torch.tensor([0]), bins)[0] == [1, 0.0, 1.0]


def test_ece_is_zero_for_a_calibrated_model_and_the_gap_for_a_boaster():
    always_first, labels = torch.tensor([[0.75, 0.25]]).expand(8, 2), torch.tensor([0, 0, 0, 1, 0, 0, 0, 1])
    assert expected_calibration_error(always_first, labels) == 0
    certain = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    assert expected_calibration_error(certain, labels) == 0.25


def test_brier_score_of_two_classes_is_twice_scikit_learns():
    for seed in range(10):
        logits, labels = experiment(50, 2, seed=seed)
        probs = logits.softmax(-1)
        theirs = brier_score_loss(labels.numpy(), probs[:, 1].numpy(), pos_label=1)
        assert brier_score(probs, labels) == pytest.approx(2 * theirs, abs=1e-12)


def test_brier_score_of_many_classes_by_its_formula():
    probs, labels = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2, 0])
    assert brier_score(probs, labels) == (0.5**2 + 2 * 0.25**2 + 0 + 2) / 3  # a little unsure, perfect, all wrong


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_nll_equals_scikit_learn(classes):
    for seed in range(5):
        logits, labels = experiment(80, classes, seed=seed)
        theirs = log_loss(labels.numpy(), logits.softmax(-1).numpy(), labels=range(classes))
        assert negative_log_likelihood(logits, labels) == pytest.approx(theirs, rel=1e-12)


def test_metrics_are_those_of_the_softmax_in_fp64_and_fit_for_json():
    logits, labels = experiment()
    metrics = calibration_metrics(logits.float(), labels)
    probs = logits.float().double().softmax(-1)
    assert metrics == {
        "ece": expected_calibration_error(probs, labels),
        "brier": brier_score(probs, labels),
        "nll": negative_log_likelihood(logits.float().double(), labels),
        "reliability": reliability_curve(probs, labels),
    }
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_certainty_that_is_wrong_costs_its_logits_and_not_infinity():
    metrics = calibration_metrics(torch.tensor([[2000.0, 0.0], [2000.0, 0.0]]), torch.tensor([0, 1]))
    assert (metrics["nll"], metrics["brier"], metrics["ece"]) == (1000, 1, 0.5)
    assert metrics["reliability"][-1] == [2, 1.0, 0.5]


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_temperature_has_the_lowest_nll_of_a_fine_grid(classes, scale):
    logits, labels = experiment(200, classes, seed=classes)
    T = fit_temperature(scale * logits, labels)
    grid = torch.logspace(math.log10(0.05), math.log10(20), 1000, dtype=torch.float64)
    nll = [negative_log_likelihood(scale * logits / t, labels) for t in grid]
    best = min(range(len(grid)), key=nll.__getitem__)
    assert grid[best - 1] < T < grid[best + 1]
    assert negative_log_likelihood(scale * logits / T, labels) <= nll[best]


@pytest.mark.parametrize("k", [0.1, 0.5, 1.0, 3.0, 15.0])
def test_temperature_recovers_the_factor_by_which_a_calibrated_model_was_sharpened(k):
    logits, labels = experiment(20_000)
    single = (k * logits).float()
    assert fit_temperature(single, labels) == fit_temperature(single.double(), labels)  # computed in fp64
    assert fit_temperature(k * logits, labels) == pytest.approx(k, rel=0.02)
    assert fit_temperature(k * logits, labels) == pytest.approx(k * fit_temperature(logits, labels), rel=1e-9)


def test_temperature_mends_an_overconfident_model_on_other_data_and_changes_no_prediction():
    logits, labels = experiment(4000, scale=1)
    overconfident = 4 * logits
    T = fit_temperature(overconfident[:2000], labels[:2000])
    held_out, truth = overconfident[2000:], labels[2000:]
    before, after = calibration_metrics(held_out, truth), calibration_metrics(held_out / T, truth)
    assert before["ece"] > 0.2 and after["ece"] < 0.05
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
    assert torch.equal((held_out / T).argmax(-1), held_out.argmax(-1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_temperature_is_a_bound_where_the_nll_has_no_minimum(size):
    logits = size * torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == 0.05  # every prediction right
    assert fit_temperature(logits, torch.tensor([2, 0])) == 20.0  # every prediction as wrong as can be


def test_scores_that_cannot_be_calibrated_are_refused():
    good, labels = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    for function in (calibration_metrics, fit_temperature, brier_score, reliability_curve):
        with pytest.raises(ValueError, match=r"\(0, 2\) and \(0,\)"):
            function(good[:0], labels[:0])
        with pytest.raises(ValueError, match=r"\(3, 2\) and \(2,\)"):
            function(good, labels[:2])
        with pytest.raises(ValueError, match="not finite"):
            function(good * float("nan"), labels)


def test_brier_score_counts_every_class_also_where_no_example_has_the_last_one():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    by_hand = (0.5**2 + 0.3**2 + 0.2**2 + 0.1**2 + 0.4**2 + 0.3**2) / 2
    assert brier_score(probs, torch.tensor([0, 1])) == pytest.approx(by_hand, abs=1e-7)
