"""Batches hold every example once, in similar lengths, with its index; the token cache gives the same tokens back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import train
from test_training import SETTINGS, make_model, tiny_data

from minikd.batching import (
    collate,
    make_batches,
    padded_length,
    padding_share,
    plan_batches,
    plan_by_tokens,
    tokenize,
)
from minikd.datasets import Split
from minikd.experiment.caches import cache_folder, cached_tokens
from minikd.tokenizer import Tokenizer, bert_wordpiece, train_wordpiece

CPU = torch.device("cpu")
TEXTS = ["a good film", "bad", "a very long film about a man and a film about a film", "", "good good good"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS * 3, 100)


def test_texts_without_labels_are_tokenized_like_those_with(tokenizer):
    labelled, plain = tokenize(TEXTS, [1, 0, 2, 1, 0], tokenizer, 6), tokenize(TEXTS, None, tokenizer, 6)
    assert np.array_equal(labelled.ids, plain.ids) and np.array_equal(labelled.offsets, plain.offsets)
    assert labelled.labels.tolist() == [1, 0, 2, 1, 0] and plain.labels.tolist() == [0] * 5
    assert labelled.labels.dtype == plain.labels.dtype == np.int64
    (batch,) = make_batches(plain, [np.arange(5)], CPU)
    assert batch.labels.dtype == torch.int64


def lengths_like_sst2(count=5000):
    return np.random.default_rng(0).lognormal(2.3, 0.7, count).astype(np.int64) + 3


@pytest.mark.parametrize("count,batch_size", [(1, 1), (7, 3), (100, 32), (5000, 32), (33, 64)])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_example_is_in_exactly_one_batch(count, batch_size, seed):
    plan = plan_batches(lengths_like_sst2(count), batch_size, seed)
    assert sorted(np.concatenate(plan).tolist()) == list(range(count))
    assert all(0 < len(index) <= batch_size for index in plan)
    assert len(plan) == -(-count // batch_size)


def test_an_epoch_repeats_from_its_seed_and_differs_from_the_next():
    def order(seed, epoch):
        return np.concatenate(plan_batches(lengths_like_sst2(), 32, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_an_epochs_order_is_the_same_on_every_machine():
    """Texts of one length stay in the order of the shuffle: other ways of sorting depend on the processor."""
    plan = plan_batches(np.array([3, 1, 2, 2, 1, 3, 2, 5, 1]), batch_size=2, seed=5, epoch=1)
    assert [index.tolist() for index in plan] == [[4, 8], [5, 0], [7], [1, 6], [2, 3]]
    lengths, order = np.tile([5, 9], 500), np.random.default_rng((3, 0)).permutation(1000)
    by_length = [*order[lengths[order] == 5], *order[lengths[order] == 9]]
    expected = {tuple(by_length[i : i + 20]) for i in range(0, 1000, 20)}
    assert {tuple(index.tolist()) for index in plan_batches(lengths, 20, seed=3)} == expected


def test_training_sees_every_example_once_an_epoch_in_an_order_of_its_own(tmp_path):
    data, validation = tiny_data()

    def orders(seed):
        seen = []

        def teacher(batch):
            seen.extend(batch.index.tolist())
            return torch.zeros(len(batch.index), 2)

        settings = replace(SETTINGS, epochs=2, seed=seed, batch_size=50)
        train(make_model(layers=1), data, validation, settings, tmp_path / str(len(seen)), CPU, teacher=teacher)
        return [tuple(seen[i : i + len(data)]) for i in range(0, len(seen), len(data))]

    first = orders(1)
    assert all(sorted(order) == list(range(len(data))) for order in first)
    by_length = tuple(np.argsort(data.lengths, kind="stable").tolist())
    assert len({*first, tuple(range(len(data))), by_length}) == 4  # two orders, neither the file's nor by length
    assert orders(1) == first and not set(orders(2)) & set(first)


def test_batches_are_padded_with_the_tokenizers_own_id():
    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "[PAD]", "bad"]
    tokenizer = Tokenizer(bert_wordpiece({word: i for i, word in enumerate(words)}, {}))
    split = cached_tokens(Split(["good", "good bad film"], [0, 1]), tokenizer, 16)
    batch = collate(split, np.array([0, 1]), CPU)
    assert batch.input_ids.tolist() == [[1, 4, 2, 6, 6], [1, 4, 7, 5, 2]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]


def test_batches_of_similar_length_carry_little_padding():
    lengths = lengths_like_sst2()
    assert padding_share(lengths, plan_batches(lengths, 32, 1), CPU) < 0.04
    assert padding_share(lengths, plan_batches(lengths, 32, 1, by_length=False), CPU) > 0.4


def test_rows_are_the_tokens_of_the_examples_they_name(tokenizer):
    split = cached_tokens(Split(TEXTS, [0, 1, 0, 1, 0]), tokenizer, 16)
    seen = []
    for batch in make_batches(split, plan_batches(split.lengths, 2, 3), CPU):
        for row, index in enumerate(batch.index.tolist()):
            tokens = split.ids[split.offsets[index] : split.offsets[index + 1]].tolist()
            padding = batch.input_ids.shape[1] - len(tokens)
            assert batch.input_ids[row].tolist() == tokens + [split.pad_token_id] * padding
            if batch.attention_mask is not None:
                assert batch.attention_mask[row].tolist() == [True] * len(tokens) + [False] * padding
            assert batch.labels[row] == split.labels[index]
            seen.append(index)
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tokens", [1, 40, 64, 10_000])
def test_batches_by_tokens_hold_every_example_once_the_longest_first_and_no_more_tokens_than_fit(tokens, device):
    lengths = lengths_like_sst2(500)
    plan = plan_by_tokens(lengths, tokens, torch.device(device))
    assert sorted(np.concatenate(plan)) == list(range(500))
    assert (np.diff(lengths[np.concatenate(plan)]) <= 0).all()
    for batch in plan[:-1]:
        longest = padded_length(lengths[batch].max(), lengths.max(), torch.device(device))
        assert len(batch) == 1 or len(batch) * longest <= tokens
        assert (len(batch) + 1) * longest > tokens  # the next one would not have fitted


def test_there_is_no_mask_where_nothing_is_padded(tokenizer):
    split = cached_tokens(Split(["good", "bad", "a good film"], [0, 1, 0]), tokenizer, 16)
    assert collate(split, np.array([0, 1]), CPU).attention_mask is None
    assert collate(split, np.array([0, 2]), CPU).attention_mask is not None


def test_cuda_and_on_a_cpu_long_texts_are_padded_to_a_multiple_of_eight_but_not_beyond_the_longest_of_all():
    lengths = (1, 8, 13, 64, 65, 72, 98)
    assert [padded_length(n, 99, torch.device("cuda")) for n in lengths] == [8, 8, 16, 64, 72, 72, 99]
    assert [padded_length(n, 99, CPU) for n in lengths] == [1, 8, 13, 64, 72, 72, 99]


def test_a_model_with_a_position_for_the_longest_text_alone_reads_every_batch(tokenizer):
    split = cached_tokens(Split([" ".join(["good"] * n) for n in (65, 66, 67)], [0, 1, 0]), tokenizer, 128)
    widths = [collate(split, np.array([i]), CPU).input_ids.shape[1] for i in range(3)]
    assert split.longest == 69 and widths == [69] * 3  # not 72


def test_texts_are_cut_at_the_maximum_length_and_keep_their_frame(tokenizer):
    split = cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 6)
    assert split.lengths.max() == 6
    row = split.ids[split.offsets[2] : split.offsets[3]].tolist()
    assert (row[0], row[-1]) == (tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"])


def test_cached_tokens_are_used_and_a_damaged_cache_is_not(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 16)
    [path] = (tmp_path / "minikd").iterdir()
    monkeypatch.setattr(tokenizer, "encode", None)  # from here on, tokenising would fail
    again = cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 16)
    assert again.ids.tolist() == first.ids.tolist() and again.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path.write_bytes(path.read_bytes()[:50])
    assert cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 16).ids.tolist() == first.ids.tolist()


def test_fingerprint_depends_on_texts_labels_and_length(tokenizer):
    base = cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 16).fingerprint
    assert cached_tokens(Split(TEXTS[::-1], [0] * 5), tokenizer, 16).fingerprint != base
    assert cached_tokens(Split(TEXTS, [0, 0, 0, 0, 1]), tokenizer, 16).fingerprint != base
    assert cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 8).fingerprint != base


def test_the_cache_lies_in_the_users_home_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", value) if value is not None else monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == tmp_path / ".cache/minikd"


def test_an_unwritable_cache_does_not_stop_the_run(tokenizer, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made inside a file
    assert len(cached_tokens(Split(TEXTS, [0] * 5), tokenizer, 16)) == 5
    assert "not cached" in capsys.readouterr().out
