"""A run's folder: whole after a kill at any moment, used again only where it was made from the same."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from conftest import WORDS, save_model
from helpers import Settings, train_or_reuse
from test_training import CPU, make_split

import minikd.experiment.state
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.classifier import check_tokenizer
from minikd.cli.models import check_not_source
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens, model_fingerprint
from minikd.experiment.recorded import best_validation, training_costs
from minikd.experiment.runs import begin, environment, publish
from minikd.experiment.state import Saver, differences
from minikd.files import atomic_write
from minikd.model import Classifier
from minikd.tokenizer import train_wordpiece

SETTINGS = Settings(epochs=2, batch_size=16, lr=1e-3, seed=5)
TOKENIZER = train_wordpiece(WORDS * 3, 200)
DATA, VALIDATION = (cached_tokens(make_split(count, seed), TOKENIZER, 16) for count, seed in ((60, 0), (30, 1)))
LABELS = ("bad", "good")


class Kill(BaseException):
    """The end of the process: no `except Exception` sees it."""


def make_model(seed=0, labels=LABELS, **shape):
    torch.manual_seed(seed)
    return Classifier(EncoderConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, labels=labels, **shape,
    ))  # fmt: skip


def run(folder, *, model=None, data=DATA, validation=VALIDATION, settings=SETTINGS, device=CPU, **more):
    model = model or make_model()
    return train_or_reuse("model", model, TOKENIZER, data, validation, settings, folder, device, {"seed": 5}, **more)


def kill_at(monkeypatch, count):
    """From now on the `count`-th rename or removal of a file or folder is not made: it ends the run."""
    left = [count]
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name), left))
    return left


def counted(do, left):
    def step(*arguments, **more):
        left[0] -= 1
        if left[0] <= 0:
            raise Kill
        return do(*arguments, **more)

    return step


def contents(folder):
    """What a finished run has left, without the seconds and bytes that no two runs share; and all files' names."""
    measured = ("seconds", "examples_per_second", "memory_mb")

    def bare(line):
        return {key: value for key, value in line.items() if key not in measured}

    record = json.loads((folder / "run.json").read_text())
    record["history"] = [bare(line) for line in record["history"]]
    record = {key: value for key, value in record.items() if not key.startswith("training_")}
    log = [bare(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]
    return record, log, model_fingerprint(from_pretrained(folder)), files_of(folder)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def before_publishing(tmp_path_factory):
    """Folders that hold an older, finished run (of adapters), or none, and a run of which every step is trained;
    beside them what the two runs leave when nothing ends them."""
    base = save_model(tmp_path_factory.mktemp("base"))
    older = dict(settings=replace(SETTINGS, lr=5e-3), lora=dict(rank=2, alpha=4.0, dropout=0.0, targets=["query"]),
                 base=str(base))  # fmt: skip
    found = {}
    for name in ("an older run", "nothing"):
        folders = [tmp_path_factory.mktemp("run") / kind for kind in ("whole", "old", "cut")]
        for folder in folders:
            if name == "an older run":  # of another config: with it, the new weights are another model
                run(folder, model=make_model(hidden_dropout_prob=0.3), **older)
                assert (folder / "adapter").exists()
        run(folders[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minikd.experiment.runs.publish", lambda *_: (_ for _ in ()).throw(Kill))
            with pytest.raises(Kill):
                run(folders[2])
        old = contents(folders[1]) if name == "an older run" else None
        found[name] = (folders[2], contents(folders[0]), old)
    return found


@pytest.mark.parametrize("older", ["an older run", "nothing"])
def test_a_kill_at_any_step_of_publishing_loses_nothing(before_publishing, tmp_path, older, monkeypatch):
    source, expected, old = before_publishing[older]
    assert len(expected[1]) >= 3
    for count in range(1, 100):
        folder = tmp_path / str(count)
        shutil.copytree(source, folder)
        with monkeypatch.context() as patch:
            patch.setattr("minikd.experiment.runs.publish", lambda *paths: (kill_at(patch, count), publish(*paths)))  # noqa: B023
            try:
                run(folder, resume=True)
            except Kill:
                pass
            else:
                break
        if (folder / "run.json").exists():  # what looks finished is finished, be it the old run or the new one
            assert contents(folder)[:3] in (expected[:3], old and old[:3]), count
        elif (folder / "model.safetensors").exists():
            assert model_fingerprint(from_pretrained(folder)) in (expected[2], old and old[2]), count
        with monkeypatch.context() as patch:  # and once more, at the beginning of the run that resumes it
            kill_at(patch, 2)
            try:
                run(folder, resume=True)
            except Kill:
                pass
        run(folder, resume=True)
        assert contents(folder) == expected, count
    assert 8 < count < 99
    assert contents(folder) == expected and not (folder / "adapter").exists()


def test_a_run_killed_while_it_was_published_is_used_again_without_resume(
    before_publishing, tmp_path, monkeypatch, capsys
):
    source, expected, _ = before_publishing["an older run"]
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    with monkeypatch.context() as patch:
        patch.setattr("minikd.experiment.runs.publish", lambda *paths: (kill_at(patch, 5), publish(*paths)))
        with pytest.raises(Kill):
            run(folder, resume=True)
    capsys.readouterr()
    run(folder, reuse=True)
    assert "model: using" in capsys.readouterr().out and contents(folder) == expected


def test_a_run_that_is_stopped_while_it_trains_anew_leaves_the_older_one_whole(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(folder)
    older = contents(folder)
    for where in (
        "minikd.experiment.training.run_training",
        "minikd.experiment.runs.save_classifier",
        "minikd.experiment.runs.publish",
    ):
        with monkeypatch.context() as patch, pytest.raises(Kill):
            patch.setattr(where, lambda *_, **__: (_ for _ in ()).throw(Kill))
            run(folder, settings=replace(SETTINGS, lr=5e-3))
        assert contents(folder)[:3] == older[:3], where


@pytest.mark.parametrize("source", ["", "teacher", "distilled", "baseline", "control", "sweep/a", "seed-43/distilled"])
def test_a_run_is_refused_where_it_would_write_over_the_model_it_starts_from(tmp_path, source):
    (tmp_path / "out" / source).mkdir(parents=True)
    with pytest.raises(MinikdError, match=r"^--student .*: the run would write over it; give another --output-dir$"):
        check_not_source(tmp_path / "out", "--student", tmp_path / "out" / source)
    check_not_source(tmp_path / "out" / "other", "--student", tmp_path / "out" / source)


def test_a_run_may_start_from_a_model_that_it_does_not_write_over(tmp_path):
    for name in ("teacher", "mine", "sweeps"):
        (tmp_path / "out" / name).mkdir(parents=True)
    check_not_source(tmp_path / "out", "--teacher", tmp_path / "out/teacher", allowed="teacher")
    for source in (None, "distilled", tmp_path / "out/mine", tmp_path / "out/sweeps", tmp_path):
        check_not_source(tmp_path / "out", "--teacher", source)


def test_what_becomes_of_an_interrupted_run_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)  # a process of its own

    def stop(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(len(batch.index), 2)

    for resume, said in ((True, "nothing to resume in"), (True, "resumed from"), (False, "is discarded (resuming")):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, teacher=stop, resume=resume)
        assert (tmp_path / ".partial/adapter").exists() == (said == "resumed from")
        (tmp_path / ".partial/adapter").mkdir(exist_ok=True)  # left by a kill
        out = capsys.readouterr().out
        assert [words in out for words in ("nothing to resume in", "resumed from", "is discarded (resuming")] == [
            words == said for words in ("nothing to resume in", "resumed from", "is discarded (resuming")
        ]
        step = torch.load(tmp_path / ".partial/state.pt", weights_only=True)["step"]
        assert step == (2 if said == "resumed from" else 1)


def test_a_models_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_pretrained(make_model(0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"config.json", "model.safetensors"}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the bytes are written, and do not reach the disk
    for write in (
        lambda: save_pretrained(make_model(1), tmp_path),
        lambda: atomic_write(tmp_path / "model.safetensors", b"half"),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


OTHER = cached_tokens(make_split(60, 7), TOKENIZER, 16)
CHANGES = {
    "data": dict(data=OTHER),
    "validation": dict(validation=OTHER),
    "initial_weights": dict(model=lambda: make_model(1)),
    "labels": dict(model=lambda: make_model(labels=("bad", "fine"))),
    "config": dict(model=lambda: make_model(hidden_dropout_prob=0.5)),
    "teacher": dict(teacher_key="another"),
    "lora": dict(lora=dict(rank=2, alpha=4.0, dropout=0.0, targets=["query"])),
    **{
        f"{name} {getattr(SETTINGS, name)} → {value}": dict(settings=replace(SETTINGS, **{name: value}))
        for name, value in dict(
            epochs=3, max_steps=3, batch_size=8, lr=1e-4, weight_decay=0.1, warmup_ratio=0.2, grad_accum=2, clip=0.5,
            label_smoothing=0.1, patience=1, seed=6, alpha=0.5, T=2.0, precision="bf16",
        ).items()
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_used_again_only_where_everything_it_was_made_from_is_the_same(finished, monkeypatch, capsys, change):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)
    monkeypatch.setattr("minikd.experiment.training.run_training", lambda *_, **__: (_ for _ in ()).throw(Kill))
    again = {name: value() if name == "model" else value for name, value in CHANGES[change].items()}
    with pytest.raises(Kill):
        run(finished, reuse=True, **again)
    assert change in capsys.readouterr().out
    with pytest.raises(MinikdError, match=r"`resume`: .* was made from other settings") as refused:
        again = {name: value() if name == "model" else value for name, value in CHANGES[change].items()}
        run(finished, resume=True, **again)
    assert change in str(refused.value)
    run(finished, reuse=True)  # and the same run is not trained again
    assert "made from the same settings" in capsys.readouterr().out


def test_what_only_one_of_two_runs_was_made_from_differs():
    old, new = {"settings": {"seed": 5}, "data": "a"}, {"settings": {"seed": 5}, "data": "a", "lora": {"rank": 2}}
    assert differences(old, new) == differences(new, old) == ["lora"]


def test_a_record_of_before_max_steps_is_that_of_a_training_by_epochs():
    old = {"data": "a", "settings": {"epochs": 2}}
    assert differences(old, {"data": "a", "settings": {"epochs": 2, "max_steps": 0}}) == []
    assert differences(old, {"data": "a", "settings": {"epochs": 2, "max_steps": 7}}) == ["max_steps 0 → 7"]
    for nothing in (None, {}, {"settings": 3}):
        assert differences(nothing, old) == ["no record"]


def test_a_soft_loss_differs_from_the_usual_one_which_is_not_recorded():
    kl, mse = {"settings": {"seed": 5}}, {"settings": {"seed": 5, "soft_loss": "mse"}}
    assert differences(mse, kl) == ["soft_loss mse → kl"]
    assert differences(kl, mse) == ["soft_loss kl → mse"]


def test_nothing_of_an_interrupted_run_stays_in_one_that_is_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)
    (tmp_path / ".partial/adapter").mkdir(parents=True)  # of a run with adapters
    run(tmp_path)
    assert set(files_of(tmp_path)) == {"config.json", "log.jsonl", "model.safetensors", "run.json", "tokenizer.json",
                                       "tokenizer_config.json", "vocab.txt"}  # fmt: skip


def test_the_threads_on_record_are_those_that_torch_uses():
    before = torch.get_num_threads()
    for count in (3, 1):
        torch.set_num_threads(count)
        assert environment(CPU)["threads"] == count
    torch.set_num_threads(before)


def test_a_model_may_embed_more_tokens_and_have_more_positions_than_are_used():
    for tokens, positions, words in ((-1, 16, "tokens but the model embeds"), (0, 17, "has 16 positions"), (7, 16, "")):
        config = replace(make_model().config, vocab_size=TOKENIZER.vocab_size + tokens)
        with pytest.raises(MinikdError, match=words) if words else nullcontext():
            check_tokenizer(TOKENIZER, config, "model", positions)


def test_adapters_follow_from_the_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)
    models = []
    for state in (1, 2):  # of the random numbers that the run finds
        model = make_model()
        torch.manual_seed(state)
        lora = dict(rank=2, alpha=4.0, dropout=0.0, targets=["query"])
        models.append(run(tmp_path / str(state), model=model, lora=lora))
    assert model_fingerprint(models[0]) == model_fingerprint(models[1])


def test_every_setting_of_a_training_is_among_the_changes():
    changed = {change.split()[0] for change in CHANGES}
    assert {field.name for field in fields(Settings)} <= changed


def test_the_minutes_of_training_are_minutes_and_include_the_part_before_a_stop(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {}, "history": [{"seconds": 30.0}, {"seconds": 90.0}]}))
    assert training_costs(tmp_path) == {"training_minutes": 2.0}  # of an earlier version, which counted no steps
    folder, calls = tmp_path / "stopped", []

    def slow_teacher(batch):
        calls.append(1)
        if len(calls) == 2:
            time.sleep(0.7)
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(len(batch.index), 2)

    more = dict(settings=replace(SETTINGS, epochs=1), teacher=slow_teacher)
    with pytest.raises(KeyboardInterrupt):
        run(folder, **more)
    time.sleep(1.5)  # the time between counts for nothing
    run(folder, resume=True, **more)
    (epoch,) = json.loads((folder / "run.json").read_text())["history"]
    assert len(calls) == 4 and 0.7 < epoch["seconds"] < 2.0
    assert training_costs(folder)["optimizer_steps"] == 4  # of both parts


def test_the_validation_accuracy_is_that_of_the_weights_that_were_kept(tmp_path):
    def folder(name, *accuracies, split="a", **other):
        record = {"arguments": {}, "history": [{"validation_accuracy": accuracy} for accuracy in accuracies]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record | {"made_from": {"validation": split}} | other))
        return str(tmp_path / name)

    one, two = folder("one", 0.7, 0.9, 0.8), folder("two", 0.6)
    assert best_validation([one]) == {"validation_accuracy": 0.9, "validated_on": "a"}
    assert best_validation([one, two]) == {"validation_accuracy": [0.9, 0.6], "validated_on": "a"}
    copy = folder("copy", 0.5, made_from=None, validation="a")
    assert best_validation([copy, one]) == {"validation_accuracy": [0.5, 0.9], "validated_on": "a"}
    unknown = folder("older copy", 0.5, made_from=None), folder("elsewhere", 0.5, split="b"), folder("empty"), None, "?"
    assert [best_validation([one, other]) for other in unknown] == [{}] * 5
    assert best_validation([unknown[0]]) == {} == best_validation([unknown[3]])


def test_a_state_of_an_older_version_is_resumed(tmp_path):
    """It has neither the seconds of its epoch nor the config of its model."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, teacher=lambda batch: (os.kill(os.getpid(), signal.SIGTERM), torch.zeros(len(batch.index), 2))[1])
    state = torch.load(tmp_path / ".partial/state.pt", weights_only=True)
    del state["seconds"], state["made_from"]["config"]
    torch.save(state, tmp_path / ".partial/state.pt")
    run(tmp_path, resume=True, teacher=lambda batch: torch.zeros(len(batch.index), 2))
    assert (tmp_path / "run.json").exists()


class Trap:
    """Opens a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_state_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, teacher=lambda batch: (os.kill(os.getpid(), signal.SIGTERM), torch.zeros(len(batch.index), 2))[1])
    state = torch.load(tmp_path / ".partial/state.pt", weights_only=True)
    torch.save(state | {"history": Trap(tmp_path / "ran")}, tmp_path / ".partial/state.pt")
    with pytest.raises(MinikdError, match="state.pt: cannot be resumed from"):
        run(tmp_path, resume=True, teacher=lambda batch: torch.zeros(len(batch.index), 2))
    assert not (tmp_path / "ran").exists()


