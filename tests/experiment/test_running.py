"""What the driver of the loop shows, logs and does at a signal."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from helpers import train
from test_training import CPU, SETTINGS, make_model, tiny_data

from minikd.batching import plan_batches
from minikd.config import TrainConfig
from minikd.experiment import running
from minikd.experiment.running import Display, Run

data = pytest.fixture(scope="module")(tiny_data)


class Clock:
    """A clock that advances by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


def test_the_logged_speed_is_that_of_all_examples_since_the_last_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "time", Clock())
    train(
        make_model(), *data, replace(SETTINGS, epochs=2), tmp_path, CPU
    )  # 13 steps an epoch: 12 of 8 examples, one of 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    speeds = {line["step"]: line["examples_per_second"] for line in lines if "loss" in line}
    # A second passes between two readings of the clock: at a line, and at the end of an epoch, which begins anew.
    assert set(speeds) == {10, 20, 26}
    sizes = step_sizes(data[0])
    assert speeds == {10: sum(sizes[:10]), 20: sum(sizes[13:20]), 26: sum(sizes[20:])}


def test_freed_memory_is_returned_every_so_many_steps(data, tmp_path, monkeypatch):
    steps, returned = [], []
    show = Display.show
    monkeypatch.setattr(Display, "show", lambda self, done: (steps.append(done.state.step), show(self, done)))
    monkeypatch.setattr(running, "return_freed_memory", lambda: returned.append(steps[-1]))
    monkeypatch.setattr(running, "RETURN_MEMORY_EVERY", 4)
    train(make_model(), *data, replace(SETTINGS, epochs=2), tmp_path, CPU)
    assert returned == [4, 8, 12, 16, 20, 24]


def step_sizes(split):
    """Examples of each of the 26 steps."""
    return [len(index) for epoch in range(2) for index in plan_batches(split.lengths, 8, SETTINGS.seed, epoch)]


@pytest.mark.parametrize("epoch,shown", [(0.0, 0), (0.5, 50), (2.0, 200), (3.0, 300)])
def test_the_bar_of_a_resumed_run_begins_where_it_was(data, epoch, shown):
    config = TrainConfig(epochs=3, batch_size=8)
    bar = Display(Run(name="student"), config, *data, epoch).bar
    bar.close()
    assert (bar.total, bar.n, bar.desc) == (300, shown, "student") and bar.dynamic_ncols


def test_the_estimate_counts_a_validation_token_as_a_third(data, monkeypatch):
    told = []
    monkeypatch.setattr(running, "Estimate", lambda what, tokens: told.append((what, tokens)))
    Display(Run(name="student"), TrainConfig(epochs=3, batch_size=8), *data, 1.0).bar.close()
    assert told == [("student: the rest of 3 epochs", pytest.approx(2 * (len(data[0].ids) + len(data[1].ids) / 3)))]
    Display(Run(name="student"), TrainConfig(max_steps=20, batch_size=8), *data, 0.0).bar.close()
    assert told[1][0] == "student: 1.54 epochs"  # of 13 steps


def test_a_saved_state_is_used_on_request_alone(data, tmp_path):
    settings = replace(SETTINGS, epochs=1)
    for resume, first in ((False, 10), (False, 10), (True, None)):
        folder = tmp_path / ".partial"
        if folder.exists():
            (folder / "log.jsonl").unlink()
        run = Run(tmp_path, resume=resume, progress=False)
        running.run_training(make_model(), *data, settings.config(), None, run, CPU, "fp32")
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines[:1]] == ([first] if first else [])


def test_a_stop_in_the_last_step_of_an_epoch_waits_for_its_validation(data, tmp_path):
    """A state between them would have the steps of an epoch without its figures."""
    steps = 0

    def stopping(batch):
        nonlocal steps
        steps += 1
        if steps == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(len(batch.index), 2)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 13 of 39"):
        train(make_model(), *data, SETTINGS, tmp_path, CPU, teacher=stopping)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["step"], [epoch["epoch"] for epoch in state["history"]], state["seconds"]) == (13, [1], 0.0)


def test_a_run_has_a_name_in_what_it_prints(data, capsys):
    running.run_training(make_model(), *data, TrainConfig(epochs=1, batch_size=50), None, Run(), CPU, "fp32")
    assert "model: epoch 1 of 1, validation accuracy" in capsys.readouterr().out
