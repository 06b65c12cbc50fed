"""evaluate.py and train.py: which model is judged on which examples; what is fitted, measured and written for it."""

import base64
import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, save_model
from safetensors.torch import load_file, save_file

import minikd.experiment.training
from minikd.checkpoints.pretrained import from_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.classifier import TextClassifier
from minikd.cli.flags import DATA_DIR
from minikd.datasets import Split, load_dataset
from minikd.evaluation.calibration import calibration_metrics, fit_temperature
from minikd.evaluation.comparison import compare_students
from minikd.experiment import readme
from minikd.experiment.caches import cached_tokens
from minikd.files import atomic_write
from minikd.inference import compute_logits
from minikd.metrics import confusion_matrix

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
    tokens = cached_tokens(split, load_tokenizer(Path(folder)), max_length)
    return compute_logits(from_pretrained(folder), tokens, torch.device("cpu"), "fp32")


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
    words = "m was trained on a part of these examples: its figures are too optimistic"
    _, results, out = evaluate(script, "m", spread, "--split", "all", "--quantize", "int8")
    several = "m, m-int8 were trained on a part of these examples: their figures are too optimistic"
    assert results["trained_on"] == ["m", "m-int8"] and several in out and several in Path("out/results.md").read_text()
    _, results, out = evaluate(script, "m", "--split", "train")
    assert words in out
    _, results, out = evaluate(script, "m")
    assert "optimistic" not in out and "trained_on" not in results
    write_films(tmp_path / "other.csv", 40)
    assert "optimistic" not in evaluate(script, "m", "--dataset", "other.csv", "--split", "all")[2]


@pytest.mark.parametrize("split", ["test", "all"])
def test_a_model_trained_on_another_version_of_the_data_is_named(script, spread, tmp_path, split):
    write_films(tmp_path / "films.csv")
    flags = ["--dataset", "films.csv", "--layers", 1, "--hidden", 32, "--epochs", 1, *FP32, "--output-dir", "m"]
    assert script("train.py", *flags)[0] == 0
    words = "m was trained on another version of these data: its training texts may be in this split"
    _, results, out = evaluate(script, "m", spread, "--split", split)
    assert "another version" not in out and "trained_on_another_version" not in results
    write_films(tmp_path / "films.csv", 130)  # it has grown
    _, results, out = evaluate(script, "m", spread, "--split", split)
    assert results["trained_on_another_version"] == ["m"]
    assert out.count(words) == 1 and words in Path("out/results.md").read_text() and "optimistic" not in out
    several = "m, m-int8 were trained on another version of these data: their training texts may be in this split"
    assert several in evaluate(script, "m", "--split", split, "--quantize", "int8")[2]
    write_films(tmp_path / "other.csv", 130)
    assert "another version" not in evaluate(script, "m", "--dataset", "other.csv", "--split", split)[2]
    record = read_json("m/run.json")
    Path("m/run.json").write_text(json.dumps(record | {"copied_from": "elsewhere"}))
    assert "another version" not in evaluate(script, "m", "--split", split)[2]
    record["versions"]["tokenizers"] = "0.1"  # its fingerprints have another key: nothing is known
    Path("m/run.json").write_text(json.dumps(record))
    assert "another version" not in evaluate(script, "m", "--split", split)[2]


def test_a_model_trained_on_phrases_of_another_agreement_is_named(script, tmp_path):
    folder, labels = tmp_path / "data/FinancialPhraseBank-v1.0", ("positive", "negative", "neutral")
    for name, count in (("75Agree", 3453), ("AllAgree", 2264)):
        atomic_write(folder / f"Sentences_{name}.txt", "".join(f"word {i}@{labels[i % 3]}\n" for i in range(count)))
    flags = [
        "--dataset",
        "fpb",
        "--data-dir",
        "data",
        "--layers",
        1,
        "--hidden",
        32,
        "--epochs",
        1,
        "--batch-size",
        256,
    ]
    assert script("train.py", *flags, "--fpb-agreement", "75", *FP32, "--output-dir", "m")[0] == 0
    words = "m was trained on another version of these data: its training texts may be in this split"
    assert "another version" not in evaluate(script, "m")[2]
    assert words in evaluate(script, "m", "--fpb-agreement", "all")[2]
    record = read_json("m/run.json")
    record["versions"]["tokenizers"] = "0.1"  # fingerprints cannot be compared then, the agreement can
    Path("m/run.json").write_text(json.dumps(record))
    assert "another version" not in evaluate(script, "m")[2]
    assert words in evaluate(script, "m", "--fpb-agreement", "all")[2]


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


