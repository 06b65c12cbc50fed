"""Tables and result files: what stands in the README is what the results files say."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK

from minikd.cli.recipes import RECIPES
from minikd.datasets import Dataset, Split
from minikd.errors import MinikdError
from minikd.evaluation.bag_of_words import bag_of_words
from minikd.evaluation.comparison import compare_with_first, merge_seeds
from minikd.evaluation.significance import compare
from minikd.experiment import readme
from minikd.experiment.readme import ablation, readme_with_tables, summary, without_paths
from minikd.experiment.results import Results, complete, read_results
from minikd.report.tables import notes, report, table

ROOT = Path(__file__).parents[2]


def test_the_readmes_tables_are_those_of_the_results_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_with_tables(readme, ROOT / "data" / "results") == readme, "run: python -m minikd.experiment.readme"


def results(*rows, **other):
    return complete({"dataset": "sample", "split": "test", "examples": 2000, "precision": "fp32", "device": "cpu",
                     "threads": 1, "models": list(rows), "arguments": {"seed": 1}} | other)  # fmt: skip


def sweep(pairs):
    """The record of a sweep over (alpha, T, validation accuracy), of which the first is the best."""
    cells = [{"alpha": alpha, "T": T, "validation_accuracy": accuracy, "validation_loss": 0.5, "validation_ece": 0.05}
             for alpha, T, accuracy in pairs]  # fmt: skip
    return {"cells": cells, "choose": "accuracy", "chosen": {"alpha": pairs[0][0], "T": pairs[0][1]}}


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_table_gives_single_figures_as_they_are_and_seeds_as_mean_and_deviation():
    teacher = {"name": "teacher", "parameters": 1234567, "accuracy": [0.90, 0.91, 0.95], "speed_up": 1.0}
    student = {"name": "student", "parameters": 1000, "accuracy": [0.8, 0.8], "speed_up": 2.5}
    lines = cells(table(results(teacher, student), ("parameters", "f1", "accuracy", "speed_up")))
    assert lines[0] == ["", "teacher", "student"]
    assert lines[2:] == [  # figures without any value are left out
        ["parameters", "1,234,567", "1,000"],
        ["accuracy", "0.9200 ± 0.0265", "0.8000"],
        ["speed-up, in batches of 128", "–", "2.50×"],  # the first model is what others are compared with
    ]
    assert len(cells(table(results(teacher, student), ("accuracy",)))) == 3
    assert "speed-up" not in table(results(teacher))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00213, "0.00213"),
        (0.5, "0.500"),
        (9.999, "10.0"),
        (47.64, "47.6"),
        (1240.4, "1,240"),
        ([1.0, 2.0], "1.50 ± 0.707"),
    ],
)
def test_times_have_three_significant_digits_and_no_exponent(value, text):
    assert text in table(results({"name": "student", "latency_ms": value}))


def test_notes_say_what_the_figures_rest_on():
    pair = [True, False], [False, False]
    text = notes(
        results(
            {"name": "student", "accuracy": 0.5, "tokens_per_example": 12.3, "padded_tokens": 40},
            seeds=[1, 2],
            significance=compare(*pair),
            sweep=sweep([(0.5, T, 1 / T) for T in (4.0, 5.0, 6.0)]),
        )
    )
    for part in ("2 seeds, mean ± std", "test split of 2,000", "fp32 on cpu",
                 "12 tokens a text, in batches padded to 40",
                 "distilled − baseline: +50.00", "alpha 0.5 and T 4 chosen on validation by accuracy"):  # fmt: skip
        assert part in text
    assert "published" not in text
    own = results({"name": "distilled"}, arguments={"recipe": "imdb-small", "dataset": "imdb"})
    assert "other hardware" in notes(own) and "109,483,778" in notes(own)
    other = {"recipe": "imdb-small", "dataset": "/films/imdb.csv"}  # another corpus of that name
    assert "other hardware" not in notes(results({"name": "distilled"}, arguments=other))


def test_the_summary_has_a_column_for_the_control_where_an_experiment_has_one():
    rows = [{"name": name, "accuracy": accuracy} for name, accuracy in (("teacher", 0.9), ("distilled", 0.85),
            ("control", 0.82), ("baseline", 0.8))]  # fmt: skip
    with_control, without = results(*rows), results(*rows[:2], rows[3])
    without["published"] = {"models": {"baseline": {"accuracy": "0.7"}}}
    header, _, first, second = cells(summary({"one": with_control, "other": without}))
    assert header[:6] == ["accuracy", "teacher", "distilled", "control", "baseline", "distilled − baseline, points"]
    assert header[6:] == ["published teacher", "published distilled", "published baseline"]
    assert first[:5] == ["one", "0.9000", "0.8500", "0.8200", "0.8000"] and first[6:] == ["–"] * 3
    assert second[3:5] == ["–", "0.8000"] and second[6:] == ["–", "–", "0.7"]
    assert "control" not in summary({"other": without})
    assert "published" not in summary({"one": with_control})


def test_a_teacher_that_is_no_better_than_the_baseline_on_validation_has_nothing_to_give():
    def line(teacher, baseline, split="a"):
        rows = [{"name": "teacher", "validation_accuracy": teacher, "validated_on": "a"},
                {"name": "baseline", "validation_accuracy": baseline, "validated_on": split}]  # fmt: skip
        return [line for line in notes(results(*rows)).splitlines() if "nothing to distil" in line]

    words = (
        "the teacher is no better on validation ({}) than the student trained alone ({}): there is nothing to distil"
    )
    assert line(0.8612, 0.8702) == [words.format("0.8612", "0.8702")]
    assert line(0.8, [0.7, 0.9, 0.83]) == [words.format("0.8000", "0.8100")] and line(0.75, [0.5, 1.0])
    assert not line(0.8613, 0.8612) and not line(0.8, 0.9, "b")
    assert "nothing to distil" not in notes(results({"name": "teacher"}, {"name": "baseline"}))  # earlier versions
    only = [{"name": "teacher", "validation_accuracy": 0.5, "validated_on": "a"}, {"name": "distilled"}]
    assert "nothing to distil" not in notes(results(*only))


def test_the_table_shows_the_steps_beside_the_minutes():
    row = {"name": "distilled", "optimizer_steps": 12345, "training_minutes": 3.25}
    *_, steps, minutes = cells(table(results(row)))
    assert steps == ["optimizer steps", "12,345"] and minutes[0] == "minutes of training"
    assert "steps" not in table(results({"name": "distilled", "training_minutes": 3.25}))


def test_a_sweep_leaves_a_table_with_its_choice():
    pairs = [(0.9, 1.0, 0.85), (0.1, 1.0, 0.8), (0.1, 4.0, 0.7), (0.9, 4.0, 0.6)]
    text = report(results({"name": "student", "accuracy": 0.5}, sweep=sweep(pairs)))
    lines = text.splitlines()
    assert "| alpha 0.1 | 0.8000 (0.0500) | 0.7000 (0.0500) |" in lines
    assert "| alpha 0.9 | **0.8500 (0.0500)** | 0.6000 (0.0500) |" in lines


def test_figures_of_several_seeds_become_lists_and_their_tables_are_added_up():
    one = {"accuracy": 0.5, "confusion": [[1, 1], [0, 2]], "reliability": [[2, 0.6, 0.5], [0, None, None]]}
    two = {"accuracy": 0.7, "confusion": [[2, 0], [1, 1]], "reliability": [[6, 0.8, 1.0], [0, None, None]]}
    merged = merge_seeds([one, two])
    assert merged["accuracy"] == [0.5, 0.7] and merged["confusion"] == [[3, 1], [1, 3]]
    assert merged["reliability"] == [[8, pytest.approx(0.75), pytest.approx(0.875)], [0, None, None]]
    assert merge_seeds([one]) == one


def test_ratios_with_the_first_model_are_those_of_experiment_e4():
    first = {"parameters": 109_483_778, "accuracy": 0.9211, "f1": 0.9210, "batch_128_ms": 19.0}
    row = {"parameters": 66_955_010, "accuracy": 0.9111, "f1": 0.9106, "batch_128_ms": 10.0}
    ratios = compare_with_first(row, first)
    assert (round(ratios["retention"], 3), round(ratios["f1_retention"], 3)) == (0.989, 0.989)
    assert round(ratios["parameter_fraction"], 3) == 0.612
    assert round(ratios["efficiency_ratio"], 3) == 1.617  # the published 161.7 %
    assert ratios["accuracy_change"] == pytest.approx(-1.0) and ratios["speed_up"] == pytest.approx(1.9)
    assert compare_with_first(row | {"accuracy": [0.9211, 0.0]}, first)["retention"] == [1.0, 0.0]


def test_changes_against_the_first_model_are_those_of_experiment_e5():
    first = {"parameters": 109_483_778, "size_mb": 417.65, "accuracy": 0.9345, "weighted_f1": 0.9345,
             "latency_1_ms": 2.0, "batch_100_ms": 47.6, "throughput": 2099, "peak_memory_mb": 800.0}  # fmt: skip
    row = {"parameters": 66_955_010, "size_mb": 255.42, "accuracy": 0.9269, "weighted_f1": 0.9269,
           "latency_1_ms": 1.5, "batch_100_ms": 24.2, "throughput": 4139, "peak_memory_mb": 1000.0}  # fmt: skip
    changes = compare_with_first(row, first)
    assert changes["accuracy_change"] == pytest.approx(-0.76) and changes["weighted_f1_change"] == pytest.approx(-0.76)
    percent = {key: round(100 * value) for key, value in changes.items() if key.endswith("_change")}
    assert percent | {"accuracy_change": 0, "weighted_f1_change": 0} == {
        "accuracy_change": 0, "weighted_f1_change": 0, "latency_1_change": -25, "latency_change": -49,
        "throughput_change": 97, "parameter_change": -39, "size_change": -39, "memory_change": 25,
    }  # fmt: skip
    unknown = compare_with_first(row | {"peak_memory_mb": None, "weighted_f1": [0.9245, 0.9445]}, first)
    assert unknown["memory_change"] is None and unknown["weighted_f1_change"] == pytest.approx([-1, 1])
    assert set(compare_with_first({}, {}).values()) == {None}  # results of an earlier version lack some figures


E5 = {"name": "teacher", "parameters": 100, "size_mb": 4.0, "weighted_f1": 0.9, "batch_100_ms": 10.0, "throughput": 50}
E5_STUDENT = {"name": "distilled", "parameters": 50, "size_mb": 3.0, "weighted_f1": [0.88, 0.86], "batch_100_ms": 4.0,
              "throughput": 120}  # fmt: skip


@pytest.mark.parametrize(("recipe", "heading", "ours", "published"), [
    ("imdb-online", "change of weighted F1, points", "-3.00 ± 1.41", "−0.8"),
    ("imdb-online", "change of latency, in batches of 100", "-60%", "−49 %"),
    ("imdb-online", "change of throughput", "+140%", "+97 %"),
    ("imdb-online", "change of parameters", "-50%", "−39 %"),
    ("imdb-online", "change of the weights' size", "-25%", "−39 %"),
    ("imdb-small", "change of parameters", "-50%", "−74 %"),
    ("sst2-lora", "change of latency, one at a time", "–", "52 % faster"),
    ("sst2-lora", "change of peak memory of inference", "–", "half"),
])  # fmt: skip
def test_every_difference_that_an_author_printed_stands_beside_ours(recipe, heading, ours, published):
    arguments = {"recipe": recipe, "dataset": RECIPES[recipe]["dataset"]}
    own = complete(results(E5, E5_STUDENT, arguments=arguments))
    header, *rest = cells(table(own))
    header, *rest = cells(table(results(E5, E5_STUDENT, arguments=arguments)))
    lines = {line[0]: dict(zip(header, line)) for line in rest}
    assert (lines[heading]["distilled"], lines[heading]["published distilled"]) == (ours, published)
    assert published not in notes(own)


def test_a_difference_that_another_line_implies_is_shown_where_asked_for():
    own = complete(results(E5, E5_STUDENT))
    plain = table(own)
    assert "change of parameters" not in plain and "share of parameters" in plain
    assert "change of parameters" in table(own, ("parameter_change",))


def test_quantised_models_are_compared_with_their_original_in_all_that_they_change():
    keys = ("name", "accuracy", "latency_1_ms", "batch_100_ms", "peak_memory_mb", "size_mb", "agreement")
    rows = [dict(zip(keys, row)) for row in (
        ("a-b", 0.85932, 9.81, 892.0, 568.1, 59.57),
        ("a-b-int8", 0.85964, 9.13, 763.5, 741.7, 15.64, 0.99),
        ("other", 0.1, 1.0, 1.0, 1.0, 1.0),
        ("other-int4", 0.1, 1.5, 1.0, None, 0.2, 0.98),
    )]  # fmt: skip
    first, second, wish, _ = notes(complete(results(*rows, precision="bf16"))).splitlines()
    assert first == ("a-b-int8 against a-b in bf16: latency one at a time −7%, in batches of 100 −14%, peak memory "
                     "+31%, size −74%, accuracy +0.03 points")  # fmt: skip
    assert second == ("other-int4 against other in bf16: latency one at a time +50%, in batches of 100 +0%, size −80%, "
                      "accuracy +0.00 points")  # fmt: skip
    assert wish == "for comparison: the author of experiment E5 hoped for 30 % less latency and half the size"
    alone = notes(complete(results(rows[0])))
    assert "against" not in alone and "hoped" not in alone


def test_the_report_says_which_phrasebank_it_is_and_that_the_author_does_not():
    for agreement, words in (("50", "fpb (at least 50% agree), test split"), ("all", "fpb (all agree), test split")):
        arguments = {"recipe": "fpb-distilbert", "dataset": "fpb", "fpb_agreement": agreement}
        text = notes(complete(results({"name": "teacher"}, dataset="fpb", arguments=arguments)))
        assert words in text and "the author does not say which subset" in text and "--fpb-agreement all" in text


def test_added_results_name_no_folder_of_their_machine(tmp_path):
    row = {"name": "teacher", "path": str(tmp_path / "teacher"), "accuracy": 0.5}
    named = {key: str(tmp_path / f"my {key}") for key in ("teacher", "student", "model", "dataset")}
    own = ("output_dir", "data_dir", "models", "html", "plot", "input", "output")
    arguments = named | dict.fromkeys(own, str(tmp_path)) | {"seed": 1}
    added = without_paths(results(row, arguments=arguments))
    assert str(tmp_path) not in json.dumps(added)
    assert added["arguments"] == {key: f"my {key}" for key in named} | {"seed": 1}
    published = {"teacher": "google/bert_uncased_L-4_H-512_A-8", "dataset": "sst2"}
    assert without_paths(results(row, arguments=published))["arguments"] == published


@pytest.mark.parametrize("flags", [["--add", "name"], ["results.json"]])
def test_a_name_and_a_file_go_together_and_nothing_is_written_without_one(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minikd.experiment.readme.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme", *flags])
    with pytest.raises(SystemExit) as stop:
        readme.main()
    assert stop.value.code == 2 and "go together" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shown", [True, False])
def test_a_dashboard_is_drawn_for_added_results_if_the_readme_shows_it(shown, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("minikd.experiment.readme.ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme", "--add", "own", str(tmp_path / "results.json")])
    picture = "![own](data/results/own.png)" if shown else "![other](data/results/other.png)"
    (tmp_path / "README.md").write_text(f"<!-- results own -->\n<!-- end -->\n{picture}\n")
    (tmp_path / "results.json").write_text(json.dumps(results({"name": "teacher", "accuracy": 0.5})))
    readme.main()
    written = {path.name for path in (tmp_path / "data" / "results").iterdir()}
    assert written == {"own.json"} | ({"own.png"} if shown else set())


def test_results_are_written_whatever_the_terminal_can_show(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    seeds = results({"name": "teacher", "accuracy": [0.5, 0.6]}, seeds=[1, 2], labels=["bad", "good"])
    own = Results(seeds, {}, Split([], []))
    own.save(tmp_path)
    assert read_results(tmp_path / "results.json") == seeds and "±" in (tmp_path / "results.md").read_text("utf-8")
    with pytest.raises(UnicodeEncodeError):  # by the ± of the table
        print(own, flush=True)


def test_results_are_written_before_they_are_printed(script, corpus, fine_tuned, monkeypatch):
    def cannot(self):
        raise MinikdError("cannot be shown")

    monkeypatch.setattr(Results, "__str__", cannot)
    flags = ["--dataset", corpus, "--output-dir", "out"]
    for name, *own in (
        ("evaluate.py", fine_tuned),
        ("train.py", "--model", fine_tuned, *QUICK[:2], *QUICK[8:]),
        ("distill.py", "--teacher", fine_tuned, "--student-layers", 1, "--no-baseline", *QUICK),
    ):
        status, _, err = script(name, *own, *flags)
        assert (status, err) == (2, f"{name}: error: cannot be shown\n")
        assert read_results(Path("out/results.json"))["models"] and "accuracy" in Path("out/results.md").read_text()
        shutil.rmtree("out")


@pytest.mark.parametrize(("found", "resume", "words"), [
    ([], False, ""), (["teacher"], False, "; not in them, because earlier commands did it: teacher"),
    (["teacher"], True, "; not in them, because earlier commands did it: teacher, the steps before --resume"),
])  # fmt: skip
def test_the_minutes_of_the_run_say_what_earlier_commands_did(found, resume, words):
    text = notes(results({"name": "teacher"}, found_finished=found, arguments={"resume": resume}))
    assert f"minutes of the whole run: those of this command, evaluation included{words}" in text.splitlines()


def test_a_bar_in_a_models_name_opens_no_column():
    lines = table(results({"name": "a|b", "accuracy": 0.5}, {"name": "c", "accuracy": 0.4})).splitlines()
    assert r" a\|b |" in lines[0] and {line.replace(r"\|", "").count("|") for line in lines} == {4}


def test_a_ratio_to_zero_is_missing_and_so_are_its_lines():
    first = {"name": "a", "parameters": 0, "size_mb": 0, "accuracy": 0.0, "f1": [0.0, 0.5], "latency_1_ms": 0.0,
             "batch_100_ms": 0.0, "batch_128_ms": 1.0, "throughput": 0.0, "peak_memory_mb": 0.0}  # fmt: skip
    row = {key: value if key == "name" else 1.0 for key, value in first.items()} | {"batch_128_ms": 0.0}
    wanted = dict.fromkeys(compare_with_first({}, {})) | {"accuracy_change": 100.0}
    assert compare_with_first(row, first) == wanted
    assert "speed-up" not in report(results(first, row))


def test_a_broken_results_file_is_named(tmp_path):
    for content in ("{", "[]", "{}"):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(MinikdError, match="broken.json: is not a results file"):
            read_results(tmp_path / "broken.json")
    for models in ([], ["teacher"], [{"accuracy": 0.5}]):
        (tmp_path / "broken.json").write_text(json.dumps(results({"name": "a"}) | {"models": models}))
        with pytest.raises(
            MinikdError, match="broken.json: is not a results file .its models must be a list of objects"
        ):
            read_results(tmp_path / "broken.json")


def test_bag_of_words_learns_words_and_cannot_learn_their_order():
    good = Split(["great film"] * 50 + ["dull film"] * 50, [1] * 50 + [0] * 50)
    assert bag_of_words(Dataset("words", ("bad", "good"), good, good, good))["accuracy"] == 1.0
    order = Split(["dull not great"] * 50 + ["great not dull"] * 50, [1] * 50 + [0] * 50)
    assert bag_of_words(Dataset("order", ("bad", "good"), order, order, order))["accuracy"] == 0.5


def test_bag_of_words_survives_texts_without_any_known_word():
    split = Split(["great film", "great film", "?", "dull", "dull", ""], [1, 1, 0, 0, 0, 0])
    assert bag_of_words(Dataset("odd", ("bad", "good"), split, split, split))["accuracy"] > 0.5


@pytest.mark.parametrize("name", ["train.py", "distill.py", "evaluate.py"])
def test_every_flag_has_a_help_text_or_a_documented_default(name):
    text = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True, check=True).stdout
    flags = [line.strip() for line in text.splitlines() if line.strip().startswith("--")]
    lines = text.splitlines()
    for flag in flags:
        start = next(i for i, line in enumerate(lines) if line.strip() == flag)
        words = flag.split("  ")
        assert len(words) > 1 or lines[start + 1].startswith(" " * 20), f"{name} {flag} has no help"


def test_the_table_of_an_ablation_has_each_way_with_its_difference_from_plain_distillation():
    rows = [
        {"name": "teacher", "accuracy": 0.9},
        {"name": "plain distillation", "accuracy": [0.8, 0.82], "teacher_agreement": [0.9, 0.9],
         "optimizer_steps": [1895, 1895], "training_minutes": [2.0, 2.4]},
        {"name": "augmentation", "accuracy": [0.85, 0.85]},
    ]  # fmt: skip
    part = {"models": ["augmentation", "plain distillation"], "difference": 0.04, "low": -0.01, "high": 0.09}
    values = results(*rows) | {"comparisons": [part], "seeds": [42, 43]}
    header, _, teacher, plain, augmented = cells(ablation(values).partition("\n\n")[0])
    assert header[1:3] == ["accuracy", "− plain distillation, points"]
    assert plain == ["plain distillation", "0.8100 ± 0.0141", "–", "90.0%", "1,895", "2.2 ± 0.3"]
    assert augmented == ["augmentation", "0.8500", "+4.00 (−1.00 to +9.00)", "–", "–", "–"]
    assert teacher[:3] == ["teacher", "0.9000", "–"]
    assert "2 seeds" in ablation(values).rpartition("\n\n")[2]
