"""The three scripts, run as a user runs them: what they leave, what they reuse, and how they complain."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, WORDS, save_model

from minikd.batching import SORTED_TOGETHER
from minikd.checkpoints.pretrained import from_pretrained

ROOT = Path(__file__).parents[2]
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "run.json"}


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_distill_leaves_three_models_and_their_comparison(script, corpus, bare):
    status, out, err = script("distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK)
    assert (status, err) == (0, "")
    output = Path("runs/films")
    names = ("teacher", "distilled", "baseline")
    assert files_of(output) == {
        ".command", "results.json", "results.md", "dashboard.png", "teacher-logits.safetensors",
        *(f"predictions-{name}.csv" for name in names),
        *(f"{name}/{file}" for name in names for file in MODEL_FILES | {"log.jsonl"}),
    }  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert (results["dataset"], results["split"], results["arguments"]["alpha"]) == ("films", "test", [0.5])
    assert [row["name"] for row in results["models"]] == list(names)
    rows = {row["name"]: row for row in results["models"]}
    for name in names:
        for key in ("accuracy", "f1", "precision", "recall", "weighted_f1"):
            assert 0 <= rows[name][key] <= 1
        assert rows[name]["latency_ms"] > 0 and rows[name]["throughput"] > 0
        model = from_pretrained(output / name)
        assert rows[name]["parameters"] == sum(p.numel() for p in model.parameters())
        assert rows[name]["size_mb"] == pytest.approx(4 * rows[name]["parameters"] / 2**20)
        assert model.config.labels == ("bad", "good")
        lines = list(csv.DictReader((output / f"predictions-{name}.csv").open()))
        assert [int(line["index"]) for line in lines] == list(range(results["examples"]))
        assert sum(line["label"] == line["predicted"] for line in lines) / len(lines) == pytest.approx(
            rows[name]["accuracy"]
        )
        assert all(float(line["prob_bad"]) + float(line["prob_good"]) == pytest.approx(1, abs=1e-5) for line in lines)
    assert from_pretrained(output / "distilled").config.num_hidden_layers == 2
    assert "layers [0, 3] and head of the fine-tuned teacher" in out
    for word in ("parameters", "ms/sample", "speed-up", "retention", "bag of words"):
        assert word in out and word in (output / "results.md").read_text()
    runs = [json.loads((output / name / "run.json").read_text()) for name in ("distilled", "baseline")]
    assert runs[0]["made_from"]["initial_weights"] != runs[1]["made_from"]["initial_weights"]  # tuned, and before
    assert runs[0]["made_from"]["settings"]["alpha"] == 0.5 and runs[1]["made_from"]["teacher"] == ""


def with_padding_at(folder, source, tokenizer_pad, config_pad):
    """A copy of a model whose tokenizer has [PAD] at another id, and whose config names another row, or none."""
    shutil.copytree(source, folder)
    backend = json.loads((folder / "tokenizer.json").read_text())
    vocab, pad = backend["model"]["vocab"], backend["model"]["vocab"]["[PAD]"]
    other = next(token for token, i in vocab.items() if i == tokenizer_pad)
    vocab["[PAD]"], vocab[other] = tokenizer_pad, pad
    for token in backend["added_tokens"]:
        token["id"] = vocab[token["content"]]
    for part in backend["post_processor"]["special_tokens"].values():
        part["ids"] = [vocab[part["id"]]]
    backend["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": None}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": config_pad}))
    return folder


@pytest.mark.parametrize(("tokenizer_pad", "config_pad"), [(0, None), (1, 0)])
def test_models_train_whichever_ids_tokenizer_and_config_use_for_padding(
    script, corpus, bare, tmp_path, tokenizer_pad, config_pad
):
    teacher = with_padding_at(tmp_path / "teacher", bare, tokenizer_pad, config_pad)
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", teacher, "--student-layers", 2,
                            "--no-baseline", *QUICK)  # fmt: skip
    assert (status, err) == (0, "")
    for name in ("teacher", "distilled"):
        assert from_pretrained(f"runs/films/{name}").config.pad_token_id == config_pad


def test_a_second_run_reuses_the_teacher_and_its_logits_unless_settings_differ(script, corpus, bare):
    base = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, "--no-baseline", *QUICK]
    _, first, _ = script(*base)
    Path("runs/films/predictions-baseline.csv").write_text("of an earlier run with other models")
    status, again, _ = script(*base, "--T", 4)
    assert not Path("runs/films/predictions-baseline.csv").exists()
    stale = Path("runs/films/predictions-baseline.csv")
    stale.write_text("of an earlier run")
    status, again, _ = script(*base, "--T", 4)
    assert not stale.exists()
    assert status == 0 and "teacher: using runs/films/teacher" in again and "teacher logits: read from" in again
    assert "distilled: epoch 1" in again  # but the student is trained
    _, other, _ = script(*base, "--teacher-lr", "2e-3")
    assert "other settings (lr 0.001 → 0.002); training anew" in other and "teacher: epoch 2" in other
    assert "runs/films/teacher-logits.safetensors belongs to another model" in other


def test_the_same_command_gives_the_same_bits(script, corpus, bare):
    base = ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK]
    for name in ("one", "two"):
        assert script(*base, "--output-dir", name)[0] == 0
    for name in ("teacher", "distilled", "baseline"):
        assert (
            Path("one", name, "model.safetensors").read_bytes() == Path("two", name, "model.safetensors").read_bytes()
        )
    assert Path("one/distilled/model.safetensors").read_bytes() != Path("one/baseline/model.safetensors").read_bytes()


def test_online_teacher_logits_give_nearly_the_cached_student(script, corpus, fine_tuned):
    base = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--student-layers", 2, "--no-baseline", *QUICK]
    for mode in ("cache", "online"):
        assert script(*base, "--teacher-logits", mode, "--output-dir", mode)[0] == 0
    assert not Path("online/teacher-logits.safetensors").exists()
    one, two = (from_pretrained(f"{mode}/distilled").state_dict() for mode in ("cache", "online"))
    assert all((one[name] - two[name]).abs().mean() < 1e-5 for name in one)


def test_a_fine_tuned_teacher_is_used_as_it_is_with_its_labels_in_the_datas_order(script, corpus, fine_tuned):
    flags = ["--student-layers", 2, "--teacher-base", "random", *QUICK]
    status, out, _ = script("distill.py", "--dataset", corpus, "--teacher", fine_tuned, *flags)
    assert status == 0 and "used as it is" in out and "teacher: epoch" not in out
    kept, original = from_pretrained("runs/films/teacher"), from_pretrained(fine_tuned)
    assert kept.config.labels == ("bad", "good")
    assert torch.equal(kept.classifier.weight, original.classifier.weight.flip(0))


def test_the_students_layers_can_be_named(script, corpus, bare):
    take = ["--take-layers", 1, 2, 3, "--no-baseline"]
    status, out, _ = script("distill.py", "--dataset", corpus, "--teacher", bare, *take, *QUICK)
    assert (
        status == 0 and "3 layers, 16 wide, first weights: layers [1, 2, 3] and head of the fine-tuned teacher" in out
    )


def test_a_student_can_start_from_a_folder_or_from_random_weights(script, corpus, bare, fine_tuned):
    base = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--no-baseline", *QUICK]
    assert script(*base, "--student", bare)[0] == 0
    status, out, _ = script(*base, "--student-layers", 1, "--student-hidden", 32)
    assert status == 0 and "1 layers, 32 wide, first weights: random" in out


def test_a_distilbert_student_learns_from_a_bert_teacher_and_keeps_its_layout(script, corpus, fine_tuned, tmp_path):
    student = save_model(tmp_path / "student", model_type="distilbert", type_vocab_size=0, num_hidden_layers=2)
    status, _, _ = script("distill.py", "--dataset", corpus, "--teacher", fine_tuned, "--student", student, *QUICK)
    assert status == 0
    for name in ("distilled", "baseline"):
        config = json.loads(Path("runs/films", name, "config.json").read_text())
        assert (config["model_type"], config["n_layers"], config["dim"]) == ("distilbert", 2, 16)
        assert config["id2label"] == {"0": "bad", "1": "good"}


def test_train_then_evaluate_give_one_set_of_figures(script, corpus, bare):
    quick = [*QUICK[:2], *QUICK[4:6], *QUICK[8:]]
    status, _, err = script("train.py", "--dataset", corpus, "--model", bare, *quick)
    assert (status, err) == (0, "")
    assert files_of(Path("runs/films-model")) == MODEL_FILES | {
        ".command",
        "log.jsonl",
        "results.json",
        "results.md",
        "dashboard.png",
        "predictions-model.csv",
    }
    trained = json.loads(Path("runs/films-model/results.json").read_text())["models"][0]
    status, out, _ = script("evaluate.py", "runs/films-model", "--output-dir", "again", "--precision", "fp32")
    assert status == 0
    again = json.loads(Path("again/results.json").read_text())["models"][0]
    for key in ("accuracy", "f1", "precision", "recall", "weighted_f1", "parameters", "size_mb"):
        assert again[key] == trained[key]
    assert (
        Path("again/predictions-films-model.csv").read_text()
        == Path("runs/films-model/predictions-model.csv").read_text()
    )
    status, out, _ = script("train.py", "--dataset", corpus, "--model", bare, *quick, "--resume")  # a finished run
    assert status == 0 and "made from the same settings" in out
    again = json.loads(Path("runs/films-model/results.json").read_text())["models"][0]
    assert (again["accuracy"], again["nll"]) == (trained["accuracy"], trained["nll"])


def test_distill_takes_the_soft_loss_and_refuses_what_two_labels_make_degenerate(
    script, stop, films, trained, corpus, bare
):
    calls = stop("minikd.experiment.training.train")
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, "--soft-loss", "dkd", *QUICK)
    assert status == 2 and "soft loss dkd: with two labels" in err and not calls  # before the teacher's training
    calls = stop("minikd.experiment.training.distill")
    for flags, soft in (([], "kl"), (["--soft-loss", "dkd"], "dkd")):
        script(
            "distill.py",
            "--dataset",
            films,
            "--teacher",
            trained,
            "--no-baseline",
            "--student-layers",
            2,
            *flags,
            *QUICK,
        )
        (_, options) = calls.pop()
        assert options["soft"] == soft


def test_an_interrupted_student_is_not_resumed_with_another_teacher_or_shape(script, corpus, bare):
    base = ["distill.py", "--dataset", corpus, "--teacher", bare, *QUICK]
    assert script(*base, "--student-layers", 2)[0] == 0
    output = Path("runs/films")
    run = json.loads((output / "distilled/run.json").read_text())
    (output / "distilled/.partial").mkdir()
    parts = dict.fromkeys(("model", "optimizer", "scaler", "step", "history", "best", "rng", "cuda_rng"))
    state = parts | {"made_from": run["made_from"] | {"chunk": SORTED_TOGETHER}}
    torch.save(state, output / "distilled/.partial/state.pt")
    (output / "distilled/run.json").unlink()
    status, _, err = script(*base, "--student-layers", 3, "--resume")
    assert status == 2 and "made from something else (initial_weights, config)" in err and err.count("\n") == 1
    teacher = (output / "teacher/model.safetensors").read_bytes()
    status, _, err = script(*base, "--student-layers", 2, "--teacher-lr", "2e-3", "--resume")
    assert status == 2 and "runs/films/teacher was made from other settings (lr 0.001 → 0.002)" in err
    assert (output / "teacher/model.safetensors").read_bytes() == teacher  # a slip with --resume costs nothing


def test_evaluate_labels_texts(script, fine_tuned):
    status, out, _ = script("evaluate.py", fine_tuned, "--text", "a great film", "--text", "dull", "--max-length", 16)
    lines = [line for line in out.splitlines() if line.endswith((": a great film", ": dull"))]
    assert (
        status == 0
        and len(lines) == 2
        and all(re.search(r"(GOOD|BAD) \(GOOD 0\.\d+, BAD 0\.\d+\)", line) for line in lines)
    )


def test_train_builds_a_new_model_of_the_layers_asked_for(script, corpus):
    status, _, err = script("train.py", "--dataset", corpus, "--layers", 1, "--hidden", 32, "--epochs", 1)
    assert (status, err) == (0, "")
    assert from_pretrained("runs/films-model").config.num_hidden_layers == 1


@pytest.mark.parametrize("flags,words", [
    (["--alpha", "1.5"], "--alpha: '1.5' is not a number of at least 0 and at most 1"),
    (["--T", "0"], "--T: '0' is not a number of at least 0.01 and at most 100"),
    (["--T", "nan"], "--T: 'nan'"),
    (["--epochs", "0"], "--epochs: '0' is not a whole number of at least 1"),
    (["--student-layers", "two"], "--student-layers: 'two'"),
    (["--dataset", "nowhere.csv"], "nowhere.csv"),
    (["--teacher", "./nowhere"], "./nowhere: no such model folder"),
    (["--student-layers", "5"], "--student-layers 5: the teacher has 4 layers"),
    (["--max-length", "100"], "--max-length 100"),
    (["--take-layers", "0", "9"], "layers are numbered 0 to 3"),
    (["--take-layers", "0", "--student-layers", "2"], "--take-layers"),
    (["--student-init", "pretrained"], "--student-init pretrained"),
    (["--student-init", "teacher", "--student-hidden", "32"], "widths must agree"),
    (["--teacher", "oracle"], "--teacher oracle"),
    (["--precision", "fp16"], "--precision fp16"),
    (["--output-dir", "/proc/nowhere"], "--output-dir /proc/nowhere"),
    (["--student", "x", "--student-layers", "2"], "--student brings its own shape"),
    (["--teacher", ""], "--teacher: the value is empty"),
    (["--output-dir", " "], "--output-dir: the value is empty"),
    (["--seed", "99999999999999999999"], "--seed"),
    (["--take-layers", "0", "--student-hidden", "32"], "--take-layers"),
    (["--no-such-flag"], "--no-such-flag"),
])  # fmt: skip
def test_a_wrong_flag_gets_one_line_and_status_2_and_writes_no_model(script, corpus, bare, flags, words):
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, *QUICK, *flags)
    assert status == 2 and words in err
    assert err.count("\n") == 1 and "Traceback" not in err and err.startswith("distill.py: error: ")
    assert not list(Path().rglob("*.safetensors"))


def test_a_run_never_writes_over_the_model_it_starts_from(script, corpus, tmp_path):
    source = save_model(tmp_path / "out" / "distilled", labels=("bad", "good"))
    before = (source / "model.safetensors").read_bytes()
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", source, "--output-dir", "out", *QUICK)
    assert status == 2 and "would write over it" in err
    bare = save_model(tmp_path / "own" / "teacher")
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, "--output-dir", "own", *QUICK)
    assert status == 2 and "would write over it" in err
    status, _, err = script("train.py", "--dataset", corpus, "--model", source, "--output-dir", source)
    assert status == 2 and "would write over it" in err
    assert (source / "model.safetensors").read_bytes() == before


def test_without_a_length_texts_are_cut_where_the_shortest_model_ends(script, corpus, fine_tuned, tmp_path, stop):
    length = QUICK.index("--max-length")
    flags = QUICK[:length] + QUICK[length + 2 :]
    layers = ["--student-layers", 2, "--teacher-base", "random"]
    assert script("distill.py", "--dataset", corpus, "--teacher", fine_tuned, *layers, *flags)[0] == 0
    assert json.loads(Path("runs/films/results.json").read_text())["arguments"]["max_length"] == 32
    short = save_model(tmp_path / "short", labels=("bad", "good"), max_position_embeddings=20)
    assert "max_length 20" in script("evaluate.py", fine_tuned, short, "--text", "great film")[1].splitlines()
    shorter = save_model(tmp_path / "shorter", labels=("good", "bad"), max_position_embeddings=16)
    command = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, *flags]
    status, out, _ = script(*command, "--student", shorter, "--no-baseline", "--output-dir", "out")
    assert status == 0 and "max_length 16\n" in out
    assert script("evaluate.py", fine_tuned, "--text", "great film")[0] == 0
    stop("minikd.experiment.training.run_training")
    _, out, err = script(*command, "--student", short)
    assert "max_length 20" in out.splitlines() and "seen enough" in err


def test_a_file_called_sample_is_the_users_own(script, corpus, bare, tmp_path):
    shutil.copy(corpus, tmp_path / "sample.csv")
    status, out, _ = script("distill.py", "--dataset", "sample.csv", "--teacher", bare, "--student-layers", 2, *QUICK)
    assert status == 0 and "first weights: layers [0, 3] and head of the fine-tuned teacher" in out
    status, _, err = script("distill.py", "--dataset", "sample.csv", *QUICK)  # the default teacher is on the hub
    assert status == 2 and "bert-base-uncased: neither a folder here nor to be fetched" in err


def test_evaluate_ignores_a_damaged_run_json(script, corpus, tmp_path):
    folder = save_model(tmp_path / "model", labels=("bad", "good"))
    for content in (
        "{",
        "[]",
        '{"arguments": []}',
        '{"arguments": {"max_length": "x", "dataset": 3, "data_dir": null}}',
    ):
        (folder / "run.json").write_text(content)
        status, _, err = script("evaluate.py", folder)
        assert status == 2 and "no model says what it was trained on" in err
        assert script("evaluate.py", folder, "--dataset", corpus)[0] == 0


def test_a_diverged_model_is_not_saved(script, corpus, bare):
    flags = ["--epochs", 1, "--batch-size", 1000, "--lr", "1e30", "--precision", "fp32"]  # the one step ruins it
    status, _, err = script("train.py", "--dataset", corpus, "--model", bare, *flags)
    assert status == 2 and "not finite" in err and err.count("\n") == 1
    assert not list(Path().rglob("*.safetensors"))


def test_labels_that_differ_in_case_only_survive_a_reload(script, tmp_path):
    rows = [(f"{word} film number {i}", label) for i in range(30) for word, label in
            (("great", "Good"), ("fine", "good"), ("dull", "bad"))]  # fmt: skip
    corpus = tmp_path / "case.csv"
    corpus.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    flags = ["--layers", 1, "--hidden", 32, "--epochs", 20, "--lr", "1e-2", "--precision", "fp32", "--output-dir", "m"]
    assert script("train.py", "--dataset", corpus, *flags)[0] == 0
    trained = json.loads(Path("m/results.json").read_text())["models"][0]["accuracy"]
    assert script("evaluate.py", "m", "--output-dir", "e", "--precision", "fp32")[0] == 0
    assert json.loads(Path("e/results.json").read_text())["models"][0]["accuracy"] == trained > 0.9


def test_a_terminal_that_cannot_show_a_character_does_not_end_a_run(corpus, bare, tmp_path):
    command = [sys.executable, str(ROOT / "distill.py"), "--dataset", str(corpus), "--teacher", str(bare), *QUICK]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0 and b"speed-up" in run.stdout and (tmp_path / "runs/films/results.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here CUDA is present")
def test_cuda_asked_for_and_absent_is_refused(script, corpus, bare):
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, *QUICK, "--device", "cuda")
    assert status == 2 and err.startswith("distill.py: error: --device cuda")


def broken_models(folder):
    """(what is wrong, teacher folder, words of the complaint) of each kind of broken model folder."""
    weights = save_model(folder / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    yield "cut weights", folder / "cut", "model.safetensors: cannot be loaded as weights"
    (save_model(folder / "empty") / "model.safetensors").unlink()
    yield "no weights", folder / "empty", "has no model.safetensors or pytorch_model.bin"
    (save_model(folder / "noconfig") / "config.json").unlink()
    yield "no config", folder / "noconfig", "config.json"
    shutil.copy(save_model(folder / "big", words=[*WORDS, "zebra", "quick", "yacht"]) / "tokenizer.json", folder)
    shutil.copy(folder / "tokenizer.json", save_model(folder / "vocabulary") / "tokenizer.json")
    yield "vocabulary larger than the embedding", folder / "vocabulary", "tokens but the model embeds"
    yield "other labels", save_model(folder / "labels", labels=("x", "y")), "are not the data's ['bad', 'good']"


def test_broken_model_folders_are_refused_by_name(script, corpus, tmp_path):
    for what, folder, words in broken_models(tmp_path / "models"):
        status, _, err = script("distill.py", "--dataset", corpus, "--teacher", folder, *QUICK)
        assert status == 2 and words in err and err.count("\n") == 1, (what, err)


def test_a_student_with_another_vocabulary_is_refused(script, corpus, bare, tmp_path):
    other = save_model(tmp_path / "other", words=[*WORDS, "zebra"])
    status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, "--student", other, *QUICK)
    assert status == 2 and "its vocabulary is not the teacher's" in err
    assert not Path("runs/films/teacher").exists()  # found before the teacher is trained


def test_evaluate_refuses_a_bare_encoder_and_other_labels(script, corpus, bare, tmp_path):
    status, _, err = script("evaluate.py", bare, "--dataset", corpus)
    assert status == 2 and "without a classifier" in err
    status, _, err = script("evaluate.py", save_model(tmp_path / "labels", labels=("x", "y")), "--dataset", corpus,
                            "--max-length", 16)  # fmt: skip
    assert status == 2 and "are not the data's" in err


def test_a_full_disk_is_told_in_one_line_and_leaves_no_half_written_file(script, corpus, bare, monkeypatch):
    """A real write error in the middle of a run: a limit on the size of files stands in for the full disk."""
    resource = pytest.importorskip("resource", reason="this system has no file-size limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an OSError, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        status, _, err = script("distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert status == 2 and err.startswith("distill.py: error: ") and "File too large" in err and "Traceback" not in err
    assert not [path for path in Path("runs").rglob("*") if path.suffix in (".tmp", ".pt", ".safetensors")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_a_signal_resumes_to_the_same_students(corpus, bare, tmp_path, number):
    command = [sys.executable, str(ROOT / "distill.py"), "--dataset", str(corpus), "--teacher", str(bare),
               "--student-layers", "2", *QUICK, "--teacher-epochs", "40"]  # fmt: skip
    subprocess.run([*command, "--output-dir", "whole"], cwd=tmp_path, check=True, capture_output=True)
    process = subprocess.Popen([*command, "--output-dir", "cut"], cwd=tmp_path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    log = tmp_path / "cut/teacher/.partial/log.jsonl"
    deadline = time.time() + 60
    while not (log.exists() and log.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume continues" in err and "Traceback" not in err
    assert (tmp_path / "cut/teacher/.partial/state.pt").exists() and not (tmp_path / "cut/teacher/run.json").exists()
    again = subprocess.run([*command, "--output-dir", "cut", "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "resumed from" in again.stdout
    for name in ("teacher", "distilled", "baseline"):
        whole, cut = (tmp_path / run / name / "model.safetensors" for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name
