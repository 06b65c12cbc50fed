"""Tables and result files: what stands in the README is what the results files say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minikd.bag_of_words import bag_of_words
from minikd.datasets import Dataset, Split
from minikd.files import UserError
from minikd.report import collect, notes, readme_with_tables, table

ROOT = Path(__file__).parents[1]


def test_the_readmes_tables_are_those_of_the_results_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_with_tables(readme, ROOT / "data" / "results") == readme, "run: python -m minikd.report"


def test_a_table_gives_single_figures_as_they_are_and_seeds_as_mean_and_deviation():
    rows = [{"name": "teacher", "parameters": 1234567, "accuracy": [0.90, 0.92], "speed_up": 1.0},
            {"name": "student", "parameters": 1000, "accuracy": [0.8, 0.8], "speed_up": [2.0, 3.0]}]  # fmt: skip
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    assert lines[0] == ["model", "parameters", "accuracy", "speed-up"]  # columns without any value are left out
    assert lines[2] == ["teacher", "1,234,567", "0.9100 ± 0.0141", "1.00×"]
    assert lines[3] == ["student", "1,000", "0.8000", "2.50× ± 0.71"]


def test_results_of_several_seeds_are_collected_and_strangers_are_refused(tmp_path):
    def write(name, seed, accuracy, **other):
        result = {"dataset": "sample", "data_fingerprint": "d", "split": "test", "precision": "fp32", "device": "cpu",
                  "threads": 1, "examples": 2,
                  "models": [{"name": "student", "path": name, "parameters": 5, "accuracy": accuracy}],
                  "arguments": {"seed": seed, "output_dir": name, "T": 2}} | other  # fmt: skip
        (tmp_path / name).write_text(json.dumps(result))
        return tmp_path / name

    files = [write("one.json", 1, 0.5), write("two.json", 2, 0.7)]
    result = collect(files)
    assert result["seeds"] == [1, 2] and result["arguments"] == {"T": 2}
    assert result["models"] == [{"name": "student", "parameters": 5, "accuracy": [0.5, 0.7]}]
    assert "2 seeds, mean ± std" in notes(result)
    with pytest.raises(UserError, match=r"three.json: dataset imdb differs from sample"):
        collect([*files, write("three.json", 3, 0.6, dataset="imdb")])
    with pytest.raises(UserError, match="other flags than .*one.json: T"):
        collect([*files, write("four.json", 4, 0.6, arguments={"seed": 4, "output_dir": "x", "T": 4})])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="broken.json"):
        collect([tmp_path / "broken.json"])


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