# Which model, tokenizer and settings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A classifier with other weights and another vocabulary than `spread`: the same word has another id."""
    folder = tmp_path_factory.mktemp("other")
    return save_model(folder, labels=("good", "bad"), words=[*"aardvark zebra yacht".split(), *WORDS],
                      initializer_range=0.6, hidden_size=24)  # fmt: skip


def test_each_model_reads_with_its_own_tokenizer_and_answers_for_itself(script, reviews, spread, other):
    evaluate(script, other, spread, "--dataset", reviews)
    test = load_dataset(reviews).test
    for folder in (spread, other):
        probs = logits_of(folder, test).softmax(dim=-1)
        good = from_pretrained(folder).config.labels.index("good")
        written = [float(row["prob_good"]) for row in read_csv(f"out/predictions-{folder.name}.csv")]
        assert written == pytest.approx(probs[:, good].tolist(), abs=1e-5)
    ids = [load_tokenizer(folder).encode(["great film"], 32)[0].tolist() for folder in (spread, other)]
    assert ids[0] != ids[1]


def test_a_temperature_is_fitted_to_each_model_on_validation_and_applied_to_the_test_split(
    script, reviews, spread, tmp_path
):
    sharp, random = shutil.copytree(spread, tmp_path / "sharp"), np.random.default_rng(3)
    tensors = load_file(sharp / "model.safetensors")
    save_file(tensors | {f"classifier.{k}": 3 * tensors[f"classifier.{k}"] for k in ("weight", "bias")},
              sharp / "model.safetensors")  # fmt: skip
    for name, wrong in {"train": 0.3, "validation": 0.15, "test": 0.35}.items():  # what is fitted differs by split
        split = getattr(load_dataset(reviews), name)
        labels = logits_of(spread, split).argmax(dim=-1).numpy() ^ (random.random(len(split.texts)) < wrong)
        lines = (f"{text},{('bad', 'good')[label]}\n" for text, label in zip(split.texts, labels))
        Path(tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    rows, _, _ = evaluate(script, spread, "sharp", "--dataset", "own", "--calibrate")
    data, fitted = load_dataset("own"), {}
    for folder in (spread, sharp):
        validation, test = (logits_of(folder, split) for split in (data.validation, data.test))
        T = fit_temperature(validation, torch.tensor(data.validation.labels))
        assert 0.06 < T < 19 and abs(T - fit_temperature(test, torch.tensor(data.test.labels))) > 0.1
        fitted[folder.name] = T
        row, after = rows[folder.name], calibration_metrics(test / T, torch.tensor(data.test.labels))
        assert row["temperature"] == pytest.approx(T, rel=1e-4)
        assert row["ece_calibrated"] == pytest.approx(after["ece"], abs=1e-4)
        assert row["nll_calibrated"] == pytest.approx(after["nll"], abs=1e-4)
    assert fitted["sharp"] == pytest.approx(3 * fitted[spread.name], rel=1e-3)


@pytest.mark.parametrize("split", ["validation", "all"])
def test_calibration_is_refused_on_examples_that_it_fits_on(script, reviews, spread, split):
    status, _, err = script("evaluate.py", spread, "--dataset", reviews, "--calibrate", "--split", split)
    assert status == 2 and "--calibrate fits on the validation split" in err and err.count("\n") == 1


def test_quantised_copies_agree_with_their_own_original(script, reviews, spread, other):
    rows, _, out = evaluate(script, spread, other, "--dataset", reviews, "--quantize", "int4")
    assert list(rows) == [spread.name, f"{spread.name}-int4", other.name, f"{other.name}-int4"]
    answers = {name: [row["predicted"] for row in read_csv(f"out/predictions-{name}.csv")] for name in rows}
    for folder in (spread, other):
        own, full = answers[f"{folder.name}-int4"], answers[folder.name]
        assert rows[f"{folder.name}-int4"]["agreement"] == pytest.approx(np.mean([a == b for a, b in zip(own, full)]))
        assert "agreement" not in rows[folder.name]
        assert f"{folder.name}-int4 against {folder.name} in fp32: latency one at a time" in out
        assert from_pretrained(f"out/{folder.name}-int4").config.quantization == "int4"
        assert read_json(f"out/{folder.name}-int4/run.json")["quantized_from"] == str(folder)


def test_the_predictions_of_models_evaluated_earlier_stay_in_the_folder(script, reviews, spread, other):
    for folder in (spread, other):
        evaluate(script, folder, "--dataset", reviews)
    assert {path.name for path in Path("out").glob("*.csv")} == {f"predictions-{m.name}.csv" for m in (spread, other)}


def test_without_an_output_folder_nothing_is_written(script, reviews, spread):
    assert script("evaluate.py", spread, "--dataset", reviews, "--quantize", "int8", "--calibrate", *FP32)[0] == 0
    assert [path.name for path in Path().iterdir()] == ["cache"]


def test_a_quantised_copy_takes_no_other_models_name(script, reviews, spread, tmp_path):
    for folder in ("m", "m-int8"):
        shutil.copytree(spread, tmp_path / folder)
    status, _, err = script("evaluate.py", "m-int8", "m", "--dataset", reviews, "--quantize", "int8", *FP32)
    assert status == 2 and "--quantize int8: m-int8 is the name of another model here" in err


def test_flags_that_are_not_given_are_those_the_first_model_was_trained_with(script, reviews, spread, tmp_path, stop):
    first, second, plain = (tmp_path / name for name in ("first", "second", "plain"))
    for folder in (first, second, plain):
        shutil.copytree(spread, folder)
    record = {"dataset": "fpb", "data_dir": "/theirs", "fpb_agreement": "75", "max_length": 20}
    (first / "run.json").write_text(json.dumps({"arguments": record}))
    (second / "run.json").write_text(json.dumps({"arguments": record | {"dataset": "sst2", "max_length": 10}}))
    calls = stop("minikd.cli.start.load_dataset")
    out = [script("evaluate.py", *models)[1] for models in ([first, second], [plain, second, first])]
    own = dict.fromkeys(("text_column", "label_column", "encoding", "model_labels")) | {"unlabelled": ()}
    given = {"agreement": "75", **own}
    assert calls == [(("fpb", Path("/theirs")), given), (("sst2", Path("/theirs")), given)]
    assert "max_length 20" in out[0] and "max_length 10" in out[1]
    given = ["--dataset", "imdb", "--data-dir", "mine", "--fpb-agreement", "all", "--max-length", 12]
    _, out, _ = script("evaluate.py", first, *given)
    assert calls[2] == (("imdb", Path("mine")), {"agreement": "all", **own}) and "max_length 12" in out
    _, out, _ = script("evaluate.py", plain, "--dataset", "imdb")
    assert calls[3] == (("imdb", DATA_DIR), {"agreement": "50", **own})
    assert "max_length 32" in out  # the model's positions are fewer than the corpus's default
    (first / "run.json").write_text(json.dumps({"arguments": record | {"max_length": 500}}))
    assert "max_length 32" in script("evaluate.py", first)[1]
    short = save_model(tmp_path / "short", labels=("bad", "good"), max_position_embeddings=16)
    for models in ([plain, short, "--dataset", "imdb"], [short, plain, "--dataset", "imdb"], [first, short]):
        assert "max_length 16" in script("evaluate.py", *models)[1]  # what all of them can read


def test_texts_are_cut_at_the_length_asked_for(script, reviews, spread):
    rows, results, _ = evaluate(script, spread, "--dataset", reviews, "--max-length", 5)
    logits = logits_of(spread, load_dataset(reviews).test, max_length=5)
    written = [float(row["prob_good"]) for row in read_csv(f"out/predictions-{spread.name}.csv")]
    assert written == pytest.approx(logits.softmax(dim=-1)[:, 1].tolist(), abs=1e-5)
    assert rows[spread.name]["padded_tokens"] == 5 and results["precision"] == "fp32"


def test_the_page_and_the_table_are_of_one_split(script, reviews, spread, other):
    evaluate(script, spread, other, "--dataset", reviews, "--split", "validation", "--html", "page.html")
    packed = re.findall(r"[A-Za-z0-9+/=]{100,}", Path("page.html").read_text(encoding="utf-8"))
    parts = [gzip.decompress(base64.b64decode(part)) for part in packed]
    split = load_dataset(reviews).validation
    assert json.dumps(split.texts).encode() in parts
    (numbers,) = (part for part in parts if len(part) == 4 * SIZES["validation"] * (2 + 2 + 1))
    logits = torch.cat([logits_of(spread, split).flatten(), logits_of(other, split)[:, [1, 0]].flatten()])  # good, bad
    assert np.allclose(np.frombuffer(numbers, "<f4", len(logits)), logits, atol=1e-4)  # the first is the teacher
    assert np.frombuffer(numbers, "<u4", offset=4 * len(logits)).tolist() == split.labels


def test_new_texts_are_labelled_by_the_model_given_at_the_length_given(script, spread, other):
    texts = ["great great great great film", "dull plot, very dull plot"]
    Path("new.txt").write_text("\n".join(texts))
    for folder, length in ((spread, 32), (other, 32), (spread, 4)):
        command = ["evaluate.py", folder, "--input", "new.txt", "--output", "labels.csv", "--max-length", length]
        assert script(*command, *FP32)[0] == 0
        probs = logits_of(folder, Split(texts, [0, 0]), length).softmax(dim=-1)
        good = from_pretrained(folder).config.labels.index("good")
        written = read_csv("labels.csv")
        assert [row["text"] for row in written] == texts
        assert [float(row["prob_good"]) for row in written] == pytest.approx(probs[:, good].tolist(), abs=1e-5)
        names = from_pretrained(folder).config.labels
        assert [row["predicted"] for row in written] == [names[i] for i in probs.argmax(dim=-1)]


# minikd.evaluate -----------------------------------------------------------------------------------------------------


def test_times_memory_and_costs_go_to_the_model_they_are_of(reviews, spread, other, tmp_path, monkeypatch):
    test, cpu, models, seen = load_dataset(reviews).test, torch.device("cpu"), {}, {}
    folders = {"teacher": spread, "student": other}
    for name, folder in folders.items():
        labels = ("bad", "good")
        models[name] = TextClassifier.load(folder, labels=labels, max_length=32, device="cpu", precision="fp32")
        models[name].source = str(tmp_path / name)
    tokens = {name: cached_tokens(test, load_tokenizer(folder), 32).fingerprint for name, folder in folders.items()}
    assert tokens["teacher"] != tokens["student"]
    for name, minutes in (("teacher", 3), ("student", 1)):
        (tmp_path / name).mkdir()
        history = [{"seconds": 45.0 * minutes}, {"seconds": 15.0 * minutes}]
        record = {
            "arguments": {},
            "trained_parameters": minutes,
            "training_memory_mb": 10 * minutes,
            "history": history,
        }
        (tmp_path / name / "run.json").write_text(json.dumps(record))

    def speed(given, splits, device, precision):
        seen["speed"] = (given, [split.fingerprint for split in splits], device, precision)
        return [{"batch_128_ms": 10.0 * (i + 1), "latency_ms": float(i)} for i in range(len(given))]

    def memory(model, split, device, precision):
        name = next(name for name in models if models[name].model is model)
        assert split.fingerprint == tokens[name] and (device, precision) == (cpu, "fp32")
        return {"teacher": 700.0, "student": 600.0}[name]

    monkeypatch.setattr("minikd.experiment.results.measure_speed", speed)
    monkeypatch.setattr("minikd.experiment.results.inference_memory_mb", memory)
    results = minikd.evaluate(models, test, costs=True)
    rows = results.values["models"]
    assert seen["speed"] == ([one.model for one in models.values()], list(tokens.values()), cpu, "fp32")
    keys = ("name", "batch_128_ms", "latency_ms", "peak_memory_mb", "trained_parameters", "training_memory_mb",
            "training_minutes", "speed_up")  # fmt: skip
    assert [[row[key] for key in keys] for row in rows] == [
        ["teacher", 10.0, 0.0, 700.0, 3, 30, 3.0, 1.0], ["student", 20.0, 1.0, 600.0, 1, 10, 1.0, 0.5],
    ]  # fmt: skip
    for row in rows:
        (own,) = results.logits[row["name"]]
        assert row["accuracy"] == pytest.approx((own.argmax(dim=-1) == torch.tensor(test.labels)).float().mean().item())
        assert row["parameters"] == sum(p.numel() for p in models[row["name"]].model.parameters())
        assert row["path"] == str(tmp_path / row["name"])


def test_significance_is_distilled_less_baseline():
    split = Split(["a", "b", "c", "d"], [0, 1, 0, 1])
    right = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    logits = {"teacher": [right], "distilled": [right, right], "baseline": [right.flip(1), right]}
    found = compare_students(logits, split)["significance"]
    assert found["difference"] == 0.5 and [seed["only_a"] for seed in found["seeds"]] == [4, 0]
    assert compare_students({"teacher": [right]}, split) == {}


# train.py ------------------------------------------------------------------------------------------------------------


def test_the_results_of_a_trained_teacher_can_be_added_to_those_of_the_readme(script, reviews, tmp_path, monkeypatch):
    flags = ["--layers", 1, "--hidden", 32, "--epochs", 1, *FP32, "--output-dir", "imdb-teacher"]
    assert script("train.py", "--dataset", reviews, *flags)[0] == 0
    monkeypatch.setattr("minikd.experiment.readme.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme", "--add", "imdb-teacher", "imdb-teacher/results.json"])
    Path("README.md").write_text("<!-- results imdb-teacher accuracy -->\n<!-- end -->\n")
    readme.main()
    added, row = read_json("data/results/imdb-teacher.json"), read_json("imdb-teacher/results.json")["models"][0]
    assert added["models"][0]["accuracy"] == row["accuracy"] and added["models"][0]["training_minutes"] > 0
    assert str(tmp_path) not in json.dumps(added) and str(reviews) not in json.dumps(added)
    assert f"| accuracy | {row['accuracy']:.4f} |" in Path("README.md").read_text()


