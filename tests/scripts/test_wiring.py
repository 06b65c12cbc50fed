"""What the scripts hand to the parts: the right split, tokens, settings, seed, teacher and model, on data where a wrong
one shows; and the figures of their reports, computed anew by tests/independent.py."""

import base64
import csv
import gzip
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from conftest import SIZES, save_model, spread
from independent import (
    accuracy,
    best_temperature,
    ece,
    kl_to_truth,
    logits_of,
    nll,
    read_split,
    results_in,
    token_ids,
)
from safetensors.torch import load_file

import minikd.datasets.sample
import minikd.experiment.teacher
import minikd.inference
import minikd.report.page
import minikd.training
from minikd.batching import make_batches
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.cli.defaults import SAMPLE_VOCABULARY
from minikd.experiment.caches import cache_folder, model_fingerprint
from minikd.files import fingerprint
from minikd.model import Classifier
from minikd.student import student_from_teacher
from minikd.tokenizer import train_wordpiece

pytestmark = pytest.mark.usefixtures("no_pictures")
CPU = torch.device("cpu")
LABELS = ("bad", "good", "mixed")  # of `films`, as minikd sorts them
LENGTH = 12  # truncates a part of the texts

# Every value differs from its default and from the others; teacher and students differ in all that they can.
SETTINGS = {"batch_size": 8, "weight_decay": 0.02, "warmup_ratio": 0.2, "grad_accum": 2, "clip": 0.7,
            "label_smoothing": 0.05, "patience": 4, "precision": "fp32"}  # fmt: skip
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
FLAGS += ["--max-length", LENGTH, "--seed", 7, "--device", "cpu", "--epochs", 2, "--lr", "3e-3"]
STUDENT = SETTINGS | {"epochs": 2, "max_steps": 0, "lr": 3e-3}
OF_THE_TEACHER = ["--teacher-epochs", 3, "--teacher-lr", "2e-3"]
TEACHER = SETTINGS | {"epochs": 3, "max_steps": 0, "lr": 2e-3}


def assert_tokens(tokens, folder, path, labels=LABELS):
    """`tokens` are those of the file at `path`, by the tokenizer in `folder`."""
    texts, ids = read_split(path, labels)
    expected = token_ids(folder, texts, LENGTH)
    found = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() for i in range(len(tokens))]
    assert found == expected and tokens.labels.tolist() == ids.tolist(), path
    assert max(map(len, expected)) == LENGTH > min(map(len, expected))


def assert_figures(row, all_logits, labels, truth=None):
    """The row's figures of quality are those of these logits, one per seed."""
    figures = {"accuracy": accuracy, "nll": nll, "ece": ece}
    for key, figure in figures.items():
        expected = [figure(logits, labels) for logits in all_logits]
        assert row[key] == pytest.approx(expected if len(expected) > 1 else expected[0], abs=1e-4), (row["name"], key)
    if truth is not None:
        expected = [kl_to_truth(logits, truth) for logits in all_logits]
        assert row["kl_to_truth"] == pytest.approx(expected if len(expected) > 1 else expected[0], abs=1e-4)


