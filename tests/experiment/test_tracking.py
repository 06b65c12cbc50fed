"""What reaches TensorBoard and W&B, read back from their files; runs that are interrupted; trackers that fail."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import numpy as np
import pytest
import test_runs
import torch
from helpers import Settings, train

from minikd.config import EncoderConfig
from minikd.datasets import Split
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens, model_fingerprint
from minikd.experiment.journal import read_log
from minikd.experiment.tracking import CURVES, TensorBoardRun, Tracking
from minikd.model import Classifier
from minikd.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LABELS = ("a|b", "positive")
WORDS = "a the film plot was dull great boring fine superb awful not very".split()
SETTINGS = Settings(epochs=2, batch_size=4, lr=1e-3, seed=5)  # 15 steps an epoch: log lines at 10, 15, 20, 30
ROW = {"name": "x", "path": "p", "accuracy": 0.75, "f1": 0.5, "retention": None, "confusion": [[1, 1], [0, 2]]}


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(60)]
    tokenizer = train_wordpiece(texts, 200)
    labels = [int("great" in text or "fine" in text) for text in texts]
    splits = Split(texts, labels), Split(texts[:20], labels[:20])
    return [cached_tokens(split, tokenizer, 16) for split in splits]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B writes to this test's folder alone and never asks the network."""
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)


def make_model():
    torch.manual_seed(0)
    return Classifier(EncoderConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, labels=LABELS,
    ))  # fmt: skip


def run(kind, data, output, *, resume=False, stop=None, summary=None):
    """Trains into output/model with a tracker; `stop` interrupts it as a signal does, after the line of this step."""
    folder, model = output / "model", make_model()
    with Tracking(kind, output) as tracking:
        track = tracking.start(folder, LABELS, {"dataset": "tiny"} | asdict(SETTINGS), folder)

        def track_and_stop(line):
            track(line)
            if line["step"] == stop:
                os.kill(os.getpid(), 15)

        train(model, *data, SETTINGS, folder, CPU, resume=resume, track=track_and_stop if track else None)
        if summary:
            tracking.summary(folder, summary)
    return model


def curves_of_the_log(folder):
    """tag: [[step, value], ...], as log.jsonl has them."""
    lines = read_log(folder)
    return {tag: [[line["step"], line[key]] for line in lines if key in line] for key, tag in CURVES.items()}


def events(folder):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the package tensorboard is not installed"
    ).EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return reader.Reload()


