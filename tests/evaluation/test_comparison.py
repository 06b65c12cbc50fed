"""Finished models side by side: each figure belongs to its own model, and the report says what the figures can bear."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, WORDS, save_model

from minikd.classifier import TextClassifier
from minikd.config import EncoderConfig
from minikd.datasets import Split
from minikd.evaluation.comparison import compare_students, compare_with_first, figures_of, likeness_to_teacher
from minikd.evaluation.costs import measure_speed
from minikd.evaluation.significance import compare
from minikd.experiment.caches import cached_tokens
from minikd.experiment.readme import without_paths
from minikd.experiment.results import complete, evaluate
from minikd.model import Classifier, count_parameters
from minikd.report.tables import notes, report, table
from minikd.tokenizer import train_wordpiece

CPU = torch.device("cpu")
LABELS = [0, 1, 1, 2, 0, 2, 1, 1] * 15 + [0]  # 121


def spread(seed, layers=1, vocab_size=200):
    """A classifier of three labels whose answers differ from text to text."""
    torch.manual_seed(seed)
    config = EncoderConfig(vocab_size=vocab_size, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=64, labels=("a", "b", "c"))  # fmt: skip
    model = Classifier(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:  # with the usual 0.02, all texts get nearly the same logits
                weights.normal_(0, 0.7)
    return model


def classifier(path, model, tokenizer):
    """The model with its tokenizer, as if it had been loaded from `path`."""
    own = TextClassifier(model, tokenizer, max_length=64, device=CPU, precision="fp32")
    own.source = path
    return own


def delayed(model, seconds):
    """The model, made slower by so many seconds a pass."""
    model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return model


@pytest.fixture(scope="module")
def evaluated():
    """Three unlike models, two of them with two seeds, on texts that their tokenizers cut differently."""
    random = np.random.default_rng(0)
    split = Split([" ".join(random.choice(WORDS, random.integers(3, 10))) for _ in LABELS], LABELS)
    by_word, by_letter = train_wordpiece(WORDS * 3, 200), train_wordpiece(WORDS, 45)
    models = {
        "teacher": [classifier("t", spread(0, layers=2, vocab_size=200), by_word)],
        "baseline": [
            classifier(path, spread(seed, vocab_size=1_500_000), by_word) for path, seed in {"b": 3, "b2": 4}.items()
        ],
        "distilled": [classifier("d", delayed(spread(1), 0.03), by_letter), classifier("d2", spread(2), by_letter)],
    }
    tokens = dict.fromkeys(("teacher", "baseline"), cached_tokens(split, by_word, 64))
    tokens["distilled"] = cached_tokens(split, by_letter, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minikd.evaluation.costs.TURNS", (1, 1))
        results = evaluate(models, split, costs=True)
    return models, tokens, {row["name"]: row for row in results.values["models"]}, results.logits


def test_logits_are_each_models_own_on_its_own_tokens_in_the_splits_order(evaluated):
    models, tokens, _, logits = evaluated
    for name, seeds in models.items():
        split = tokens[name]
        for one, found in zip(seeds, logits[name], strict=True):
            for i in range(0, len(LABELS), 7):
                ids = torch.from_numpy(split.ids[split.offsets[i] : split.offsets[i + 1]]).long()
                with torch.no_grad():
                    assert torch.allclose(found[i], one.model(ids[None]).logits[0], atol=1e-4)


def test_quality_is_that_of_each_models_and_seeds_own_logits(evaluated):
    _, _, rows, logits = evaluated
    labels = torch.tensor(LABELS)
    own = {name: [(one.argmax(dim=-1) == labels).double().mean().item() for one in logits[name]] for name in rows}
    assert len({value for values in own.values() for value in values}) == 5
    assert rows["teacher"]["accuracy"] == pytest.approx(own["teacher"][0])
    for name in ("distilled", "baseline"):
        assert rows[name]["accuracy"] == pytest.approx(own[name])


def test_likeness_to_the_teacher_is_that_of_each_models_and_seeds_own_logits(evaluated):
    _, _, rows, logits = evaluated
    (teacher,) = logits["teacher"]
    for name in ("distilled", "baseline"):
        same = [(one.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean().item() for one in logits[name]]
        kl = [torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each.double())
              for each in (teacher, one))).mean().item() for one in logits[name]]  # fmt: skip
        assert rows[name]["teacher_agreement"] == pytest.approx(same) and 0 < min(same) < max(same) < 1
        assert rows[name]["kl_to_teacher"] == pytest.approx(kl)
    assert not {"teacher_agreement", "kl_to_teacher"} & rows["teacher"].keys()


def test_likeness_to_the_teacher_by_hand():
    # The teacher's probabilities are (3/4, 1/4) and (1/2, 1/2), the model's (1/2, 1/2) for both; a tie is the first
    # label's, as everywhere.
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    found = likeness_to_teacher(torch.cat([even, even]), torch.cat([sure, even]))
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found == {"teacher_agreement": 1.0, "kl_to_teacher": pytest.approx(kl / 2, rel=1e-6)}
    assert likeness_to_teacher(-sure, sure)["teacher_agreement"] == 0
    far = torch.tensor([[1e4, -1e4]])  # a probability of exactly 0
    assert likeness_to_teacher(far, far) == {"teacher_agreement": 1.0, "kl_to_teacher": 0.0}


def test_several_teachers_are_each_compared_with_the_student_of_their_seed():
    logits = {"teacher": [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]}
    logits |= {"distilled": logits["teacher"][::-1], "other": logits["teacher"][:1]}
    found = {name: figures_of(name, logits, Split([""], [0])) for name in logits}
    assert found["distilled"]["teacher_agreement"] == [0, 0]
    assert not {"teacher_agreement", "kl_to_teacher"} & (found["other"].keys() | found["teacher"].keys())


def test_the_table_shows_likeness_to_the_teacher_where_it_is_known():
    rows = [{"name": "teacher", "accuracy": 0.9}, {"name": "distilled", "accuracy": 0.8}]
    assert "the teacher" not in table({"models": rows})  # as in results of earlier versions
    rows[1] |= {"teacher_agreement": [0.9, 0.91], "kl_to_teacher": [0.1, 0.2]}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table({"models": rows}).splitlines()]
    assert ["same label as the teacher", "–", "90.50% ± 0.71%"] in lines
    assert ["KL to the teacher", "–", "0.1500 ± 0.0707"] in lines


def test_costs_are_those_of_the_rows_own_model(evaluated):
    models, tokens, rows, _ = evaluated
    for name, row in rows.items():
        first = models[name][0]
        assert (row["path"], row["parameters"]) == (first.source, count_parameters(first.model))
        assert (row["latency_1_ms"] > 30) == (row["batch_128_ms"] > 30) == (name == "distilled")
        assert row["padded_tokens"] == tokens[name].lengths.max()
        assert (row["peak_memory_mb"] > rows["teacher"]["peak_memory_mb"] + 60) == (name == "baseline")
    assert rows["distilled"]["padded_tokens"] > 1.5 * rows["teacher"]["padded_tokens"]
    assert rows["distilled"]["speed_up"] < 0.5 and rows["teacher"]["speed_up"] == 1


def test_a_slow_model_is_the_slow_one_in_every_place():
    split = cached_tokens(Split(["a film"] * 130, [0] * 130), train_wordpiece(WORDS * 3, 200), 16)
    for slow in range(3):
        models = [spread(i) if i != slow else delayed(spread(i), 0.02) for i in range(3)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minikd.evaluation.costs.TURNS", (1, 1))
            results = measure_speed(models, [split] * 3, CPU, "fp32")
        for key in ("latency_1_ms", "batch_100_ms", "batch_128_ms"):
            assert max(range(3), key=lambda i: results[i][key]) == slow
        assert min(range(3), key=lambda i: results[i]["throughput"]) == slow


def test_ratios_pair_each_seed_with_the_same_seed_of_the_first_model():
    costs = {"parameters": 100, "batch_128_ms": 10.0}
    first = costs | {"accuracy": [0.8, 0.5], "f1": [0.5, 0.8]}
    ratios = compare_with_first(
        {"parameters": 25, "batch_128_ms": 4.0, "accuracy": [0.6, 0.45], "f1": [0.4, 0.2]}, first
    )
    assert ratios["accuracy_change"] == pytest.approx([-20, -5])
    assert ratios["retention"] == pytest.approx([0.75, 0.9]) and ratios["f1_retention"] == pytest.approx([0.8, 0.25])
    assert ratios["efficiency_ratio"] == pytest.approx([3.0, 3.6])
    assert (ratios["speed_up"], ratios["parameter_fraction"]) == (2.5, 0.25)
    against_one = compare_with_first(first, costs | {"accuracy": 0.4, "f1": 0.5})
    assert against_one["retention"] == pytest.approx([2.0, 1.25]) and against_one["f1_retention"] == [1.0, 1.6]
    of_one = compare_with_first(costs | {"accuracy": 0.4, "f1": 0.5}, first)
    assert of_one["retention"] == pytest.approx([0.5, 0.8])
    nothing = compare_with_first(costs | {"accuracy": 0.4, "f1": 0.5}, costs | {"accuracy": 0.0, "f1": 0.5})
    assert nothing["retention"] is None and nothing["efficiency_ratio"] is None


def test_the_difference_is_distilled_less_baseline_seed_by_seed():
    labels = [0, 1, 0, 1]

    def logits(*right):
        truth = torch.tensor(labels)
        predicted = torch.where(torch.tensor(right), truth, 1 - truth)
        return torch.nn.functional.one_hot(predicted, 2).float()

    all_wrong = logits(False, False, False, False)
    found = compare_students(
        {
            "baseline": [all_wrong, logits(True, False, False, False)],  # in another order than the report's
            "teacher": [all_wrong],
            "distilled": [logits(True, True, True, False), logits(False, True, True, False)],
        },
        Split([""] * 4, labels),
    )["significance"]
    assert [(test["only_a"], test["only_b"]) for test in found["seeds"]] == [(3, 0), (2, 1)]
    assert found["difference"] == (3 + 1) / 8 and found["examples"] == 4
    assert compare_students({"distilled": [all_wrong], "teacher": [all_wrong]}, Split([""] * 4, labels)) == {}


def test_a_control_divides_the_gain_into_what_the_loss_and_what_the_start_give():
    split = Split([""] * 300, [0] * 300)
    right = {"baseline": [150, 160], "distilled": [225, 236], "control": [180, 193]}
    answers = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # wrong, right
    logits = {name: [answers[(torch.arange(300) < count).long()] for count in counts] for name, counts in right.items()}
    found = compare_students(logits, split)
    loss, start = found["comparisons"]
    assert (loss["models"], start["models"]) == (["distilled", "control"], ["control", "baseline"])
    assert [test["only_a"] for test in loss["seeds"]] == [45, 43] and [t["only_b"] for t in loss["seeds"]] == [0, 0]
    assert [test["only_a"] for test in start["seeds"]] == [30, 33]
    assert found["significance"]["difference"] == pytest.approx(loss["difference"] + start["difference"])
    own = {key: value for key, value in start.items() if key != "models"}
    correct = {name: np.arange(300) < np.array(counts)[:, None] for name, counts in right.items()}
    assert own == compare(correct["control"], correct["baseline"])  # with its interval
    without = compare_students({name: logits[name] for name in ("control", "distilled")}, split)
    assert without == {"comparisons": [loss]}
    assert "comparisons" not in compare_students({name: logits[name] for name in ("baseline", "distilled")}, split)


def test_the_notes_say_what_the_loss_and_what_the_start_give():
    right = {name: np.arange(1000)[None] < count for name, count in (("d", 900), ("c", 850), ("b", 840))}
    parts = [{"models": ["distilled", "control"], **compare(right["d"], right["c"])},
             {"models": ["control", "baseline"], **compare(right["c"], right["b"])}]  # fmt: skip
    text = notes(results(1000, "distilled", "control", "baseline", comparisons=parts)).splitlines()
    assert text[0].startswith("distilled − control (what the loss gives): +5.00 points of accuracy (95% interval +3.6")
    assert text[1].startswith("control − baseline (what the start gives): +1.00 points of accuracy (95% interval +0.3")
    assert "of this pair of models, control is the better one" in text[1]
    few = complete(results(50, "distilled", "control", "baseline", comparisons=parts))
    assert notes(few).count("allow no verdict") == 2


def results(examples, *names, **other):
    rows = [{"name": name, "accuracy": 0.5} for name in names]
    return {"dataset": "films", "split": "test", "examples": examples, "precision": "fp32", "device": "cpu",
            "threads": 1, "models": rows, "arguments": {}} | other  # fmt: skip


def test_a_split_too_small_to_say_anything_says_so():
    right = np.ones((1, 3), dtype=bool)
    text = report(complete(results(3, "distilled", "baseline", significance=compare(right, ~right))))
    assert "only 3 examples in the test split" in text and "±57 points" in text and "allow no verdict" in text
    few, enough = (notes(complete(results(examples, "distilled"))) for examples in (96, 97))
    assert "only 96 examples" in few and "±10 points" in few and "only" not in enough
    without_names = notes(complete(results(3, "distilled", dataset="", split="")))
    assert "only 3 examples in the split, too few" in without_names and "\nsplit of 3; fp32" in without_names


def test_evaluate_says_that_a_split_is_too_small(script, corpus, fine_tuned):
    status, out, _ = script("evaluate.py", fine_tuned, "--dataset", corpus, "--output-dir", "out")
    line = (
        "only 20 examples in the test split, too few to tell models apart: chance alone moves an accuracy by up to ±22"
    )
    assert status == 0 and line in out and line in Path("out/results.md").read_text()
    status, out, _ = script("evaluate.py", fine_tuned, "--dataset", corpus, "--split", "train")
    assert status == 0 and "only" not in out


def test_the_report_says_what_the_students_started_from(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK]
    assert script(*command)[0] == 0
    found = json.loads(Path("runs/films/results.json").read_text())
    words = "layers [0, 3] and head of the fine-tuned teacher", f"layers [0, 3] of {bare.name} before fine-tuning"
    assert found["first_weights"] == dict(zip(("distilled", "control", "baseline"), (words[0], *words)))
    starts = f"distilled starts from {words[0]}; baseline starts from {words[1]}"
    lines = Path("runs/films/results.md").read_text().splitlines()
    assert f"{starts}; the baseline is trained on the labels alone" in lines


def test_the_report_names_random_weights_and_a_folders_weights(script, corpus, bare, fine_tuned, tmp_path):
    base = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--no-baseline", *QUICK]
    status, out, _ = script(*base, "--student-layers", 1, "--student-hidden", 32)
    assert status == 0 and "\ndistilled starts from random weights\n" in out and "labels alone" not in out
    own = save_model(tmp_path / "my-encoder")
    status, out, _ = script(*base, "--student", own)
    assert status == 0 and "\ndistilled starts from the weights of my-encoder\n" in out
    found = json.loads(Path("runs/films/results.json").read_text())
    assert str(tmp_path) not in json.dumps(without_paths(found))


def test_the_report_says_it_of_each_student_where_they_start_from_different_weights():
    teachers, own = "the fine-tuned teacher's layers [0, 3]", "the layers [0, 3] of minilm"
    three = ("distilled", "control", "baseline")
    weights = {"distilled": teachers, "control": teachers, "baseline": own}
    line, _ = notes(results(484, "teacher", *three, first_weights=weights)).splitlines()
    assert line == (
        f"distilled and control start from {teachers}; baseline starts from {own}; "
        "control and baseline are trained on the labels alone"
    )
    line, _ = notes(results(484, *three, first_weights=own)).splitlines()
    assert line.startswith(f"distilled, control and baseline start from {own}; control and")
    line, _ = notes(results(484, "distilled", "baseline", first_weights=weights)).splitlines()
    assert line == (
        f"distilled starts from {teachers}; baseline starts from {own}; the baseline is trained on the labels alone"
    )


def test_earlier_results_without_first_weights_are_still_reported():
    assert "start" not in notes(results(484, "distilled", "baseline"))
