"""Mixed precision and the GPU: error bounds of the formats, equality on CUDA, loss scaling, no hidden waiting.

bf16 is checked on every machine; what needs an NVIDIA GPU is skipped without one (tests/gpu_check.sh runs it there).
"""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from equality import CONFIGS, assert_equal, compare, moved, random_batch, randomised, run, transformers_twin
from helpers import train
from test_training import SETTINGS, log_lines, make_model, tiny_data

from minikd.errors import MinikdError
from minikd.experiment.caches import model_fingerprint
from minikd.experiment.journal import read_log
from minikd.inference import autocast, compute_logits
from minikd.model import Classifier

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORMATS = [("cpu", "bf16"), *(pytest.param("cuda", short, marks=needs_cuda) for short in ("bf16", "fp16"))]
EPSILON = {"bf16": 2**-8, "fp16": 2**-11}  # largest relative error of rounding to the format


data = pytest.fixture(scope="module")(tiny_data)


def distance(one, other):
    """‖one − other‖ / ‖other‖, in float64."""
    one, other = (tensor.detach().cpu().double() for tensor in (one, other))
    return ((one - other).norm() / other.norm()).item()


def logits_and_gradient(model, batch, device, precision):
    """Logits, and the gradients of all weights in one vector."""
    model, batch = model.to(device), moved(batch, device)
    with autocast(torch.device(device), precision):
        output, _ = run(model, batch)
    return output.logits, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("device, precision", FORMATS)
@pytest.mark.parametrize("name", ["bert", "distilbert", "bert-4-layers-5-heads"])
def test_errors_are_of_the_size_of_the_format_and_logits_as_good_as_those_of_transformers(device, precision, name):
    """Against float64. Each of a few dozen roundings in a row adds about one epsilon, not all of one sign."""
    config = CONFIGS[name]
    batch = random_batch(config, segments=False)
    exact = logits_and_gradient(randomised(config, dtype=torch.float64), batch, "cpu", "fp32")
    ours = logits_and_gradient(randomised(config), batch, device, precision)
    their_logits, _ = logits_and_gradient(transformers_twin(randomised(config)), batch, device, precision)
    for mine, reference in zip(ours, exact):
        assert EPSILON[precision] / 30 < distance(mine, reference) < 8 * EPSILON[precision]
    assert distance(ours[0], exact[0]) < 1.5 * distance(their_logits, exact[0]) + EPSILON[precision] / 2


@pytest.mark.parametrize("device, precision", FORMATS)
def test_labels_do_not_tie_in_a_short_format(device, precision):
    """A weak model's logits lie close together. In bf16 a fifth of them would be equal, and their text get label 0."""
    config, device = replace(CONFIGS["bert"], num_hidden_layers=1, labels=("a", "b")), torch.device(device)
    torch.manual_seed(0)
    model = Classifier(config).to(device).eval()
    with torch.no_grad():
        model.classifier.weight[1] = model.classifier.weight[0] + 1e-4 * torch.randn(config.hidden_size, device=device)
        with autocast(device, precision):
            logits = model(torch.randint(5, config.vocab_size, (500, 8), device=device)).logits
    assert (logits[:, 0] == logits[:, 1]).float().mean() < 0.01


@needs_cuda
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_on_cuda_equals_transformers(name, padded):
    model = randomised(CONFIGS[name])
    twin = transformers_twin(model).to(CUDA)
    assert_equal(compare(model.to(CUDA), twin, moved(random_batch(CONFIGS[name], padded=padded), CUDA)), 1e-4)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_on_cuda_in_every_precision(data, tmp_path, precision):
    history = train(make_model(), *data, replace(SETTINGS, precision=precision, epochs=12, lr=1e-2), tmp_path, CUDA)
    assert max(line["validation_accuracy"] for line in history) > 0.8


@needs_cuda
def test_a_run_in_fp16_that_overflows_at_first_lowers_its_scale_and_learns(data, tmp_path):
    """Gradients of a teacher this sure, times the 65,536 that GradScaler starts with, are beyond fp16's range."""
    target = 64 * torch.nn.functional.one_hot(torch.from_numpy(data[0].labels), 2).float().to(CUDA)
    settings = replace(SETTINGS, precision="fp16", epochs=12, lr=1e-2, alpha=0.0, T=64.0)
    model = make_model()
    history = train(model, *data, settings, tmp_path, CUDA, teacher=lambda batch: target[batch.index])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["scaler"]["scale"] < 65536
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert max(line["validation_accuracy"] for line in history) > 0.8


