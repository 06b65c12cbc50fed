"""Everything that reads a file which somebody else may have written, with an example of the file.

Each is used as far as the scripts use it: a model labels texts and is saved, a state is trained to its end, a table is
printed. `attempt` says whether a file was read or refused, and raises what must not happen.
"""

import errno
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from conftest import WORDS, save_model
from safetensors.torch import load_file, save_file

import minikd.experiment.readme
from fuzzing.mutators import (
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_safetensors,
    mutated_tar,
    mutated_torch,
    mutated_zip,
)
from minikd.batching import tokenize
from minikd.checkpoints.adapters import save_adapters
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.classifier import TextClassifier
from minikd.cli.students import checkpoint_of
from minikd.config import TrainConfig
from minikd.datasets import archive, imdb, load_dataset
from minikd.datasets.decoding import decode
from minikd.datasets.rows import DEFAULT_COLUMNS, parse_table
from minikd.datasets.splits import Split
from minikd.errors import MinikdError
from minikd.experiment.caches import cache_folder, cached_logits, cached_tokens
from minikd.experiment.folds import finished_fold, fold_folders
from minikd.experiment.journal import open_log
from minikd.experiment.labelling import texts_of
from minikd.experiment.recorded import best_validation, loss_curves, training_costs
from minikd.experiment.runs import read_run
from minikd.experiment.state import load_state, origin_of, save_state
from minikd.files import write_json, write_rows
from minikd.inference import compute_logits
from minikd.report.page import description
from minikd.techniques.lora import add_lora
from minikd.training import fit

CPU = torch.device("cpu")
TEXTS = ["a film", "", "great " * 99, "not \x1b[2J \u202e電\ud7ff fine"]
SHAPE = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
CONFIG = TrainConfig(epochs=2, batch_size=4)
ORIGIN = {"made_from": {"settings": {"lr": CONFIG.lr}}, "command": "c"}  # of a state
RUN = {
    "name": "teacher-1", "command": "c", "trained_parameters": 3, "training_peak_mb": 3.0, "versions": {"torch": "1"},
    "arguments": {"teacher": "bert", "more_teachers": ["other"], "layer_epochs": 1, "max_length": 16},
    "made_from": {"data": "a", "validation": "b", "teacher": "x",
                  "settings": {"alpha": 0.5, "T": 2.0, "label_smoothing": 0.0}},
    "history": [{"epoch": 1, "step": 3, "validation_accuracy": 0.5, "validation_loss": 0.3, "seconds": 3.0}],
}  # fmt: skip
LOG = [{"step": i, "epoch": i / 3, "loss": 1.5, "lr": 1e-4} for i in (1, 2, 3)] + RUN["history"]


class Reader(NamedTuple):
    """`make` fills an empty folder and returns the file in it that is to be mutated; `read` reads it."""

    make: Callable[[Path], Path]
    mutate: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]


def attempt(reader: Reader, path: Path) -> MinikdError | OSError | None:
    """Reads the file: None where that works, else the error that refuses it in one line. Raises all others."""
    try:
        reader.read(path)
    except MinikdError as error:
        if "memory" in str(error):  # it was asked for, before anything said that the file is wrong
            raise MemoryError(str(error)) from error
        return error
    except OSError as error:
        if error.strerror is None or error.errno == errno.ENOMEM:
            raise
        return error
    return None


def make_model(folder: Path, file: str, without: str = "") -> Path:
    save_model(folder, labels=("GOOD", "BAD"), **SHAPE)
    tensors = load_file(folder / "model.safetensors")
    if file == "pytorch_model.bin":
        torch.save(tensors, folder / file)
    if file == "model.safetensors.index.json":
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, own in shards.items():
            save_file({name: tensors[name] for name in own}, folder / shard)
        weight_map = {name: shard for shard, own in shards.items() for name in own}
        write_json(folder / file, {"metadata": {}, "weight_map": weight_map})
    if file in ("special_tokens_map.json", "added_tokens.json"):
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["added_tokens_decoder"]
        write_json(folder / "tokenizer_config.json", settings)
        write_json(folder / file, {"[NEW]": 30} if file[0] == "a" else {"mask_token": "[MASK]", "bos_token": "[NEW]"})
    if without:
        (folder / without).unlink()
    return folder / file


def read_model(path: Path) -> None:
    use(TextClassifier.load(path.parent, device="cpu", precision="fp32"), path.parent / "again")


