"""evaluate.py and train.py: which model is judged on which examples; what is fitted, measured and written for it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, save_model

from minikd import readme
from minikd.batching import tokenize_split
from minikd.checkpoint import from_pretrained
from minikd.datasets import Split, load_dataset
from minikd.inference import predict
from minikd.metrics import confusion_matrix
from minikd.tokenizer import load_tokenizer

SIZES = {"train": 60, "validation": 17, "test": 23}  # unequal, so that one split cannot pass for another
FP32 = ["--precision", "fp32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """No logits of another test can answer for a model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A folder with a file for each split, whose labels are no function of the words."""
    folder, random = tmp_path_factory.mktemp("reviews"), np.random.default_rng(1)
    texts = sorted({" ".join(random.choice(WORDS, random.integers(3, 12))) for _ in range(300)})
    texts = [texts[i] for i in random.permutation(len(texts))[: sum(SIZES.values())]]
    for name, size in SIZES.items():
        rows, texts = texts[:size], texts[size:]
        labels = random.permutation(["good", "bad", "bad"] * size)[:size]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"{t},{lab}\n" for t, lab in zip(rows, labels)))
    return folder


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """A classifier of wide weights: both labels occur among its answers, and its logits differ from text to text."""
    return save_model(tmp_path_factory.mktemp("spread"), labels=("bad", "good"), initializer_range=0.5)


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logits_of(folder, split, max_length=32):
    """What the model in `folder`, with its own tokenizer, says to the split."""
    tokens = tokenize_split(split, load_tokenizer(Path(folder)), max_length)
    return predict(from_pretrained(folder), tokens, torch.device("cpu"), "fp32")


def evaluate(script, *arguments, status=0):
    """Runs evaluate.py into the folder out; returns its results by name of the model, all results, and the output."""
    found, out, err = script("evaluate.py", *arguments, *FP32, "--output-dir", "out")
    assert (found, err) == (status, "")
    results = read_json("out/results.json")
    return {row["name"]: row for row in results["models"]}, results, out


def write_films(path, count=50):
    """A file of `count` rows, every third of them "good"; returns its texts in order."""
    texts = [f"{WORDS[i % len(WORDS)]} film number {i}" for i in range(count)]
    path.write_text("text,label\n" + "".join(f"{t},{'bad' if i % 3 else 'good'}\n" for i, t in enumerate(texts)))
    return texts


# Which examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_a_model_is_judged_on_the_split_asked_for(script, reviews, spread, name):
    rows, results, out = evaluate(script, spread, "--dataset", reviews, "--split", name)
    split = getattr(load_dataset(reviews), name)
    logits = logits_of(spread, split)
    assert 0 < logits.argmax(dim=-1).sum() < len(logits)  # both labels are answered: a mix-up would show
    assert (results["split"], results["examples"]) == (name, SIZES[name])
    labels = torch.tensor(split.labels)
    assert rows[spread.name]["confusion"] == confusion_matrix(labels, logits.argmax(dim=-1), 2).tolist()
    written = read_csv(f"out/predictions-{spread.name}.csv")
    assert [row["label"] for row in written] == [("bad", "good")[label] for label in split.labels]
    good = torch.tensor([float(row["prob_good"]) for row in written])
    assert torch.allclose(good, logits.softmax(dim=-1)[:, 1], atol=1e-5)
    assert f"{name}: {SIZES[name]} of 100 examples of {reviews.name}; --split all takes all of them" in out


def test_a_file_is_evaluated_whole_and_in_its_own_order(script, spread, tmp_path):
    texts = write_films(tmp_path / "films.csv")
    rows, results, out = evaluate(script, spread, "--dataset", "films.csv")
    assert results["examples"] == len(read_csv(f"out/predictions-{spread.name}.csv")) == 5
    assert "test: 5 of 50 examples of films; --split all takes all of them" in out
    rows, results, out = evaluate(script, spread, "--dataset", "films.csv", "--split", "all")
    written = read_csv(f"out/predictions-{spread.name}.csv")
    assert [row["text"] for row in written] == texts
    assert [row["label"] for row in written] == ["bad" if i % 3 else "good" for i in range(50)]
    logits = logits_of(spread, Split(texts, [0] * 50))
    assert [row["predicted"] for row in written] == [("bad", "good")[i] for i in logits.argmax(dim=-1)]
    assert results["examples"] == 50 and "films, all 50 examples" in out
    assert "bag_of_words" not in results and "training" not in out  # it was not trained on them, as far as we know


def test_all_of_a_folder_is_its_splits_one_after_the_other(script, reviews, spread):
    _, results, _ = evaluate(script, spread, "--dataset", reviews, "--split", "all")
    data = load_dataset(reviews)
    texts = [text for name in SIZES for text in getattr(data, name).texts]
    assert [row["text"] for row in read_csv(f"out/predictions-{spread.name}.csv")] == texts


def test_all_of_the_sample_keeps_its_known_probabilities():
    data = load_dataset("sample")
    assert data.all.texts == data.train.texts + data.validation.texts + data.test.texts
    assert data.all.labels == data.train.labels + data.validation.labels + data.test.labels
    assert data.all.probabilities.shape == (len(data.all.texts), 2)
    assert (data.all.probabilities[-1] == data.test.probabilities[-1]).all()


def test_all_examples_are_said_to_hold_those_of_the_models_training(script, spread, tmp_path):
    write_films(tmp_path / "films.csv")
    flags = ["--dataset", "films.csv", "--layers", 1, "--hidden", 32, "--epochs", 1, *FP32, "--output-dir", "m"]
    assert script("train.py", *flags)[0] == 0
    words = "m was trained on a part of these examples: its figures flatter"
    _, results, out = evaluate(script, "m", spread, "--split", "all", "--quantize", "int8")
    several = "m, m-int8 were trained on a part of these examples: their figures flatter"
    assert results["trained_on"] == ["m", "m-int8"] and several in out and several in Path("out/results.md").read_text()
    _, results, out = evaluate(script, "m", "--split", "train")
    assert words in out
    _, results, out = evaluate(script, "m")
    assert "flatter" not in out and "trained_on" not in results
    write_films(tmp_path / "other.csv", 40)
    assert "flatter" not in evaluate(script, "m", "--dataset", "other.csv", "--split", "all")[2]


def test_predictions_hold_the_text_and_stay_one_row_an_example(script, spread, tmp_path):
    texts = ['a "great" film, very', "dull\nplot", "fine\rfilm", "word " * 100]
    rows = [{"text": text, "label": label} for text in texts for label in ("bad", "good")]
    rows += [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(20)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(script, spread, "--dataset", "odd.jsonl", "--split", "all")
    written = read_csv(f"out/predictions-{spread.name}.csv")
    assert [row["index"] for row in written] == [str(i) for i in range(28)]
    assert [row["text"] for row in written[:8:2]] == [*texts[:3], ("word " * 100)[:200] + "…"]
    assert list(written[0]) == ["index", "label", "predicted", "prob_bad", "prob_good", "text"]


# train.py ------------------------------------------------------------------------------------------------------------


def test_the_results_of_a_trained_teacher_can_be_added_to_those_of_the_readme(script, reviews, tmp_path, monkeypatch):
    flags = ["--layers", 1, "--hidden", 32, "--epochs", 1, *FP32, "--output-dir", "imdb-teacher"]
    assert script("train.py", "--dataset", reviews, *flags)[0] == 0
    monkeypatch.setattr("minikd.readme.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme", "--add", "imdb-teacher", "imdb-teacher/results.json"])
    Path("README.md").write_text("<!-- results imdb-teacher accuracy -->\n<!-- end -->\n")
    readme.main()
    added, row = read_json("data/results/imdb-teacher.json"), read_json("imdb-teacher/results.json")["models"][0]
    assert added["models"][0]["accuracy"] == row["accuracy"] and added["models"][0]["training_minutes"] > 0
    assert str(tmp_path) not in json.dumps(added) and str(reviews) not in json.dumps(added)
    assert f"| accuracy | {row['accuracy']:.4f} |" in Path("README.md").read_text()
