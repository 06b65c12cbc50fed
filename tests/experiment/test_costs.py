"""What a run costs: what the cache is keyed by, what a copy keeps, what the report says of the time."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK
from helpers import teacher_logits
from test_runs import CPU, DATA, LABELS, OTHER, TOKENIZER, make_model, run
from test_training import make_split

from minikd import Dataset, Run, TextClassifier, distill
from minikd.experiment.caches import caching_minutes
from minikd.experiment.teacher import teacher_logits as kept_logits
from minikd.inference import compute_logits
from minikd.model import ClassifierOutput


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("other", ["teacher", "split", "precision"])
def test_cached_logits_are_those_of_one_teacher_split_and_precision(tmp_path, capsys, other):
    path = tmp_path / "logits.safetensors"
    before = teacher_logits(make_model(0), DATA, path, CPU, "fp32")
    assert torch.equal(teacher_logits(make_model(0), DATA, path, CPU, "fp32"), before)
    assert "read from" in capsys.readouterr().out
    teacher, split = make_model(int(other == "teacher")), OTHER if other == "split" else DATA
    precision = "bf16" if other == "precision" else "fp32"
    logits = teacher_logits(teacher, split, path, CPU, precision)
    assert "computing them anew" in capsys.readouterr().out and not torch.equal(logits, before)
    assert torch.equal(logits, compute_logits(teacher, split, CPU, precision))


def test_the_minutes_of_caching_are_those_of_the_computation_also_where_the_cache_is_read(tmp_path, monkeypatch):
    path = tmp_path / "logits.safetensors"
    slow = lambda *arguments: (time.sleep(0.6), compute_logits(*arguments))[1]  # noqa: E731
    monkeypatch.setattr("minikd.experiment.caches.compute_logits", slow)
    teacher_logits(make_model(), DATA, path, CPU, "fp32")
    recorded = caching_minutes(path)
    assert 0.6 / 60 <= recorded < 10 / 60
    teacher_logits(make_model(), DATA, path, CPU, "fp32")
    assert caching_minutes(path) == recorded
    assert caching_minutes(tmp_path / "none") is None
    path.write_bytes(b"damaged")
    assert caching_minutes(path) is None


def classifier(seed=0, device=CPU):
    return TextClassifier(make_model(seed), TOKENIZER, max_length=16, device=device, precision="fp32")


def dataset():
    return Dataset("films", LABELS, make_split(60, 0), make_split(30, 1), make_split(30, 2))


def logits_in_training(monkeypatch, student, teacher, **options):
    """The function batch -> teacher's logits that `distill` trains with; nothing is trained."""
    losses = []
    monkeypatch.setattr("minikd.training.kd_loss", lambda logits, teacher_logits, *_, soft: teacher_logits)
    monkeypatch.setattr("minikd.experiment.training.run_training", lambda *given: losses.append(given[4]) or [])
    distill(student, teacher, dataset(), run=Run(progress=False), **options)
    return lambda batch: losses[0](ClassifierOutput(None), batch)


@pytest.mark.parametrize("source", ["the teacher", "the file"])
def test_logits_of_a_batch_are_its_examples_also_where_the_batch_is_shuffled(tmp_path, monkeypatch, source):
    every, index, teacher = compute_logits(make_model(1), DATA, CPU, "fp32"), torch.randperm(len(DATA)), classifier(1)
    if source == "the file":
        teacher = kept_logits([teacher], dataset(), {"teacher": tmp_path / "logits.safetensors"})
    logits_of = logits_in_training(monkeypatch, classifier(), teacher)
    assert torch.equal(logits_of(SimpleNamespace(index=index, labels=None)), every[index])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_teacher_whose_logits_are_cached_leaves_the_device(tmp_path, monkeypatch):
    teacher, student = classifier(1, torch.device("cuda")), classifier(0, torch.device("cuda"))
    kept_logits([teacher], dataset(), {"teacher": tmp_path / "logits.safetensors"})
    assert next(teacher.model.parameters()).device.type == "cpu"
    for online, device in ((False, "cpu"), (True, "cuda")):
        logits_in_training(monkeypatch, student, teacher, online=online)
        assert next(teacher.model.parameters()).device.type == device


@pytest.fixture
def trained_teacher(script, corpus, bare):
    flags = ["--dataset", corpus, "--model", bare, *QUICK[:2], *QUICK[8:], "--output-dir", "trained"]
    assert script("train.py", *flags)[0] == 0
    run = read_json("trained/run.json")
    for epoch in run["history"]:
        epoch["seconds"] = 150.0
    Path("trained/run.json").write_text(json.dumps(run | {"training_peak_mb": 77.0}))