def assert_predictions(path, logits, labels, names):
    """The file's rows are those of these logits, in the split's order."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(len(labels)))
    assert [row["label"] for row in rows] == [names[label] for label in labels]
    assert [row["predicted"] for row in rows] == [names[label] for label in logits.argmax(axis=1)]
    probabilities = [[float(row[f"prob_{name}"]) for name in names] for row in rows]
    assert np.allclose(probabilities, scipy.special.softmax(logits, axis=1), atol=2e-5), path


def assert_mcnemar(results, distilled, baseline, labels):
    """only_a is what distilled alone has right, per seed, and p that of the exact binomial test. Returns by how many
    examples distilled leads, per seed."""
    sides = []
    for test, one, other in zip(results["significance"]["seeds"], distilled, baseline, strict=True):
        right, its = one.argmax(axis=1) == labels, other.argmax(axis=1) == labels
        only_a, only_b = int((right & ~its).sum()), int((its & ~right).sum())
        assert (test["only_a"], test["only_b"]) == (only_a, only_b)
        sides.append(only_a - only_b)
        assert test["p"] == pytest.approx(
            scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
        )
    difference = np.mean([accuracy(logits, labels) for logits in distilled])
    difference -= np.mean([accuracy(logits, labels) for logits in baseline])
    assert results["significance"]["difference"] == pytest.approx(difference)
    return sides


def test_distill_hands_each_training_its_own_data_settings_seed_and_teacher(script, films, learned, trainings):
    flags = [*FLAGS, *OF_THE_TEACHER, "--student-layers", 2, "--alpha", 0.3, "--T", 3, "--seeds", 2]
    assert script("distill.py", "--dataset", films, "--teacher", learned, *flags)[0] == 0
    output = Path("runs/films")
    assert [call["desc"] for call in trainings] == ["teacher", "distilled", "baseline", "distilled", "baseline"]
    teacher, *students = trainings
    for call in trainings:
        assert_tokens(call["data"], learned, films / "train.csv")
        assert_tokens(call["validation"], learned, films / "validation.csv")
    plain = {"alpha": 1.0, "T": 1.0}  # unused without a teacher
    assert teacher["settings"] == TEACHER | plain | {"seed": 7} and teacher["teacher"] is None
    for call, seed in zip(students, (7, 7, 8, 8)):
        own = {"alpha": 0.3, "T": 3.0} if call["desc"] == "distilled" else plain
        assert call["settings"] == STUDENT | own | {"seed": seed}

    # Each run records its teacher: none, or what the fine-tuned one thinks of the training texts.
    key = fingerprint(load_file(output / "teacher-logits.safetensors")["logits"].numpy())
    for call in trainings:
        assert call["made_from"]["teacher"] == (key if call["desc"] == "distilled" else "")

    # Distilled: layers and head of the fine-tuned teacher; baseline: layers of before, and a head of its seed.
    tuned = from_pretrained(output / "teacher")
    with torch.random.fork_rng():
        expected = [model_fingerprint(student_from_teacher(tuned, [0, 3], seed, head=True)) for seed in (7, 8)]
        torch.manual_seed(7)  # the head of the checkpoint, before the teacher's training
        before = from_pretrained(learned, LABELS)
        expected[1:1] = [model_fingerprint(student_from_teacher(before, [0, 3], 7))]
        expected += [model_fingerprint(student_from_teacher(before, [0, 3], 8))]
    assert [call["first_weights"] for call in students] == expected
    assert expected[1] != expected[3]
    assert len({id(call["model"]) for call in trainings}) == 5

    # The teacher's logits are those of the batch's own examples, by transformers, in any order.
    texts, _ = read_split(films / "train.csv", LABELS)
    expected = logits_of(output / "teacher", texts, LENGTH, LABELS)
    assert np.ptp(expected, axis=0).min() > 0.1  # a wrong row shows
    plan = [np.array([3, 149, 0, 77]), np.random.default_rng(0).permutation(len(texts))]
    for call in students:
        assert (call["teacher"] is None) == (call["desc"] == "baseline")
        for batch in make_batches(call["data"], plan, CPU) if call["teacher"] else ():
            assert np.allclose(call["teacher"](batch), expected[batch.index], atol=1e-4)

    # The report: every figure of the right model, on the test split.
    results, rows = results_in(output)
    texts, labels = read_split(films / "test.csv", LABELS)
    assert (results["split"], results["examples"], results["seeds"]) == ("test", SIZES["test"], [7, 8])
    assert results["labels"] == list(LABELS)
    logits = {}
    for name in ("teacher", "distilled", "baseline"):
        folders = [output, output / "seed-8"][: 1 if name == "teacher" else 2]
        logits[name] = [logits_of(folder / name, texts, LENGTH, LABELS) for folder in folders]
        assert_figures(rows[name], logits[name], labels)
        for folder, own in zip(folders, logits[name]):
            assert_predictions(folder / f"predictions-{name}.csv", own, labels, LABELS)
        assert rows[name]["path"] == str(output / name)
    assert any(assert_mcnemar(results, logits["distilled"], logits["baseline"], labels))  # a wrong sign shows
    for name in logits:
        seconds = [epoch["seconds"] for epoch in json.loads((output / name / "run.json").read_text())["history"]]
        assert rows[name]["training_minutes"] == pytest.approx(sum(seconds) / 60)
        runs = [json.loads((folder / name / "run.json").read_text()) for folder in (output, output / "seed-8")
                if (folder / name).exists()]  # fmt: skip
        best = [max(epoch["validation_accuracy"] for epoch in run["history"]) for run in runs]
        assert rows[name]["validation_accuracy"] == (best if name != "teacher" else best[0])
        last = [line["step"] for line in map(json.loads, (output / name / "log.jsonl").open()) if "loss" in line][-1]
        assert rows[name]["optimizer_steps"] == last > 0
        log = [json.loads(line) for line in (output / name / "log.jsonl").read_text().splitlines()]
        curve = [[line["epoch"], line["loss"]] for line in log if "loss" in line]
        assert results["curves"][name]["train"] == curve
        alpha, T = (0.3, 3.0) if name == "distilled" else (1.0, 1.0)
        assert results["curves"][name]["settings"] == {"alpha": alpha, "T": T, "label_smoothing": 0.05}


@pytest.mark.parametrize("start", ["random", "--student"])
def test_each_student_of_a_seed_starts_from_the_same_weights_of_its_own(
    script, films, trained, learned, trainings, start
):
    shape = ["--student", learned] if start == "--student" else ["--student-layers", 1, "--student-hidden", 64]
    assert script("distill.py", "--dataset", films, "--teacher", trained, *shape, *FLAGS, "--seeds", 2)[0] == 0
    first = [call["first_weights"] for call in trainings]
    assert first[0] == first[1] != first[2] == first[3]
    assert len({id(call["model"]) for call in trainings}) == 4
    heads = []
    for seed in (7, 8):  # whatever is random follows from the seed
        torch.manual_seed(seed)
        model = from_pretrained(learned, LABELS) if start == "--student" else Classifier(trainings[0]["model"].config)
        heads.append(model_fingerprint(model))
    assert heads == [first[0], first[2]]


def test_a_students_first_weights_are_the_named_layers_of_the_fine_tuned_teacher(script, films, learned, trainings):
    flags = [*FLAGS, *OF_THE_TEACHER, "--take-layers", 3, 1]
    assert script("distill.py", "--dataset", films, "--teacher", learned, *flags)[0] == 0
    teacher = from_pretrained("runs/films/teacher")
    assert model_fingerprint(teacher) != trainings[0]["first_weights"]
    student = Classifier(replace(teacher.config, num_hidden_layers=2))
    student.classifier.load_state_dict(teacher.classifier.state_dict())
    for part in ("encoder.embeddings", "pooler", "encoder.layers.3", "encoder.layers.1"):
        own = {"encoder.layers.3": "encoder.layers.0"}.get(part, part)
        student.get_submodule(own).load_state_dict(teacher.get_submodule(part).state_dict())
    assert trainings[1]["first_weights"] == model_fingerprint(student) != trainings[2]["first_weights"]


@pytest.mark.parametrize("mode", ["cache", "online"])
def test_a_finished_teacher_of_another_label_order_teaches_the_right_rows_and_columns(
    script, films, trained, trainings, mode
):
    flags = [*FLAGS, "--student-layers", 2, "--teacher-base", "random", "--teacher-logits", mode, "--T", 3]
    assert script("distill.py", "--dataset", films, "--teacher", trained, *flags)[0] == 0
    assert [call["desc"] for call in trainings] == ["distilled", "baseline"]
    texts, labels = read_split(films / "train.csv", LABELS)
    expected = logits_of(trained, texts, LENGTH, LABELS)
    assert accuracy(expected, labels) > 0.8
    own = model_fingerprint(from_pretrained("runs/films/teacher"))
    assert (trainings[0]["made_from"]["teacher"] == own) == (mode == "online")
    for batch in make_batches(trainings[0]["data"], [np.arange(149, -1, -7)], CPU):
        assert np.allclose(trainings[0]["teacher"](batch), expected[batch.index], atol=1e-4)
    results, rows = results_in("runs/films")
    texts, labels = read_split(films / "test.csv", LABELS)
    for name, folder in (
        ("teacher", trained),
        ("distilled", "runs/films/distilled"),
        ("baseline", "runs/films/baseline"),
    ):
        logits = logits_of(folder, texts, LENGTH, LABELS)
        assert_figures(rows[name], [logits], labels)
        assert_predictions(f"runs/films/predictions-{name}.csv", logits, labels, LABELS)
    assert rows["teacher"]["accuracy"] > 0.8


def test_a_sweep_hands_each_cell_its_alpha_and_t_and_keeps_the_best_on_validation(
    script, films, trained, trainings, monkeypatch
):
    passes, make_batches = [], minikd.inference.make_batches
    monkeypatch.setattr(
        minikd.inference,
        "make_batches",
        lambda split, *args: passes.append(len(split)) or make_batches(split, *args),
    )
    flags = [*FLAGS, "--student-layers", 2, "--alpha", 0.9, 0.1, "--T", 1, 5, "--lr", "5e-3", "--seeds", 2]
    flags += ["--teacher-base", "random"]
    assert script("distill.py", "--dataset", films, "--teacher", trained, *flags)[0] == 0
    results, rows = results_in("runs/films")
    assert list(rows) == ["teacher", "distilled", "baseline"]
    assert passes.count(SIZES["test"]) == 1 + 2 * 2  # teacher and students; of the sweep, the chosen one alone
    pairs = [(0.9, 1.0), (0.9, 5.0), (0.1, 1.0), (0.1, 5.0)]
    sweep = trainings[:4]
    assert [call["desc"] for call in trainings[4:5]] == ["baseline"]  # the chosen student is not trained again
    assert [(call["settings"]["alpha"], call["settings"]["T"]) for call in sweep] == pairs
    assert [call["settings"]["seed"] for call in trainings] == [7] * 5 + [8] * 2
    assert len({call["first_weights"] for call in trainings[:4]}) == 1
    texts, labels = read_split(films / "validation.csv", LABELS)
    expected = []
    for cell, (alpha, T) in zip(results["sweep"]["cells"], pairs, strict=True):
        assert (cell["alpha"], cell["T"]) == (alpha, T)
        logits = logits_of(f"runs/films/sweep/alpha-{alpha}-T-{T}", texts, LENGTH, LABELS)
        figures = accuracy(logits, labels), nll(logits, labels), ece(logits, labels)
        assert [cell[f"validation_{key}"] for key in ("accuracy", "loss", "ece")] == pytest.approx(figures, abs=1e-4)
        expected.append((figures[0], -figures[1], alpha, T))
    *_, alpha, T = max(expected)
    assert results["sweep"]["chosen"] == {"alpha": alpha, "T": T}
    second = next(call["settings"] for call in trainings if call["desc"] == "distilled")
    assert (second["seed"], second["alpha"], second["T"]) == (8, alpha, T) != (8, *pairs[0])
    chosen, kept = (
        Path("runs/films", folder, "model.safetensors").read_bytes()
        for folder in (f"sweep/alpha-{alpha}-T-{T}", "distilled")
    )
    assert chosen == kept
    texts, labels = read_split(films / "test.csv", LABELS)
    folders = ("runs/films/distilled", "runs/films/seed-8/distilled")
    assert_figures(rows["distilled"], [logits_of(folder, texts, LENGTH, LABELS) for folder in folders], labels)


@pytest.mark.parametrize("start", ["--model", "--layers"])
def test_train_hands_over_its_own_data_and_settings_and_reports_the_test_split(
    script, films, learned, trainings, start
):
    model = ["--model", learned] if start == "--model" else ["--layers", 2, "--hidden", 32]
    assert script("train.py", "--dataset", films, *model, *FLAGS, "--output-dir", "model")[0] == 0
    (call,) = trainings
    assert len([*cache_folder().glob("logits-*")]) == 1  # to evaluate the model again need not compute them again
    assert_tokens(call["data"], "model", films / "train.csv")
    assert_tokens(call["validation"], "model", films / "validation.csv")
    assert call["settings"] == STUDENT | {"alpha": 1.0, "T": 1.0, "seed": 7} and call["teacher"] is None
    assert len(from_pretrained("model").encoder.layers) == (4 if start == "--model" else 2)
    results, rows = results_in("model")
    texts, labels = read_split(films / "test.csv", LABELS)
    logits = logits_of("model", texts, LENGTH, LABELS)
    assert (results["split"], results["examples"]) == ("test", SIZES["test"])
    assert_figures(rows["model"], [logits], labels)
    assert_predictions("model/predictions-model.csv", logits, labels, LABELS)


def test_the_scripts_clip_at_1_and_warm_up_over_a_tenth_unless_told_otherwise(script, films, learned, trainings):
    flags = ["--max-length", LENGTH, "--precision", "fp32", "--epochs", 1]
    assert script("train.py", "--dataset", films, "--model", learned, *flags)[0] == 0
    assert script("distill.py", "--dataset", films, "--teacher", "runs/films-model", *flags)[0] == 0
    defaults = {"batch_size": 32, "weight_decay": 0.01, "warmup_ratio": 0.1, "grad_accum": 1, "clip": 1.0,
                "label_smoothing": 0.0, "patience": 0, "seed": 42, "epochs": 1}  # fmt: skip
    own = {"train": {"lr": 2e-5}, "distilled": {"lr": 5e-5, "alpha": 0.5, "T": 2.0}, "baseline": {"lr": 5e-5}}
    for call, expected in zip(trainings, own.values(), strict=True):
        assert call["settings"] == call["settings"] | defaults | expected


@pytest.fixture
def precisions(monkeypatch):
    """By module, the precisions in which it ran forward passes."""
    seen = {}
    for module in (minikd.inference, minikd.training, minikd.experiment.teacher):
        own = seen[module.__name__.removeprefix("minikd.")] = set()

        def spy(device, precision, own=own, autocast=module.autocast):
            own.add(precision)
            return autocast(device, precision)

        monkeypatch.setattr(module, "autocast", spy)
    return seen


def test_every_pass_of_the_scripts_runs_in_the_precision_asked_for(script, films, trained, precisions):
    flags, short = ["--precision", "bf16", "--max-length", LENGTH], ["--epochs", 1, "--no-baseline"]
    distill = ["distill.py", "--teacher", trained, "--student-layers", 1, *short, "--output-dir"]
    commands = {
        ("inference", "training"): [
            ["train.py", "--model", trained, *short[:2]],
            [*distill, "cache", "--alpha", 0.1, 0.9],
        ],
        ("inference", "training", "experiment.teacher"): [[*distill, "online", "--teacher-logits", "online"]],
        ("inference",): [["evaluate.py", trained, "--calibrate"]],
    }
    for modules, several in commands.items():
        for command in several:
            assert script(*command, "--dataset", films, *flags)[0] == 0
            assert precisions == {name: {"bf16"} if name in modules else set() for name in precisions}, command
            [seen.clear() for seen in precisions.values()]
    assert results_in("online")[0]["precision"] == "bf16"
    assert script("evaluate.py", trained, "--text", "a great film", *flags)[0] == 0
    assert precisions.pop("inference") == {"bf16"} and not any(precisions.values())


# evaluate.py


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A second classifier of `films`: another vocabulary, another label order, other weights."""
    words = "zebra a the film plot was dull great boring fine superb awful not very slow".split()
    folder = save_model(
        tmp_path_factory.mktemp("other"), labels=("good", "mixed", "bad"), words=words, num_hidden_layers=1
    )
    model = from_pretrained(folder)
    save_pretrained(spread(model, seed=5), folder)
    return folder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluate_reports_each_model_with_its_own_tokenizer_on_the_split_asked_for(
    script, films, trained, other, tmp_path, split
):
    texts, labels = read_split(films / f"{split}.csv", LABELS)
    expected = {folder: logits_of(folder, texts, LENGTH, LABELS) for folder in (trained, other)}
    wrong = token_ids(trained, texts, LENGTH), token_ids(other, texts, LENGTH)
    assert wrong[0] != wrong[1]
    for order in ((trained, other), (other, trained)):
        flags = ["--split", split, "--max-length", LENGTH, "--precision", "fp32", "--output-dir", "out"]
        assert script("evaluate.py", *order, "--dataset", films, *flags)[0] == 0
        results, rows = results_in("out")
        assert (results["split"], results["examples"]) == (split, SIZES[split])
        assert [row["path"] for row in results["models"]] == [str(folder) for folder in order]
        for folder in order:
            assert_figures(rows[folder.name], [expected[folder]], labels)
            assert_predictions(f"out/predictions-{folder.name}.csv", expected[folder], labels, LABELS)
            parameters = sum(p.numel() for p in from_pretrained(folder).parameters())
            assert rows[folder.name]["parameters"] == parameters


