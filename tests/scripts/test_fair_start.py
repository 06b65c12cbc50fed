"""Where the students of distill.py start, how many steps they get, and what they learn from unlabelled texts."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from conftest import SIZES, save_model
from independent import logits_of
from safetensors.torch import load_file

from minikd import MinikdError, Run, TextClassifier, TrainConfig, distill, load_dataset
from minikd.batching import make_batches
from minikd.checkpoints.pretrained import from_pretrained
from minikd.cli.recipes import BEST
from minikd.cli.students import checkpoint_of
from minikd.experiment.caches import model_fingerprint
from minikd.experiment.teacher import augmented_texts
from minikd.inference import compute_logits
from minikd.student import student_from_teacher
from minikd.techniques.augment import Augmentation

LABELS = ("bad", "good", "mixed")
LENGTH = 9
FLAGS = ["--max-length", LENGTH, "--device", "cpu", "--precision", "fp32", "--batch-size", 16, "--epochs", 2,
         "--student-layers", 2, "--seed", 7]  # fmt: skip
MORE = ["a superb film", "dull and slow", "the plot was not boring", "great", "an awful story, very awful"] * 9


def from_checkpoint(folder, seed, layers=(0, 3)):
    """The student of these layers of an encoder, with a head of its seed."""
    return student_from_teacher(from_pretrained(folder, LABELS), list(layers), seed)


@pytest.fixture
def more(tmp_path):
    path = tmp_path / "more.txt"
    path.write_text("\n".join(MORE))
    return path


def test_the_control_starts_as_the_distilled_student_and_sees_labels_alone(
    script, films, learned, trainings, no_pictures
):
    command = ["distill.py", "--dataset", films, "--teacher", learned, *FLAGS, "--teacher-epochs", 1, "--controls"]
    assert script(*command)[0] == 0
    assert [call["desc"] for call in trainings] == ["teacher", "distilled", "control", "baseline"]
    _, distilled, control, baseline = trainings
    assert distilled["first_weights"] == control["first_weights"] != baseline["first_weights"]
    assert baseline["first_weights"] == model_fingerprint(from_checkpoint(learned, 7))
    assert [call["teacher"] is None for call in trainings] == [True, False, True, True]
    assert control["settings"] == baseline["settings"]
    results = json.loads(Path("runs/films/results.json").read_text())
    assert [row["name"] for row in results["models"]] == ["teacher", "distilled", "control", "baseline"]
    assert Path("runs/films/control/model.safetensors").exists() and Path("runs/films/predictions-control.csv").exists()
    words = "distilled and control start from layers [0, 3] and head of the fine-tuned teacher"
    assert words in Path("runs/films/results.md").read_text()


def test_every_student_can_start_from_the_checkpoint(script, films, learned, trainings, no_pictures):
    flags = [*FLAGS, "--student-init", "checkpoint", "--teacher-epochs", 1, "--seeds", 2]
    assert script("distill.py", "--dataset", films, "--teacher", learned, *flags)[0] == 0
    first = [model_fingerprint(from_checkpoint(learned, seed)) for seed in (7, 7, 8, 8)]
    assert [call["first_weights"] for call in trainings[1:]] == first


def test_a_teacher_that_was_trained_here_knows_its_checkpoint(script, films, learned, trainings, no_pictures):
    short = ["--dataset", films, *FLAGS[:-4], "--epochs", 1]
    assert script("train.py", "--model", learned, *short, "--output-dir", "tuned")[0] == 0
    assert checkpoint_of("tuned") == str(learned)
    for output, teacher in (("one", "tuned"), ("two", "one/teacher")):  # the second is a copy
        flags = [*FLAGS, "--epochs", 1, "--output-dir", output]
        status, out, _ = script("distill.py", "--dataset", films, "--teacher", teacher, *flags)
        assert status == 0
        assert trainings[-1]["first_weights"] == model_fingerprint(from_checkpoint(learned, 7)), output
        assert f"baseline: first weights: layers [0, 3] of {learned.name}, which the teacher was fine-tuned from" in out


def test_a_new_model_has_no_checkpoint_but_random_weights(script, corpus, no_pictures):
    short = ["--dataset", corpus, "--epochs", 1, "--max-length", LENGTH, "--device", "cpu"]
    assert script("train.py", "--layers", 2, "--hidden", 32, *short, "--output-dir", "new")[0] == 0
    assert checkpoint_of("new") == "random"


def run_json(folder, **content):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(content))
    return str(folder)


def test_of_several_teachers_each_has_a_checkpoint_of_its_own(tmp_path):
    arguments = {"teacher": "one", "more_teachers": ["two", "three"]}
    for i, checkpoint in enumerate(("one", "two", "three"), start=1):
        folder = run_json(tmp_path / f"teacher-{i}", name=f"teacher-{i}", arguments=arguments)
        assert checkpoint_of(folder) == checkpoint
    seeds = run_json(tmp_path / "seeds", name="teacher-2", arguments={"teacher": "one", "more_teachers": []})
    assert checkpoint_of(seeds) == "one"


def test_a_copy_whose_original_is_gone_does_not_know_its_checkpoint(tmp_path):
    gone = tmp_path / "gone" / "teacher"
    assert checkpoint_of(run_json(tmp_path / "copy", name="teacher", copied_from=str(gone), arguments={})) is None


def test_a_checkpoint_that_is_fine_tuned_itself_is_said_to_be_the_teachers(script, films, trained, tmp_path):
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    (teacher / "run.json").write_text(json.dumps({"name": "model", "arguments": {"model": str(trained)}}))
    status, _, err = script("distill.py", "--dataset", films, "--teacher", teacher, *FLAGS)
    assert status == 2 and f"--teacher {teacher}: was fine-tuned from {trained}, which is fine-tuned itself" in err


def test_a_checkpoint_that_has_gone_is_said_to_be_the_teachers(script, films, trained, tmp_path, trainings):
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    (teacher / "run.json").write_text(json.dumps({"name": "model", "arguments": {"model": "models/./gone"}}))
    status, _, err = script("distill.py", "--dataset", films, "--teacher", teacher, *FLAGS)
    assert status == 2 and not trainings and err.count("\n") == 1
    assert f"--teacher {teacher}: was fine-tuned from models/./gone, which cannot be read" in err
    assert "give --teacher-base NAME_OR_DIR" in err


def test_a_baseline_of_random_weights_gets_no_adapters(script, films, trained, trainings):
    flags = [*FLAGS, "--teacher-base", "random", "--student-lora-rank", 2]
    status, _, err = script("distill.py", "--dataset", films, "--teacher", trained, *flags)
    assert status == 2 and "--student-lora-rank: the baseline would start from random weights" in err and not trainings


@pytest.mark.parametrize(("flags", "words"), [
    ([], "--teacher {}: it is not known which checkpoint this was fine-tuned from"),
    (["--teacher-base", "{}"], "--teacher-base {}: is fine-tuned itself"),
    (["--teacher-base", "{other}"], "--teacher-base {other}: has another shape than --teacher {}"),
    (["--no-baseline", "--teacher-base", "random"], "--teacher-base random: nothing starts from it"),
    (["--student-init", "random", "--teacher-base", "random"], "--teacher-base random: these students start from"),
    (["--student-init", "random", "--controls"], "--controls: distilled and baseline both start from random weights"),
])  # fmt: skip
def test_starts_that_cannot_be_had_are_refused_before_any_training(
    script, films, trained, trainings, tmp_path, flags, words
):
    other = save_model(tmp_path / "other", hidden_size=32, num_hidden_layers=2)
    flags = [flag.format(trained, other=other) for flag in flags]
    status, _, err = script("distill.py", "--dataset", films, "--teacher", trained, *FLAGS, *flags)
    assert status == 2 and words.format(trained, other=other) in err and err.count("\n") == 1
    assert not trainings


def test_a_checkpoint_for_a_teacher_that_is_trained_here_is_refused(script, films, learned, trainings):
    flags = [*FLAGS, "--teacher-base", learned]
    status, _, err = script("distill.py", "--dataset", films, "--teacher", learned, *flags)
    assert status == 2 and "--teacher-base: this teacher is fine-tuned here" in err and not trainings


def test_the_head_is_copied_where_the_teachers_layers_are_and_refused_elsewhere(learned):
    teacher = TextClassifier.load(learned, labels=LABELS, device="cpu")
    student = teacher.make_student([3], init="teacher", head=True, seed=1)
    assert torch.equal(student.model.classifier.weight, teacher.model.classifier.weight)
    assert student.model.classifier.weight is not teacher.model.classifier.weight
    plain = teacher.make_student([3], init="teacher", seed=1)
    assert not torch.equal(plain.model.classifier.weight, teacher.model.classifier.weight)
    with pytest.raises(MinikdError, match="`head`: this student's first weights are random"):
        teacher.make_student(2, init="random", head=True)


@pytest.mark.parametrize("equal", [True, False])
def test_with_unlabelled_texts_every_student_gets_as_many_steps(
    script, films, trained, trainings, more, no_pictures, equal
):
    flags = [*FLAGS, "--unlabelled", more, "--teacher-base", "random", "--controls"]
    flags += [] if equal else ["--no-equal-steps"]
    assert script("distill.py", "--dataset", films, "--teacher", trained, *flags)[0] == 0
    distilled, *alone = trainings
    steps = {name: json.loads(line)["step"] for name in ("distilled", "control", "baseline")
             for line in Path(f"runs/films/{name}/log.jsonl").read_text().splitlines()}  # fmt: skip
    long, short = 2 * -(-(SIZES["train"] + len(MORE)) // 16), 2 * -(-SIZES["train"] // 16)
    assert steps == {"distilled": long, **dict.fromkeys(("control", "baseline"), long if equal else short)}
    assert [len(call["data"]) for call in trainings] == [SIZES["train"] + len(MORE)] + [SIZES["train"]] * 2
    assert [call["settings"]["max_steps"] for call in alone] == [long if equal else 0] * 2


def test_the_distilled_student_is_handed_the_teachers_logits_of_every_unlabelled_text(
    script, films, trained, trainings, more, no_pictures
):
    flags = [*FLAGS, "--unlabelled", more, "--no-baseline"]
    status, out, _ = script("distill.py", "--dataset", films, "--teacher", trained, *flags)
    assert status == 0 and f"195 examples ({len(MORE)} of them unlabelled)" in out
    with (films / "train.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)] + MORE
    expected = logits_of(trained, texts, LENGTH, LABELS)
    (call,) = trainings
    (batch,) = make_batches(call["data"], [np.random.default_rng(0).permutation(len(texts))], torch.device("cpu"))
    assert np.allclose(call["teacher"](batch), expected[batch.index], atol=1e-4)
    assert (batch.labels.numpy() == -1).tolist() == (batch.index.numpy() >= SIZES["train"]).tolist()
    kept = load_file("runs/films/teacher-logits.safetensors")["logits"]
    assert np.allclose(kept, expected, atol=1e-4)
    status, out, _ = script("evaluate.py", "runs/films/distilled", "--split", "train")
    assert status == 0 and "another version" not in out
    assert "distilled was trained on a part of these examples" in out


def test_rows_without_a_label_are_distilled_on_and_evaluated_without(script, films, trained, tmp_path, no_pictures):
    folder = shutil.copytree(films, tmp_path / "own")
    with (folder / "train.csv").open("a", newline="") as file:
        csv.writer(file).writerows([(text, "") for text in MORE])
    flags = ["--dataset", folder, "--teacher", trained, *FLAGS, "--no-baseline", "--output-dir", "out"]
    status, out, _ = script("distill.py", *flags)
    assert status == 0 and f"rows without a label: {len(MORE)} unlabelled texts" in out
    assert script("evaluate.py", "out/distilled")[0] == 0
    status, _, err = script("train.py", "--dataset", folder, "--model", trained, "--max-length", LENGTH)
    assert status == 2 and f"line {SIZES['train'] + 2}: the label is empty" in err


def test_the_oracle_knows_nothing_of_unlabelled_texts(script, more):
    status, _, err = script("distill.py", "--teacher", "oracle", "--unlabelled", more)
    assert status == 2 and "--teacher oracle: the true probabilities are known for the texts of" in err


# Several teachers


def test_teachers_of_several_seeds_are_fine_tuned_and_averaged(script, films, learned, trainings, no_pictures):
    flags = [*FLAGS, "--teacher-seeds", 3, "--teacher-epochs", 1, "--no-baseline", "--T", 3, "--controls"]
    assert script("distill.py", "--dataset", films, "--teacher", learned, *flags)[0] == 0
    names = ["teacher-1", "teacher-2", "teacher-3"]
    assert [call["desc"] for call in trainings] == [*names, "distilled", "control"]
    assert [call["settings"]["seed"] for call in trainings] == [7, 8, 9, 7, 7]
    assert len({call["first_weights"] for call in trainings[:3]}) == 3  # a head for each seed
    assert trainings[3]["first_weights"] == model_fingerprint(
        student_from_teacher(from_pretrained("runs/films/teacher-1"), [0, 3], 7, head=True)
    )

    def mean(split, T):
        with (films / f"{split}.csv").open(newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        logits = [logits_of(f"runs/films/{name}", texts, LENGTH, LABELS) for name in names]
        return np.mean([scipy.special.softmax(one / T, axis=1) for one in logits], axis=0)

    (batch,) = make_batches(trainings[3]["data"], [np.arange(149, -1, -3)], torch.device("cpu"))
    taught = (trainings[3]["teacher"](batch) / 3).softmax(dim=-1)
    assert np.allclose(taught, mean("train", 3)[batch.index], atol=1e-4)
    results = json.loads(Path("runs/films/results.json").read_text())
    assert [row["name"] for row in results["models"]] == ["teacher", *names, "distilled", "control"]
    with Path("runs/films/predictions-teacher.csv").open(newline="") as file:
        probs = [[float(row[f"prob_{label}"]) for label in LABELS] for row in csv.DictReader(file)]
    assert np.allclose(probs, mean("test", 1), atol=1e-4)
    assert sorted(path.name for path in Path("runs/films").glob("teacher-logits*")) == [
        f"teacher-logits-{i}.safetensors" for i in (1, 2, 3)
    ]


def test_several_finished_teachers_are_used_as_they_are(script, films, trained, trainings, tmp_path, no_pictures):
    other = shutil.copytree(trained, tmp_path / "other")
    flags = [*FLAGS, "--no-baseline"]
    status, out, _ = script("distill.py", "--dataset", films, "--teacher", trained, other, *flags)
    assert status == 0 and [call["desc"] for call in trainings] == ["distilled"]
    assert f"teacher-2: {other} is fine-tuned already" in out and Path("runs/films/teacher-2/run.json").exists()


def test_one_finished_teacher_takes_the_place_of_a_recipes_three(
    script, films, trained, trainings, tmp_path, monkeypatch, no_pictures
):
    (tmp_path / "more.txt").write_text("a new film\n")
    monkeypatch.setitem(BEST["sst2-best"], "unlabelled", [str(tmp_path / "more.txt")])
    flags = ["--dataset", films, "--teacher", trained, *FLAGS, "--no-baseline"]
    status, out, err = script("distill.py", "--recipe", "sst2-best", *flags)
    assert status == 0, err
    assert f"--teacher-seeds 3 of the recipe is ignored: {trained} is fine-tuned already" in out
    assert [call["desc"] for call in trainings] == ["distilled"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--teacher", "{0}", "{0}", "--teacher-seeds", 2], "leave out --teacher-seeds and oracle"),
    (["--teacher", "{0}", "{0}", "--teacher-logits", "online"], "--teacher-logits online: takes one teacher"),
    (["--teacher", "{0}", "--teacher-seeds", 2, "--no-baseline"], "--teacher-seeds: {0} is fine-tuned already"),
    (["--teacher", "{0}", "{1}", "--no-baseline"], "its vocabulary is not the teacher's; name a model that has it"),
])  # fmt: skip
def test_teachers_that_do_not_go_together_are_refused(script, films, trained, trainings, tmp_path, flags, words):
    words_of_other = "zebra a the film plot was dull great boring".split()
    other = save_model(tmp_path / "other", labels=LABELS, words=words_of_other)
    flags = [str(flag).format(trained, other) for flag in flags]
    status, _, err = script("distill.py", "--dataset", films, *flags, *FLAGS)
    assert status == 2 and words.format(trained) in err and not trainings


# Augmentation


def test_augmented_texts_are_learned_from_with_the_teachers_logits_of_them(
    script, films, trained, trainings, more, no_pictures
):
    flags = [*FLAGS, "--augment", 3, "--unlabelled", more, "--teacher-base", "random"]
    assert script("distill.py", "--dataset", films, "--teacher", trained, *flags)[0] == 0
    distilled, baseline = trainings
    data, known = distilled["data"], SIZES["train"] + len(MORE)
    assert known + 1.5 * SIZES["train"] < len(data) <= known + 3 * SIZES["train"]
    assert (data.labels[SIZES["train"] :] == -1).all() and baseline["settings"]["max_steps"] == 2 * -(-len(data) // 16)
    model = from_pretrained(trained).eval()
    order = [model.config.labels.index(name) for name in LABELS]
    for index in (0, known - 1, known, len(data) - 1):
        ids = torch.from_numpy(data.ids[data.offsets[index] : data.offsets[index + 1]].astype(np.int64))[None]
        logits = model(ids).logits[0][order].detach()
        (batch,) = make_batches(data, [np.array([index])], torch.device("cpu"))
        torch.testing.assert_close(distilled["teacher"](batch)[0], logits, atol=1e-4, rtol=1e-4)
    status, out, _ = script("distill.py", "--dataset", films, "--teacher", trained, *flags, "--resume")
    assert status == 0 and "distilled: using" in out and len(trainings) == 2  # the same texts again


def test_neighbours_are_those_of_the_teacher_after_its_fine_tuning(script, films, learned, trainings, no_pictures):
    flags = [*FLAGS, "--augment", 2, "--no-baseline", "--max-steps", 2, "--teacher-epochs", 9, "--teacher-lr", 0.05]
    assert script("distill.py", "--dataset", films, "--teacher", learned, *flags)[0] == 0
    data = load_dataset(films)
    options = {"labels": data.labels, "device": "cpu", "precision": "fp32", "max_length": LENGTH}
    before, after = (
        augmented_texts(TextClassifier.load(folder, **options), data, Augmentation(2), 7)
        for folder in (learned, "runs/films/teacher")
    )
    altered = trainings[-1]["data"].part(SIZES["train"], len(trainings[-1]["data"]))
    assert np.array_equal(altered.ids, after.ids) and not np.array_equal(altered.ids, before.ids)


def test_augmented_texts_from_python(films, trained):
    data = load_dataset(films)
    teacher = TextClassifier.load(trained, labels=data.labels, device="cpu", precision="fp32", max_length=LENGTH)
    altered = augmented_texts(teacher, data, Augmentation(2), seed=1)
    texts = [*data.transfer.texts]
    logits = torch.cat((teacher.logits(texts), compute_logits(teacher.model, altered, teacher.device, "fp32")))
    students = []
    for knowledge in (teacher, logits):
        student = teacher.make_student(1, init="teacher", head=True)
        distill(
            student, knowledge, data, TrainConfig(epochs=1, max_steps=5), augmented=altered, run=Run(progress=False)
        )
        students.append(model_fingerprint(student.model))
    assert students[0] == students[1]
    with pytest.raises(MinikdError, match="unlabelled and augmented texts"):
        distill(student, logits[:-1], data, augmented=altered, run=Run(progress=False))
