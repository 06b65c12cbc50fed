"""The estimate of a training's time: told once, early, and near to what the training takes."""

import os
import re
import signal
import time
from dataclasses import replace

import pytest
from helpers import train
from test_training import CPU, SETTINGS, make_model, tiny_data

from minikd.experiment import progress
from minikd.experiment.progress import Estimate, duration


def test_an_estimate_is_the_time_of_the_first_steps_scaled_by_tokens(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    estimate, told = Estimate("teacher: 2 epochs", 100_000), []
    for step in range(30):
        now[0] += 50.0 if step == 0 else 2.0  # the first step is slow and does not count
        told.append(estimate.after_step(70 if step == 0 else 200 + 20 * (step % 2)))
    assert [step for step, line in enumerate(told) if line] == [10]  # after the first and ten others
    assert told[10] == "teacher: 2 epochs: about 16 minutes, by its first steps"  # 20 s for 2,100 tokens


def test_slow_steps_are_not_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    estimate, told = Estimate("teacher: 2 epochs", 1_000_000), []
    for _ in range(4):
        now[0] += 25.0
        told.append(estimate.after_step(1000))
    assert told == [None, "teacher: 2 epochs: about 6.9 hours, by its first steps", None, None]


@pytest.mark.parametrize(
    ("seconds", "text"), [(61, "1 minute"), (700, "12 minutes"), (5340, "89 minutes"), (12_240, "3.4 hours")]
)
def test_durations_are_in_minutes_or_hours(seconds, text):
    assert duration(seconds) == text


def test_a_resumed_training_estimates_what_is_left_of_it(tmp_path, monkeypatch):
    data, made = tiny_data(), []

    class Noted(Estimate):
        def __init__(self, what, tokens):
            made.append((what, tokens))
            super().__init__(what, tokens)

    def stop(line):
        if "seconds" in line:  # the end of the first epoch of three
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("minikd.experiment.running.Estimate", Noted)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), *data, SETTINGS, tmp_path, CPU, desc="teacher", track=stop)
    train(make_model(), *data, SETTINGS, tmp_path, CPU, desc="teacher", resume=True)
    (what, whole), (rest, left) = made
    assert (what, rest) == ("teacher: 3 epochs", "teacher: the rest of 3 epochs")
    assert left == pytest.approx(whole * 2 / 3) and whole > 3 * len(data[0].ids)


def test_a_long_training_tells_its_time_and_a_short_one_does_not(tmp_path, capsys, monkeypatch):
    data, seconds = tiny_data(), []

    def stop(line):
        if "seconds" in line:
            seconds.append(line["seconds"])
            if len(seconds) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    epochs = 3_000_000  # days, however fast the machine is
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), *data, replace(SETTINGS, epochs=epochs), tmp_path, CPU, desc="teacher", track=stop)
    (told,) = re.findall(
        rf"teacher: {epochs} epochs: about ([\d.]+) hours, by its first steps", capsys.readouterr().out
    )
    assert 0.1 < float(told) / (sum(seconds) / 3 * epochs / 3600) < 10
    train(make_model(), *data, SETTINGS, tmp_path / "short", CPU)
    assert progress.WORTH_TELLING == 60 and "about" not in capsys.readouterr().out
