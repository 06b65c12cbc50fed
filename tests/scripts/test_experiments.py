"""What the published experiments ask for beyond one comparison: seeds, sweeps, adapters, tracking, pages, labelling."""

import csv
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from safetensors.torch import load_file, save_file

from minikd.checkpoints.pretrained import from_pretrained
from minikd.evaluation.calibration import expected_calibration_error
from minikd.experiment.caches import model_fingerprint


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def predictions(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_repeat_the_students_and_not_the_teacher(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--seeds", 3]
    status, out, err = script(*command)
    assert (status, err) == (0, "")
    results = read_json("runs/films/results.json")
    teacher, distilled, baseline = results["models"]
    assert results["seeds"] == [42, 43, 44]
    assert isinstance(teacher["accuracy"], float) and out.count("teacher: epoch 2 of 2") == 1
    assert len(distilled["nll"]) == len(baseline["nll"]) == 3 and len(set(distilled["nll"])) == 3
    assert "± " in Path("runs/films/results.md").read_text()
    right = {}
    for name in ("distilled", "baseline"):  # what stands in the table is what stands in the files of the seeds
        files = [f"runs/films/{folder}predictions-{name}.csv" for folder in ("", "seed-43/", "seed-44/")]
        right[name] = [[row["label"] == row["predicted"] for row in predictions(file)] for file in files]
    for row in (distilled, baseline):
        means = [sum(one) / len(one) for one in right[row["name"]]]
        assert row["accuracy"] == pytest.approx(means)
    significance = results["significance"]
    assert len(significance["seeds"]) == 3 and significance["low"] <= significance["difference"] <= significance["high"]
    only = sum(a and not b for a, b in zip(right["distilled"][1], right["baseline"][1]))
    assert significance["seeds"][1]["only_a"] == only


def test_the_first_of_several_seeds_is_the_run_of_that_seed_alone(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--no-baseline"]
    assert script(*command, "--seeds", 2, "--output-dir", "both")[0] == 0
    assert script(*command, "--teacher", "both/teacher", "--seed", 43, "--output-dir", "alone")[0] == 0
    both, alone = (from_pretrained(folder) for folder in ("both/seed-43/distilled", "alone/distilled"))
    assert model_fingerprint(both) == model_fingerprint(alone)


def test_a_sweep_chooses_on_validation_and_resumes_without_training_again(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK,
               "--alpha", 0.1, 0.9, "--T", 1, 4]  # fmt: skip
    status, out, err = script(*command)
    assert (status, err) == (0, "") and out.count("epoch 2 of 2") == 6  # teacher, four pairs, baseline
    sweep = read_json("runs/films/results.json")["sweep"]
    assert [(cell["alpha"], cell["T"]) for cell in sweep["cells"]] == [(0.1, 1), (0.1, 4), (0.9, 1), (0.9, 4)]
    best = max(sweep["cells"], key=lambda cell: (cell["validation_accuracy"], -cell["validation_loss"]))
    assert sweep["chosen"] == {"alpha": best["alpha"], "T": best["T"]}
    chosen = from_pretrained(f"runs/films/sweep/alpha-{best['alpha']}-T-{best['T']}")
    assert model_fingerprint(chosen) == model_fingerprint(from_pretrained("runs/films/distilled"))
    settings = read_json("runs/films/distilled/run.json")["made_from"]["settings"]
    assert (settings["alpha"], settings["T"]) == (best["alpha"], best["T"])
    status, out, err = script(*command, "--resume")
    assert (status, err) == (0, "") and "epoch 2 of 2" not in out
    assert "(2 epochs a student); finished models are not trained again\n" in out
    assert read_json("runs/films/results.json")["sweep"] == sweep


def test_students_of_every_seed_are_trained_again_unless_resumed(script, corpus, fine_tuned, no_pictures):
    command = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--student-layers", 1, *QUICK, "--epochs", 1,
               "--teacher-base", "random",
               "--lr", "1e-2", "--alpha", 0, 1, "--choose", "nll", "--seeds", 2]  # fmt: skip
    trained = ["alpha 0, T 2", "alpha 1, T 2", "baseline", "distilled", "baseline"]
    for _ in range(2):
        status, out, _ = script(*command)
        assert status == 0 and re.findall(r"(?m)^(.*): [\d,]+ parameters", out) == trained
    assert read_json("runs/films/results.json")["sweep"]["chosen"]["alpha"] == 1  # this teacher knows nothing
    for folder in ("", "seed-43/"):  # the pair that the first seed's sweep chose, for every seed
        settings = read_json(f"runs/films/{folder}distilled/run.json")["made_from"]["settings"]
        assert (settings["alpha"], settings["T"]) == (1, 2)
    old = time.time() - 100  # of the files that an earlier command left
    for path in Path("runs").rglob("*"):
        os.utime(path, (old, old))
    shutil.rmtree("runs/films/seed-43/baseline")
    status, out, _ = script(*command, "--resume")
    assert status == 0 and re.findall(r"(?m)^(.*): [\d,]+ parameters", out) == ["baseline"]
    found = read_json("runs/films/results.json")["found_finished"]
    assert sorted(found) == ["baseline", "distilled", "teacher", "the teacher's logits"]  # a part of them is enough


def test_adapters_train_a_small_share_and_leave_an_ordinary_model(script, corpus, bare):
    flags = ["--lora-rank", 2, "--lora-alpha", 4, "--lora-targets", "query,value", "--output-dir", "lora"]
    status, out, err = script("train.py", "--dataset", corpus, "--model", bare, *QUICK[:2], *QUICK[8:], *flags)
    assert (status, err) == (0, "") and "of them trained" in out
    run = read_json("lora/run.json")
    assert run["trained_parameters"] == 4 * 2 * 2 * (16 + 16) + (16 * 16 + 16) + (16 * 2 + 2)
    assert run["arguments"]["lr"] == 5e-4  # the rate of adapters, not of full fine-tuning
    before, after = from_pretrained(bare, labels=("bad", "good")), from_pretrained("lora")
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert changed == {f"encoder.layers.{i}.attention.qkv.weight" for i in range(4)} | {
        "pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip
    config, scale = read_json("lora/adapter/adapter_config.json"), 4 / 2  # alpha over rank, as the flags say
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["query", "value"])
    tensors = load_file("lora/adapter/adapter_model.safetensors")
    for layer in range(4):
        name = f"encoder.layers.{layer}.attention.qkv.weight"
        moved = (after.state_dict()[name] - before.state_dict()[name]).chunk(3)
        own = f"base_model.model.bert.encoder.layer.{layer}.attention.self"
        for third, target in ((0, "query"), (2, "value")):
            A, B = (tensors[f"{own}.{target}.lora_{matrix}.weight"] for matrix in "AB")
            torch.testing.assert_close(moved[third], scale * B @ A, rtol=1e-3, atol=1e-7)
            assert moved[third].abs().max() > 1e-4
    status, out, err = script("evaluate.py", "lora", "lora/adapter", "--precision", "fp32")
    assert (status, err) == (0, "") and "trained parameters" in out
    line = next(line for line in out.splitlines() if "log-likelihood" in line)
    merged, unmerged = line.split("|")[2:4]
    assert merged.strip() == unmerged.strip()
    status, out, err = script("evaluate.py", "lora/adapter", "--text", "great film")
    assert (status, err) == (0, "") and re.search(r"(bad|good) \(bad 0\.\d+, good 0\.\d+\): great film", out)


def test_teacher_and_students_get_adapters_of_their_own_ranks_and_the_scale_asked_for(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK]
    flags = ["--lora-rank", 3, "--student-lora-rank", 2]
    for alpha, wanted in ([], 16.0), (["--lora-alpha", 5], 5.0):
        assert script(*command, *flags, *alpha)[0] == 0
        runs = {name: read_json(f"runs/films/{name}/run.json") for name in ("teacher", "distilled", "baseline")}
        for name, run in runs.items():
            assert run["made_from"]["lora"] == {
                "rank": 3 if name == "teacher" else 2, "alpha": wanted, "dropout": 0.0, "targets": ["query", "value"],
            }, name  # fmt: skip
            # The teacher's lie on a checkpoint; the first weights of the students, its layers, are none.
            assert Path(f"runs/films/{name}/adapter").exists() == (name == "teacher")


def test_a_student_of_adapters_stands_beside_a_whole_teacher(script, corpus, fine_tuned, bare, no_pictures):
    command = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--student-layers", 2, *QUICK]
    command += ["--teacher-base", bare]
    status, out, err = script(*command, "--student-lora-rank", 2)
    assert (status, err) == (0, "")
    rows = {row["name"]: row for row in read_json("runs/films/results.json")["models"]}
    assert rows["distilled"]["trained_parameters"] == rows["baseline"]["trained_parameters"] < 1000
    assert not list(Path("runs").rglob("adapter"))  # no checkpoint has the first weights of these students
    start = ["--student", bare, "--student-lora-rank", 2, "--no-baseline", "--output-dir", "out"]
    assert script("distill.py", "--dataset", corpus, "--teacher", fine_tuned, *QUICK, *start)[0] == 0
    assert read_json("out/distilled/adapter/adapter_config.json")["base_model_name_or_path"] == str(bare)
    status, _, err = script(*command, "--lora-rank", 2)
    assert status == 2 and "--lora-rank" in err  # nothing of this teacher would be trained


def test_calibration_leaves_predictions_and_reports_before_and_after(script, corpus, fine_tuned):
    command = ["evaluate.py", fine_tuned, "--dataset", corpus, "--split", "train"]
    assert script(*command, "--output-dir", "before")[0] == 0
    status, out, err = script(*command, "--calibrate", "--output-dir", "after")
    assert (status, err) == (0, "") and "ECE, calibrated" in out
    name = f"predictions-{fine_tuned.name}.csv"
    assert Path("after", name).read_bytes() == Path("before", name).read_bytes()
    (before,), (after,) = (read_json(f"{folder}/results.json")["models"] for folder in ("before", "after"))
    assert after["ece"] == before["ece"] and after["accuracy"] == before["accuracy"]
    probs = torch.tensor([[float(row["prob_bad"]), float(row["prob_good"])] for row in predictions(f"after/{name}")])
    labels = torch.tensor([row["label"] == "good" for row in predictions(f"after/{name}")]).long()
    calibrated = (probs.double().log() / after["temperature"]).softmax(dim=-1)
    assert after["ece_calibrated"] == pytest.approx(expected_calibration_error(calibrated, labels), abs=1e-3)


def test_the_page_and_the_dashboard_come_from_evaluate(script, corpus, fine_tuned, bare):
    status, out, err = script(
        "evaluate.py", fine_tuned, fine_tuned, "--dataset", corpus, "--html", "page.html", "--output-dir", "out"
    )
    assert (status, err) == (0, "")
    assert Path("page.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    Path("alone").mkdir()
    Path("alone/results.json").write_bytes(Path("out/results.json").read_bytes())
    shutil.copy("out/results.json", "alone")
    status, out, err = script("evaluate.py", "--plot", "alone")
    assert (status, err) == (0, "")
    assert Path("alone/dashboard.png").read_bytes() == Path("out/dashboard.png").read_bytes()
    names = [row["name"] for row in read_json("out/results.json")["models"]]
    assert names == [fine_tuned.name, f"{fine_tuned.name}-2"]  # two folders of one name
    picture = Path("out/dashboard.png").read_bytes()
    Path("out/dashboard.png").unlink()
    status, out, err = script("evaluate.py", "--plot", "out")
    assert (status, err) == (0, "") and Path("out/dashboard.png").read_bytes() == picture


def test_a_slip_with_resume_costs_no_finished_student(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--no-baseline",
               "--alpha", 0.1, 0.9]  # fmt: skip
    assert script(*command)[0] == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("model.safetensors")}
    status, _, err = script(*command, "--teacher", "runs/films/teacher", "--label-smoothing", 0.1, "--resume")
    assert status == 2 and "label_smoothing 0.0 → 0.1" in err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_never_writes_over_a_student_it_starts_from(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, *QUICK, "--output-dir", "out"]
    assert script(*command, "--student-layers", 2, "--seeds", 2, "--no-baseline")[0] == 0
    for source in ("out/distilled", "out/seed-43/distilled"):
        status, _, err = script(*command, "--student", source, "--seeds", 2)
        assert status == 2 and f"--student {source}: the run would write over it" in err


def test_impossible_adapters_are_found_before_any_training(script, corpus, bare):
    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK]
    status, _, err = script(*command, "--student-lora-rank", 1000)
    assert status == 2 and "--student-lora-rank 1000" in err and not Path("runs/films/teacher").exists()
    status, _, err = script(*command, "--lora-alpha", 8)
    assert status == 2 and "--lora-alpha" in err and "--lora-rank" in err


def test_a_damaged_cache_of_logits_is_computed_anew(script, fine_tuned, corpus, monkeypatch, no_pictures):
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "cache"))
    command = ["evaluate.py", fine_tuned, "--dataset", corpus, "--output-dir", "out"]
    assert script(*command)[0] == 0
    predicted = Path(f"out/predictions-{fine_tuned.name}.csv").read_bytes()
    (cache,) = Path("cache/minikd").glob("logits-*")
    for logits in (torch.zeros(3, 2), torch.zeros(20, 3), torch.full((20, 2), torch.nan)):
        save_file({"logits": logits}, cache)
        assert script(*command)[0] == 0
        assert Path(f"out/predictions-{fine_tuned.name}.csv").read_bytes() == predicted