@pytest.mark.parametrize("split", ["train", "test"])
def test_calibrate_fits_on_validation_and_reports_the_split(script, films, trained, other, split):
    flags = ["--split", split, "--max-length", LENGTH, "--precision", "fp32", "--output-dir", "out", "--calibrate"]
    assert script("evaluate.py", trained, other, "--dataset", films, *flags)[0] == 0
    _, rows = results_in("out")
    temperatures = []
    for folder in (trained, other):
        texts, labels = read_split(films / "validation.csv", LABELS)
        T = best_temperature(logits_of(folder, texts, LENGTH, LABELS), labels)
        texts, labels = read_split(films / f"{split}.csv", LABELS)
        logits, row = logits_of(folder, texts, LENGTH, LABELS), rows[folder.name]
        assert row["temperature"] == pytest.approx(T, rel=1e-3)
        assert row["nll_calibrated"] == pytest.approx(nll(logits, labels, T), abs=1e-4)
        assert row["ece_calibrated"] == pytest.approx(ece(logits / row["temperature"], labels), abs=1e-4)
        assert row["ece"] == pytest.approx(ece(logits, labels), abs=1e-4)
        temperatures += [T, best_temperature(logits, labels)]
    assert len({round(T, 2) for T in temperatures}) == 4  # a temperature of another model or split shows


