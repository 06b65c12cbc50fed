"""distill.py --folds, on a small file: each fold a run of its own, then the figures of all; resuming; refusals."""

import csv
import json
import statistics
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, read_rows

from minikd import MinikdError
from minikd.cli.folds import each_fold
from minikd.datasets import load_dataset
from minikd.datasets.folds import folds
from minikd.evaluation.folds import fold_interval


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def predictions(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command(corpus, bare, *more):
    return ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--folds", 3, *more]


NAMES = ("teacher", "distilled", "baseline")


def test_folds_test_every_example_once_and_the_report_is_that_of_the_folds_files(script, corpus, bare, trainings):
    status, out, err = script(*command(corpus, bare))
    assert (status, err) == (0, "")
    assert [f"fold {k} of 3: 1" in out for k in (1, 2, 3)] == [True] * 3 and "fold 4" not in out
    assert len(trainings) == 9 and [call["made_from"]["settings"]["seed"] for call in trainings[::3]] == [42, 43, 44]
    assert len({call["first_weights"] for call in trainings}) == 9  # teacher, distilled, baseline: others in each fold

    files = {name: [predictions(f"runs/films/fold-{k}/predictions-{name}.csv") for k in (1, 2, 3)] for name in NAMES}
    made, (texts, labels) = folds(load_dataset(corpus), 3), read_rows(corpus)
    for name in NAMES:
        rows = [row for fold in files[name] for row in fold]
        assert sorted((row["text"], row["label"]) for row in rows) == sorted(zip(texts, labels))
        assert [[row["text"] for row in fold] for fold in files[name]] == [fold.test.texts for fold in made]

    results = read_json("runs/films/results.json")
    assert (results["folds"], results["examples"], results["seeds"]) == (3, 200, [42, 43, 44])
    assert results["arguments"]["seed"] == 42 and results["arguments"]["output_dir"] == "runs/films"
    known = read_json("runs/films/fold-1/results.json")["arguments"]
    assert known["max_length"] and results["arguments"]["max_length"] == known["max_length"]
    right = {name: [np.array([r["label"] == r["predicted"] for r in fold]) for fold in files[name]] for name in NAMES}
    for row in results["models"]:
        assert row["accuracy"] == pytest.approx([fold.mean() for fold in right[row["name"]]])
        rows = [r for fold in files[row["name"]] for r in fold]
        kinds = [(a, b) for a in ("bad", "good") for b in ("bad", "good")]
        counts = [sum((r["label"], r["predicted"]) == kind for r in rows) for kind in kinds]
        assert np.ravel(row["confusion"]).tolist() == counts
        assert sum(bin[0] for bin in row["reliability"]) == 200
        confidence = sum(max(float(r["prob_bad"]), float(r["prob_good"])) for r in rows)
        assert sum(bin[0] * bin[1] for bin in row["reliability"] if bin[0]) == pytest.approx(confidence, abs=0.01)
        assert isinstance(row["parameters"], int) and len(row["nll"]) == 3
    found = results["significance"]
    differences = [a.astype(int) - b for a, b in zip(right["distilled"], right["baseline"])]
    training = statistics.fmean(len(fold.train.texts) for fold in made)
    assert (found["low"], found["high"]) == pytest.approx(fold_interval(differences, training))
    assert found["difference"] == pytest.approx(np.concatenate(differences).mean())
    assert (found["folds"], found["examples"]) == (3, 200)

    report = Path("runs/films/results.md").read_text(encoding="utf-8")
    assert report.strip() in out and Path("runs/films/dashboard.png").exists()
    accuracies = results["models"][1]["accuracy"]
    assert f"{statistics.mean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f}" in report
    assert "one-way analysis of variance over 200 examples in 3 folds)" in report
    assert "films, 3 folds, which test 200 examples; fp32" in report and "; mean ± std over the folds;" in report
    assert {path.name for path in Path("runs/films").iterdir()} == {
        ".command", "fold-1", "fold-2", "fold-3", "folds.json", "results.json", "results.md", "dashboard.png"
    }  # fmt: skip


def test_a_fold_is_the_run_of_its_seed_and_resuming_does_only_what_is_missing(
    script, corpus, bare, trainings, no_pictures
):
    assert script(*command(corpus, bare))[0] == 0
    before = read_json("runs/films/results.json")
    del trainings[:]
    evaluated = Path("runs/films/fold-3/results.json").stat().st_mtime_ns
    Path("runs/films/fold-2/results.json").unlink()
    Path("runs/films/fold-2/baseline/run.json").unlink()  # killed while it trained the baseline of the second fold
    status, out, err = script(*command(corpus, bare, "--resume"))
    assert (status, err) == (0, "")
    assert [call["desc"] for call in trainings] == ["baseline"]
    assert [line.endswith("; finished") for line in out.splitlines() if line.startswith("fold ")] == [True, False, True]
    assert trainings[0]["run"].folder == Path("runs/films/fold-2/baseline")
    assert Path("runs/films/fold-3/results.json").stat().st_mtime_ns == evaluated
    after = read_json("runs/films/results.json")
    assert after["significance"] == before["significance"]
    assert [row["nll"] for row in after["models"]] == [row["nll"] for row in before["models"]]

    del trainings[:]
    status, out, err = script(*command(corpus, bare, "--resume", "--lr", "2e-3"))
    assert status == 2 and trainings == []
    assert "--resume: the folds in runs/films were made from other settings (lr 0.001 → 0.002); give the same" in err
    assert script(*command(corpus, bare, "--lr", "2e-3", "--no-baseline"))[0] == 0
    assert len(trainings) == 3 and "baseline" not in Path("runs/films/results.md").read_text()  # teacher reused


def test_folds_of_other_unlabelled_texts_are_not_resumed(corpus, tmp_path):
    args = Namespace(teacher=None, more_teachers=[], student=None, folds=2, seed=1, resume=False, output_dir=tmp_path)
    data = load_dataset(corpus)
    list(each_fold(args, data.with_unlabelled(["one"], "more")))
    args.resume = True
    assert len(list(each_fold(args, data.with_unlabelled(["one"], "more")))) == 2
    for other in (data, data.with_unlabelled(["another"], "more")):
        with pytest.raises(MinikdError, match=r"made from other settings \(unlabelled\)"):
            list(each_fold(args, other))


def test_a_sweep_chooses_in_each_fold_and_the_report_says_what(script, corpus, bare, no_pictures):
    status, out, err = script(*command(corpus, bare, "--no-baseline", "--alpha", 0, 1))
    assert (status, err) == (0, "")
    chosen = [read_json(f"runs/films/fold-{k}/results.json")["sweep"]["chosen"] for k in (1, 2, 3)]
    assert read_json("runs/films/results.json")["chosen"] == chosen
    assert "\nchosen in each fold on its own validation split: alpha " in Path("runs/films/results.md").read_text()


def test_folds_are_refused_where_they_would_not_be_folds(script, corpus, films, bare, trained):
    for arguments, message in (
        (command(films, bare), "--folds: films has a test set of its own, which is the one to use; leave it out"),
        (command("sample", bare), "--folds: sample has a test set of its own"),
        (command(corpus, bare, "--seeds", 2), "--folds: each fold has another seed already; leave out --seeds"),
        (command(corpus, bare, "--folds", 1), "argument --folds: '1' is not a whole number of at least 2"),
        (command(corpus, bare, "--folds", 100), "--folds 100: give a number from 2 on, and at most the examples"),
    ):
        status, out, err = script(*arguments)
        assert status == 2 and message in err and len(err.splitlines()) == 1, err


def test_a_teacher_that_has_seen_the_examples_is_refused_and_an_unknown_one_warned_of(
    script, corpus, bare, fine_tuned, stop
):
    quick = ["--dataset", corpus, "--epochs", 1, "--max-length", 16, "--device", "cpu", "--batch-size", 64]
    assert script("train.py", *quick, "--model", bare, "--output-dir", "own")[0] == 0
    status, out, err = script(*command(corpus, "own"))
    assert status == 2 and "--teacher own: was trained on these data, of which --folds tests every example" in err
    stop("minikd.cli.models.load_classifier")
    status, out, err = script(*command(corpus, fine_tuned))
    assert "seen enough" in err and "is fine-tuned already: the figures hold only if it was on other data" in out
