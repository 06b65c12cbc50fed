"""A sweep over alpha and T: what it is chosen by, on which examples, and what is said of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, WORDS
from test_runs import Kill, counted, kill_at

from minikd.batching import TokenizedSplit
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.classifier import TextClassifier
from minikd.config import EncoderConfig
from minikd.datasets import load_dataset
from minikd.evaluation.calibration import calibration_metrics
from minikd.experiment.caches import cached_tokens
from minikd.experiment.runs import finish_publishing
from minikd.experiment.sweep import publish_copy, run_sweep
from minikd.inference import compute_logits
from minikd.model import Classifier
from minikd.report.tables import CRITERIA, best_cell, notes, sweep_table
from minikd.tokenizer import train_wordpiece

CPU = torch.device("cpu")
# By alpha: the most accurate but far too sure of itself, the one of the best likelihood, and one that knows the base
# rates alone, which is perfectly calibrated.
SURE, LIKELY, BLIND = 0.1, 0.5, 0.9


@pytest.fixture(scope="module")
def students():
    """The three students by alpha, and a validation split of 100 on which they are that."""
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=8, initializer_range=0.5)  # fmt: skip
    random = np.random.default_rng(0)
    ids, offsets = random.integers(1, 50, 600).astype(np.int32), np.arange(0, 601, 6)
    split = TokenizedSplit(ids, offsets, np.zeros(100, dtype=np.int64), 0, "")
    models = {alpha: Classifier(config) for alpha in (SURE, LIKELY, BLIND)}
    for model in models.values():
        model.load_state_dict(models[SURE].state_dict())
    with torch.no_grad():
        logits = compute_logits(models[SURE], split, CPU, "fp32")
        margin = logits[:, 1] - logits[:, 0]
        models[SURE].classifier.bias[1] -= margin.median()  # half of the answers are 1
        labels = (margin > margin.median()).long().numpy()
        labels[random.permutation(100)[:20]] ^= 1  # 80 right
        models[LIKELY].load_state_dict(models[SURE].state_dict())
        scale = 1.2 / margin.std()
        models[LIKELY].classifier.weight *= scale
        models[LIKELY].classifier.bias *= scale
        models[LIKELY].classifier.bias[1] += 0.1  # a few more answers of 1, which are wrong
        models[SURE].classifier.weight *= 50 * scale
        models[SURE].classifier.bias *= 50 * scale
        models[BLIND].classifier.weight.zero_()
        models[BLIND].classifier.bias.copy_(torch.tensor([(labels == i).mean() for i in (0, 1)]).log())
    return models, TokenizedSplit(ids, offsets, labels, 0, "")


def classifier(model):
    return TextClassifier(model, train_wordpiece(WORDS, 40), device=CPU, precision="fp32")


@pytest.mark.parametrize(("choose", "alpha"), [("accuracy", SURE), ("nll", LIKELY), ("ece", BLIND)])
def test_a_sweep_chooses_by_what_was_asked_for(students, choose, alpha, tmp_path, capsys):
    models, validation = students

    def distil(alpha, T, folder, name):
        save_pretrained(models[alpha], folder)
        return classifier(models[alpha])

    left = tmp_path / "distilled/.partial/state.pt"  # by an earlier run that was interrupted
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    sweep = run_sweep([SURE, LIKELY, SURE, BLIND], [2.0, 2.0], distil, validation, tmp_path, choose)
    assert sweep["chosen"] == {"alpha": alpha, "T": 2.0} and sweep["choose"] == choose
    assert len(sweep["cells"]) == 3 and not left.exists()  # a value given twice counts once
    kept = from_pretrained(tmp_path / "distilled").state_dict()
    assert torch.equal(kept["classifier.weight"], models[alpha].classifier.weight)
    chosen = [line for line in capsys.readouterr().out.splitlines() if line.endswith(f"← chosen by {choose}")]
    assert len(chosen) == 1 and chosen[0].startswith(f"alpha {alpha:g}")
    for cell in sweep["cells"]:
        logits = compute_logits(models[cell["alpha"]], validation, CPU, "fp32")
        figures = calibration_metrics(logits, torch.from_numpy(validation.labels))
        assert (cell["validation_loss"], cell["validation_ece"]) == (figures["nll"], figures["ece"])


def test_a_tie_goes_to_the_lower_nll_and_then_to_the_earlier_pair():
    figures = [(0.8, 0.5, 0.2), (0.9, 0.6, 0.1), (0.9, 0.4, 0.1), (0.9, 0.4, 0.3)]
    keys = ("validation_accuracy", "validation_loss", "validation_ece")
    cells = [dict(zip(keys, cell)) for cell in figures]
    for choose in ("accuracy", "nll", "ece"):
        assert best_cell(cells, choose) is cells[2]
        assert best_cell(cells[:2], choose) is cells[choose != "nll"]


def test_a_pair_given_twice_is_one_student(students, tmp_path):
    models, validation = students
    trained = []

    def distil(alpha, T, folder, name):
        trained.append((alpha, T))
        save_pretrained(models[alpha], folder)
        return classifier(models[alpha])

    sweep = run_sweep([SURE, LIKELY, SURE], [2.0, 2.0], distil, validation, tmp_path)
    assert trained == [(SURE, 2.0), (LIKELY, 2.0)] == [(cell["alpha"], cell["T"]) for cell in sweep["cells"]]


def write_run(folder, text):
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "run.json"):
        (folder / name).write_text(text)


def read_folder(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} if folder.exists() else {}


@pytest.mark.parametrize("before", [True, False], ids=["an older student", "none"])
def test_a_kill_while_the_chosen_student_is_copied_leaves_no_half_of_one(before, tmp_path, monkeypatch):
    for count in range(1, 100):
        output = tmp_path / str(count)
        write_run(output / "sweep/chosen", "new")
        if before:
            write_run(output / "distilled", "old")
        whole = [read_folder(output / name) for name in ("sweep/chosen", "distilled")]
        with monkeypatch.context() as patch:
            left = kill_at(patch, count)
            patch.setattr(shutil, "copyfile", counted(shutil.copyfile, left))
            try:
                publish_copy(output / "sweep/chosen", output / "distilled")
            except Kill:
                pass
            else:
                break
        left = read_folder(output / "distilled")
        assert left in whole or not {"run.json", "model.safetensors"} <= left.keys(), count
        finish_publishing(output / "distilled")  # as every command does that looks for a finished run here
        assert read_folder(output / "distilled") in whole, count
        publish_copy(output / "sweep/chosen", output / "distilled")
        assert read_folder(output / "distilled") == whole[0] and len(list(output.iterdir())) == 2, count
    assert 4 <= count < 99 and read_folder(output / "distilled") == whole[0]


def test_a_link_called_distilled_is_replaced_and_what_it_names_stays(tmp_path, capsys):
    write_run(tmp_path / "sweep/chosen", "new")
    write_run(tmp_path / "elsewhere", "mine")
    (tmp_path / "distilled").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    publish_copy(tmp_path / "sweep/chosen", tmp_path / "distilled")
    assert set(read_folder(tmp_path / "elsewhere").values()) == {"mine"} and not (tmp_path / "distilled").is_symlink()
    assert read_folder(tmp_path / "distilled") == read_folder(tmp_path / "sweep/chosen") and not capsys.readouterr().out
    (tmp_path / "distilled/.partial").mkdir()
    publish_copy(tmp_path / "sweep/chosen", tmp_path / "distilled")
    assert "distilled: the interrupted run in" in capsys.readouterr().out


@pytest.mark.parametrize("choose", CRITERIA)
def test_at_a_tie_the_lower_nll_wins_and_then_the_earlier_pair(choose):
    keys = ("name", "validation_accuracy", "validation_loss", "validation_ece")
    cells = [dict(zip(keys, cell)) for cell in (("a", 0.9, 0.5, 0.1), ("b", 0.9, 0.4, 0.1), ("c", 0.9, 0.4, 0.1))]
    assert best_cell(cells, choose)["name"] == "b"


def results_with(choose=None):
    cells = [
        (0.1, 1.0, 0.90, 0.5, 0.04),
        (0.1, 4.0, 0.88, 0.3, 0.05),
        (0.9, 1.0, 0.90, 0.4, 0.02),
        (0.9, 4.0, 0.80, 0.6, 0.01),
    ]
    keys = ("alpha", "T", "validation_accuracy", "validation_loss", "validation_ece")
    chosen = {None: 2, "accuracy": 2, "nll": 1, "ece": 3}[choose]
    sweep = {"cells": [dict(zip(keys, cell)) for cell in cells], "chosen": dict(zip(keys[:2], cells[chosen]))}
    return {"dataset": "sample", "split": "test", "examples": 9, "precision": "fp32", "device": "cpu", "threads": 1,
            "models": [{"name": "distilled"}], "arguments": {},
            "sweep": sweep | ({"choose": choose} if choose else {})}  # fmt: skip


@pytest.mark.parametrize(("choose", "line"), [
    (None, "alpha 0.9 and T 1 chosen on validation by accuracy, among 4 pairs of a sweep; "
     "by nll: alpha 0.1 and T 4; by ece: alpha 0.9 and T 4"),
    ("nll", "alpha 0.1 and T 4 chosen on validation by nll, among 4 pairs of a sweep; "
     "by accuracy: alpha 0.9 and T 1; by ece: alpha 0.9 and T 4"),
    ("ece", "alpha 0.9 and T 4 chosen on validation by ece, among 4 pairs of a sweep; "
     "by accuracy: alpha 0.9 and T 1; by nll: alpha 0.1 and T 4"),
])  # fmt: skip
def test_the_report_names_the_choice_and_the_pairs_that_the_other_figures_favour(choose, line):
    assert line in notes(results_with(choose)).splitlines()


@pytest.mark.parametrize(("choose", "header", "bold"), [
    (None, "accuracy (ECE)", "**0.9000 (0.0200)**"),
    ("ece", "accuracy (ECE)", "**0.8000 (0.0100)**"),
    ("nll", "accuracy (NLL)", "**0.8800 (0.3000)**"),
])  # fmt: skip
def test_the_table_of_a_sweep_shows_the_figure_that_chose(choose, header, bold):
    lines = sweep_table(results_with(choose)).splitlines()
    assert lines[0].startswith(f"| validation {header}, chosen by {choose or 'accuracy'} |")
    assert "\n".join(lines).count("**") == 2 and bold in "\n".join(lines)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """A folder of splits of unequal size whose labels are noise in validation and test alike."""
    folder, random = tmp_path_factory.mktemp("unequal"), np.random.default_rng(2)
    texts = sorted({" ".join(random.choice(WORDS, random.integers(4, 12))) for _ in range(250)})
    for name, size in {"train": 64, "validation": 37, "test": 51}.items():
        rows, texts = texts[:size], texts[size:]
        lines = (f"{text},{'good' if random.random() < 0.5 else 'bad'}\n" for text in rows)
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    return folder


def test_the_figures_that_a_sweep_chooses_by_are_of_the_validation_split(script, unequal, fine_tuned):
    flags = ["--teacher", fine_tuned, "--student-layers", 1, "--no-baseline", *QUICK, "--lr", "1e-2", "--choose", "nll"]
    status, out, err = script("distill.py", "--dataset", unequal, *flags, "--alpha", 0, 1, "--output-dir", "out")
    assert (status, err) == (0, "")
    sweep = json.loads(Path("out/results.json").read_text())["sweep"]
    validation = load_dataset(unequal).validation
    found = {}
    for cell in sweep["cells"]:
        folder = Path(f"out/sweep/alpha-{cell['alpha']}-T-{cell['T']}")
        tokens = cached_tokens(validation, load_tokenizer(folder), 16)
        figures = calibration_metrics(
            compute_logits(from_pretrained(folder), tokens, CPU, "fp32"), torch.tensor(validation.labels)
        )
        assert cell["validation_loss"] == pytest.approx(figures["nll"], abs=1e-6)
        found[cell["alpha"]] = figures["nll"]
    assert len(set(found.values())) == 2
    assert (sweep["choose"], sweep["chosen"]["alpha"]) == ("nll", min(found, key=found.get))
    assert "chosen on validation by nll, among 2 pairs" in out


def test_a_choice_without_a_sweep_is_refused(script, unequal, fine_tuned):
    flags = ["--dataset", unequal, "--teacher", fine_tuned, "--student-layers", 1, *QUICK, "--choose", "ece"]
    status, _, err = script("distill.py", *flags)
    assert (status, err) == (2, "distill.py: error: --choose ece: chooses among the pairs of a sweep; give several "
                             "values of --alpha or --T\n")  # fmt: skip
