"""The cut table of word embeddings: the same training as with the whole table, and the same vectors."""

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import train
from test_training import CPU, SETTINGS, WORDS, make_model, make_split, tiny_data

import minikd.experiment.running
import minikd.training
from minikd.batching import collate
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens
from minikd.inference import compute_logits
from minikd.losses import hard_loss
from minikd.tokenizer import Tokenizer, bert_wordpiece, train_wordpiece
from minikd.used_rows import CompactEmbedding, only_used_rows

IDS = np.array([7, 3, 3, 19])


data = pytest.fixture(scope="module")(tiny_data)


@pytest.fixture
def table():
    torch.manual_seed(0)
    return torch.nn.Embedding(20, 4, padding_idx=5)


def test_training_moves_the_weights_as_with_the_whole_table(data, tmp_path, monkeypatch):
    settings = replace(SETTINGS, weight_decay=0.3, lr=5e-3)  # so strong that rows without a gradient shrink visibly
    cut, whole = make_model(), make_model()
    first = whole.encoder.embeddings.word_embeddings.weight.detach().clone()
    in_use = np.unique(data[0].ids)
    assert len(in_use) < 100  # of 200 rows
    sizes, make_optimizer = [], minikd.training.make_optimizer

    def spy(batch_loss, *arguments):
        sizes.append(len(batch_loss.model.encoder.embeddings.word_embeddings.weight))
        return make_optimizer(batch_loss, *arguments)

    monkeypatch.setattr(minikd.training, "make_optimizer", spy)
    train(cut, *data, settings, tmp_path / "cut", CPU)
    assert sizes == [len(np.union1d(in_use, 0))]  # the steps leave the other rows out; 0 is [PAD]
    all_rows = lambda embeddings, ids: only_used_rows(embeddings, np.arange(200))  # noqa: E731
    monkeypatch.setattr(minikd.training, "only_used_rows", all_rows)
    train(whole, *data, settings, tmp_path / "whole", CPU)
    assert cut.state_dict().keys() == whole.state_dict().keys()
    for (name, one), other in zip(cut.state_dict().items(), whole.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)
    others = np.setdiff1d(np.arange(1, 200), in_use)
    moved = cut.encoder.embeddings.word_embeddings.weight[others] / first[others]
    assert 0.9 < moved.min() and moved.max() < 0.99


def whole_table(embeddings, ids):
    """In place of `only_used_rows`: the table as it is, all rows of which AdamW moves and shrinks."""
    return nullcontext(SimpleNamespace(decay_unused=lambda factor: None))


def data_with_pad(pad: int):
    """Two splits whose texts are padded with the id `pad`; the training texts contain [PAD] nowhere."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens = [*words[:pad], "[PAD]", *words[pad:]]
    tokenizer = Tokenizer(bert_wordpiece({token: i for i, token in enumerate(tokens)}, {}))
    return [cached_tokens(split, tokenizer, 16) for split in (make_split(32, 0), make_split(8, 1))]


@pytest.mark.parametrize(("tokenizer_pad", "config_pad"), [(0, None), (0, 7), (1, None), (1, 0), (1, 1), (17, 0)])
def test_training_is_the_same_whichever_rows_config_and_tokenizer_use_for_padding(
    tokenizer_pad, config_pad, tmp_path, monkeypatch
):
    """Batches are padded with the tokenizer's [PAD]; the config's row, if it has one, is the one without gradient."""
    data = data_with_pad(tokenizer_pad)
    assert tokenizer_pad not in data[0].ids and len(set(data[0].lengths)) > 1
    settings = replace(SETTINGS, weight_decay=0.3, lr=5e-3, epochs=1)
    cut, whole = make_model(pad_token_id=config_pad), make_model(pad_token_id=config_pad)
    train(cut, *data, settings, tmp_path / "cut", CPU)
    assert cut.encoder.embeddings.word_embeddings.padding_idx == config_pad
    monkeypatch.setattr(minikd.training, "only_used_rows", whole_table)
    train(whole, *data, settings, tmp_path / "whole", CPU)
    for (name, one), other in zip(cut.state_dict().items(), whole.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_masked_padding_gets_no_gradient_even_where_the_config_names_no_row_for_it():
    """So a config without pad_token_id trains as one with the tokenizer's, unless a text contains a literal [PAD]."""
    data = data_with_pad(1)[0]
    model = make_model(pad_token_id=None)
    batch = collate(data, np.arange(32), CPU)
    assert (batch.input_ids == 1).any() and not batch.attention_mask[batch.input_ids == 1].any()
    hard_loss(model(batch.input_ids, batch.attention_mask).logits, batch.labels).backward()
    gradient = model.encoder.embeddings.word_embeddings.weight.grad
    assert not gradient[1].any() and gradient[data.ids].any(dim=1).all()