def use(classifier: TextClassifier, folder: Path) -> None:
    probs = classifier.predict_proba(TEXTS)
    assert probs.shape == (len(TEXTS), len(classifier.labels)) and np.isfinite(probs).all()
    classifier.save(folder)
    same_tokens(load_tokenizer(folder), classifier.tokenizer, classifier.max_length)


def same_tokens(one, other, max_length: int) -> None:
    """Both tokenizers give the same ids, of which no text has more than that."""
    (ids, offsets), (other_ids, _) = one.encode(TEXTS, max_length), other.encode(TEXTS, max_length)
    assert np.diff(offsets).max() <= max_length and ids.min() >= 0 and ids.tolist() == other_ids.tolist()


def read_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path.parent)
    if tokenizer.vocab_size < 1000:  # no model has rows for more: `check_tokenizer` refuses them
        save_tokenizer(tokenizer, path.parent / "again", "bert", 32)
        same_tokens(load_tokenizer(path.parent / "again"), tokenizer, 16)


def make_adapters(folder: Path, file: str) -> Path:
    classifier = TextClassifier.load(make_model(folder / "base", "config.json").parent, device="cpu", precision="fp32")
    add_lora(classifier.model, 2, 4.0, 0.0, ["query", "value"])
    save_adapters(classifier.model, folder / "adapter", str(folder / "base"))
    return folder / "adapter" / file


def make_rows(folder: Path, file: str) -> Path:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(3, 10))) for _ in range(40)]
    if file.endswith(".txt"):
        (folder / file).write_text("\n".join(texts))
    else:
        write_rows(folder / file, [{"text": text, "label": ("good", "bad")[i % 3 > 0]} for i, text in enumerate(texts)])
    if file.endswith(".tsv"):
        (folder / file).write_text((folder / file).read_text().replace('"', "").replace(",", "\t"))
    return folder / file


def make_archive(folder: Path, file: str) -> Path:
    if file.endswith(".zip"):
        table = "sentence\tlabel\n" + "".join(f"{word} film\t{i % 2}\n" for i, word in enumerate(WORDS))
        with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("train", "dev"):
                archive.writestr(f"SST-2/{name}.tsv", table)
        return folder / file
    with tarfile.open(fileobj=(plain := io.BytesIO()), mode="w") as archive:
        for i in range(6):
            member = tarfile.TarInfo(f"aclImdb/{('train', 'test')[i % 2]}/{('pos', 'neg')[i % 3 % 2]}/{i}_7.txt")
            member.size = len(WORDS[i])
            archive.addfile(member, io.BytesIO(WORDS[i].encode()))
    (folder / file).write_bytes(gzip.compress(plain.getvalue(), 1))
    return folder / file


def read_zip(path: Path) -> None:
    for match, content in archive.members(path, r"(train|dev)\.tsv"):
        list(parse_table(decode(content, match[0]), match[0], ".tsv", DEFAULT_COLUMNS))


class Training:
    """A small model and the texts to train it on."""

    def __init__(self, folder: Path):
        self.classifier = TextClassifier.load(folder / "model", device="cpu", precision="fp32")
        self.split = Split([f"{word} film" for word in WORDS[:8]], [i % 2 for i in range(8)])
        self.tokens = tokenize(self.split.texts, self.split.labels, self.classifier.tokenizer, 16)

    def steps(self, saved: dict | None = None):
        return fit(self.classifier.model, self.tokens, self.tokens, CONFIG, device=CPU, saved=saved)


same_training = cache(Training)  # whose model nobody changes


def make_state(folder: Path) -> Path:
    make_model(folder / "model", "config.json")
    training = Training(folder)
    for done in training.steps():
        if done.state.step == 3:
            save_state(folder / "state.pt", ORIGIN, done.state)
    return folder / "state.pt"


def read_state(path: Path) -> None:
    origin_of(path)
    saved = load_state(path, ORIGIN["made_from"])
    for done in Training(path.parent).steps(saved):
        json.dumps(done.state.history)


def make_cached_tokens(folder: Path) -> Path:
    make_model(folder / "model", "config.json")
    training = Training(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    cached_tokens(training.split, training.classifier.tokenizer, 16)
    (path,) = cache_folder().iterdir()
    return path


def read_cached_tokens(path: Path) -> None:
    training = same_training(path.parents[2])
    tokens = cached_tokens(training.split, training.classifier.tokenizer, 16)
    assert len(tokens) == 8 and tokens.longest <= 16
    compute_logits(training.classifier.model, tokens, CPU, "fp32")


def make_cached_logits(folder: Path) -> Path:
    make_model(folder / "model", "config.json")
    read_cached_logits(folder / "logits.safetensors")
    return folder / "logits.safetensors"


def read_cached_logits(path: Path) -> None:
    training = same_training(path.parent)
    logits = cached_logits(training.classifier.model, training.tokens, CPU, "fp32", path=path)
    assert logits.shape == (8, 2) and logits.isfinite().all() and logits.dtype == torch.float32


def make_records(folder: Path, file: str) -> Path:
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, LOG)) + "\n")
    write_json(folder / "run.json", RUN)
    return folder / file


