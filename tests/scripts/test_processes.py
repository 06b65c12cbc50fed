"""The scripts in several processes, as torchrun starts them: one experiment, one writer, one line where it fails."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import QUICK, save_model
from forked import ROOT, Forks
from test_kills import STAGES, left

from minikd.checkpoints.pretrained import from_pretrained
from minikd.experiment.journal import read_log

LOST = "distill.py: error: another process of this run has ended; run it again with --resume to continue ("
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An encoder without dropout, whose training rounding alone can change."""
    return save_model(tmp_path_factory.mktemp("plain"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture
def forks(tmp_path):
    forks = Forks(tmp_path)
    yield forks
    forks.close()


@pytest.fixture
def distill(forks, corpus, bare, tmp_path):
    """Starts distill.py on the corpus, in two processes."""

    def start(output, *flags, teacher=bare, processes=2, **options):
        words = ["distill.py", "--dataset", corpus, "--teacher", teacher, "--student-layers", 2, *QUICK, *flags]
        return forks.start(*words, "--output-dir", output, folder=tmp_path, processes=processes, **options)

    return start


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_experiment_of_two_processes_is_that_of_one(distill, plain, tmp_path):
    """Weights but for rounding, figures, files, log and output."""
    alone = distill("one", teacher=plain, processes=1).wait()
    both = distill("two", teacher=plain).wait()
    assert alone[0] == 0 and both[0] == [0, 0], both[2]
    one, two = tmp_path / "one", tmp_path / "two"
    assert files_of(one) == files_of(two)
    for stage in STAGES:
        models = [from_pretrained(folder / stage).state_dict() for folder in (one, two)]
        for (name, weights), other in zip(models[0].items(), models[1].values()):
            torch.testing.assert_close(weights, other, rtol=0, atol=1e-5, msg=name)
        logs = [read_log(folder / stage) for folder in (one, two)]
        for line, other in zip(*logs, strict=True):
            for key in ("step", "epoch", "loss", "lr", "validation_loss", "validation_accuracy"):
                assert line.get(key) == pytest.approx(other.get(key), abs=1e-4), key
    rows = [json.loads((folder / "results.json").read_text())["models"] for folder in (one, two)]
    for row, other in zip(*rows, strict=True):
        assert row.keys() == other.keys()
        assert row["confusion"] == other["confusion"] and row["nll"] == pytest.approx(other["nll"], abs=1e-4)
    lines = [[line.split(" ")[0] for line in out.splitlines()] for _, out, _ in (alone, both)]
    assert lines[0] == lines[1]  # each printed once
    assert "ex/s" not in both[1] and not both[2]


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_to_one_process_stops_all_between_two_steps(distill, tmp_path, stage):
    long = ["--epochs", 6, "--teacher-epochs", 6]
    assert distill("whole", *long).wait()[0] == [0, 0]
    script, log = distill("stopped", *long), tmp_path / "stopped" / stage / ".partial/log.jsonl"
    wait_for(lambda: log.exists() and log.read_text())  # ten steps are over in both
    os.kill(script.pids[1], signal.SIGTERM)  # not to the one that writes
    status, _, err = script.wait()
    assert status == [130, 130] and len(err) == 1 and "stopped at step" in err[0], err
    assert (tmp_path / "stopped" / stage / ".partial/state.pt").exists()
    status, out, err = distill("stopped", *long, "--resume").wait()
    assert status == [0, 0] and not err and "resumed from" in out and "dropout" not in out
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")


def test_a_killed_process_ends_the_other_one_which_says_so_in_a_line(distill, tmp_path):
    assert distill("whole").wait()[0] == [0, 0]
    script = distill("killed", "--save-minutes", 1e-6)
    wait_for((tmp_path / "killed/distilled/.partial/state.pt").exists)
    os.kill(script.pids[1], signal.SIGKILL)  # the first: see below, as its store is torchrun's
    began = time.monotonic()
    status, _, err = script.wait()
    assert status == [2, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    assert len(err) == 1 and err[0].startswith(LOST), err
    status, _, err = distill("killed", "--resume").wait()
    assert status == [0, 0] and not err
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_processes_and_says_so(distill, plain, tmp_path, before, after):
    assert distill("whole", teacher=plain, processes=1).wait()[0] == 0
    script = distill("moved", teacher=plain, processes=before)
    wait_for((tmp_path / "moved/distilled/.partial/log.jsonl").exists)
    os.kill(script.pid, signal.SIGINT)
    script.wait()
    status, out, err = distill("moved", "--resume", teacher=plain, processes=after).wait()
    assert status in (0, [0, 0]) and not err
    assert f"saved by {before} processes, now {after}: the batches are the same" in out
    for stage in STAGES:
        models = [from_pretrained(tmp_path / folder / stage).state_dict() for folder in ("whole", "moved")]
        for (name, weights), other in zip(models[0].items(), models[1].values()):
            torch.testing.assert_close(weights, other, rtol=0, atol=1e-5, msg=name)


def test_a_mistake_is_told_once(distill, forks, corpus, tmp_path):
    status, _, err = distill("wrong", "--student-layers", 9).wait()
    assert status == [2, 2] and len(err) == 1 and err[0].startswith("distill.py: error: --student-layers 9"), err
    # found by the first process alone
    script = distill("busy", "--teacher-epochs", 5000)
    wait_for((tmp_path / "busy/teacher/.partial/log.jsonl").exists)
    command = [sys.executable, ROOT / "train.py", "--dataset", corpus, "--output-dir", tmp_path / "busy"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert second.returncode == 2 and "another run is writing there" in second.stderr
    os.kill(script.pid, signal.SIGINT)
    script.wait()


def test_a_loss_that_is_not_finite_stops_all_with_one_line(distill):
    status, _, err = distill("diverged", "--lr", "1e30", "--teacher-lr", "1e30").wait()
    assert status == [2, 2] and len(err) == 1 and "teacher: the loss became nan at step 2" in err[0], err


def test_each_process_by_itself_finds_out_what_outputs_without_names_mean(distill, tmp_path):
    """By logits on validation: the second process waits until the first has loaded the teacher. Here it is random."""
    teacher = save_model(tmp_path / "unnamed", labels=("LABEL_0", "LABEL_1"))
    status, _, err = distill("out", "--teacher-base", "random", teacher=teacher).wait()
    assert status == [2, 2] and len(err) == 1 and "right on 60.0%" in err[0], err


def test_a_run_that_is_started_again_before_it_wrote_anything_is_not_resumed(distill, tmp_path):
    """The results in its folder are of another run."""
    assert distill("out", "--lr", "1e-4").wait()[0] == [0, 0]
    status, out, err = distill("out", "--lr", "1e-2", TORCHELASTIC_RESTART_COUNT="1").wait()
    assert status == [0, 0] and not err, err
    run = json.loads((tmp_path / "out/distilled/run.json").read_text())
    assert run["made_from"]["settings"]["lr"] == 1e-2


def test_processes_of_several_machines_are_not_started_again_by_torchrun(distill):
    status, _, err = distill("out", TORCHELASTIC_RESTART_COUNT="1", GROUP_WORLD_SIZE="2").wait()
    assert status == [2, 2] and set(err) == {
        "distill.py: error: torchrun's max-restarts works on one machine only; on several, run the command again with "
        "--resume"
    }


def test_memory_is_measured_with_the_share_of_a_batch_that_a_process_has(distill, tmp_path):
    before = (
        "import minikd.experiment.training as t; t.training_memory_mb = lambda model, data, batch, *_: float(batch)"
    )
    assert distill("out", before=before, processes=3).wait()[0] == [0, 0, 0]
    assert json.loads((tmp_path / "out/teacher/run.json").read_text())["training_peak_mb"] == 6  # of 16


def test_evaluate_is_for_one_process(forks, tmp_path):
    status, _, err = forks.run("evaluate.py", "runs/x", "--text", "good", folder=tmp_path, processes=2)
    assert status == [2, 2]
    assert err == ["evaluate.py: error: runs in a single process; start it with python, not with torchrun"]


def test_torchrun_starts_a_run_again_where_it_was_when_a_process_was_killed(distill, corpus, bare, tmp_path):
    assert distill("whole").wait()[0] == [0, 0]
    flags = ["--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--save-minutes", 1e-6]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
               "--max-restarts", 1, ROOT / "distill.py", *flags, "--output-dir", "again"]  # fmt: skip
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen([*map(str, command)], cwd=tmp_path, stdout=printed, stderr=printed,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        state = tmp_path / "again/distilled/.partial/state.pt"
        wait_for(lambda: state.exists() or process.poll() is not None)
        lock = (tmp_path / "again/.lock").read_text()  # "process 123 on machine"
        os.kill(int(lock.split()[1]), signal.SIGKILL)
        status = process.wait(timeout=300)
    out = (tmp_path / "printed").read_text()
    assert status == 0, out
    assert f"resumed from {state.relative_to(tmp_path)} at step" in out
    assert out.count("teacher: using again/teacher, made from the same settings") == 1
    assert left(tmp_path / "again") == left(tmp_path / "whole")
