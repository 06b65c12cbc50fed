"""The loop: schedule, accumulation, reproducibility, interruption and resumption, best epoch, teacher in both modes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Settings, teacher_logits, train
from torch.profiler import ProfilerActivity, profile

import minikd.experiment.running
import minikd.inference
import minikd.training
from minikd.config import EncoderConfig, TrainConfig
from minikd.datasets import Split
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens, model_fingerprint
from minikd.experiment.state import Saver, StopSignal, load_state, save_state
from minikd.inference import choose_device, choose_precision, compute_logits, forward_only
from minikd.losses import hard_loss, kd_loss
from minikd.model import Classifier
from minikd.tokenizer import train_wordpiece
from minikd.training import TrainState, clip_gradients, linear_schedule, make_optimizer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
WORDS = "a the film plot was dull great boring fine superb awful not very".split()
SETTINGS = Settings(epochs=3, batch_size=8, lr=1e-3, seed=5)


def make_split(count, seed):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(count)]
    return Split(texts, [int("great" in text or "fine" in text) for text in texts])


def tiny_data():
    """A training and a validation split of a vocabulary of 200 tokens, of which they use a few dozen."""
    splits = make_split(100, 0), make_split(30, 1)
    tokenizer = train_wordpiece(splits[0].texts, 200)
    return [cached_tokens(split, tokenizer, 16) for split in splits]


data = pytest.fixture(scope="module")(tiny_data)


def make_model(seed=0, dropout=0.1, layers=2, **shape):
    torch.manual_seed(seed)
    return Classifier(EncoderConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **shape,
    ))  # fmt: skip


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_settings_of_a_training_have_defaults_and_ranges():
    assert TrainConfig() == TrainConfig(epochs=3, batch_size=32, lr=2e-5, weight_decay=0.01, warmup_ratio=0.1,
                                        grad_accum=1, clip=1.0, label_smoothing=0.0, patience=0, seed=42)  # fmt: skip
    whole, number = "a whole number of at least", "a number of at least"
    wrong = [
        *[(name, value, f"{whole} 1$") for name in ("epochs", "batch_size", "grad_accum") for value in (0, 1.0, True)],
        *[(name, value, f"{whole} 0$") for name in ("patience", "seed") for value in (-1, 0.5, False)],
        *[("lr", value, "a number above 0$") for value in (0, -1.0, math.inf, math.nan, "1e-3")],
        *[(name, value, f"{number} 0$") for name in ("weight_decay", "clip") for value in (-0.1, math.inf, True)],
        *[(name, value, f"{number} 0 and at most 1$") for name in ("warmup_ratio", "label_smoothing")
          for value in (-0.1, 1.1, None)],
    ]  # fmt: skip
    for name, value, words in wrong:
        with pytest.raises(MinikdError, match=f"`{name}` .*: must be {words}"):
            TrainConfig(**{name: value})
    TrainConfig(epochs=1, batch_size=1, lr=1e-9, weight_decay=0, warmup_ratio=1, clip=0, label_smoothing=1, seed=0)


def test_learning_rate_rises_then_falls_in_straight_lines():
    factors = [linear_schedule(step, 10, 0.2) for step in range(10)]
    assert factors == pytest.approx([1 / 2, 1, *(k / 8 for k in range(8, 0, -1))])
    assert linear_schedule(0, 1, 0.0) == 1


def test_biases_and_layer_norms_are_not_decayed():
    model = make_model()
    decayed, free = make_optimizer(model, SETTINGS, CPU).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == SETTINGS.weight_decay and free["weight_decay"] == 0
    assert {names[id(p)] for p in free["params"]} == {
        n for n in names.values() if n.endswith("bias") or "orm.weight" in n
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_are_clipped_to_the_norm_over_all_parameters(fused, scaled):
    """Five steps, with gradients below and above the norm, move the weights as clip_grad_norm_ and AdamW do."""
    models, optimizers = [make_model(), make_model()], []
    for model, group in zip(models, (fused, True)):
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-2, fused=group))
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=8.0)
    for step, size in enumerate((0.3, 100.0, 1e-3, 4.0, 0.1)):
        for model in models:
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = size * torch.randn_like(parameter) / sum(p.numel() for p in model.parameters()) ** 0.5
        torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
        optimizers[1].step()
        scaler.scale(torch.ones(()))  # GradScaler makes its scale when it is first used
        for parameter in models[0].parameters():
            parameter.grad *= scaler.get_scale()
        scaler.unscale_(optimizers[0])
        clip_gradients(optimizers[0], 1.0)
        scaler.step(optimizers[0])
        scaler.update()
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_loop_runs_on_a_device_without_foreach_kernels(data, tmp_path, monkeypatch):
    """As on Apple's GPUs: neither fused nor foreach kernels, and clipping on. The weights are those of this device."""
    expected, model = make_model(), make_model()
    train(expected, *data, SETTINGS, tmp_path / "with", CPU)
    clip_grad = sys.modules["torch.nn.utils.clip_grad"]
    monkeypatch.setattr(clip_grad, "_has_foreach_support", lambda *_: False)
    monkeypatch.setattr(clip_grad, "_device_has_foreach_support", lambda *_: False)
    plain = partial(torch.optim.AdamW, foreach=False)
    monkeypatch.setattr("torch.optim.AdamW", lambda groups, lr, fused: plain(groups, lr=lr, fused=False))
    train(model, *data, SETTINGS, tmp_path / "without", CPU)
    for one, other in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_training_learns(data, tmp_path):
    history = train(make_model(), *data, replace(SETTINGS, epochs=12, lr=1e-2), tmp_path, CPU)
    assert max(line["validation_accuracy"] for line in history) > 0.9


