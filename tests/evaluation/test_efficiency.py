"""Costs: what is timed, in which order, on which examples; and what counts as memory."""

import itertools
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minikd.batching import TokenizedSplit
from minikd.config import EncoderConfig
from minikd.evaluation import costs as efficiency
from minikd.evaluation.costs import inference_memory_mb, measure_speed, model_size
from minikd.evaluation.memory import peak_memory_mb, reset_peak_memory
from minikd.model import Classifier, Ensemble, count_parameters

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
CONFIG = EncoderConfig(
    vocab_size=5000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=12,
)  # fmt: skip
KEYS = {"latency_1_ms", "batch_100_ms", "batch_128_ms", "latency_ms", "throughput", "tokens_per_example",
        "padded_tokens"}  # fmt: skip
can_tell = pytest.mark.skipif(peak_memory_mb(CPU) is None, reason="this system does not tell a process's peak memory")


def make_split(count, longest=12):
    """Every token of the split has an id of its own, so that ids tell which examples a batch holds."""
    lengths = np.random.default_rng(3).integers(3, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenizedSplit(np.arange(1, offsets[-1] + 1) % 5000, offsets, np.zeros(count, dtype=np.int64), 0, "")


def recorded(models, split, seconds=0.0):
    """measure_speed's results, and each forward pass that it made: (model, input_ids, mask, training)."""
    passes, hooks = [], []
    for i, model in enumerate(models):

        def record(module, arguments, number=i):
            passes.append((number, arguments[0].clone(), arguments[1], module.training))

        hooks.append(model.register_forward_pre_hook(record))
    results = measure_speed(models, [split] * len(models), CPU, "fp32", seconds)
    for hook in hooks:
        hook.remove()
    return results, passes


@pytest.fixture(scope="module")
def three():
    split = make_split(300)
    return split, *recorded([Classifier(CONFIG) for _ in range(3)], split)


def test_every_figure_is_there_and_positive(three):
    for result in three[1]:
        assert result.keys() == KEYS
        assert all(isinstance(value, (int, float)) and value > 0 for value in result.values())  # what JSON can hold


def test_figures_agree_with_each_other(three):
    for result in three[1]:
        assert result["latency_ms"] == result["batch_128_ms"] / 128
        assert result["throughput"] == pytest.approx(100 / (result["batch_100_ms"] / 1000))


def test_models_take_turns(three):
    order = [number for number, _ in itertools.groupby(number for number, *_ in three[2])]
    assert order == [0, 1, 2] * (len(order) // 3) and len(order) >= 9


def test_every_turn_has_one_batch_of_128_one_of_100_and_16_single_examples(three):
    sizes = [len(ids) for number, ids, *_ in three[2] if number == 1]
    # a warm-up and three turns, each begun by a pass that is not timed
    assert sizes == [1] * 17 + 3 * ([1, 128, 100] + [1] * 16)


def test_all_models_read_the_same_examples(three):
    by_model = [[ids for number, ids, *_ in three[2] if number == i] for i in range(3)]
    assert len(by_model[0]) == len(by_model[1]) == len(by_model[2])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*by_model))


def test_batches_are_different_real_examples_in_no_order_of_length(three):
    split, results, passes = three
    batch = next(ids for _, ids, *_ in passes if len(ids) == 128)
    example = {int(split.ids[split.offsets[i]]): i for i in range(300)}
    chosen = [example[int(row[0])] for row in batch]
    assert len(set(chosen)) == 128 and max(chosen) >= 256  # drawn from the whole split, not its beginning
    for row, i in zip(batch, chosen):
        assert row[row != 0].tolist() == split.ids[split.offsets[i] : split.offsets[i + 1]].tolist()
    lengths = split.lengths[chosen]
    assert sorted(lengths) != list(lengths) != sorted(lengths, reverse=True)
    assert batch.shape[1] == results[0]["padded_tokens"] == max(lengths)
    assert results[0]["tokens_per_example"] == pytest.approx(lengths.mean())


def test_a_single_example_is_not_padded(three):
    singles = [(ids, mask) for _, ids, mask, _ in three[2] if len(ids) == 1]
    assert all(mask is None and bool((ids != 0).all()) for ids, mask in singles)
    assert len({ids.shape[1] for ids, _ in singles}) > 1


def test_models_are_timed_in_eval_mode_and_left_in_the_mode_they_had():
    models = [Classifier(CONFIG).train(), Classifier(CONFIG).eval()]
    _, passes = recorded(models, make_split(150))
    assert not any(training for *_, training in passes)
    assert [model.training for model in models] == [True, False]
    assert models[0].encoder.training


def test_turns_grow_with_the_time_allowed_up_to_thirty():
    _, passes = recorded([Classifier(CONFIG)], make_split(150), seconds=1000)
    assert sum(len(ids) == 128 for _, ids, *_ in passes) == 1 + 30  # the first is a warm-up


