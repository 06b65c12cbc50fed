"""distill.py with layer losses: what each training is handed, in one stage and in two, and that a run in two stages is
resumed."""

import json
from pathlib import Path

import pytest
from conftest import QUICK

from minikd.checkpoints.pretrained import from_pretrained
from minikd.experiment.caches import model_fingerprint

pytestmark = pytest.mark.usefixtures("no_pictures")
LAYERS = ["--student-layers", 2, "--hidden-loss", 2, "--value-loss", 0.5, "--layer-map", "top"]


def command(corpus, teacher, *flags):
    return ["distill.py", "--dataset", corpus, "--teacher", teacher, *QUICK, *LAYERS, *flags]


def settings_of(call):
    return {name: call["settings"][name] for name in ("epochs", "lr", "seed", "alpha", "T", "patience")}


def test_together_layers_and_logits_come_from_the_teacher_in_each_step(script, corpus, fine_tuned, trainings):
    status, out, err = script(
        *command(corpus, fine_tuned, "--alpha", 0.3, "--T", 3, "--cls-loss", 1, "--teacher-base", "random")
    )
    assert status == 0, err
    assert [call["desc"] for call in trainings] == ["distilled", "baseline"]
    distilled, baseline = trainings
    loss = distilled["layers"]
    assert loss.layers.pairs == [(0, 2), (1, 3)] and loss.weight == 1
    weights = loss.layers.settings
    assert (weights.hidden_loss, weights.cls_loss, weights.value_loss, weights.relation_loss) == (2, 1, 0.5, 0)
    assert loss.on_logits == {"alpha": 0.3, "T": 3.0, "label_smoothing": 0.0, "soft": "kl"}
    assert distilled["made_from"]["teacher"] == model_fingerprint(from_pretrained("runs/films/teacher"))
    assert baseline["layers"] is None and baseline["teacher"] is None
    assert "cache its logits" not in out and not Path("runs/films/teacher-logits.safetensors").exists()


def test_in_two_stages_the_layers_come_first_and_the_logits_after(script, corpus, fine_tuned, bare, trainings):
    flags = ["--layer-epochs", 1, "--layer-lr", "3e-3", "--seeds", 2, "--patience", 1, "--alpha", 0.3, "--T", 3]
    flags += ["--student-init", "checkpoint", "--teacher-base", bare]
    status, out, err = script(*command(corpus, fine_tuned, *flags))
    assert status == 0, err
    names = ["first stage", "distilled", "baseline"]
    assert [call["desc"] for call in trainings] == 2 * names
    assert "before distilling, 1 epochs of layer losses" in out and "cache its logits" in out
    for i, seed in enumerate((42, 43)):
        first, distilled, baseline = trainings[3 * i : 3 * i + 3]
        home = Path("runs/films", f"seed-{seed}" if i else "")
        assert settings_of(first) == {"epochs": 1, "lr": 3e-3, "seed": seed, "alpha": 0.5, "T": 2.0, "patience": 0}
        assert settings_of(distilled) == {"epochs": 2, "lr": 1e-3, "seed": seed, "alpha": 0.3, "T": 3.0, "patience": 1}
        per_epoch = -(-len(first["data"]) // first["settings"]["batch_size"])
        assert baseline["settings"]["max_steps"] == (1 + 2) * per_epoch  # as many as both stages have
        assert first["layers"].weight == 0 and first["layers"].layers.pairs == [(0, 2), (1, 3)]
        assert first["run"].keep_last and not distilled["run"].keep_last
        assert distilled["layers"] is None and distilled["teacher"] is not None and baseline["teacher"] is None
        # The second stage starts where the first one ended; the baseline where the first one started.
        assert distilled["first_weights"] == model_fingerprint(from_pretrained(home / "first-stage"))
        assert baseline["first_weights"] == first["first_weights"] != distilled["first_weights"]
    assert trainings[0]["first_weights"] != trainings[3]["first_weights"]
    rows = {row["name"]: row for row in json.loads(Path("runs/films/results.json").read_text())["models"]}
    assert rows["distilled"]["optimizer_steps"] == rows["baseline"]["optimizer_steps"] == 3 * per_epoch
    seconds = sum(
        epoch["seconds"]
        for folder in ("first-stage", "distilled")
        for epoch in json.loads(Path("runs/films", folder, "run.json").read_text())["history"]
    )
    assert rows["distilled"]["training_minutes"] == pytest.approx(seconds / 60)
    made_from = json.loads(Path("runs/films/first-stage/run.json").read_text())["made_from"]
    assert json.loads(Path("runs/films/results.json").read_text())["found_finished"] == ["teacher"]
    assert made_from["layer_losses"]["hidden_loss"] == 2 and made_from["layer_losses"]["logit_loss"] == 0

    # Resumed without the second stage of a seed, that one alone is trained, to the same weights.
    weights = Path("runs/films/distilled/model.safetensors").read_bytes()
    for file in ("model.safetensors", "run.json"):
        Path("runs/films/distilled", file).unlink()
    trainings.clear()
    assert script(*command(corpus, fine_tuned, *flags, "--resume"))[0] == 0
    assert [call["desc"] for call in trainings] == ["distilled"]
    assert Path("runs/films/distilled/model.safetensors").read_bytes() == weights
    assert "first stage" in json.loads(Path("runs/films/results.json").read_text())["found_finished"]


def test_the_students_of_a_sweep_share_their_first_stage(script, corpus, fine_tuned, trainings):
    flags = ["--layer-epochs", 1, "--T", 1, 4, "--no-baseline"]
    assert script(*command(corpus, fine_tuned, *flags))[0] == 0
    assert [call["desc"] for call in trainings] == ["first stage", "alpha 0.5, T 1", "alpha 0.5, T 4"]
    assert trainings[0]["settings"]["lr"] == 1e-3  # that of --lr
    assert trainings[1]["first_weights"] == trainings[2]["first_weights"]
    rows = {row["name"]: row for row in json.loads(Path("runs/films/results.json").read_text())["models"]}
    per_epoch = -(-len(trainings[0]["data"]) // 16)
    assert rows["distilled"]["optimizer_steps"] == (1 + 2) * per_epoch  # of both stages


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layer-map", "0:7"], "--layer-map 0:7: there is no pair 0:7"),
        (["--relation-heads", 3], "--relation-heads 3: must divide the widths"),
        (["--attention-loss", 1, "--student-hidden", 32], "--attention-loss: the student has 1 attention heads and "),
        (["--hidden-loss", 0, "--value-loss", 0], "--layer-map: is for layer losses"),
        (["--teacher", "oracle"], "--teacher oracle: has no layers to imitate"),
        (["--layer-lr", 1], "--layer-lr: is the rate of the first of two stages"),
        (["--layer-epochs", 1, "--student-lora-rank", 2], "--layer-epochs: the adapters of two stages"),
        (["--hidden-loss", 0, "--value-loss", 0, "--layer-map", "uniform", "--layer-epochs", 1], "of which losses?"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_layer_losses_that_cannot_be_had_are_refused_before_any_training(script, corpus, bare, stop, flags, words):
    calls = stop("minikd.experiment.training.run_training")
    status, _, err = script(*command(corpus, bare, *flags))
    assert status == 2 and words in err and err.count("\n") == 1 and not calls
