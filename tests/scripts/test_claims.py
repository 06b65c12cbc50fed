"""Claims about caches, reuse and files: change one part of what a result was made from, and it is made anew."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, save_model, spread
from helpers import Settings, teacher_logits, train_or_reuse
from safetensors.torch import load_file, save_file
from test_training import CPU, SETTINGS, make_model, make_split

import minikd.experiment.caches
import minikd.experiment.training
import minikd.files
from minikd.batching import make_batches
from minikd.checkpoints.label_order import match_labels
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.experiment.caches import cached_logits, cached_tokens, model_fingerprint
from minikd.inference import compute_logits
from minikd.model import Classifier
from minikd.techniques.quantize import quantize
from minikd.tokenizer import train_wordpiece

pytestmark = pytest.mark.usefixtures("no_pictures")

TEXTS = make_split(40, 0).texts
TOKENIZER, OTHER_TOKENIZER = train_wordpiece(TEXTS, 200), train_wordpiece(["zebra", *WORDS] * 3, 60)
TRAIN, VALIDATION = make_split(40, 0), make_split(20, 1)


def tokens(split=TRAIN, tokenizer=TOKENIZER, length=16):
    return cached_tokens(split, tokenizer, length)


def with_other_labels(split):
    return replace(split, labels=[1 - label for label in split.labels])


# Finished runs


def run_of(**changes):
    """The arguments of `train_or_reuse`, but for those changed."""
    model = spread(make_model(layers=1), seed=changes.pop("weights", 0))
    model.config = model.config.with_labels(changes.pop("labels", ("no", "yes")))
    settings = replace(SETTINGS, **({"epochs": 1} | changes.pop("settings", {})))
    arguments = dict(name="model", model=model, tokenizer=TOKENIZER, data=tokens(), validation=tokens(VALIDATION),
                     settings=settings, folder=Path("run"), device=CPU, arguments={}, teacher_key="one",
                     teacher=lambda batch: torch.zeros(len(batch.index), 2))  # fmt: skip
    return arguments | changes


OTHER_SETTINGS = {"epochs": 2, "max_steps": 3, "batch_size": 9, "lr": 2e-3, "weight_decay": 0.02, "warmup_ratio": 0.2,
                  "grad_accum": 2, "clip": 0.5, "label_smoothing": 0.1, "patience": 1, "seed": 6, "alpha": 0.5,
                  "T": 2.0, "precision": "bf16"}  # fmt: skip
CHANGES = {
    "other texts": lambda: {"data": tokens(make_split(40, 2))},
    "other labels of the same texts": lambda: {"data": tokens(with_other_labels(TRAIN))},
    "another tokenizer": lambda: {"data": tokens(tokenizer=OTHER_TOKENIZER)},
    "another length": lambda: {"data": tokens(length=5)},
    "another validation split": lambda: {"validation": tokens(make_split(20, 3))},
    "other validation labels": lambda: {"validation": tokens(with_other_labels(VALIDATION))},
    "other first weights": lambda: {"weights": 1},
    "other label names": lambda: {"labels": ("yes", "no")},
    "another teacher": lambda: {"teacher_key": "two"},
    "adapters": lambda: {"lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["query"]}},
} | {name: lambda name=name, value=value: {"settings": {name: value}} for name, value in OTHER_SETTINGS.items()}


def test_every_setting_is_among_the_changes():
    assert OTHER_SETTINGS.keys() == {field.name for field in fields(Settings)}
    assert not [name for name, value in asdict(replace(SETTINGS, epochs=1)).items() if OTHER_SETTINGS[name] == value]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_made_from_something_else_is_not_used(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)  # a process of its own
    trained, train = [], minikd.experiment.training.run_training
    monkeypatch.setattr(minikd.experiment.training, "run_training", lambda *args: trained.append(1) or train(*args))
    first = train_or_reuse(**run_of())
    again = train_or_reuse(**run_of(), reuse=True)
    assert len(trained) == 1 and model_fingerprint(again) == model_fingerprint(first)
    train_or_reuse(**run_of(**CHANGES[change]()), reuse=True)
    assert len(trained) == 2
    train_or_reuse(**run_of(**CHANGES[change]()), reuse=True)
    assert len(trained) == 2  # that one is there now


def test_adapters_of_another_scale_are_another_run(tmp_path, monkeypatch):
    """Their first weights are the same, and they change nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minikd.experiment.training.training_memory_mb", lambda *_: 2.0)
    results = []
    for alpha in (4.0, 8.0):
        lora = {"rank": 2, "alpha": alpha, "dropout": 0.0, "targets": ["query"]}
        results.append(model_fingerprint(train_or_reuse(**run_of(lora=lora), reuse=True)))
    assert results[0] != results[1]


# Caches


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": OTHER_TOKENIZER}, {"length": 5}, {"split": make_split(40, 2)}, {"split": with_other_labels(TRAIN)}],
    ids=["tokenizer", "length", "texts", "labels"],
)
def test_tokens_in_the_cache_are_used_for_their_own_texts_tokenizer_and_length(change):
    one = tokens()
    both = {"split": TRAIN, "tokenizer": TOKENIZER, "length": 16} | change
    other, again = tokens(**both), tokens()
    ids, offsets = both["tokenizer"].encode(both["split"].texts, both["length"])
    assert np.array_equal(other.ids, ids) and np.array_equal(other.offsets, offsets)
    assert other.labels.tolist() == both["split"].labels and other.fingerprint != one.fingerprint == again.fingerprint
    assert np.array_equal(one.ids, again.ids)


def other_heads(model):
    """The same weights in a model that computes something else with them."""
    other = Classifier(replace(model.config, num_attention_heads=1))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("part", ["weights", "shape", "texts", "precision"])