def test_no_picture_of_an_earlier_run_stays_beside_new_results(script, fine_tuned, corpus, monkeypatch):
    Path("out").mkdir()
    Path("out/dashboard.png").write_bytes(b"old")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    status, out, _ = script("evaluate.py", fine_tuned, "--dataset", corpus, "--output-dir", "out")
    assert status == 0 and "pip install matplotlib" in out and not Path("out/dashboard.png").exists()


def test_a_line_of_a_text_file_is_what_ends_in_a_line_feed(script, fine_tuned):
    Path("new.txt").write_bytes("great\u2028film\r\ndull\x0cplot\n\n".encode())
    status, out, _ = script("evaluate.py", fine_tuned, "--input", "new.txt", "--output", "labels.csv")
    assert status == 0 and "2 texts labelled" in out
    status, _, err = script("evaluate.py", fine_tuned, "--input", "labels.csv", "--output", "labels.csv")
    assert status == 2 and "is the file of --input" in err


def test_a_carriage_return_in_a_text_does_not_end_its_row(script, fine_tuned):
    Path("new.jsonl").write_text(json.dumps({"text": "great\rfilm"}) + "\n")
    assert script("evaluate.py", fine_tuned, "--input", "new.jsonl", "--output", "labels.csv")[0] == 0
    assert [row["text"] for row in predictions("labels.csv")] == ["great\rfilm"]


