"""The test split chooses nothing: with poisoned labels or other texts in it, all is the same but its own figures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import read_rows, write_rows
from independent import results_in
from safetensors.torch import load_file, save

pytestmark = pytest.mark.usefixtures("no_pictures")
FLAGS = ["--epochs", 6, "--teacher-epochs", 3, "--lr", "1e-2", "--teacher-lr", "3e-3", "--batch-size", 16,
         "--max-length", 16, "--precision", "fp32", "--device", "cpu"]  # fmt: skip
TRAIN_FLAGS = [*FLAGS[:2], *FLAGS[4:6], *FLAGS[8:]]
POISONS = ("wrong labels", "one label", "other texts")


@pytest.fixture(scope="session")
def poisoned(films, tmp_path_factory):
    """By name, the corpus `films` as it is and with three other test splits. All are called films."""
    folders = {}
    for name in ("as it is", *POISONS):
        folders[name] = shutil.copytree(films, tmp_path_factory.mktemp(name.replace(" ", "-")) / "films")
    texts, labels = read_rows(films / "test.csv")
    write_rows(folders["wrong labels"] / "test.csv", zip(texts, turned(labels)))
    write_rows(folders["one label"] / "test.csv", [(text, "mixed") for text in texts])
    random = np.random.default_rng(0)
    others = [" ".join(random.permutation(text.split() + ["plot", "very"])) + " film" for text in texts]
    write_rows(folders["other texts"] / "test.csv", list(zip(others, turned(labels)))[::2])
    return folders


def turned(labels):
    """Labels that are all wrong."""
    return [{"good": "bad", "bad": "mixed", "mixed": "good"}[label] for label in labels]


def chosen_by(output, names):
    """All that a run chooses or learns: the bytes of its weights, its history, the teacher's logits, the sweep."""
    found = {}
    for path in sorted(output.rglob("*.safetensors")):
        found[str(path.relative_to(output))] = save(load_file(path))  # without how long it took
    for path in sorted(output.rglob("run.json")):
        run = json.loads(path.read_text())
        history = [{key: value for key, value in line.items() if key != "seconds"} for line in run["history"]]
        found[str(path.relative_to(output))] = history, run["made_from"]
    results, _ = results_in(output)
    found["sweep"] = results.get("sweep")
    assert {f"{name}/model.safetensors" if name else "model.safetensors" for name in names} <= found.keys()
    return found


def figures_of(output):
    return [(row["accuracy"], row["nll"], row["ece"]) for row in results_in(output)[0]["models"]]


def assert_only_the_test_figures_differ(script, poisoned, command, names):
    """Runs the command on each corpus; returns what it chose."""
    chosen, figures = {}, {}
    for name, folder in poisoned.items():
        output = Path("out", name.replace(" ", "-"))
        status, _, err = script(*command, "--dataset", folder, "--output-dir", output)
        assert status == 0, err
        chosen[name], figures[name] = chosen_by(output, names), figures_of(output)
    for name in POISONS:
        assert figures[name] != figures["as it is"], name  # the poison is in the split that is reported
        assert chosen[name].keys() == chosen["as it is"].keys()
        for key, value in chosen[name].items():
            assert value == chosen["as it is"][key], (name, key)
    return chosen["as it is"]


def best_epoch(history):
    return max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))["epoch"]


def test_train_keeps_the_best_epoch_and_stops_early_by_validation_alone(script, poisoned, trained):
    command = ["train.py", "--model", trained, *TRAIN_FLAGS, "--epochs", 12, "--lr", "2e-2", "--patience", 2]
    chosen = assert_only_the_test_figures_differ(script, poisoned, command, [""])
    history, _ = chosen["run.json"]
    assert len(history) == best_epoch(history) + 2 < 12  # there was something to choose


def test_distill_chooses_nothing_on_test(script, poisoned, learned):
    command = ["distill.py", "--teacher", learned, "--student-layers", 2, *FLAGS, "--patience", 1]
    names = ["teacher", "distilled", "baseline"]
    chosen = assert_only_the_test_figures_differ(script, poisoned, command, names)
    assert "teacher-logits.safetensors" in chosen
    histories = [chosen[f"{name}/run.json"][0] for name in names]
    assert any(len(history) == best_epoch(history) + 1 < 6 for history in histories[1:])
    assert any(best_epoch(history) > 1 for history in histories)


def test_a_sweep_chooses_nothing_on_test(script, poisoned, learned):
    command = ["distill.py", "--teacher", learned, "--student-layers", 2, *FLAGS, "--no-baseline", "--epochs", 2,
               "--alpha", 0.1, 0.9, "--T", 1, 6]  # fmt: skip
    chosen = assert_only_the_test_figures_differ(script, poisoned, command, ["teacher", "distilled"])
    cells = chosen["sweep"]["cells"]
    assert len({(cell["validation_accuracy"], cell["validation_loss"]) for cell in cells}) == len(cells)


def test_calibrate_fits_nothing_on_test(script, poisoned, trained):
    found, figures = set(), []
    for name, folder in poisoned.items():
        output = Path("out", name.replace(" ", "-"))
        flags = ["--calibrate", "--max-length", 16, "--precision", "fp32", "--output-dir", output]
        assert script("evaluate.py", trained, "--dataset", folder, *flags)[0] == 0
        (row,) = results_in(output)[0]["models"]
        found.add(row["temperature"])
        figures.append((row["ece"], row["ece_calibrated"], row["nll_calibrated"]))
    assert len(found) == 1 and 0.06 < found.pop() < 19
    assert len(set(figures)) == len(poisoned)


def test_other_validation_labels_change_what_is_chosen(script, films, trained, tmp_path):
    """The other side: if a choice depended on the labels of the test split, the tests above would see it."""
    texts, labels = read_rows(films / "validation.csv")
    folder = shutil.copytree(films, tmp_path / "other" / "films")
    write_rows(folder / "validation.csv", zip(texts, turned(labels)))
    found = []
    for corpus, output in ((films, Path("one")), (folder, Path("two"))):
        flags = [*TRAIN_FLAGS, "--epochs", 5, "--output-dir", output]
        assert script("train.py", "--model", trained, "--dataset", corpus, *flags)[0] == 0
        found.append((output / "model.safetensors").read_bytes())
    assert found[0] != found[1]