def test_the_weights_of_the_best_epoch_are_kept_when_later_ones_are_worse(data, tmp_path):
    model, labels, calls = make_model(), torch.from_numpy(data[0].labels), 0

    def turns_bad(batch):  # a teacher that tells the truth for six epochs and then the opposite
        nonlocal calls
        calls += 1
        right = torch.nn.functional.one_hot(labels[batch.index], 2).float()
        return 8 * (right if calls <= 6 * 13 else 1 - right)

    settings = replace(SETTINGS, epochs=12, lr=1e-2, alpha=0.0, T=1.0)
    history = train(model, *data, settings, tmp_path, CPU, teacher=turns_bad)
    best = max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert best["validation_accuracy"] > history[-1]["validation_accuracy"] + 0.2
    logits = compute_logits(model, data[1], CPU, "fp32")
    assert hard_loss(logits, torch.from_numpy(data[1].labels)).item() == pytest.approx(
        best["validation_loss"], abs=1e-6
    )


def test_two_runs_give_the_same_bits_and_another_seed_does_not(data, tmp_path):
    prints = []
    for run, seed in enumerate((5, 5, 6)):
        model = make_model()
        train(model, *data, replace(SETTINGS, seed=seed), tmp_path / str(run), CPU)
        prints.append(model_fingerprint(model))
    assert prints[0] == prints[1] != prints[2]


def test_accumulated_gradients_are_those_of_one_large_batch(data, tmp_path):
    models = [make_model(dropout=0.0), make_model(dropout=0.0)]
    split = replace(data[0], offsets=data[0].offsets[:34], labels=data[0].labels[:33])  # a last group that is not full
    large = replace(SETTINGS, epochs=1, batch_size=33, warmup_ratio=0)
    train(models[0], split, data[1], large, tmp_path / "large", CPU)
    train(models[1], split, data[1], replace(large, batch_size=8, grad_accum=5), tmp_path / "small", CPU)
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values()):
        # Adam's first step has the size of the learning rate however small a gradient is: hence the tolerance.
        assert (one - other).abs().mean() < 0.02 * large.lr, name
    # Clipping and Adam hide a wrong scale of the gradient; the logged loss has the same factor.
    one, other = (log_lines(tmp_path / name)[0]["loss"] for name in ("large", "small"))
    assert one == pytest.approx(other, rel=1e-5)


class Kill(BaseException):
    """The end of the process: nothing after it is saved."""


