"""What a training adds to the memory in use: the same for the same training, whatever else the process holds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minikd.batching import TokenizedSplit
from minikd.config import EncoderConfig
from minikd.memory import added_memory_mb, keep_freed_memory, memory_in_use_mb, reset_peak_memory
from minikd.model import Classifier
from minikd.training import TrainingSettings, train

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CONFIG = EncoderConfig(
    vocab_size=30000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048,
    max_position_embeddings=64,
)  # fmt: skip
can_measure = pytest.mark.skipif(
    memory_in_use_mb(CPU) is None or not reset_peak_memory(CPU), reason="this system does not reset a process's peak"
)


def make_split(count, seed):
    random = np.random.default_rng(seed)
    offsets = np.arange(count + 1) * 64
    return TokenizedSplit(random.integers(5, 30000, offsets[-1]), offsets, random.integers(0, 2, count), 0, "")


def train_in_order(order, folder):
    """Trains the same student, distilled (d) or as the baseline (b), in the order of these letters. All stay in memory,
    as in distill.py. Returns what each added, in MiB."""
    keep_freed_memory()
    data, validation, logits = make_split(48, 0), make_split(16, 1), torch.randn(48, 2)
    settings, models, added = TrainingSettings(epochs=1, batch_size=16, lr=1e-4, alpha=0.5, T=2.0), [], []
    for i, kind in enumerate(order):
        torch.manual_seed(0)
        models.append(Classifier(CONFIG))
        teacher = (lambda batch: logits[batch.index]) if kind == "d" else None
        (epoch,) = train(models[-1], data, validation, settings, Path(folder, str(i)), CPU, teacher=teacher)
        added.append(epoch["added_mb"])
    return added


@can_measure
@pytest.mark.parametrize("order", ["db", "bd"])
def test_equal_trainings_add_the_same_memory_in_either_order(order, tmp_path):
    program = "import sys, json; sys.path[:0] = sys.argv[1:3]; import test_memory as t; " \
              "print('added', json.dumps(t.train_in_order(sys.argv[3], sys.argv[4])))"  # fmt: skip
    command = [sys.executable, "-c", program, str(ROOT), str(ROOT / "tests"), order, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = json.loads(done.stdout.rpartition("added ")[2])
    assert first == pytest.approx(second, rel=0.05)
    used_rows = len(np.unique(make_split(48, 0).ids))
    layers = sum(p.numel() for p in Classifier(CONFIG).encoder.layers.parameters())
    least = 3 * 4 * (used_rows * 512 + layers) / 2**20  # the gradients and AdamW's two moments
    assert least < first < 2.5 * least


@can_measure
def test_what_is_in_use_before_does_not_count_and_what_is_freed_in_between_does():
    held_elsewhere = torch.ones(200 * 2**20 // 4)
    held = memory_in_use_mb(CPU)
    reset_peak_memory(CPU)
    torch.ones(100 * 2**20 // 4)
    assert added_memory_mb(CPU, held) == pytest.approx(100, abs=15)
    assert len(held_elsewhere) and added_memory_mb(CPU, None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_added_memory_is_that_of_this_training_and_models_leave_the_device(tmp_path):
    from test_runs import make_model, run

    before = torch.cuda.memory_allocated()
    held_elsewhere = torch.ones(2**28, device="cuda")
    models = [run(tmp_path / str(i), model=make_model(), device=torch.device("cuda")) for i in range(2)]
    assert {parameter.device.type for model in models for parameter in model.parameters()} == {"cpu"}
    added = [json.loads((tmp_path / str(i) / "run.json").read_text())["training_added_mb"] for i in range(2)]
    assert added[0] == pytest.approx(added[1], rel=0.05) and added[0] < 500
    del held_elsewhere
    assert torch.cuda.memory_allocated() - before < 100 * 2**20