@pytest.mark.parametrize("damage", [{"models": [1]}, {"curves": [1]}, {"labels": 3}])
def test_results_that_cannot_be_drawn_are_named(script, fine_tuned, corpus, damage):
    assert script("evaluate.py", fine_tuned, "--dataset", corpus, "--output-dir", "out")[0] == 0
    Path("out/results.json").write_text(json.dumps(read_json("out/results.json") | damage))
    status, _, err = script("evaluate.py", "--plot", "out")
    assert status == 2 and "out/results.json" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["new.txt", "new.csv", "new.tsv", "new.jsonl"])
@pytest.mark.parametrize("output", ["labels.csv", "labels.jsonl"])
def test_texts_of_a_file_are_labelled_in_order(script, fine_tuned, name, output):
    texts = ["great film", "dull, dull plot", "fine"]
    content = {".txt": "\n".join(texts), ".csv": 'text\ngreat film\n"dull, dull plot"\nfine\n',
               ".tsv": "id\tsentence\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)),
               ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)}  # fmt: skip
    Path(name).write_text(content[Path(name).suffix])
    status, out, err = script("evaluate.py", fine_tuned, "--input", name, "--output", output)
    assert (status, err) == (0, "") and "3 texts labelled" in out
    rows = predictions(output) if output.endswith("csv") else [json.loads(line) for line in open(output)]
    assert [row["text"] for row in rows] == texts
    for row in rows:
        probs = {label: float(row[f"prob_{label}"]) for label in ("GOOD", "BAD")}
        assert sum(probs.values()) == pytest.approx(1, abs=1e-5) and row["predicted"] == max(probs, key=probs.get)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input", "missing.txt", "--output", "x.csv"], "missing.txt"),
        (["--input", "empty.txt", "--output", "x.csv"], "empty.txt is empty"),
        (["--input", "gap.txt", "--output", "x.csv"], "gap.txt, line 2: the text is empty"),
        (["--input", "gap.txt"], "--output"),
        (["--input", "gap.txt", "--output", "x.xlsx"], "x.xlsx: must end in .csv or .jsonl"),
        (["--text", "fine", "--calibrate"], "--calibrate"),
        (["--plot", "."], "--plot"),
    ],
)
def test_mixed_or_wrong_flags_of_evaluate_get_one_line(script, fine_tuned, flags, words):
    Path("empty.txt").write_text("")
    Path("gap.txt").write_text("fine\n\ndull\n")
    status, _, err = script("evaluate.py", fine_tuned, *flags)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1 and not Path("x.csv").exists()