@pytest.mark.parametrize("killed,stop_at", [
    (False, 4), (False, 13), (False, 20), (False, 39),  # in epoch 1, at its end, in 2, at the very end
    (True, 35),  # in epoch 3, after a line of the log; the last state is that of the end of epoch 2
])  # fmt: skip
def test_a_run_that_was_interrupted_and_resumed_ends_in_the_same_bits(data, tmp_path, killed, stop_at):
    teacher = make_model(seed=9).eval()
    settings = replace(SETTINGS, alpha=0.3, T=2.0)
    calls = 0

    def teacher_logits_of(batch, stop=None):
        nonlocal calls
        calls += 1
        if calls == stop:
            if killed:
                raise Kill
            os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            return teacher(batch.input_ids, batch.attention_mask).logits

    whole, handler = make_model(), signal.getsignal(signal.SIGINT)
    expected = train(whole, *data, settings, tmp_path / "whole", CPU, teacher=teacher_logits_of)

    calls, model = 0, make_model()
    with pytest.raises(Kill if killed else KeyboardInterrupt, match=None if killed else "stopped at step"):
        train(model, *data, settings, tmp_path / "cut", CPU, teacher=lambda batch: teacher_logits_of(batch, stop_at))
    if killed:
        assert log_lines(tmp_path / "cut")[-1]["step"] == 30
        with (tmp_path / "cut/log.jsonl").open("a") as log:
            log.write('{"step": 35, "lo')  # a line that was being written
    resumed = make_model(seed=77)  # every weight must come from the state
    torch.manual_seed(123)
    history = train(resumed, *data, settings, tmp_path / "cut", CPU, teacher=teacher_logits_of, resume=True)

    assert model_fingerprint(resumed) == model_fingerprint(whole)
    for line, other in zip(history, expected):
        assert {k: v for k, v in line.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    steps = [[line.get("loss") for line in log_lines(tmp_path / name)] for name in ("whole", "cut")]
    assert steps[0] == steps[1]
    assert signal.getsignal(signal.SIGINT) is handler  # given back, whatever it was (ignored, in a background job)


def test_the_first_signal_waits_for_the_end_of_the_step_and_the_second_acts_at_once():
    def at_once(*_):
        raise Kill

    before = signal.signal(signal.SIGTERM, at_once)
    try:
        with StopSignal() as stop:
            assert not stop.requested
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
            with pytest.raises(Kill):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_state_that_cannot_be_written_whole_leaves_the_one_before(data, tmp_path, monkeypatch):
    settings = replace(SETTINGS, epochs=1)
    train(make_model(), *data, settings, tmp_path, CPU)
    before = (tmp_path / "state.pt").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the bytes are written, and do not reach the disk
    model = make_model(seed=1)
    state = TrainState(model, make_optimizer(model, settings, CPU), torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path / "state.pt", {}, state)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "log.jsonl"}


def test_a_state_holds_everything_that_the_rest_of_a_run_depends_on(data, tmp_path):
    """Also the scale of fp16's loss, the best epoch so far and the numbers that dropout will draw."""
    made_from = {"settings": {"lr": 1.0}}
    settings, scores = replace(SETTINGS, epochs=1), {"validation_accuracy": 0.25, "validation_loss": 0.5}
    models = [make_model(seed) for seed in (1, 2)]
    weights = {name: tensor.clone() for name, tensor in make_model(3).state_dict().items()}
    best, history = {"epoch": 2, "scores": scores, "weights": weights}, [{"epoch": 1, "step": 3, **scores}]
    optimizers = [make_optimizer(model, settings, CPU) for model in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 64.0)]
    for parameter in models[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    torch.manual_seed(9)
    saved = TrainState(models[0], optimizers[0], scalers[0], 7, history, best, 3.5)
    save_state(tmp_path / "state.pt", {"made_from": made_from}, saved)
    drawn = torch.rand(5)
    loaded = TrainState(models[1], optimizers[1], scalers[1])
    loaded.load_state_dict(load_state(tmp_path / "state.pt", made_from))
    assert (loaded.step, loaded.history, loaded.seconds) == (7, history, 3.5)
    assert (loaded.best["epoch"], loaded.best["scores"]) == (2, scores)
    assert loaded.best["weights"].keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.best["weights"].items())
    assert torch.equal(torch.rand(5), drawn)
    assert model_fingerprint(models[1]) == model_fingerprint(models[0])
    assert scalers[1].state_dict() == scalers[0].state_dict() and scalers[1].state_dict()["scale"] == 8.0
    moments = [optimizer.state_dict()["state"][0]["exp_avg"] for optimizer in optimizers]
    assert torch.equal(*moments) and moments[0].any()


def test_a_pass_without_gradients_has_no_dropout_and_leaves_the_mode_as_it_was(data):
    model = make_model(dropout=0.5).eval()
    expected = compute_logits(model, data[1], CPU, "fp32")
    assert not model.training
    assert torch.equal(compute_logits(model.train(), data[1], CPU, "fp32"), expected) and model.training