def test_quantised_copies_stand_beside_their_own_originals(script, films, trained, other):
    flags = ["--max-length", LENGTH, "--precision", "fp32", "--output-dir", "out", "--quantize", "int8"]
    assert script("evaluate.py", trained, other, "--dataset", films, *flags)[0] == 0
    _, rows = results_in("out")
    for folder in (trained, other):
        with Path(f"out/predictions-{folder.name}.csv").open() as file, \
             Path(f"out/predictions-{folder.name}-int8.csv").open() as copy:  # fmt: skip
            own, its = ([row["predicted"] for row in csv.DictReader(f)] for f in (file, copy))
        agreement = np.mean([one == two for one, two in zip(own, its, strict=True)])
        assert rows[f"{folder.name}-int8"]["agreement"] == pytest.approx(agreement) and agreement > 0.9
        assert rows[f"{folder.name}-int8"]["size_mb"] < rows[folder.name]["size_mb"]
    assert own != [row["predicted"] for row in csv.DictReader(Path(f"out/predictions-{trained.name}.csv").open())]


def test_texts_are_labelled_by_the_model_named_in_order(script, films, trained, other, tmp_path):
    texts, _ = read_split(films / "test.csv", LABELS)
    (tmp_path / "new.txt").write_text("\n".join(texts))
    for folder, labels in ((trained, ("mixed", "bad", "good")), (other, ("good", "mixed", "bad"))):
        flags = ["--max-length", LENGTH, "--precision", "fp32"]
        assert script("evaluate.py", folder, "--input", "new.txt", "--output", "labels.csv", *flags)[0] == 0
        rows = list(csv.DictReader(Path("labels.csv").open(newline="")))
        logits = logits_of(folder, texts, LENGTH)
        assert [row["text"] for row in rows] == texts
        assert [row["predicted"] for row in rows] == [labels[i] for i in logits.argmax(axis=1)]
        probabilities = [[float(row[f"prob_{label}"]) for label in labels] for row in rows]
        assert np.allclose(probabilities, scipy.special.softmax(logits, axis=1), atol=2e-5)
        status, out, _ = script("evaluate.py", folder, "--text", texts[0], "--text", texts[1], *flags)
        for row in rows[:2]:
            assert f"{row['predicted']} (" in next(line for line in out.splitlines() if line.endswith(row["text"]))
    _, out, _ = script("evaluate.py", trained, other, "--text", texts[0], *flags)  # each model in its turn
    for folder, labels in ((trained, ("mixed", "bad", "good")), (other, ("good", "mixed", "bad"))):
        probabilities = scipy.special.softmax(logits_of(folder, texts[:1], LENGTH)[0])
        listed = ", ".join(f"{label} {probability:.3f}" for label, probability in zip(labels, probabilities))
        assert f"{folder}: {labels[probabilities.argmax()]} ({listed}): {texts[0]}\n" in out


