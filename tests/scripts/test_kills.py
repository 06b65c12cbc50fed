"""Commands that are killed, also where the results of another one stand in the folder: resumed, they end as if not."""

import collections
import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import QUICK
from forked import Forks

import minikd.experiment.training
from minikd.checkpoints.pretrained import from_pretrained
from minikd.experiment.caches import model_fingerprint
from minikd.experiment.journal import read_log

pytestmark = pytest.mark.usefixtures("no_pictures")
STAGES = ("teacher", "distilled", "baseline")
KILLS = int(os.environ.get("MINIKD_KILLS", "12"))


class Kill(BaseException):
    """The end of the process: no `except Exception` sees it."""


def command(corpus, bare, *flags):
    return ["distill.py", "--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, *flags]


def left(output):
    """Weights, logs and figures of all stages, without the times and bytes that no two runs share."""
    measured = ("seconds", "examples_per_second", "memory_mb")
    logs = [[{k: v for k, v in line.items() if k not in measured} for line in read_log(output / s)] for s in STAGES]
    weights = [model_fingerprint(from_pretrained(output / stage)) for stage in STAGES]
    rows = json.loads((output / "results.json").read_text())["models"]
    figures = [{key: row[key] for key in ("name", "accuracy", "nll", "confusion")} for row in rows]
    hidden = sorted(path.name for path in output.rglob(".*") if path.name not in (".command",))
    return weights, logs, figures, hidden


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_that_is_killed_over_the_results_of_another_is_resumed_to_the_same_end(
    script, corpus, bare, stage, monkeypatch, trainings
):
    new = command(corpus, bare, "--alpha", 0.9, "--teacher-lr", "2e-3", "--lr", "2e-3")
    assert script(*new)[0] == 0
    expected = left(Path("runs/films"))
    shutil.rmtree("runs/films")

    assert script(*command(corpus, bare, "--alpha", 0.2))[0] == 0  # the older results
    run_training = minikd.experiment.training.run_training

    def killed(*arguments):
        if arguments[5].name == stage:
            raise Kill
        return run_training(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(minikd.experiment.training, "run_training", killed)
        script(*new)
    del trainings[:]
    status, _, err = script(*new, "--resume")
    assert (status, err) == (0, "")
    assert [call["desc"] for call in trainings] == list(STAGES[STAGES.index(stage) :])  # what was finished is used
    assert left(Path("runs/films")) == expected


# What is there in the output when a stage has begun, the last stage first.
BEGUN = {
    "writing the results": "results.json", "evaluation": "baseline/run.json", "baseline": "baseline/.partial/log.jsonl",
    "distilled": "distilled/.partial/log.jsonl", "logits": "teacher/run.json", "teacher": "teacher/.partial/log.jsonl",
    "data": "",
}  # fmt: skip


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_a_command_that_is_killed_at_random_moments_is_resumed_to_the_same_end(corpus, bare, tmp_path):
    """SIGKILL, twelve times, or MINIKD_KILLS times, aimed at one stage after another."""
    moments, kills, forks, chain = random.Random(0), collections.Counter(), Forks(tmp_path), 0

    def start(output, *flags):
        words = [*command(corpus, bare, "--save-minutes", 1e-6, "--output-dir", output), *flags]
        return forks.start(*words, folder=tmp_path)

    try:
        status, _, err = start("whole").wait()
        assert status == 0, err
        expected = left(tmp_path / "whole")
        while chain < KILLS and (sum(kills.values()) < KILLS or len(kills) < 5):
            chain += 1
            output = tmp_path / f"chain-{chain}"
            for stage in reversed(BEGUN):
                script = start(output.name, *["--resume"] * (stage != "data"))
                while not (output / BEGUN[stage]).exists() and is_alive(script.pid):
                    time.sleep(0.001)
                time.sleep(moments.uniform(0, 0.15))
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(script.pid, signal.SIGKILL)
                if script.wait()[0] == -signal.SIGKILL:
                    kills[next(name for name, file in BEGUN.items() if (output / file).exists())] += 1
            status, _, err = start(output.name, "--resume").wait()
            assert status == 0, err
            assert left(output) == expected, kills
    finally:
        forks.close()
    print(f"{chain} runs, {sum(kills.values())} kills: {dict(kills)}")
    assert sum(kills.values()) >= KILLS and len(kills) >= 5