def test_a_second_ctrl_c_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            signal.raise_signal(signal.SIGINT)
            stop.requested = False
        assert stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_state_of_another_run_is_refused_by_what_differs(data, tmp_path, monkeypatch):
    base = replace(SETTINGS, epochs=1)
    train(make_model(), *data, base, tmp_path, CPU, made_from={"teacher": "one"})
    with pytest.raises(MinikdError, match=r"state.pt.*lr 0.001 → 0.01"):
        train(make_model(), *data, replace(base, lr=0.01), tmp_path, CPU, resume=True, made_from={"teacher": "one"})
    with pytest.raises(MinikdError, match=r"made from something else \(teacher\)"):
        train(make_model(), *data, base, tmp_path, CPU, resume=True, made_from={"teacher": "another"})
    with pytest.raises(MinikdError, match="the saved state does not fit the model"):
        train(make_model(layers=1), *data, base, tmp_path, CPU, resume=True, made_from={"teacher": "one"})
    monkeypatch.setattr(minikd.experiment.running, "SORTED_TOGETHER", 7)  # with which the epochs have other batches
    with pytest.raises(MinikdError, match=r"made from something else \(chunk\)"):
        train(make_model(), *data, base, tmp_path, CPU, resume=True, made_from={"teacher": "one"})


def test_training_runs_where_progress_bars_are_switched_off(data, tmp_path):
    program = "import sys; sys.path[:0] = sys.argv[2:]; import test_training as t; t.train_once(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/core")]
    subprocess.run(command, check=True, env=os.environ | {"TQDM_DISABLE": "1"})


def train_once(folder):
    split = cached_tokens(make_split(20, 0), train_wordpiece(WORDS * 2, 200), 16)
    train(make_model(), split, split, SETTINGS, Path(folder), CPU)


def test_a_damaged_state_is_refused_by_name(data, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(MinikdError, match="state.pt"):
        train(make_model(), *data, SETTINGS, tmp_path, CPU, resume=True)


def test_cached_and_online_teacher_give_the_same_losses(data, tmp_path):
    teacher = make_model(seed=9)
    logits = teacher_logits(teacher, data[0], tmp_path / "logits.safetensors", CPU, "fp32")

    def online(batch):
        with torch.no_grad():
            return teacher.eval()(batch.input_ids, batch.attention_mask).logits

    losses = []
    for name, teacher_logits_of in (("cache", lambda batch: logits[batch.index]), ("online", online)):
        train(make_model(), *data, replace(SETTINGS, alpha=0.2, T=3.0), tmp_path / name, CPU, teacher=teacher_logits_of)
        losses.append([line["loss"] for line in log_lines(tmp_path / name) if "loss" in line])
    assert len(losses[0]) > 2 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_distillation_without_dropout_takes_the_step_of_the_kd_loss(data, tmp_path):
    """One step of the loop equals the same step written out: forward, kd_loss, backward, clip, AdamW."""
    split = replace(data[0], offsets=data[0].offsets[:9], labels=data[0].labels[:8])
    settings = replace(SETTINGS, epochs=1, alpha=0.25, T=2.0, warmup_ratio=0)
    target = torch.randn(8, 2)
    model, twin = make_model(dropout=0.0), make_model(dropout=0.0)
    train(model, split, data[1], settings, tmp_path, CPU, teacher=lambda batch: target[batch.index])

    losses, optimizer = [], make_optimizer(twin, settings, CPU)
    for i in range(8):
        tokens = torch.from_numpy(split.ids[split.offsets[i] : split.offsets[i + 1]]).long()[None]
        label = torch.from_numpy(split.labels[i : i + 1])
        losses.append(kd_loss(twin(tokens).logits, target[i : i + 1], label, alpha=0.25, T=2.0))
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), settings.clip)
    optimizer.step()
    for (name, one), other in zip(model.state_dict().items(), twin.state_dict().values()):
        assert (one - other).abs().mean() < 0.02 * settings.lr, name