def test_a_loss_that_is_not_finite_skips_its_step_in_fp16_and_is_counted(data, tmp_path):
    def teacher(batch):
        return torch.full((len(batch.index), 2), math.nan if 3 in batch.index else 1.0)

    model, settings = make_model(), replace(SETTINGS, precision="fp16", alpha=0.5)
    history = train(model, *data, settings, tmp_path, CPU, teacher=teacher)
    assert len(history) == settings.epochs and all(torch.isfinite(one).all() for one in model.parameters())
    counts = [line["skipped_steps"] for line in read_log(tmp_path) if "validation_loss" in line]
    assert counts == list(range(1, settings.epochs + 1))  # one batch of each epoch
    with pytest.raises(MinikdError, match="the loss became nan"):
        train(make_model(), *data, replace(settings, precision="fp32"), tmp_path / "fp32", CPU, teacher=teacher)


def test_fp16_scales_the_loss_and_clips_the_true_gradient(data, tmp_path, capsys):
    """Unclipped and with steps that are clipped, in fp16 as in fp32. A first step that overflows is left out, and a run
    that is resumed after it keeps the lower scale."""
    labels = torch.from_numpy(data[0].labels)
    target, mild = (size * torch.nn.functional.one_hot(labels, 2).float() for size in (64, 4))
    for clip in (0.0, 0.05):
        models = [make_model(dropout=0.0), make_model(dropout=0.0)]
        for model, precision in zip(models, ("fp32", "fp16")):
            settings = replace(SETTINGS, precision=precision, clip=clip, alpha=0.0, T=1.0)
            train(model, *data, settings, tmp_path / precision, CPU, teacher=lambda batch: mild[batch.index])
        for one, other in zip(models[0].parameters(), models[1].parameters()):
            assert (one - other).abs().mean() < 1e-4

    settings = replace(SETTINGS, precision="fp16", alpha=0.0, T=64.0)
    calls = []

    def teacher(batch, stop=None):
        calls.append(batch)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return target[batch.index]

    whole, resumed = make_model(), make_model(seed=1)
    train(whole, *data, settings, tmp_path / "whole", CPU, teacher=teacher)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), *data, settings, tmp_path / "cut", CPU, teacher=lambda batch: teacher(batch, 5))
    train(resumed, *data, settings, tmp_path / "cut", CPU, teacher=teacher, resume=True)
    scales = [torch.load(tmp_path / name / "state.pt", weights_only=True)["scaler"] for name in ("whole", "cut")]
    assert scales[0] == scales[1] and 1 < scales[0]["scale"] < 65536
    skipped = [[line["skipped_steps"] for line in read_log(tmp_path / name) if "validation_loss" in line]
               for name in ("whole", "cut")]  # fmt: skip
    assert skipped[0] == skipped[1] and skipped[0][-1] == math.log2(65536 / scales[0]["scale"])  # each halves it
    assert (
        f"{skipped[0][-1]} of {scales[0]['_growth_tracker'] + skipped[0][-1]} steps skipped" in capsys.readouterr().out
    )
    assert model_fingerprint(resumed) == model_fingerprint(whole)
    assert all(torch.isfinite(parameter).all() for parameter in whole.parameters())


@needs_cuda
def test_compiled_training_on_cuda_gives_the_losses_of_eager_training(data, tmp_path):
    losses = []
    for compile in (False, True):
        folder = tmp_path / str(compile)
        train(make_model(dropout=0.0), *data, SETTINGS, folder, CUDA, compile=compile)
        losses.append([line["loss"] for line in log_lines(folder) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@needs_cuda
def test_logits_on_cuda_do_not_depend_on_the_batch(data):
    model = make_model().to(CUDA).eval()
    whole = compute_logits(model, data[1], CUDA, "fp32")
    alone = compute_logits(
        model, replace(data[1], offsets=data[1].offsets[:2], labels=data[1].labels[:1]), CUDA, "fp32"
    )
    torch.testing.assert_close(alone, whole[:1], rtol=1e-4, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_training_step_waits_for_the_gpu(data, tmp_path, precision):
    """From the second step to the ninth, torch raises an error at any operation that waits for the device.

    The teacher is called in the middle of each step, and so can switch this on and off.
    """
    logits, calls = torch.randn(len(data[0]), 2, device=CUDA), 0
    settings = replace(SETTINGS, alpha=0.5, T=2.0, epochs=1, precision=precision)

    def teacher(batch):
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= calls <= 8 else "default")  # the tenth step is logged
        return logits[batch.index]

    try:
        train(make_model(), *data, settings, tmp_path, CUDA, teacher=teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert calls == 13
