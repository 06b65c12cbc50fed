"""Peak memory of a training: of it alone, whatever the process that asks holds or trained before."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Settings, train

from minikd.batching import TokenizedSplit
from minikd.config import EncoderConfig
from minikd.evaluation import costs
from minikd.evaluation.costs import training_memory_mb
from minikd.evaluation.memory import keep_freed_memory, peak_memory_mb
from minikd.model import Classifier
from minikd.techniques.lora import LoRA

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CONFIG = EncoderConfig(
    vocab_size=30000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048,
    max_position_embeddings=64,
)  # fmt: skip
SETTINGS = Settings(epochs=1, batch_size=16, lr=1e-4)
pytestmark = pytest.mark.skipif(peak_memory_mb(CPU) is None, reason="this system does not tell a process's peak")


def make_split(count, seed):
    random = np.random.default_rng(seed)
    offsets = np.arange(count + 1) * 64
    return TokenizedSplit(random.integers(5, 30000, offsets[-1]), offsets, random.integers(0, 2, count), 0, "")


def train_alone(folder):
    """Peak memory, MiB, of this process after a whole training."""
    keep_freed_memory()
    train(Classifier(CONFIG), make_split(48, 0), make_split(16, 1), SETTINGS, Path(folder), CPU)
    return peak_memory_mb(CPU)


@pytest.fixture(scope="module")
def alone():
    return training_memory_mb(Classifier(CONFIG), make_split(48, 0), 16, CPU, "fp32")


def test_it_is_the_peak_of_a_process_that_trains_this_model_and_nothing_else(alone, tmp_path):
    program = "import sys; sys.path[:0] = sys.argv[2:]; import test_memory as t; print(t.train_alone(sys.argv[1]))"
    folders = [ROOT, ROOT / "tests", ROOT / "tests/evaluation"]
    command = [sys.executable, "-c", program, str(tmp_path), *map(str, folders)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    trained = min(float(run.stdout.split()[-1]) for run in runs)  # what the allocator keeps beside varies by a tenth
    assert alone == pytest.approx(trained, rel=0.1)
    used_rows = len(np.unique(make_split(48, 0).ids))
    layers = sum(p.numel() for p in Classifier(CONFIG).encoder.layers.parameters())
    assert alone > (4 * 30000 * 512 + 3 * 4 * (used_rows * 512 + layers)) / 2**20  # table, gradients, two moments


def test_it_does_not_depend_on_what_this_process_holds(alone):
    held = torch.ones(300 * 2**20 // 4)
    costs._in_own_process.cache_clear()
    again = training_memory_mb(Classifier(CONFIG), make_split(48, 0), 16, CPU, "fp32")
    assert len(held) and again == pytest.approx(alone, rel=0.1)


def test_models_of_one_shape_have_one_figure_and_other_work_has_another(alone):
    students = [training_memory_mb(Classifier(CONFIG), make_split(48, 0), 16, CPU, "fp32") for _ in range(2)]
    assert students[0] == students[1]
    adapters = training_memory_mb(Classifier(CONFIG), make_split(48, 0), 16, CPU, "fp32", LoRA(rank=8))
    small_batch = training_memory_mb(Classifier(CONFIG), make_split(48, 0), 2, CPU, "fp32")
    assert adapters < alone - 60 and small_batch < alone - 30


def test_a_device_that_keeps_no_peak_has_no_figure(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be measured"))
    mps, model = torch.device("mps"), Classifier(CONFIG)
    assert peak_memory_mb(mps) is None
    assert training_memory_mb(model, make_split(4, 0), 16, mps, "fp32") is None
    assert costs.inference_memory_mb(model, make_split(4, 0), mps, "fp32") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_torchs_figure_and_models_leave_the_device(tmp_path):
    from test_runs import make_model, run

    before = torch.cuda.memory_allocated()
    models = [run(tmp_path / str(i), model=make_model(), device=torch.device("cuda")) for i in range(2)]
    assert {parameter.device.type for model in models for parameter in model.parameters()} == {"cpu"}
    peaks = [json.loads((tmp_path / str(i) / "run.json").read_text())["training_peak_mb"] for i in range(2)]
    assert peaks[0] == peaks[1] < 500
    assert torch.cuda.memory_allocated() - before < 100 * 2**20