def test_the_teacher_is_not_changed_and_the_student_stays_in_train_mode(data, tmp_path):
    teacher, student, modes = make_model(seed=9).eval(), make_model(), []
    before = model_fingerprint(teacher)

    def teacher_logits_of(batch):
        modes.append(student.training)
        return teacher(batch.input_ids, batch.attention_mask).logits  # with its graph: the loss must cut it

    train(student, *data, replace(SETTINGS, alpha=0.0, T=2.0), tmp_path, CPU, teacher=teacher_logits_of)
    assert all(modes) and len(modes) == 3 * 13  # also after the first validation
    assert model_fingerprint(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teacher_logits_are_stored_by_example_and_reused_only_for_the_same_teacher_and_data(data, tmp_path, capsys):
    path, teacher = tmp_path / "logits.safetensors", make_model(seed=9)
    logits = teacher_logits(teacher, data[0], path, CPU, "fp32")
    teacher.eval()
    for i in (0, 7, 99):
        tokens = torch.from_numpy(data[0].ids[data[0].offsets[i] : data[0].offsets[i + 1]]).long()[None]
        assert torch.allclose(teacher(tokens).logits[0], logits[i], atol=1e-5)
    written = path.stat().st_mtime_ns
    assert torch.equal(teacher_logits(teacher, data[0], path, CPU, "fp32"), logits)
    assert path.stat().st_mtime_ns == written and "read from" in capsys.readouterr().out
    other = teacher_logits(make_model(seed=10), data[0], path, CPU, "fp32")
    assert not torch.equal(other, logits) and "another model" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(teacher_logits(teacher, data[0], path, CPU, "fp32"), logits)


def test_patience_stops_after_epochs_that_are_no_better(data, tmp_path):
    settings = replace(SETTINGS, epochs=9, lr=1e-12, patience=2, grad_accum=2)
    history = train(make_model(), *data, settings, tmp_path, CPU)
    best = max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))["epoch"]
    assert [line["step"] for line in history] == [7 * epoch for epoch in range(1, best + 3)]  # 100 examples, 16 a step
    assert len(history) == best + 2 < 9


@pytest.mark.parametrize("every_step", [True, False])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_keeps_the_last_good_state(
    data, tmp_path, monkeypatch, every_step
):
    """Here step 17, in the second epoch of 13 steps each, and between two lines of the log."""
    calls = []

    def teacher(batch, broken=False):
        calls.append(batch)
        return torch.full((len(batch.index), 2), math.nan if broken and len(calls) >= 17 else 1.0)

    whole, resumed = make_model(), make_model(seed=1)
    train(whole, *data, replace(SETTINGS, alpha=0.5), tmp_path / "whole", CPU, teacher=teacher)
    calls.clear()
    monkeypatch.setattr(Saver, "is_due", lambda self: every_step)
    with pytest.raises(MinikdError, match="the loss became nan at step 17; run again without `resume`, with a smaller"):
        train(make_model(), *data, replace(SETTINGS, alpha=0.5), tmp_path / "cut", CPU,
              teacher=lambda batch: teacher(batch, broken=True))  # fmt: skip
    assert torch.load(tmp_path / "cut/state.pt", weights_only=True)["step"] == (16 if every_step else 13)
    train(resumed, *data, replace(SETTINGS, alpha=0.5), tmp_path / "cut", CPU, teacher=teacher, resume=True)
    assert model_fingerprint(resumed) == model_fingerprint(whole)


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
], ids=["python", "cpu", "cuda"])  # fmt: skip
@pytest.mark.parametrize(("batch_size", "words"), [
    (8, "train: the memory is full; try `batch_size` 4 with `grad_accum` 6 (as many examples a step), or a smaller "
        "`max_length`, without `resume`"),
    (1, "train: the memory is full; try a smaller `max_length`, without `resume`"),
])  # fmt: skip
def test_where_memory_is_full_a_smaller_batch_is_named(data, tmp_path, error, batch_size, words):
    def teacher(batch):
        raise error

    with pytest.raises(MinikdError) as caught:
        train(make_model(), *data, replace(SETTINGS, batch_size=batch_size, grad_accum=3, alpha=0.5), tmp_path, CPU,
              teacher=teacher)  # fmt: skip
    assert str(caught.value) == words


def test_bf16_trains_and_leaves_fp32_weights(data, tmp_path):
    model = make_model()
    history = train(model, *data, replace(SETTINGS, precision="bf16", epochs=12, lr=1e-2), tmp_path, CPU)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert max(line["validation_accuracy"] for line in history) > 0.8
    best = max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    losses = [hard_loss(compute_logits(model, data[1], CPU, precision), torch.from_numpy(data[1].labels)).item()
              for precision in ("bf16", "fp32")]  # fmt: skip
    assert best["validation_loss"] == losses[0] != losses[1]  # the run's precision is validated in, too


def test_the_norm_that_is_clipped_is_the_true_one_though_fp16_scales_the_loss(data, tmp_path, monkeypatch):
    split = replace(data[0], offsets=data[0].offsets[:9], labels=data[0].labels[:8])  # one step
    norms = []

    def note(optimizer, max_norm):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        clip_gradients(optimizer, max_norm)

    monkeypatch.setattr(minikd.training, "clip_gradients", note)
    for precision in ("fp32", "fp16"):
        settings = replace(SETTINGS, epochs=1, precision=precision)
        train(make_model(dropout=0.0), split, split, settings, tmp_path / precision, CPU)
    assert len(norms) == 2 and norms[1] == pytest.approx(norms[0], rel=0.02)