def test_a_teacher_that_is_used_as_it_is_keeps_what_its_training_cost(script, corpus, trained_teacher):
    flags = ["--dataset", corpus, "--student-layers", 2, "--no-baseline", *QUICK, "--output-dir"]
    for teacher, output in (("trained", "out"), ("out/teacher", "out"), ("out/teacher", "copy")):  # a copy of a copy
        status, _, err = script("distill.py", "--teacher", teacher, *flags, output)
        assert (status, err) == (0, "")
        row, student = read_json(f"{output}/results.json")["models"]
        assert row["validated_on"] == student["validated_on"]
        best = max(epoch["validation_accuracy"] for epoch in read_json("trained/run.json")["history"])
        assert row["validation_accuracy"] == best and row["optimizer_steps"] > 0
        assert (row["name"], row["training_minutes"], row["training_peak_mb"]) == ("teacher", 5.0, 77.0)
        assert "confusion" not in read_json(f"{output}/teacher/run.json")["history"][0]
        text = Path(f"{output}/results.md").read_text()
        assert "because earlier commands did it: teacher" in text and "| peak memory of training alone, MiB" in text


def test_the_report_has_the_minutes_of_caching_and_of_the_whole_run(script, corpus, bare):
    flags = ["--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK]
    began = time.time()
    status, out, _ = script("distill.py", *flags)
    minutes = (time.time() - began) / 60
    results = read_json("runs/films/results.json")
    rows = {row["name"]: row for row in results["models"]}
    parts = sum(row["training_minutes"] for row in rows.values()) + rows["teacher"]["caching_minutes"]
    assert status == 0 and 0 < parts < rows["distilled"]["run_minutes"] < minutes
    assert results["found_finished"] == [] and "those of this command, evaluation included\n" in out
    assert "run_minutes" not in rows["baseline"] and "caching_minutes" not in rows["distilled"]
    assert "| minutes of caching its logits " in out and "| minutes of the whole run " in out

    old = time.time() - 100  # of the files that an earlier command left
    for path in Path("runs/films").rglob("*"):
        os.utime(path, (old, old))
    _, out, _ = script("distill.py", *flags)
    again = read_json("runs/films/results.json")
    assert again["found_finished"] == ["teacher", "the teacher's logits"]
    assert again["models"][0]["caching_minutes"] == rows["teacher"]["caching_minutes"]
    assert "not in them, because earlier commands did it: teacher, the teacher's logits" in out
    script("distill.py", *flags, "--teacher-logits", "online")  # beside a cache that it does not use
    assert "caching_minutes" not in read_json("runs/films/results.json")["models"][0]


SAID = [
    ([], "to do: fine-tune the teacher (2 epochs); cache its logits on 160 texts; "
         "students: distil 1, train 1 on the labels alone (2 epochs a student); "),
    (["--alpha", 0.1, 0.9, "--T", 1, 2, "--seeds", 3],
     "cache its logits on 160 texts; sweep over 4 students; students: distil 2, train 3 on the labels alone (2 "),
    (["--no-baseline", "--teacher-logits", "online"],
     "to do: fine-tune the teacher (2 epochs); students: distil 1 (2 epochs a student); "),
    (["--teacher-seeds", 2, "--augment", 3, "--layer-epochs", 5, "--hidden-loss", 1, "--controls", "--max-steps", 7],
     "to do: fine-tune 2 teachers (2 epochs); cache their logits on 160 texts and 3 altered versions of each training "
     "text; students: distil 1, train 2 on the labels alone, before distilling, 5 epochs of layer losses (7 steps a "),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), SAID)
def test_what_will_be_trained_is_said_before_any_training(script, corpus, bare, flags, line, monkeypatch):
    def stop(*_, **__):
        raise MemoryError

    monkeypatch.setattr("minikd.experiment.training.run_training", stop)
    flags = ["--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, *flags]
    status, out, _ = script("distill.py", *flags)
    assert status == 2 and line in out


def test_a_copy_of_a_teacher_that_is_cut_short_is_no_finished_teacher(script, corpus, trained_teacher, monkeypatch):
    flags = ["distill.py", "--dataset", corpus, "--teacher", "trained", "--student-layers", 2, *QUICK]
    assert script(*flags)[0] == 0
    kept = {path.name: path.read_bytes() for path in Path("runs/films/teacher").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minikd.experiment.teacher.write_json", full)
    assert script(*flags)[0] == 2
    left = {path.name: path.read_bytes() for path in Path("runs/films/teacher").iterdir() if path.is_file()}
    assert left == kept
    shutil.rmtree("runs/films/teacher")
    assert script(*flags)[0] == 2 and not Path("runs/films/teacher/model.safetensors").exists()


def test_a_teacher_that_lies_in_its_place_without_a_run_json_loses_no_results(script, corpus, fine_tuned):
    shutil.copytree(fine_tuned, "out/teacher")
    flags = ["--dataset", corpus, "--student-layers", 1, "--no-baseline", *QUICK, "--output-dir", "out"]
    status, _, err = script("distill.py", "--teacher", "out/teacher", *flags)
    assert (status, err) == (0, "") and read_json("out/results.json")["found_finished"] == ["teacher"]


def test_memory_is_measured_before_there_is_a_training_to_lose(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: order.append("memory") or 5.0)
    monkeypatch.setattr("minikd.experiment.training.run_training", lambda *_: order.append("training") or [])
    run(tmp_path)
    assert order == ["memory", "training"] and read_json(tmp_path / "run.json")["training_peak_mb"] == 5.0