def test_train_is_handed_the_splits_and_judged_on_the_test_split(script, reviews, spread, monkeypatch):
    calls, run_training = [], minikd.experiment.training.run_training

    def spy(model, data, validation, *arguments, **options):
        calls.append((data.labels.tolist(), validation.labels.tolist()))
        return run_training(model, data, validation, *arguments, **options)

    monkeypatch.setattr(minikd.experiment.training, "run_training", spy)
    flags = ["--model", spread, "--epochs", 2, "--lr", "1e-3", *FP32, "--max-length", 16, "--output-dir", "out"]
    assert script("train.py", "--dataset", reviews, *flags)[0] == 0
    data = load_dataset(reviews)
    assert calls == [(data.train.labels, data.validation.labels)]
    logits, labels = logits_of("out", data.test, 16), torch.tensor(data.test.labels)
    (row,) = read_json("out/results.json")["models"]
    assert row["confusion"] == confusion_matrix(labels, logits.argmax(dim=-1), 2).tolist()
    assert row["nll"] == pytest.approx(calibration_metrics(logits, labels)["nll"], abs=1e-6)
    written = read_csv("out/predictions-model.csv")
    assert [row["text"] for row in written] == data.test.texts
    assert [row["label"] for row in written] == [data.labels[label] for label in data.test.labels]
    good = [float(row["prob_good"]) for row in written]
    assert good == pytest.approx(logits.softmax(dim=-1)[:, 1].tolist(), abs=1e-5)
    assert not torch.equal(from_pretrained("out").classifier.weight, from_pretrained(spread).classifier.weight)