def test_the_slower_model_has_the_longer_times(script, films, tmp_path):
    sizes = dict(small=dict(num_hidden_layers=1, hidden_size=16), large=dict(num_hidden_layers=12, hidden_size=128))
    for name, shape in sizes.items():
        save_model(tmp_path / name, labels=LABELS, **shape)
    for order in (("small", "large"), ("large", "small")):
        assert script("evaluate.py", *order, "--dataset", films, "--output-dir", "out")[0] == 0
        _, rows = results_in("out")
        for key in ("latency_1_ms", "batch_100_ms", "batch_128_ms", "latency_ms"):
            assert rows["large"][key] > rows["small"][key], key
        assert rows["large"]["throughput"] < rows["small"]["throughput"]
        fast = rows["small"]["speed_up"]
        assert fast == pytest.approx(1) if order[0] == "small" else fast > 1


# The sample, cut down


@pytest.fixture
def small_sample(monkeypatch, tmp_path):
    """The first 200, 50 and 110 reviews of the sample's files, as the corpus that is called sample."""
    whole, folder = minikd.datasets.sample.FOLDER, tmp_path / "small-sample"
    folder.mkdir()
    for name, count in {"train": 200, "validation": 50, "test": 110}.items():
        lines = (whole / f"{name}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.csv").write_text("".join(lines[: count + 1]), encoding="utf-8")
    monkeypatch.setattr(minikd.datasets.sample, "load", partial(minikd.datasets.sample.load, folder))
    return folder