def test_logits_in_the_cache_are_used_for_their_own_model_texts_and_precision(part, monkeypatch):
    model = spread(make_model(layers=1))
    first = cached_logits(model, tokens(), CPU, "fp32")
    passes = []
    counted = lambda *args: passes.append(1) or compute_logits(*args)  # noqa: E731
    monkeypatch.setattr(minikd.experiment.caches, "compute_logits", counted)
    assert torch.equal(cached_logits(model, tokens(), CPU, "fp32"), first) and not passes
    model = {"weights": spread(make_model(layers=1), seed=1), "shape": other_heads(model)}.get(part, model)
    split = tokens(make_split(40, 2)) if part == "texts" else tokens()
    precision = "bf16" if part == "precision" else "fp32"
    other = cached_logits(model, split, CPU, precision)
    assert passes and torch.equal(other, compute_logits(model, split, CPU, precision)) and not torch.equal(other, first)


@pytest.mark.parametrize("part", ["weights", "texts", "precision"])
def test_a_teachers_logits_are_used_for_their_own_teacher_texts_and_precision(part, tmp_path):
    path, teacher = tmp_path / "logits.safetensors", spread(make_model(layers=1))
    first = teacher_logits(teacher, tokens(), path, CPU, "fp32")
    written = path.read_bytes()
    assert torch.equal(teacher_logits(teacher, tokens(), path, CPU, "fp32"), first) and path.read_bytes() == written
    teacher = spread(make_model(layers=1), seed=1) if part == "weights" else teacher
    split = tokens(make_split(40, 2)) if part == "texts" else tokens()
    precision = "bf16" if part == "precision" else "fp32"
    other = teacher_logits(teacher, split, path, CPU, precision)
    assert torch.equal(other, compute_logits(teacher, split, CPU, precision)) and not torch.equal(other, first)


# Files


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_model_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch, step):
    save_pretrained(spread(make_model()), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minikd.files.os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(spread(make_model(), seed=1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_takes_its_name_in_one_step_within_its_folder(tmp_path, monkeypatch):
    """From another file system a file cannot be renamed, only copied."""
    moves, rename = [], minikd.files.os.replace
    monkeypatch.setattr(minikd.files.os, "replace", lambda old, new: moves.append((old, new)) or rename(old, new))
    save_pretrained(make_model(), tmp_path)
    assert {Path(new).name for _, new in moves} == {"config.json", "model.safetensors"}
    assert all(Path(old).parent == Path(new).parent == tmp_path for old, new in moves)


@pytest.mark.parametrize("tensor", ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.bias"])
def test_a_fine_tuned_classifier_without_a_part_of_its_head_is_refused(script, films, tmp_path, tensor):
    folder = save_model(tmp_path / "model", labels=("bad", "good", "mixed"))
    tensors = load_file(folder / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, folder / "model.safetensors")
    for command in (["evaluate.py", folder], ["train.py", "--model", folder], ["distill.py", "--teacher", folder]):
        status, _, err = script(*command, "--dataset", films, "--max-length", 16)
        assert status == 2 and tensor in err and err.count("\n") == 1


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_adapters_are_added_to_the_weights_at_alpha_over_rank(script, films, trained, alpha):
    flags = ["--lora-rank", 2, *(["--lora-alpha", alpha] if alpha else []), "--epochs", 1, "--max-length", 16]
    assert script("train.py", "--dataset", films, "--model", trained, *flags, "--precision", "fp32")[0] == 0
    merged, before = (load_file(folder / "model.safetensors") for folder in (Path("runs/films-model"), trained))
    adapter = load_file("runs/films-model/adapter/adapter_model.safetensors")
    saved = json.loads(Path("runs/films-model/adapter/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"]) == (2, alpha or 16)
    changed = 0
    for name, weight in merged.items():
        parts = [f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight" for letter in "AB"]
        if parts[0] in adapter:
            A, B = (adapter[part].double() for part in parts)
            expected = before[name].double() + (alpha or 16) / 2 * B @ A
            assert torch.allclose(weight.double(), expected, atol=1e-6) and B.abs().max() > 1e-4
            changed += 1
        elif name.startswith("bert.e"):  # embeddings and encoder: frozen
            assert torch.equal(weight, before[name]), name
    assert changed == 2 * 4  # query and value of four layers


def test_int8_computes_a_batch_of_thousands_of_tokens_as_it_computes_each_text():
    model = quantize(spread(make_model(layers=2)), "int8").eval()
    ids = torch.randint(5, 200, (150, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        parts = torch.cat([model(ids[i : i + 10]).logits for i in range(0, 150, 10)])
    assert ids.numel() > 2 * 1024
    assert torch.allclose(whole, parts, atol=1e-4) and whole.std(dim=0).min() > 0.01


def test_the_order_of_labels_is_matched_by_name_for_every_head(films, trained):
    """mixed, bad, good becomes bad, good, mixed: a cycle, whose inverse is another permutation."""
    own, aligned = from_pretrained(trained), from_pretrained(trained)
    match_labels(aligned, trained, ("bad", "good", "mixed"))
    assert torch.equal(aligned.classifier.weight, own.classifier.weight[[1, 2, 0]])
    assert torch.equal(aligned.classifier.bias, own.classifier.bias[[1, 2, 0]])
    (batch,) = make_batches(tokens(), [np.arange(8)], CPU)
    with torch.no_grad():
        logits = [model.eval()(batch.input_ids, batch.attention_mask).logits for model in (own, aligned)]
    assert torch.allclose(logits[0][:, [1, 2, 0]], logits[1], atol=1e-5)