class Broken(Exception):
    pass


@pytest.mark.parametrize("first", [MinikdError("no logits"), KeyboardInterrupt("stopped")], ids=repr)
@pytest.mark.parametrize("broken", ["the table", "the log", "both"])
def test_a_clean_up_that_fails_does_not_hide_the_first_error(first, broken, data, tmp_path, monkeypatch):
    def failing_teacher(batch):
        raise first

    def fail(*_):
        raise Broken("clean-up")

    if broken != "the log":
        monkeypatch.setattr(CompactEmbedding, "expanded", fail)
    if broken != "the table":
        close = ExitStack()  # a log that cannot be closed, as on a full disk
        close.write = close.flush = lambda *_: None
        close.push(fail)
        monkeypatch.setattr(minikd.experiment.running, "open_log", lambda *_: close)
    with pytest.raises(type(first)) as caught:
        train(make_model(), *data, SETTINGS, tmp_path, CPU, teacher=failing_teacher)
    assert caught.value is first and "clean-up" in caught.value.__notes__[0]


def test_a_clean_up_that_fails_alone_is_the_error(data, tmp_path, monkeypatch):
    def fail(*_):
        raise Broken("clean-up")

    monkeypatch.setattr(CompactEmbedding, "expanded", fail)
    with pytest.raises(Broken):
        train(make_model(), *data, replace(SETTINGS, epochs=1), tmp_path, CPU)
    with pytest.raises(MinikdError, match="first"), only_used_rows(make_model().encoder.embeddings, IDS):
        raise MinikdError("first")


def test_a_text_with_tokens_that_training_did_not_see_has_the_same_logits(data):
    model = make_model()
    other_words = cached_tokens(make_split(40, 2), train_wordpiece(["wholly different letters: xyz jkq"], 200), 16)
    before = compute_logits(model, other_words, CPU, "fp32")
    embeddings = model.encoder.embeddings
    embeddings.word_embeddings = CompactEmbedding(embeddings.word_embeddings, data[0].ids)
    assert np.setdiff1d(other_words.ids, data[0].ids).size
    torch.testing.assert_close(compute_logits(model, other_words, CPU, "fp32"), before, rtol=0, atol=0)


def test_vectors_and_gradients_are_those_of_the_table(table):
    rows = CompactEmbedding(table, IDS)
    assert rows.weight.shape == (4, 4) and rows.rest.shape == (16, 4)  # 3, 7, 19, and 5 for padding
    ids = torch.tensor([[3, 7, 5], [19, 5, 5]])
    weight = torch.randn(2, 3, 4)
    for one in (table, rows):
        (one(ids) * weight).sum().backward()
    torch.testing.assert_close(rows.weight.grad, table.weight.grad[[3, 5, 7, 19]])
    assert not rows.weight.grad[1].any()  # padding is not trained
    everything = torch.arange(20)[None]
    assert torch.equal(rows.eval()(everything), table(everything))


def test_the_table_comes_back_whole_with_what_changed(table):
    rows = CompactEmbedding(table, IDS)
    with torch.no_grad():
        rows.weight += 1
    rows.decay_unused(0.5)
    back, expected = rows.expanded(), table.weight.detach() * 0.5
    expected[[3, 5, 7, 19]] = table.weight.detach()[[3, 5, 7, 19]] + 1
    assert torch.equal(back.weight, expected) and back.weight.requires_grad and back.padding_idx == 5


def test_a_frozen_table_stays_as_it_is(table):
    table.weight.requires_grad_(False)
    rows = CompactEmbedding(table, IDS)
    rows.decay_unused(0.5)
    assert torch.equal(rows.expanded().weight, table.weight) and not rows.expanded().weight.requires_grad


def test_texts_that_use_every_token_leave_no_rest(table):
    rows = CompactEmbedding(table, np.arange(20)).eval()
    assert not len(rows.rest)
    assert torch.equal(rows(torch.arange(20)[None]), table(torch.arange(20)[None]))


def test_a_model_whose_training_fails_has_its_table_again(data, tmp_path):
    def broken_teacher(batch):
        raise RuntimeError("no logits")

    model = make_model()
    before = model.encoder.embeddings.word_embeddings.weight.detach().clone()
    with pytest.raises(RuntimeError, match="no logits"):
        train(model, *data, SETTINGS, tmp_path, CPU, teacher=broken_teacher)
    assert torch.equal(model.encoder.embeddings.word_embeddings.weight, before)
    (tmp_path / "state.pt").write_text("not a state")
    with pytest.raises(MinikdError, match="state.pt"):
        train(model, *data, SETTINGS, tmp_path, CPU, resume=True)
    assert torch.equal(model.encoder.embeddings.word_embeddings.weight, before)