def test_validation_logits_that_are_not_finite_end_the_run(data, tmp_path):
    """The loss of the one step is finite, and so are the weights after it, but too large to compute with."""
    split = replace(data[0], offsets=data[0].offsets[:9], labels=data[0].labels[:8])
    with pytest.raises(MinikdError, match="logits that are not finite"):
        train(make_model(), split, data[1], replace(SETTINGS, epochs=2, lr=1e30), tmp_path, CPU)


@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="compiling needs a C++ compiler"
)
def test_compiled_training_gives_the_losses_of_eager_training(tmp_path):
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 4)) for i in range(80)]  # one length: one compilation
    split = cached_tokens(Split(texts, [i % 2 for i in range(80)]), train_wordpiece(WORDS * 2, 200), 6)
    losses = []
    for compile in (False, True):
        model, folder = make_model(dropout=0.0, layers=1), tmp_path / str(compile)
        train(model, split, split, replace(SETTINGS, epochs=1), folder, CPU, compile=compile)
        losses.append([line["loss"] for line in log_lines(folder) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_predictions_are_in_the_order_of_the_split(data, monkeypatch):
    monkeypatch.setattr(minikd.inference, "CPU_TOKENS", 50)  # several batches
    model = make_model().eval()
    logits = compute_logits(model, data[0], CPU, "fp32")
    for i in range(0, 100, 9):
        tokens = torch.from_numpy(data[0].ids[data[0].offsets[i] : data[0].offsets[i + 1]]).long()[None]
        assert torch.allclose(model(tokens).logits[0], logits[i], atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_needs_no_mode_and_leaves_the_one_the_model_had(data, training):
    model = make_model(dropout=0.5).train(training)
    logits = [compute_logits(model, data[1], CPU, "fp32") for _ in range(2)]
    assert torch.equal(*logits)  # without dropout
    assert {module.training for module in model.modules()} == {training}


def test_passes_without_gradients_convert_each_weight_once(data):
    model, ids = make_model().eval(), torch.randint(5, 200, (3, 9))

    def conversions(passes):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof, forward_only(CPU, "bf16"):
            for _ in range(passes):
                model(ids)
        shape = list(model.encoder.layers[0].feed_forward.output.weight.shape)
        copies = [event for event in prof.events() if event.name == "aten::_to_copy" and shape in event.input_shapes]
        return len(copies)

    assert conversions(1) == conversions(5) == 2  # layers


@pytest.mark.parametrize("fast", [True, False])
def test_precision_auto_is_bf16_where_it_is_fast_and_safe_elsewhere(monkeypatch, fast):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fast or including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    chosen = {name: choose_precision("auto", torch.device(name))[0] for name in ("cuda", "cpu", "mps")}
    assert chosen == {"cuda": "bf16" if fast else "fp16", "cpu": "bf16" if fast else "fp32", "mps": "fp32"}


def test_precision_and_device_that_are_not_there_are_refused():
    for name in ("bf16", "fp16"):
        with pytest.raises(MinikdError, match=f"`precision` {name}"):
            choose_precision(name, torch.device("mps"))
    assert choose_precision("fp32", CPU)[0] == "fp32"
    assert choose_precision("fp16", torch.device("cuda")) == ("fp16", "asked for")
    assert choose_precision("auto", CPU)[0] in ("fp32", "bf16")
    with pytest.raises(MinikdError, match="`precision` fp16"):
        choose_precision("fp16", CPU)
    if not torch.cuda.is_available():
        with pytest.raises(MinikdError, match="`device` cuda"):
            choose_device("cuda")
        assert choose_device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize(("there", "device"), [({"cuda", "mps"}, "cuda"), ({"mps"}, "mps"), (set(), "cpu")])
def test_device_auto_is_a_gpu_if_there_is_one(there, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert choose_device("auto").type == device


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp16")])
def test_precision_auto_on_cuda_is_bf16_where_the_gpu_has_it_and_else_fp16(units, precision, monkeypatch):
    """torch counts bf16 as supported where it is only emulated, which is slower than fp32."""
    supported = lambda including_emulation=True: units or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", torch.device("cuda"))[0] == precision
    assert choose_precision("auto", torch.device("mps"))[0] == "fp32"