def read_records(path: Path) -> None:
    """All that reads a run's folder."""
    folder = path.parent
    training_costs(str(folder)), best_validation([str(folder)] * 2), loss_curves(folder), checkpoint_of(str(folder))
    description(read_run(folder), 3)
    open_log(folder, 2).close()


def make_results(folder: Path, name: str) -> Path:
    path = folder / "results.json"
    path.write_bytes((minikd.experiment.readme.ROOT / "data" / "results" / f"{name}.json").read_bytes())
    return path


def read_results(path: Path) -> None:
    for kind in ("results", "summary"):
        minikd.experiment.readme.readme_with_tables(f"<!-- {kind} results -->\n\n<!-- end -->", path.parent)


def read_fold(path: Path) -> None:
    read_results(path)
    finished_fold(path.parent)


FOLDS = {"settings": {"lr": 1e-4, "epochs": 2, "teacher": "bert"}, "data": "a", "K": 5}


def make_folds(folder: Path) -> Path:
    write_json(folder / "folds.json", FOLDS)
    return folder / "folds.json"


def of_model(file: str, mutate, read=read_model, without: str = "") -> Reader:
    return Reader(partial(make_model, file=file, without=without), mutate, read)


READERS = {
    "config.json": of_model("config.json", mutated_json),
    "tokenizer.json": of_model("tokenizer.json", mutated_json, read_tokenizer),
    "tokenizer_config.json": of_model("tokenizer_config.json", mutated_json, read_tokenizer),
    "special_tokens_map.json": of_model("special_tokens_map.json", mutated_json, read_tokenizer),
    "added_tokens.json": of_model("added_tokens.json", mutated_json, read_tokenizer),
    "vocab.txt": of_model("vocab.txt", mutated_bytes, read_tokenizer, "tokenizer.json"),
    "model.safetensors": of_model("model.safetensors", mutated_safetensors),
    "pytorch_model.bin": of_model("pytorch_model.bin", mutated_torch, without="model.safetensors"),
    "model.safetensors.index.json": of_model("model.safetensors.index.json", mutated_json, without="model.safetensors"),
    "adapter_config.json": Reader(partial(make_adapters, file="adapter_config.json"), mutated_json, read_model),
    "adapter_model.safetensors": Reader(
        partial(make_adapters, file="adapter_model.safetensors"), mutated_safetensors, read_model
    ),
    "csv": Reader(partial(make_rows, file="a.csv"), mutated_bytes, lambda path: load_dataset(path, unlabelled=())),
    "tsv": Reader(partial(make_rows, file="a.tsv"), mutated_bytes, lambda path: load_dataset(path, unlabelled=())),
    "jsonl": Reader(partial(make_rows, file="a.jsonl"), mutated_lines, lambda path: load_dataset(path, unlabelled=())),
    "txt": Reader(partial(make_rows, file="a.txt"), mutated_bytes, lambda path: texts_of(path, None, None)),
    "zip": Reader(partial(make_archive, file="SST-2.zip"), mutated_zip, read_zip),
    "tar": Reader(partial(make_archive, file="aclImdb_v1.tar.gz"), mutated_tar,
                  lambda path: imdb._read(path, imdb.REVIEW)),
    "state.pt": Reader(make_state, mutated_torch, read_state),
    "cached tokens": Reader(make_cached_tokens, mutated_safetensors, read_cached_tokens),
    "cached logits": Reader(make_cached_logits, mutated_safetensors, read_cached_logits),
    "run.json": Reader(partial(make_records, file="run.json"), mutated_json, read_records),
    "log.jsonl": Reader(partial(make_records, file="log.jsonl"), mutated_lines, read_records),
    "results.json": Reader(partial(make_results, name="fpb-both"), mutated_json, read_fold),
    "results.json of seeds": Reader(partial(make_results, name="fpb-sweep"), mutated_json, read_results),
    "folds.json": Reader(make_folds, mutated_json, lambda path: fold_folders(path.parent, 5, FOLDS, resume=True)),
}  # fmt: skip