POLARITY = ("negative", "positive")


def truth_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        p = np.array([float(row["p_positive"]) for row in csv.DictReader(file)])
    return np.stack([1 - p, p], axis=1)


@pytest.mark.parametrize("oracle", [False, True], ids=["own teacher", "oracle"])
def test_the_first_command_of_the_readme(script, small_sample, trainings, oracle):
    """python distill.py --student-layers 4 --alpha 0.5 --T 2, on a part of the sample; and with --teacher oracle."""
    flags = ["--student-layers", 4, "--alpha", 0.5, "--T", 2, "--precision", "fp32", "--device", "cpu"]
    flags += ["--teacher", "oracle"] if oracle else []
    assert script("distill.py", *flags)[0] == 0
    output = Path("runs/sample")
    names = ["distilled", "baseline"] if oracle else ["teacher", "distilled", "baseline"]
    assert [call["desc"] for call in trainings] == names
    assert (output / "teacher").exists() != oracle
    results, rows = results_in(output)
    assert list(rows) == names and (results["split"], results["examples"]) == ("test", 110)

    # What the students learn from.
    distilled, texts = trainings[-2], read_split(small_sample / "train.csv", POLARITY)[0]
    plan = [np.random.default_rng(0).permutation(len(texts))[:40]]
    (batch,) = make_batches(distilled["data"], plan, CPU)
    found = distilled["teacher"](batch).double().numpy()
    if oracle:
        targets = truth_of(small_sample / "train.csv")[batch.index]
        assert np.allclose(scipy.special.softmax(found, axis=1), targets, atol=1e-5)
    else:
        assert np.allclose(found, logits_of(output / "teacher", [texts[i] for i in batch.index], 64), atol=1e-4)
    assert trainings[-2]["first_weights"] == trainings[-1]["first_weights"]
    for call in trainings:  # they follow from the seed
        torch.manual_seed(42)
        assert call["first_weights"] == model_fingerprint(Classifier(call["model"].config))
    vocabulary = train_wordpiece(texts, SAMPLE_VOCABULARY).vocab  # of the training texts alone
    assert [load_tokenizer(output / name).vocab for name in names] == [vocabulary] * len(names)
    shapes = [(call["model"].config.num_hidden_layers, call["model"].config.hidden_size) for call in trainings]
    assert shapes == [(4, 256), (4, 128), (4, 128)][-len(names) :]
    epochs = [(call["settings"]["epochs"], call["settings"]["lr"]) for call in trainings]
    assert epochs == [(3, 4e-4), (2, 6e-4), (2, 6e-4)][-len(names) :]

    # The report.
    texts, labels = read_split(small_sample / "test.csv", POLARITY)
    truth = truth_of(small_sample / "test.csv")
    logits = {name: logits_of(output / name, texts, 64) for name in names}
    for name in names:
        assert_figures(rows[name], [logits[name]], labels, truth)
        assert_predictions(output / f"predictions-{name}.csv", logits[name], labels, POLARITY)
    assert_mcnemar(results, [logits["distilled"]], [logits["baseline"]], labels)
    assert results["best_possible_accuracy"] == pytest.approx(np.mean(truth.argmax(axis=1) == labels))
    if oracle:  # the page shows the truth beside the model
        assert script("evaluate.py", output / "distilled", "--html", "page.html")[0] == 0
        packed = re.findall(r"[A-Za-z0-9+/=]{100,}", Path("page.html").read_text(encoding="utf-8"))
        parts = [gzip.decompress(base64.b64decode(part)) for part in packed]
        (numbers,) = (part for part in parts if len(part) == 4 * 110 * (2 + 2 + 1))
        assert np.allclose(np.frombuffer(numbers, "<f4", 440)[220:].reshape(110, 2), truth)


