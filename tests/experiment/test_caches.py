"""Every cache: change one part of what its content depends on, and what is read is not the old content."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tokenizers
import torch
from equality import CONFIGS, load_quietly, randomised
from helpers import teacher_logits
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open
from safetensors.torch import load, save

import minikd
import minikd.experiment.caches
from minikd.checkpoints.pretrained import save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.datasets import Split
from minikd.experiment.caches import cache_folder, cached_logits, cached_tokens, model_fingerprint
from minikd.inference import compute_logits
from minikd.tokenizer import Tokenizer, bert_wordpiece

CPU = torch.device("cpu")
TEXTS = ["A good film", "bad Café", "a film about a man and a bad film", "", "good [PAD] good", "o ver"]
LABELS = [0, 1, 0, 1, 0, 1]
WORDS = "a A good bad film Café cafe about man and o ver over".split() + [*"goodfilmbutvercman"]
VOCABULARY = {token: i for i, token in enumerate(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))}
CONFIG = replace(CONFIGS["bert"], hidden_dropout_prob=0.0)


def tokenizer(settings=None, vocabulary=VOCABULARY, side="right"):
    return Tokenizer(bert_wordpiece(vocabulary, settings or {}), side)


def reordered(first: str) -> dict[str, int]:
    return {token: i for i, token in enumerate([first, *(token for token in VOCABULARY if token != first)])}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test: one that other tests have filled would answer for the code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minikd"


SPLIT = {"texts": TEXTS, "labels": LABELS, "tokenizer": tokenizer(), "max_length": 7}
OTHER_TOKENS = {
    "a text": {"texts": ["A good film!", *TEXTS[1:]]},
    "the order of the texts": {"texts": TEXTS[::-1]},
    "where a text ends": {"texts": ["A good filmb", "ad Café", *TEXTS[2:]]},
    "the number of texts": {"texts": TEXTS[:-1], "labels": LABELS[:-1]},
    "the length": {"max_length": 6},
    "the casing": {"tokenizer": tokenizer({"do_lower_case": False})},
    "the accents": {"tokenizer": tokenizer({"strip_accents": False})},
    "the vocabulary": {"tokenizer": tokenizer(vocabulary=reordered("film"))},
    "the side that is truncated": {"tokenizer": tokenizer(side="left")},
}


def tokenized(parts):
    return cached_tokens(Split(parts["texts"], parts["labels"]), parts["tokenizer"], parts["max_length"])


@pytest.mark.parametrize("part", OTHER_TOKENS)
def test_tokens_are_not_read_from_the_cache_where_this_differs(part, cache):
    first = tokenized(SPLIT)
    other = SPLIT | OTHER_TOKENS[part]
    split = tokenized(other)
    ids, offsets = other["tokenizer"].encode(other["texts"], other["max_length"])  # without any cache
    assert split.ids.tolist() == ids.tolist() and split.offsets.tolist() == offsets.tolist()
    assert split.fingerprint != first.fingerprint and len(list(cache.iterdir())) == 2
    assert split.pad_token_id == other["tokenizer"].vocab["[PAD]"]


@pytest.mark.parametrize("damage", [
    lambda ids, offsets: (ids + len(VOCABULARY), offsets), lambda ids, offsets: (-ids, offsets),
    lambda ids, offsets: (ids.astype(np.float32), offsets), lambda ids, offsets: (ids, offsets.astype(np.uint64)),
    lambda ids, offsets: (ids[:-1], offsets), lambda ids, offsets: (ids, offsets[:-1]),
    lambda ids, offsets: (ids, np.append(0, offsets[:-1])), lambda ids, offsets: (ids, offsets[::-1].copy()),
    lambda ids, offsets: (ids, np.append(np.zeros_like(offsets[:-1]), offsets[-1])),
    lambda ids, offsets: (ids[None], offsets), lambda ids, offsets: (np.append(ids, 0), offsets + 1),
])  # fmt: skip
def test_tokens_in_the_cache_that_no_text_has_are_replaced(damage, cache):
    """Or they would be looked up in rows that no model has."""
    first = tokenized(SPLIT)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    ids, offsets = damage(first.ids, first.offsets)
    path.write_bytes(safetensors_numpy.save({"ids": ids, "offsets": offsets}))
    assert tokenized(SPLIT).ids.tolist() == first.ids.tolist()
    assert path.read_bytes() == good
    assert tokenized(SPLIT).ids.tolist() == first.ids.tolist()


def test_tokens_are_not_read_from_the_cache_of_another_version_of_the_library(cache, monkeypatch):
    first = tokenized(SPLIT)
    monkeypatch.setattr(tokenizers, "__version__", "another")
    assert tokenized(SPLIT).fingerprint != first.fingerprint and len(list(cache.iterdir())) == 2


def test_labels_are_in_the_fingerprint_of_a_split_though_its_tokens_are_the_same(cache):
    first, other = tokenized(SPLIT), tokenized(SPLIT | {"labels": LABELS[::-1]})
    assert first.fingerprint != other.fingerprint and len(list(cache.iterdir())) == 1
    assert other.labels.tolist() == LABELS[::-1]


def test_a_fingerprint_is_that_of_what_the_tokenizer_does_not_of_its_files(tmp_path):
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    save_tokenizer(tokenizer(settings), tmp_path, "bert", 512)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    cased = load_tokenizer(tmp_path)
    assert cased.fingerprint == tokenizer(settings).fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    assert load_tokenizer(tmp_path).fingerprint == tokenizer().fingerprint != cased.fingerprint


def nudged(model, name):
    """The model with one value of one tensor changed by a little."""
    model = deepcopy(model)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] += 1e-3
    return model


def test_a_models_fingerprint_depends_on_every_tensor_and_on_what_the_config_computes_with_them():
    model = randomised(CONFIG)
    prints = [model_fingerprint(nudged(model, name)) for name in model.state_dict()]
    for change in ({"num_attention_heads": 2}, {"layer_norm_eps": 1e-3}, {"hidden_dropout_prob": 0.2}):
        other = randomised(replace(CONFIG, **change))
        other.load_state_dict(model.state_dict())
        prints.append(model_fingerprint(other))
    assert len({model_fingerprint(model), *prints}) == 1 + len(prints)
    assert model_fingerprint(deepcopy(model)) == model_fingerprint(model)


@pytest.fixture
def passes(monkeypatch):
    """How often `compute_logits` is called; it is the real one."""
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return compute_logits(*arguments, **options)

    monkeypatch.setattr(minikd.experiment.caches, "compute_logits", counted)
    return calls


def other_model(**change):
    model = randomised(CONFIG)
    other = randomised(replace(CONFIG, **change))
    other.load_state_dict(model.state_dict())
    return other


RUN = {"model": randomised(CONFIG), "split": SPLIT, "precision": "fp32"}
OTHER_LOGITS = {
    "a text": {"split": SPLIT | OTHER_TOKENS["a text"]},
    "the order of the texts": {"split": SPLIT | OTHER_TOKENS["the order of the texts"]},
    "the length": {"split": SPLIT | OTHER_TOKENS["the length"]},
    "the tokenizer": {"split": SPLIT | OTHER_TOKENS["the casing"]},
    "the labels": {"split": SPLIT | {"labels": LABELS[::-1]}},
    "the precision": {"precision": "bf16"},
    "the encoder": {"model": nudged(RUN["model"], "encoder.layers.0.attention.qkv.weight")},
    "the classifier": {"model": nudged(RUN["model"], "classifier.bias")},
    "the number of heads": {"model": other_model(num_attention_heads=2)},
    "the epsilon of LayerNorm": {"model": other_model(layer_norm_eps=1e-2)},
}  # fmt: skip


def once(run, path):
    return cached_logits(run["model"], tokenized(run["split"]), CPU, run["precision"])


def teachers(run, path):
    return teacher_logits(run["model"], tokenized(run["split"]), path, CPU, run["precision"])


@pytest.mark.parametrize("cached", [once, teachers])
@pytest.mark.parametrize("part", OTHER_LOGITS)
def test_logits_are_not_read_from_the_cache_where_this_differs(cached, part, passes, tmp_path):
    path = tmp_path / "logits.safetensors"
    first = cached(RUN, path)
    assert torch.equal(cached(RUN, path), first) and len(passes) == 1
    other = RUN | OTHER_LOGITS[part]
    logits = cached(other, path)
    assert len(passes) == 2
    assert torch.equal(logits, compute_logits(other["model"], tokenized(other["split"]), CPU, other["precision"]))
    assert part == "the labels" or not torch.equal(logits, first)
    assert torch.equal(cached(other, path), logits) and len(passes) == 2


@pytest.mark.parametrize(("module", "part"), [(minikd, "version of minikd"), (torch, "version of torch")])
def test_logits_of_finished_models_are_not_read_from_the_cache_of_another(module, part, passes, monkeypatch):
    once(RUN, None)
    monkeypatch.setattr(module, "__version__", "99.0.1")  # a valid one: safetensors reads torch's too
    once(RUN, None)
    assert len(passes) == 2


def test_logits_of_finished_models_are_not_read_from_the_cache_of_another_device(monkeypatch):
    """A device without values takes the place of a GPU."""
    asked = []

    def remember(model, split, device, precision, desc):
        asked.append(device.type)
        return torch.zeros(len(split), 2)

    monkeypatch.setattr(minikd.experiment.caches, "compute_logits", remember)
    for device in ("cpu", "meta", "cpu", "meta"):
        cached_logits(deepcopy(RUN["model"]), tokenized(SPLIT), torch.device(device), "fp32")
    assert asked == ["cpu", "meta"]


@pytest.mark.parametrize("cached", [once, teachers])
def test_cached_logits_are_in_the_order_of_the_split(cached, tmp_path):
    """The pass runs in order of length; a row that is looked up by an example's index is that example's."""
    split = tokenized(SPLIT)
    assert sorted(split.lengths.tolist(), reverse=True) != split.lengths.tolist()
    for _ in range(2):  # computed, then read
        logits = cached(RUN, tmp_path / "logits.safetensors")
        for i in range(len(split)):
            ids = torch.from_numpy(split.ids[split.offsets[i] : split.offsets[i + 1]]).long()[None]
            with torch.no_grad():
                torch.testing.assert_close(logits[i], RUN["model"](ids).logits[0], rtol=1e-4, atol=1e-5)
    assert logits.std(dim=0).min() > 0.01  # so that a wrong row would show


def test_the_cache_is_the_users_own_and_may_be_deleted_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    model = RUN["model"]
    found = []
    for _ in range(2):
        split = tokenized(SPLIT)
        found.append((split.ids.tolist(), cached_logits(model, split, CPU, "fp32").tolist()))
        kept = {path.name.split("-")[0] for path in (tmp_path / ".cache/minikd").iterdir()}
        assert kept == {"tokens", "logits"}
        shutil.rmtree(tmp_path / ".cache")
    assert found[0] == found[1]


DAMAGES = [*product((once, teachers), ("cut", "no logits", "another shape", "not finite")), (teachers, "no metadata")]


@pytest.mark.parametrize("cached,damage", DAMAGES)
def test_damaged_logits_in_the_cache_are_computed_anew(cached, damage, passes, tmp_path):
    first = cached(RUN, tmp_path / "logits.safetensors")
    (path,) = [*tmp_path.glob("logits*"), *cache_folder().glob("logits*")]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {"no logits": {"other": first}, "another shape": {"logits": first[1:].clone()},
               "not finite": {"logits": first / 0}}.get(damage, {"logits": first})  # fmt: skip
    content = save(tensors, metadata=None if damage == "no metadata" else metadata)
    path.write_bytes(content[:50] if damage == "cut" else content)
    for _ in range(2):
        assert torch.equal(cached(RUN, tmp_path / "logits.safetensors"), first) and len(passes) == 2


def test_a_cache_that_cannot_be_written_costs_no_logits(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made inside a file
    assert torch.equal(once(RUN, None), compute_logits(RUN["model"], tokenized(SPLIT), CPU, "fp32"))
    assert "logits not cached" in capsys.readouterr().out


def test_a_saved_and_loaded_model_has_the_same_fingerprint(tmp_path):
    save_pretrained(RUN["model"], tmp_path)
    assert model_fingerprint(load_quietly(tmp_path)) == model_fingerprint(RUN["model"])


@pytest.mark.parametrize("own_path", [True, False])
def test_a_long_pass_is_kept_in_parts_and_continues_after_a_kill(tmp_path, monkeypatch, cache, own_path):
    monkeypatch.setattr(minikd.experiment.caches, "PART", 2)
    texts = [f"{text} film" for text in TEXTS + ["man"]]
    tokens = cached_tokens(Split(texts, [0] * 7), tokenizer(), 7)
    model, computed, path = randomised(CONFIG), [], tmp_path / "logits" if own_path else None
    expected = compute_logits(model, tokens, CPU, "fp32")

    def killed_at(count):
        def compute(model, part, *rest):
            if len(computed) == count:
                raise KeyboardInterrupt
            computed.append(len(part))
            return compute_logits(model, part, *rest)

        return compute

    monkeypatch.setattr(minikd.experiment.caches, "compute_logits", killed_at(2))
    with pytest.raises(KeyboardInterrupt):
        cached_logits(model, tokens, CPU, "fp32", path=path)
    other = cached_tokens(Split(texts[::-1], [0] * 7), tokenizer(), 7)  # the unfinished file is not of these
    with pytest.raises(KeyboardInterrupt):
        cached_logits(model, other, CPU, "fp32", path=path)
    monkeypatch.setattr(minikd.experiment.caches, "compute_logits", killed_at(-1))
    logits = cached_logits(model, tokens, CPU, "fp32", path=path)
    assert computed == [2, 2, 2, 1]
    torch.testing.assert_close(logits, expected)
    kept = path or next(cache.glob("logits-*.safetensors"))
    assert torch.equal(load(kept.read_bytes())["logits"], logits)
    assert not list(kept.parent.glob("*.partial"))
    assert torch.equal(cached_logits(model, tokens, CPU, "fp32", path=path), logits) and len(computed) == 4