def scalars(folder):
    reader = events(folder)
    return {tag: [[e.step, e.value] for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def text(folder, tag):
    return [e.tensor_proto.string_val[0].decode() for e in events(folder).Tensors(f"{tag}/text_summary")]


def wandb_records(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the end of a block, too short for a header
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def wandb_runs(output):
    """The runs that were written offline, in order of time: id, name, …, exit code, {tag: [[step, value], ...]}."""
    import wandb

    wandb.teardown()  # waits for the process that writes the files
    return [wandb_run(path) for path in sorted(output.glob("wandb/offline-run-*/*.wandb"), key=os.path.getctime)]


def wandb_run(path):
    found = {"config": {}, "curves": {}, "summary": {}, "folder": path.parent}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
            found |= {"entity": record.run.entity, "tags": list(record.run.tags)}
            found["name"] = record.run.display_name
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            for item in record.history.item:
                tag = item.key or "/".join(item.nested_key)
                found["curves"].setdefault(tag, []).append([record.history.step.num, json.loads(item.value_json)])
        elif kind == "summary":
            for item in record.summary.update:
                found["summary"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def test_log_lines_have_memory_and_the_confusion_matrix_of_the_accuracy(data, tmp_path):
    run(None, data, tmp_path)
    lines = read_log(tmp_path / "model")
    assert [line["step"] for line in lines] == [10, 15, 20, 30, 30]
    for line in lines:
        if "loss" in line:
            assert 10 < line["memory_mb"] < 1e6
        else:
            matrix = np.array(line["confusion"])
            assert matrix.sum(axis=1).tolist() == np.bincount(data[1].labels).tolist()
            assert matrix.trace() / 20 == pytest.approx(line["validation_accuracy"])


def test_tensorboard_holds_every_line_of_the_log(data, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    run("tensorboard", data, tmp_path, summary=ROW)
    folder = tmp_path / "tensorboard/model"
    found = scalars(folder)
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert np.array(found[tag]) == pytest.approx(np.array(expected), rel=1e-6), tag
    matrix = [line for line in read_log(tmp_path / "model") if "confusion" in line][-1]["confusion"]
    recall = [[30, matrix[1][1] / sum(matrix[1])]]
    assert np.allclose(found["recall/positive"][-1:], recall)
    (first, last), (test,) = text(folder, "validation/confusion"), text(folder, "test/confusion")
    assert f"| positive | {matrix[1][0]} | {matrix[1][1]} |" in last and "| a\\|b | positive |" in first
    assert "| positive | 0 | 2 |" in test
    assert (found["test/accuracy"], found["test/f1"]) == ([[30, 0.75]], [[30, 0.5]]) and "test/retention" not in found
    assert '"dataset": "tiny"' in text(folder, "config")[0] and '"lr": 0.001' in text(folder, "config")[0]


def test_wandb_holds_every_line_of_the_log(data, tmp_path, offline):
    run("wandb", data, tmp_path, summary=ROW)
    (found,) = wandb_runs(tmp_path)
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert found["curves"][tag] == expected, tag
    epochs = {line["step"]: line["epoch"] for line in read_log(tmp_path / "model")}  # lines of one step are one point
    assert dict(found["curves"]["epoch"]) == epochs
    assert [found[key] for key in ("name", "project", "group", "exit")] == ["model", "minikd", tmp_path.name, 0]
    assert found["config"]["dataset"] == "tiny" and found["config"]["lr"] == 1e-3
    assert (found["summary"]["test/accuracy"], found["summary"]["test/f1"]) == (0.75, 0.5)
    tables = [json.loads(table.read_text()) for table in found["folder"].glob("files/media/table/**/*.json")]
    matrix = [line for line in read_log(tmp_path / "model") if "confusion" in line][-1]["confusion"]
    for counts in (matrix, ROW["confusion"]):
        rows = [[a, p, counts[i][j]] for i, a in enumerate(LABELS) for j, p in enumerate(LABELS)]
        assert rows in [table["data"] for table in tables]
    (path,) = found["folder"].glob("*.wandb")
    assert b"wandb/confusion_matrix/v1" in path.read_bytes()  # the service's chart


def test_wandb_obeys_its_own_variables(data, tmp_path, offline, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    given = {
        "PROJECT": "mine",
        "ENTITY": "ours",
        "RUN_GROUP": "together",
        "TAGS": "old,new",
        "NAME": "all",
        "RUN_ID": "1",
    }
    for name, value in (given | {"DIR": str(tmp_path / "elsewhere")}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Tracking("wandb", tmp_path / "out") as tracking:
        (tmp_path / "out").mkdir()
        tracking.start(tmp_path / "out", LABELS, {})
    (found,) = wandb_runs(tmp_path / "elsewhere")
    assert [found[key] for key in ("project", "entity", "group", "tags")] == [
        "mine",
        "ours",
        "together",
        ["old", "new"],
    ]
    assert found["name"] == "out" and found["id"] != "1"  # a model that is the output has its name


def test_tensorboard_has_each_step_once_after_an_interruption(data, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    for stop, sent in ((10, [10]), (20, [10, 20])):
        with pytest.raises(KeyboardInterrupt):
            run("tensorboard", data, tmp_path, resume=stop > 10, stop=stop)
        before = scalars(tmp_path / "tensorboard/model")
        assert [step for step, _ in before["train/loss"]] == sent  # flushed, though interrupted
    resumed = run("tensorboard", data, tmp_path, resume=True)
    after = scalars(tmp_path / "tensorboard/model")
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert np.array(after[tag]) == pytest.approx(np.array(expected), rel=1e-6), tag
    assert [step for step, _ in after["train/loss"]] == [10, 20, 30]
    assert model_fingerprint(resumed) == model_fingerprint(run(None, data, tmp_path / "untracked"))


def test_wandb_continues_the_run_that_was_interrupted_and_has_each_step_once(data, tmp_path, offline, monkeypatch):
    for stop in (10, 20):
        with pytest.raises(KeyboardInterrupt):
            run("wandb", data, tmp_path, resume=stop > 10, stop=stop)
    run("wandb", data, tmp_path, resume=True)
    one, again, two = wandb_runs(tmp_path)
    assert one["id"] == again["id"] == two["id"]
    assert (one["exit"], again["exit"], two["exit"]) == (1, 1, 0)
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert two["curves"][tag] == expected, tag

    import wandb

    # A server says how far it is, and what it has is not sent again; there is none here, so its answer is set.
    monkeypatch.setattr(wandb.Run, "starting_step", 21)
    with Tracking("wandb", tmp_path) as tracking:
        tracking.start(tmp_path / "model", LABELS, {})
        assert tracking.runs["model"].run.settings.resume == "allow"  # a server would else begin the run anew
    third = wandb_runs(tmp_path)[-1]
    assert third["id"] == one["id"] and [step for step, _ in third["curves"]["train/loss"]] == [30]


def test_a_run_that_is_trained_anew_is_another_run_of_wandb(data, tmp_path, offline):
    for _ in range(2):
        run("wandb", data, tmp_path)
        (tmp_path / "model/log.jsonl").rename(tmp_path / "old")  # as a new .partial has none
    assert len({found["id"] for found in wandb_runs(tmp_path)}) == 2


def test_several_models_are_runs_of_wandb_side_by_side_and_each_continues_as_itself(tmp_path, offline):
    lines = {name: [{"step": 10 * i, "epoch": i, "loss": loss / i} for i in (1, 2)]
             for name, loss in (("teacher", 0.9), ("distilled", 0.4))}  # fmt: skip
    for _ in range(2):  # the second command finds both models finished
        with Tracking("wandb", tmp_path) as tracking:
            for name, log in lines.items():
                finished = (tmp_path / name).exists()
                track = tracking.start(tmp_path / name, LABELS, {}, None if finished else tmp_path / name)
                if not finished:
                    (tmp_path / name).mkdir()
                    for line in log:
                        track(line)
                    (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            settings = [run.run.settings for run in tracking.runs.values()]
            assert [one.console for one in settings] == ["off"] * 2  # what is printed belongs to no single run
            for name, log in lines.items():
                tracking.summary(tmp_path / name, {"accuracy": log[0]["loss"]})
    first, second = wandb_runs(tmp_path)[:2], wandb_runs(tmp_path)[2:]
    for found in (first, second):
        for one, (name, log) in zip(found, lines.items(), strict=True):
            assert one["name"] == name and one["exit"] == 0
            assert one["curves"]["train/loss"] == [[line["step"], line["loss"]] for line in log]
            assert one["summary"]["test/accuracy"] == log[0]["loss"]
    assert [one["id"] for one in first] == [one["id"] for one in second] and first[0]["id"] != first[1]["id"]


def test_a_damaged_list_of_wandbs_runs_costs_no_run(tmp_path, offline):
    known = tmp_path / "wandb-runs.json"
    for damage in ("{", "[]", '{"model": {"id": "1"}}', '{"model": 1}'):
        known.write_text(damage)
        with Tracking("wandb", tmp_path) as tracking:
            tracking.start(tmp_path / "model", LABELS, {}, tmp_path / "model")({"step": 10, "epoch": 1, "loss": 0.5})
        (run,) = json.loads(known.read_text()).values()
        assert run["log begins"] == {"step": 10, "epoch": 1, "loss": 0.5}
    found = wandb_runs(tmp_path)
    assert len({one["id"] for one in found} - {"1"}) == 4 and found[-1]["id"] == run["id"]


def test_a_finished_model_is_sent_from_its_log(data, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    run(None, data, tmp_path)
    with (tmp_path / "model/log.jsonl").open("a") as log:
        log.write('{"step": 31, "lo')  # what a kill leaves
    with Tracking("tensorboard", tmp_path) as tracking:
        tracking.start(tmp_path / "model", LABELS, {})
    found = scalars(tmp_path / "tensorboard/model")
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert np.array(found[tag]) == pytest.approx(np.array(expected), rel=1e-6), tag


def test_a_finished_run_that_is_used_again_is_sent_from_its_log(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)  # a process of its own
    test_runs.run(tmp_path / "model")
    with Tracking("tensorboard", tmp_path) as tracking:
        test_runs.run(tmp_path / "model", reuse=True, tracking=tracking)
    found = scalars(tmp_path / "tensorboard/model")
    for tag, expected in curves_of_the_log(tmp_path / "model").items():
        assert np.array(found[tag]) == pytest.approx(np.array(expected), rel=1e-6), tag
    (config,) = events(tmp_path / "tensorboard/model").Tensors("config/text_summary")
    assert b"warmup_ratio" in config.tensor_proto.string_val[0]


def test_each_seed_gets_its_own_test_figures_and_no_confusion_of_all(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    closed, close = [], TensorBoardRun.close
    monkeypatch.setattr(TensorBoardRun, "close", lambda self, failed: closed.append(failed) or close(self, failed))
    row = ROW | {"accuracy": [0.75, 0.5], "parameters": 7, "reliability": [[1, 0.5, None]]}
    with Tracking("tensorboard", tmp_path) as tracking:
        for seed, folder in enumerate((tmp_path / "distilled", tmp_path / "seed-6/distilled")):
            tracking.start(folder, LABELS, {})
            tracking.summary(folder, row, seed)
        tracking.summary(tmp_path / "never-trained", row)  # has no run: nothing happens
        assert not closed  # the runs stay open until the end of the command
    assert closed == [False, False]
    for folder, accuracy in (("distilled", 0.75), ("seed-6/distilled", 0.5)):
        found = events(tmp_path / "tensorboard" / folder)
        assert [found.Scalars(f"test/{key}")[0].value for key in ("accuracy", "parameters")] == [accuracy, 7]
        assert not any("confusion" in tag for tag in found.Tags()["tensors"])


def test_a_label_without_examples_has_no_recall_and_no_table_needs_matplotlib(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with Tracking("tensorboard", tmp_path) as tracking:
        tracking.start(tmp_path / "model", LABELS, {}, tmp_path)({"step": 3, "confusion": [[0, 0], [1, 3]]})
    assert scalars(tmp_path / "tensorboard/model") == {"recall/positive": [[3, 0.75]]}
    assert "| positive | 1 | 3 |" in text(tmp_path / "tensorboard/model", "validation/confusion")[0]


@pytest.mark.parametrize("part", ["log", "summary", "close"])
def test_a_tracker_that_fails_costs_one_warning_and_not_the_run(data, tmp_path, monkeypatch, capsys, part):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    monkeypatch.setattr(TensorBoardRun, "close", lambda *_, **__: 1 / 0)  # and is not asked again

    class ServiceError(Exception):
        """None of Python's own."""

    def fail(*_, **__):
        raise ServiceError("No space\n  left on device")

    monkeypatch.setattr(TensorBoardRun, part, fail)
    model = run("tensorboard", data, tmp_path, summary=ROW)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no longer tracked" in line]
    assert "tensorboard: model " in warning and "No space left on device); log.jsonl" in warning
    assert len(read_log(tmp_path / "model")) == 5
    assert model_fingerprint(model) == model_fingerprint(run(None, data, tmp_path / "untracked"))


def test_a_tracker_that_cannot_start_ends_the_first_run_and_no_later_one(tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/bad").write_text("a file where a folder must be")
    with pytest.raises(MinikdError, match="`track` tensorboard: "), Tracking("tensorboard", tmp_path) as tracking:
        tracking.start(tmp_path / "bad", LABELS, {})
    with Tracking("tensorboard", tmp_path) as tracking:
        tracking.start(tmp_path / "good", LABELS, {})
        track = tracking.start(tmp_path / "bad", LABELS, {}, tmp_path / "bad")
        track({"step": 10, "epoch": 1, "loss": 1.0})
    assert "bad is no longer tracked" in capsys.readouterr().err


def python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | environment,
    )


def test_neither_package_is_imported_unless_asked_for():
    done = python(
        "import sys, pathlib, train, distill, evaluate, minikd.experiment.tracking as t\n"
        "with t.Tracking(None, pathlib.Path('x')) as tracking:\n"
        "    assert tracking.start(pathlib.Path('x/y'), ('a', 'b'), {}) is None\n"
        "    tracking.summary(pathlib.Path('x/y'), {'accuracy': 1.0})\n"
        "print({'wandb', 'tensorboard', 'torch.utils.tensorboard'} & sys.modules.keys())"
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_missing_package_is_named_with_what_installs_it(kind):
    done = python(
        f"import sys; sys.modules['{kind}'] = None\n"
        "import pathlib, minikd.files, minikd.experiment.tracking as t\n"
        "try:\n"
        f"    t.Tracking('{kind}', pathlib.Path('x'))\n"
        "except minikd.errors.MinikdError as error:\n"
        "    print(error)"
    )
    assert done.stdout.startswith(f"`track` {kind}: needs the package {kind}"), done.stderr
    assert done.stdout.endswith(f": pip install {kind}\n") and done.stdout.count("\n") == 1


def test_a_folder_called_wandb_is_not_the_package(tmp_path, monkeypatch):
    """As W&B's runs leave it beside the scripts: Python can import it, and it is empty."""
    (tmp_path / "wandb").mkdir()
    folder = module_from_spec(PathFinder.find_spec("wandb", [str(tmp_path)]))
    monkeypatch.setitem(sys.modules, "wandb", folder)
    with pytest.raises(MinikdError, match="pip install wandb"):
        Tracking("wandb", tmp_path)


def test_wandb_without_a_login_says_what_to_do_and_asks_nothing(tmp_path):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    done = python(
        "import pathlib, minikd.files, minikd.experiment.tracking as t\n"
        "folder = pathlib.Path.home()\n"
        "try:\n"
        "    with t.Tracking('wandb', folder) as tracking:\n"
        "        tracking.start(folder / 'model', ('a', 'b'), {})\n"
        "except minikd.errors.MinikdError as error:\n"
        "    print(error)",
        HOME=str(tmp_path),
        WANDB_SILENT="true",
    )
    assert done.stdout.startswith("`track` wandb: ") and "WANDB_MODE=offline" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1 and "wandb login" in done.stdout