def test_a_new_model_has_the_shape_and_the_vocabulary_asked_for(script, reviews, stop):
    calls = stop("minikd.experiment.training.run_training")
    flags = ["--dataset", reviews, *FP32]
    for shape in (["--layers", 3], ["--hidden", 64], ["--layers", 1, "--hidden", 128, "--max-length", 600]):
        script("train.py", *flags, *shape)
    shapes = [(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.max_position_embeddings)
              for config in (arguments[0].config for arguments, _ in calls)]  # fmt: skip
    assert [shape[:2] for shape in shapes] == [(3, 256), (4, 64), (1, 128)] and shapes[2][3] == 600
    assert all(arguments[0].config.labels == ("bad", "good") for arguments, _ in calls)
    assert all(arguments[3].lr == 4e-4 for arguments, _ in calls)  # as the sample's, which start from random weights


def test_a_new_vocabulary_is_learned_from_the_training_texts_alone(script, reviews, stop, tmp_path):
    other = shutil.copytree(reviews, tmp_path / "other")
    for name in ("validation", "test"):
        header, *rows = (other / f"{name}.csv").read_text().splitlines()
        (other / f"{name}.csv").write_text("\n".join([header, *(f"quixotic zebras {row}" for row in rows)]))
    calls = stop("minikd.experiment.training.run_training")
    for folder in (reviews, other):
        script("train.py", "--dataset", folder, "--layers", 1, "--hidden", 32, *FP32)
    one, two = ((model.config.vocab_size, data.fingerprint) for (model, data, *_), _ in calls)
    assert one == two


