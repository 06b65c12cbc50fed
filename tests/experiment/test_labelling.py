"""Labels for new texts: what is refused. That they are right, and in order, is in test_evaluate.py."""

from pathlib import Path

import pytest

from minikd.classifier import TextClassifier
from minikd.datasets import Split
from minikd.experiment.labelling import predictions_file
from minikd.experiment.results import evaluate


def test_a_text_that_is_not_valid_unicode_is_refused_before_any_model_is_loaded(script):
    """A terminal in another encoding than Python expects gives each byte that it cannot read as half a surrogate."""
    status, out, err = script("evaluate.py", "no model", "--text", "fine", "--text", "caf\udce9")
    assert (status, out) == (2, "")
    assert err == "evaluate.py: error: --text: is not valid text in this terminal's encoding\n"


@pytest.mark.parametrize("name", ["/etc/x", "../../x", "..", "a\\b", "a%2Fb", "C:x", "a\nb", ""])
def test_predictions_stay_in_the_folder_whatever_the_model_is_called(name):
    path = predictions_file(Path("runs/films"), name)
    assert path.parent == Path("runs/films") and path.name.startswith("predictions-") and path.suffix == ".csv"
    assert not set("/\\:\n") & set(path.name)


def test_names_that_differ_have_files_that_differ_and_plain_names_are_kept():
    names = ["a/b", "a%2Fb", "a_b", "ab", "a:b", "bert-base é 2.0"]
    files = [predictions_file(Path(), name).name for name in names]
    assert len(set(files)) == len(names) and files[0] == "predictions-a%2Fb.csv"
    assert files[-1] == "predictions-bert-base é 2.0.csv"


def test_results_of_a_model_with_a_path_as_its_name_are_saved_in_the_folder(fine_tuned, tmp_path, no_pictures):
    model = TextClassifier.load(fine_tuned, device="cpu", precision="fp32")
    results = evaluate({"../../x": model}, Split(["a film", "great"], [0, 1]), progress=False)
    results.save(tmp_path / "a/b/out")
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"results.json", "results.md", "predictions-..%2F..%2Fx.csv"}
    assert not [path for path in tmp_path.rglob("*") if path.parent.name != "out" and path.is_file()]