def test_without_a_model_named_the_sample_gets_a_new_one_and_other_data_bert(script, small_sample, corpus, stop):
    calls = stop("minikd.experiment.training.run_training")
    for flags in ([], ["--layers", 2], ["--hidden", 64]):
        assert "seen enough" in script("train.py", *flags)[2]
    shapes = [(config.num_hidden_layers, config.hidden_size) for config in (call[0][0].config for call in calls)]
    assert shapes == [(4, 256), (2, 256), (4, 64)]
    status, _, err = script("train.py", "--dataset", corpus)
    assert status == 2 and "bert-base-uncased: neither a folder here nor to be fetched" in err and len(calls) == 3


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train.py", "--lora-rank", 2], "--lora-rank: a new model starts from random weights"),
        (["distill.py", "--lora-rank", 2], "--lora-rank: the sample's own teacher starts from random weights"),
        (["distill.py", "--student-lora-rank", 2], "--student-lora-rank: this student starts from random weights"),
    ],
)
def test_adapters_on_random_weights_are_refused(script, small_sample, stop, command, words):
    calls = stop("minikd.experiment.training.run_training")
    status, _, err = script(*command)
    assert status == 2 and words in err and err.count("\n") == 1 and not calls


@pytest.mark.parametrize("name", ["train.py", "distill.py"])
@pytest.mark.parametrize("start", ["new", "encoder"])
def test_the_seed_decides_the_first_weights_of_what_is_fine_tuned(
    script, small_sample, films, learned, stop, name, start
):
    """All of a new model; the classifier on an encoder."""
    calls = stop("minikd.experiment.training.run_training")
    flags = ["--dataset", films, {"train.py": "--model", "distill.py": "--teacher"}[name], learned]
    for seed in (1, 1, 2):
        torch.rand(1)  # what ran before does not matter
        script(name, *(flags if start == "encoder" else []), "--seed", seed)
    one, again, two = (model_fingerprint(arguments[0]) for arguments, _ in calls)
    assert one == again != two