class Minutes:
    """A clock that advances by half a minute whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 30.0
        return self.now


def killed_in(step):
    """What a teacher says, until the process is killed while it trains this step."""
    steps = 0

    def teacher(batch):
        nonlocal steps
        steps += 1
        if steps == step:
            raise Kill
        return torch.stack([batch.index % 2, batch.index % 3], dim=1).float()

    return teacher


def test_a_kill_in_any_step_loses_what_came_after_the_last_saved_state_alone(tmp_path, monkeypatch, capsys):
    shape = dict(hidden_dropout_prob=0.3)
    run(tmp_path / "whole", model=make_model(**shape), teacher=killed_in(0))
    expected = contents(tmp_path / "whole")
    resumed = []
    for step in range(1, 9):  # of two epochs of 4 steps
        folder, options = tmp_path / str(step), {"resume": True, "save_minutes": 1.0}
        with monkeypatch.context() as patch:
            patch.setattr(Saver, "is_due", lambda self: self.minutes == 1.0)
            with pytest.raises(Kill):
                run(folder, model=make_model(**shape), teacher=killed_in(step), **options)
        capsys.readouterr()
        run(folder, model=make_model(**shape), teacher=killed_in(0), **options)
        found = re.search(r"resumed from .* at step (\d+)", capsys.readouterr().out)
        resumed.append(int(found[1]) if found else 0)
        assert contents(folder) == expected, step
    assert resumed == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_state_is_saved_after_so_many_minutes_and_in_a_hundredth_of_the_time(tmp_path, monkeypatch):
    clock = Minutes()
    monkeypatch.setattr(minikd.experiment.state, "time", clock)
    saved = []
    monkeypatch.setattr(minikd.experiment.state, "save_state", lambda *what: saved.append(what))
    saver = Saver(tmp_path / "state.pt", {"settings": {}}, "one", 2.0)
    assert [saver.is_due() for _ in range(5)] == [False] * 3 + [True] * 2
    saver.save("the state")  # takes half a minute: 49.5 minutes are to pass
    origin = {"made_from": {"settings": {}}, "command": "one"}
    assert saved == [(tmp_path / "state.pt", origin, "the state")]
    assert [saver.is_due() for _ in range(100)] == [False] * 98 + [True] * 2
    assert not any(Saver(tmp_path / "state.pt", {}, "", 0.0).is_due() for _ in range(1000))


def test_what_an_earlier_command_left_is_replaced_on_resume_and_never_what_this_one_made(tmp_path, capsys):
    other = replace(SETTINGS, lr=5e-3)
    run(tmp_path / "fresh", settings=other)
    _, *expected = contents(tmp_path / "fresh")  # without run.json, which names the command

    folder = tmp_path / "finished"
    run(folder, command="one")
    for command in ("one", ""):  # the same, or one that is not known: of an older version
        with pytest.raises(MinikdError, match="was made from other settings"):
            run(folder, settings=other, command=command, resume=True)
    run(folder, settings=other, command="another", resume=True)
    assert [*contents(folder)[1:]] == expected

    folder = tmp_path / "interrupted"
    for command in ("one", "another", "one"):
        with pytest.raises(Kill):
            run(folder, command=command, teacher=killed_in(6))
    with pytest.raises(MinikdError, match="made from something else"):
        run(folder, settings=other, command="one", resume=True)
    shutil.copytree(folder, tmp_path / "same")  # the same settings, by another command: it is continued
    capsys.readouterr()
    run(tmp_path / "same", command="a third", teacher=killed_in(0), resume=True)
    assert "resumed from" in capsys.readouterr().out
    run(folder, settings=other, command="another", resume=True)
    assert "is discarded: an earlier command left it" in capsys.readouterr().out
    assert [*contents(folder)[1:]] == expected


def test_a_command_keeps_its_name_until_another_one_begins(tmp_path):
    assert begin(tmp_path, resume=True) == begin(tmp_path, resume=True) != ""  # the first one may ask to resume
    first = begin(tmp_path, resume=False)
    assert first and begin(tmp_path, resume=True) == first == begin(tmp_path, resume=True)
    assert begin(tmp_path, resume=False) not in ("", first)
