"""What the table's notes and the dashboard say of folds."""

import json

import pytest
from test_report import results

from minikd.errors import MinikdError
from minikd.evaluation.folds import compare_folds
from minikd.experiment.folds import finished_fold, fold_folders, pool_folds
from minikd.experiment.results import complete
from minikd.report import plots
from minikd.report.folds import choices, fold_sentence
from minikd.report.tables import notes, report

FOUND = {"difference": 0.0138, "low": 0.0031, "high": 0.0246, "confidence": 0.95, "detectable": 0.01234,
         "method": "one-way analysis of variance", "folds": 10, "examples": 4846}  # fmt: skip


def test_the_sentence_speaks_of_training_runs_like_these_and_of_what_the_folds_can_find():
    assert fold_sentence(FOUND) == (
        "distilled − baseline: +1.38 points of accuracy (95% interval +0.31 to +2.46, one-way analysis of variance "
        "over 4,846 examples in 10 folds). The interval excludes 0: in training runs like these, distilled is better "
        "on average. A true difference of 1.23 points would be found in 4 of 5 such experiments."
    )
    worse = fold_sentence(FOUND | {"difference": -0.02, "low": -0.03, "high": -0.01}, "A", "B")
    assert worse.startswith("A − B: −2.00 points") and "in training runs like these, B is better on average." in worse
    includes = fold_sentence(FOUND | {"low": -0.002})
    assert "includes 0: these folds do not show that training runs like these make either better. A true" in includes
    assert fold_sentence(FOUND, too_few=True).endswith("10 folds). So few examples allow no verdict.")


def test_the_pairs_that_the_folds_chose_are_counted():
    pairs = [{"alpha": 0.5, "T": 2.0}, {"alpha": 0.0, "T": 4.0}, {"alpha": 0.5, "T": 2.0}]
    text = "chosen in each fold on its own validation split: alpha 0.5 and T 2 in 2 folds, alpha 0 and T 4 in 1 fold"
    assert choices(pairs) == text
    assert text in notes(results({"name": "distilled"}, chosen=pairs)).splitlines()


def fold(right, seed, **row):
    """The values of a fold that tests ten examples, of which `right` are right."""
    row = {"name": "distilled", "path": f"fold/{seed}", "parameters": 1000, "accuracy": right / 10, "f1": None,
           "confusion": [[right, 0], [10 - right, 0]],
           "reliability": [[0, None, None], [10, 0.7 + seed / 10, right / 10]],
           "tokens_per_example": 10.0 + seed, "padded_tokens": 20 + 2 * seed} | row  # fmt: skip
    values = results(row, {**row, "name": "baseline"}, seeds=[seed], training_examples=16, examples=10,
                     labels=["bad", "good"], found_finished=["teacher"] * (seed == 2))  # fmt: skip
    return values | {"significance": {"seeds": [{"only_a": seed, "only_b": 1, "p": 0.5}]}}


def test_pooled_figures_by_hand():
    pooled = pool_folds([fold(9, 1), fold(7, 2) | {"examples": 11}], {"seed": 1}).values
    distilled, baseline = pooled["models"]
    assert (distilled["name"], baseline["name"], distilled["path"]) == ("distilled", "baseline", "")
    assert distilled["accuracy"] == [0.9, 0.7] and distilled["parameters"] == 1000 and "f1" not in distilled
    assert distilled["confusion"] == [[16, 0], [4, 0]]
    assert distilled["reliability"] == [[0, None, None], [20, pytest.approx(0.85), pytest.approx(0.8)]]
    assert (distilled["tokens_per_example"], distilled["padded_tokens"]) == (12, 23)
    assert (pooled["folds"], pooled["examples"], pooled["seeds"]) == (2, 21, [1, 2])
    assert pooled["significance"] == compare_folds([(1, 1, 10), (2, 1, 11)], 16)


def test_every_comparison_and_the_bag_of_words_are_pooled_over_the_folds():
    folds = []
    for seed, words in ((1, 0.5), (2, 0.75)):
        parts = [{"models": [name, "control"], "seeds": [{"only_a": a, "only_b": 2, "p": 0.5}]}
                 for name, a in (("distilled", seed), ("baseline", 3 * seed))]  # fmt: skip
        folds.append(fold(9, seed) | {"comparisons": parts, "bag_of_words": {"accuracy": words}})
    pooled = pool_folds(folds, {}).values
    assert pooled["bag_of_words"] == {"accuracy": [0.5, 0.75]}
    assert pooled["comparisons"] == [
        {"models": ["distilled", "control"], **compare_folds([(1, 2, 10), (2, 2, 10)], 16)},
        {"models": ["baseline", "control"], **compare_folds([(3, 2, 10), (6, 2, 10)], 16)},
    ]
    for values in folds:
        del values["seeds"]  # of a comparison by hand
    assert pool_folds(folds, {}).values["seeds"] == [None, None]


def test_the_report_of_folds_names_them_and_their_number_of_examples():
    text = report(complete(pool_folds([fold(9, 1), fold(7, 2)], {"seed": 1}).values))
    assert "0.8000 ± 0.1414" in text
    assert text.splitlines()[-1] == (
        "sample, 2 folds, which test 20 examples; fp32 on cpu (1 threads); mean ± std over the folds; times on 12 "
        "tokens a text, in batches padded to 23"
    )
    assert "minutes of the whole run: those of a fold, evaluation included; not in them, because" in text
    assert "McNemar" not in text and "(95% interval" in text


def test_the_dashboard_adds_the_folds_confusion_matrices_and_names_what_it_pools():
    figure = plots.draw(complete(pool_folds([fold(9, 1), fold(7, 2)], {"seed": 1}).values))
    texts = [
        text.get_text() for part in figure.subfigs for text in part.findobj(match=lambda a: hasattr(a, "get_text"))
    ]
    assert "16" in texts and "4" in texts and "8" not in texts
    assert "sample, 2 folds, which test 20 examples" in texts
    assert any("2 folds pooled" in text for text in texts) and not any("seed" in text for text in texts)


def test_folds_of_several_seeds_are_refused():
    with pytest.raises(MinikdError, match="give another seed to each fold"):
        pool_folds([fold(9, 1) | {"seeds": [1, 2]}, fold(7, 2)], {})


def test_a_new_run_forgets_the_folds_of_an_older_one_and_a_resumed_one_keeps_them(tmp_path):
    origin = {"settings": {"lr": 0.1, "device": "cpu"}, "data": "abc"}
    (first, second) = fold_folders(tmp_path, 2, origin, resume=True)  # nothing there yet
    first.mkdir()
    (first / "results.json").write_text(json.dumps(fold(9, 1)))
    assert fold_folders(tmp_path, 2, origin, resume=True) == [first, second]
    assert finished_fold(first) == fold(9, 1) and finished_fold(second) is None
    for changed, words in ((origin | {"data": "x"}, r"\(data\)"), ({**origin, "settings": {"lr": 1}}, "lr 0.1 → 1")):
        with pytest.raises(MinikdError, match=f"`resume`: .* were made from other settings .*{words}"):
            fold_folders(tmp_path, 2, changed, resume=True)
    assert fold_folders(tmp_path, 2, origin, resume=False) == [first, second] and finished_fold(first) is None