def test_a_busy_moment_does_not_show():
    model, turns = Classifier(CONFIG), []

    def busy(module, arguments):
        if len(arguments[0]) == 128:
            turns.append(1)
            time.sleep(len(turns) == 1)  # a second, in the first of three turns

    model.register_forward_pre_hook(busy)
    (result,) = measure_speed([model], [make_split(150)], CPU, "fp32", seconds=0)
    assert len(turns) == 3
    assert result["batch_128_ms"] < 300  # the mean of the three would be above 333


def test_a_small_split_is_repeated_and_that_is_said(capsys):
    (result,), passes = recorded([Classifier(CONFIG)], make_split(30))
    assert {len(ids) for _, ids, *_ in passes} == {1, 100, 128}
    assert result.keys() == KEYS
    assert "the split has 30 examples" in capsys.readouterr().out
    recorded([Classifier(CONFIG)], make_split(128))
    assert capsys.readouterr().out == ""


def test_bf16_is_measured_in_bf16():
    model, seen = Classifier(CONFIG), set()
    model.pooler.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    measure_speed([model], [make_split(150)], CPU, "bf16", seconds=0)
    assert seen == {torch.bfloat16}


def test_size_is_that_of_the_parameters():
    parameters = count_parameters(Classifier(CONFIG))
    assert model_size(Classifier(CONFIG)) == {"parameters": parameters, "size_mb": 4 * parameters / 2**20}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux resets the resident set's peak")
def test_peak_memory_rises_by_what_is_allocated_and_falls_after_the_reset():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    tensor = torch.ones(300 * 2**20 // 4)
    during = peak_memory_mb(CPU)
    assert during - before == pytest.approx(300, rel=0.1)
    del tensor
    assert peak_memory_mb(CPU) >= during - 1  # a peak: it stays
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) == pytest.approx(before, abs=60)


@can_tell
def test_memory_of_a_pass_holds_the_weights_and_not_this_process(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # the process must find minikd from any folder
    split = make_split(150)
    larger = replace(CONFIG, vocab_size=CONFIG.vocab_size + 200 * 2**20 // (4 * CONFIG.hidden_size))
    models = Classifier(CONFIG), Classifier(larger)
    here = torch.ones(500 * 2**20 // 4)  # what this process holds must not show in either figure
    small, large = (inference_memory_mb(model, split, CPU, "fp32") for model in models)
    assert large - small == pytest.approx(200, rel=0.3)
    del here
    wide = make_split(150, longest=500)  # more activations
    config = replace(CONFIG, max_position_embeddings=500, intermediate_size=1024, num_hidden_layers=2)
    assert inference_memory_mb(Classifier(config), wide, CPU, "bf16") > small + 50
    assert inference_memory_mb(Ensemble([models[1], Classifier(larger)]), split, CPU, "fp32") > large + 150
    assert capfd.readouterr() == ("", "")


@can_tell
def test_a_measuring_process_that_fails_gives_none_and_one_line(monkeypatch, capfd):
    too_long = make_split(150, longest=40)  # the model has 12 positions, so that the process ends with an error
    assert inference_memory_mb(Classifier(CONFIG), too_long, CPU, "fp32") is None
    out, err = capfd.readouterr()
    assert "not measured" in out and "positions" in out and out.count("\n") == 1 and err == ""

    efficiency._in_own_process.cache_clear()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert inference_memory_mb(Classifier(CONFIG), make_split(150), CPU, "fp32") is None
    out, _ = capfd.readouterr()
    assert "not measured" in out and "/nowhere/python" in out and out.count("\n") == 1


@can_tell
@pytest.mark.parametrize("program,reason", [("kill -9 $$", "killed by signal 9"), ("exec sleep 30", "timed out")])
def test_a_measuring_process_that_is_killed_or_too_slow_gives_none_and_one_line(
    monkeypatch, tmp_path, capfd, program, reason
):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    efficiency._in_own_process.cache_clear()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(efficiency, "CHILD_SECONDS", 0.5)
    assert inference_memory_mb(Classifier(CONFIG), make_split(150), CPU, "fp32") is None
    out, err = capfd.readouterr()
    assert "not measured" in out and reason in out and out.count("\n") == 1 and err == ""
    efficiency._in_own_process.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of Linux's glibc")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_kept_on_request(kept):
    program = (
        "import re, torch; from minikd.evaluation.memory import keep_freed_memory\n"
        "resident = lambda: int(re.search(r'VmRSS:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        f"{'keep_freed_memory()' if kept else ''}\n"
        "before = resident(); tensor = torch.ones(2**26); del tensor; print(resident() - before)"
    )  # 256 MiB
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (float(child.stdout) > 200) == kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of Linux's glibc")
def test_kept_memory_with_gaps_is_returned():
    program = (
        "import re, torch; from minikd.evaluation.memory import keep_freed_memory, return_freed_memory\n"
        "resident = lambda: int(re.search(r'VmRSS:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "keep_freed_memory(); before = resident(); tensors = [torch.ones(2**20) for _ in range(64)]; del tensors[::2]\n"
        "print(resident() - before); return_freed_memory(); print(resident() - before)"
    )  # 64 tensors of 4 MiB, of which every second one stays
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, returned = map(float, child.stdout.split())
    assert kept > 250 and 120 < returned < 150