def test_the_seed_decides_a_new_models_first_weights_and_not_the_split(script, corpus, stop):
    calls = stop("minikd.experiment.training.run_training")
    for seed in (1, 1, 2):
        script("train.py", "--dataset", corpus, "--layers", 1, "--hidden", 32, "--seed", seed, *FP32)
    one, again, two = (arguments[0].classifier.weight for arguments, _ in calls)
    assert torch.equal(one, again) and not torch.equal(one, two)
    splits = {tuple(split.fingerprint for split in arguments[1:3]) for arguments, _ in calls}  # train and validation
    assert len(splits) == 1


def test_the_labels_of_the_test_split_change_nothing_but_its_own_figures(script, reviews, spread, tmp_path):
    shutil.copytree(reviews, tmp_path / "poisoned")
    test = tmp_path / "poisoned" / "test.csv"
    lines = [line.rsplit(",", 1) for line in test.read_text().splitlines()[1:]]
    turned = (f"{text},{'bad' if label == 'good' else 'good'}\n" for text, label in lines)
    test.write_text("text,label\n" + "".join(turned))
    found = {}
    for name, data in (("clean", reviews), ("poisoned", "poisoned")):
        flags = ["--model", spread, "--epochs", 3, "--patience", 1, "--lr", "1e-2", *FP32, "--output-dir", name]
        assert script("train.py", "--dataset", data, *flags)[0] == 0
        history = [epoch | {"seconds": 0} for epoch in read_json(f"{name}/run.json")["history"]]
        weights = Path(name, "model.safetensors").read_bytes()
        rows, _, _ = evaluate(script, name, "--dataset", data, "--calibrate")
        found[name] = history, weights, rows[name]["temperature"]
        found[f"accuracy of {name}"] = rows[name]["accuracy"]
    assert found["clean"] == found["poisoned"]
    assert found["accuracy of clean"] == pytest.approx(1 - found["accuracy of poisoned"])