def test_tensorboard_gets_the_lines_of_the_log_and_the_test_figures(script, corpus, bare, no_pictures):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--track"]
    status, _, err = script(*command, "tensorboard", "--seeds", 2)
    assert (status, err) == (0, "")

    def events_of(name, output="runs/films"):
        events = EventAccumulator(f"{output}/tensorboard/{name}")
        events.Reload()
        return events

    events = events_of("distilled")
    lines = [json.loads(line) for line in open("runs/films/distilled/log.jsonl")]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(s, pytest.approx(v)) for s, v in losses]
    rows = {row["name"]: row for row in read_json("runs/films/results.json")["models"]}
    for seed, folder in enumerate(("", "seed-43/")):
        for name in ("distilled", "baseline"):
            assert events_of(folder + name).Scalars("test/nll")[-1].value == pytest.approx(rows[name]["nll"][seed])
    assert len({*rows["distilled"]["nll"], *rows["baseline"]["nll"]}) == 4
    command = ["train.py", "--dataset", corpus, "--model", bare, "--epochs", 1, *QUICK[8:], "--output-dir", "out"]
    assert script(*command, "--track", "tensorboard")[0] == 0
    (row,) = read_json("out/results.json")["models"]
    assert events_of("out", "out").Scalars("test/nll")[-1].value == pytest.approx(row["nll"])


def test_the_rank_of_a_recipe_is_ignored_aloud_where_the_teacher_is_fine_tuned_and_the_users_own_is_refused(
    script, corpus, fine_tuned
):
    flags = ["--recipe", "sst2-lora", "--dataset", corpus, "--teacher", fine_tuned, "--student-layers", 1, *QUICK]
    status, out, err = script("distill.py", *flags, "--no-baseline")
    assert (status, err) == (0, "")
    assert "--lora-rank 8 of the recipe is ignored: this teacher is not trained here" in out
    status, _, err = script("distill.py", *flags, "--lora-rank", 4)
    assert status == 2 and "--lora-rank: this teacher is not trained here" in err and err.count("\n") == 1