def test_evaluate_tells_page_and_significance_of_the_right_models_and_split(
    script, small_sample, tmp_path, monkeypatch
):
    pages, write_page = [], minikd.report.page.write_page
    monkeypatch.setattr(
        "minikd.report.page.write_page",
        lambda *args, **more: pages.append((args, more)) or write_page(*args, **more),
    )
    for seed, (name, labels) in enumerate({"distilled": POLARITY, "baseline": POLARITY[::-1]}.items()):
        folder = save_model(tmp_path / name, labels=labels, num_hidden_layers=seed + 1)
        save_pretrained(spread(from_pretrained(folder), seed), folder)
        settings = {"alpha": 0.2, "T": 4.0, "label_smoothing": 0.0}
        run = {"arguments": {}, "made_from": {"teacher": "key" * (name == "distilled"), "settings": settings}}
        (folder / "run.json").write_text(json.dumps(run))
    flags = ["--split", "validation", "--quantize", "int8", "--html", "page.html", "--output-dir", "out"]
    flags += ["--max-length", LENGTH, "--precision", "fp32"]
    assert script("evaluate.py", "distilled", "baseline", "--dataset", "sample", *flags)[0] == 0
    (((path, data, split, names, texts, ids, logits), more),) = pages
    assert (path, data, split, names) == (Path("page.html"), "sample", "validation", POLARITY)
    expected, labels = read_split(small_sample / "validation.csv", POLARITY)
    assert texts == expected and list(ids) == labels.tolist()
    assert np.allclose(more["true_probabilities"], truth_of(small_sample / "validation.csv"), atol=1e-6)
    assert more["about"] == {
        "distilled": "1 layer, distilled with alpha 0.2 and T 4",
        "distilled-int8": "1 layer, int8, distilled with alpha 0.2 and T 4",
        "baseline": "2 layers, trained on the labels alone",
        "baseline-int8": "2 layers, int8, trained on the labels alone",
    }
    own = {name: logits_of(tmp_path / name, texts, LENGTH, POLARITY) for name in ("distilled", "baseline")}
    for name, its in own.items():
        assert np.allclose(logits[name], its, atol=1e-4) and np.allclose(logits[f"{name}-int8"], its, atol=0.3)
    results, _ = results_in("out")
    assert any(assert_mcnemar(results, [own["distilled"]], [own["baseline"]], labels))
    assert results["best_possible_accuracy"] == pytest.approx(
        np.mean(np.asarray(more["true_probabilities"]).argmax(1) == labels)
    )
    assert "bag_of_words" not in results
    for name in own:
        copy = json.loads(Path(f"out/{name}-int8/run.json").read_text())
        assert copy["quantized_from"] == str(tmp_path / name)
