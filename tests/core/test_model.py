"""The encoder and classifier against transformers', tensor by tensor; tests/equality.py has the comparison itself."""

import copy
from dataclasses import replace

import pytest
import torch
from equality import (
    CONFIGS,
    assert_equal,
    compare,
    load_quietly,
    random_batch,
    randomised,
    real_batch,
    run,
    transformers_twin,
)
from torch import nn
from torch.nn import functional as F

import minikd
from minikd.config import BERT_6_LAYERS, BERT_BASE, BERT_SMALL, DISTILBERT
from minikd.losses import attention_scores
from minikd.model import Classifier, count_parameters

DROPOUTS = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.25, "classifier_dropout": 0.4}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def tokens(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "no mask"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=["fp32", "fp64"])
@every_config
def test_hidden_states_attention_logits_and_gradients_equal_transformers(config, dtype, tolerance, padded):
    model = randomised(config, seed=1, dtype=dtype)
    assert_equal(compare(model, transformers_twin(model), random_batch(config, 2, padded)), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
def test_real_weights_equal_transformers(minilm, dtype, tolerance):
    model = load_quietly(minilm).to(dtype)
    assert_equal(compare(model, transformers_twin(model), real_batch(minilm)), tolerance)


def test_comparison_names_the_first_tensor_that_differs():
    model = randomised(CONFIGS["bert"])
    twin = transformers_twin(model)
    with torch.no_grad():
        twin.bert.encoder.layer[1].output.LayerNorm.bias[0] += 1e-3
    with pytest.raises(AssertionError, match="first to differ: all rows: hidden state 2,"):
        assert_equal(compare(model, twin, random_batch(model.config)), 1e-5)


def test_no_token_types_means_segment_a_everywhere():
    model = randomised(CONFIGS["bert"])
    batch = random_batch(model.config, segments=False)
    zeros = torch.zeros_like(batch["input_ids"])
    torch.testing.assert_close(model(**tokens(batch)).logits, model(**tokens(batch), token_type_ids=zeros).logits)
    assert_equal(compare(model, transformers_twin(model), batch), 1e-5)


@every_config
def test_padding_changes_no_logits(config):
    model = randomised(config, dtype=torch.float64)
    batch = random_batch(config, padded=True)
    together = model(**tokens(batch)).logits
    for i, length in enumerate(batch["attention_mask"].sum(dim=1)):
        alone = {name: value[i : i + 1, :length] for name, value in tokens(batch).items() if name != "attention_mask"}
        torch.testing.assert_close(model(**alone).logits[0], together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "no mask"])
@every_config
def test_cls_only_last_layer_has_the_logits_and_gradients_of_the_full_computation(config, padded):
    model = randomised(config, dtype=torch.float64)
    batch = random_batch(config, padded=padded)
    results, rows = [], []
    model.encoder.layers[-1].register_forward_hook(lambda _, __, output: rows.append(output[0].shape[1]))
    for cls_only in (None, False):
        rows.clear()
        logits = run(model, batch, cls_only=cls_only)[0].logits.detach()
        assert rows == [11 if cls_only is False else 1]
        results.append({"logits": logits} | {name: parameter.grad for name, parameter in model.named_parameters()})
    for name, tensor in results[1].items():
        scale = max(tensor.abs().max().item(), 1e-9)
        assert (results[0][name] - tensor).abs().max().item() <= 1e-13 * scale, name


def reproducible_dropout(monkeypatch):
    """Replaces dropout by one whose pattern depends on its probability, its input's size and how often both occurred.

    Two models that drop out at the same places with the same probabilities then give the same numbers; one more, one
    less, one elsewhere or with another probability changes them. Returns the list of (probability, shape) of all calls.
    """
    calls = []

    def dropout(x, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return x
        calls.append((p, tuple(x.shape)))
        generator = torch.Generator().manual_seed(calls.count((p, tuple(x.shape))) * 1000 + int(p * 100))
        keep = torch.rand(x.shape, generator=generator) >= p
        return x * keep / (1 - p)

    monkeypatch.setattr(F, "dropout", dropout)
    for module in (minikd.dropout, minikd.model):  # what ours multiplies by, on the CPU
        monkeypatch.setattr(module, "keep_mask", lambda x, p: dropout(torch.ones_like(x), p) * (1 - p))
    return calls


@pytest.mark.parametrize("name", ["bert", "bert-4-layers-5-heads", "distilbert", "distilbert-4-layers-7-heads"])
def test_dropout_stands_where_it_does_in_transformers_with_the_same_probabilities(name, monkeypatch):
    config = replace(CONFIGS[name], **DROPOUTS)
    model = randomised(config, dtype=torch.float64).train()
    twin, batch = transformers_twin(model), random_batch(config)
    calls = reproducible_dropout(monkeypatch)
    theirs, _ = run(twin, batch, output_hidden_states=True)
    their_calls, gradients = calls.copy(), {n: p.grad for n, p in twin.named_parameters()}
    calls.clear()
    ours, _ = run(model, batch, output_hidden_states=True, output_qkv=range(config.num_hidden_layers))
    assert calls == their_calls
    for i, (own, other) in enumerate(zip(ours.hidden_states, theirs.hidden_states)):
        assert torch.allclose(own, other, rtol=1e-12, atol=1e-12), f"hidden state {i}"
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.classifier.weight.grad, gradients["classifier.weight"], rtol=1e-12, atol=1e-12)


def test_distilbert_alone_has_no_dropout_after_attention(monkeypatch):
    calls = reproducible_dropout(monkeypatch)
    counts = {}
    for name in ("bert", "distilbert"):
        config = replace(CONFIGS[name], **DROPOUTS)
        calls.clear()
        randomised(config).train()(**tokens(random_batch(config)))
        counts[name] = sum(p == DROPOUTS["hidden_dropout_prob"] for p, _ in calls)
    assert counts == {"bert": 1 + 2 * 2, "distilbert": 1 + 2}  # embeddings, then two or one a layer


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_in_training_and_not_in_evaluation(name):
    config = replace(CONFIGS["bert"], **dict.fromkeys(DROPOUTS, 0.0) | {name: 0.5})
    model, batch = randomised(config), tokens(random_batch(config))
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_fused_attention_drops_out_as_often_as_it_should():
    """With all queries 0 and all values 1, each output of attention is the mean of the kept weights over 1 - p."""
    config = replace(BERT_SMALL, num_hidden_layers=1, hidden_size=8, attention_probs_dropout_prob=0.25)
    attention = Classifier(config).encoder.layers[0].attention.train()
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.copy_(torch.tensor([0.0] * 16 + [1.0] * 8))
        attention.output.weight.copy_(torch.eye(8))
    kept = attention(torch.zeros(64, 100, 8), None, cls_only=False)[0].detach() * 100 * 0.75
    assert torch.allclose(kept, kept.round(), atol=1e-3)
    assert kept.mean().item() == pytest.approx(75, abs=0.5)


@pytest.mark.parametrize(("config", "parameters"), [
    (BERT_BASE, 109_483_778), (BERT_SMALL, 28_764_674), (BERT_6_LAYERS, 66_956_546), (DISTILBERT, 66_955_010),
    (BERT_BASE.with_labels(("negative", "neutral", "positive")), 109_484_547),
    (DISTILBERT.with_labels(("negative", "neutral", "positive")), 66_955_779),
])  # fmt: skip
def test_named_sizes_have_exactly_the_published_parameters(config, parameters):
    with torch.device("meta"):
        assert count_parameters(Classifier(config)) == parameters


@pytest.mark.parametrize("family", [BERT_SMALL, replace(DISTILBERT, num_hidden_layers=1)], ids=["bert", "distilbert"])
def test_initialisation_is_normal_002_with_zero_biases_and_padding_row(family):
    torch.manual_seed(0)
    config = replace(family, vocab_size=500, pad_token_id=3)
    for name, parameter in Classifier(config).named_parameters():
        if "norm" in name.lower():
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif parameter.dim() == 1:
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06), name
            assert parameter.mean().item() == pytest.approx(0, abs=0.003), name
        if "word_embeddings" in name:
            assert not parameter[3].any() and parameter[0].any()


def test_padding_row_gets_no_gradient():
    model = randomised(CONFIGS["bert-pad-7"])
    run(model, random_batch(model.config))
    gradient = model.encoder.embeddings.word_embeddings.weight.grad
    assert not gradient[7].any() and gradient.any()


@every_config
def test_bf16_autocast_errs_by_no_more_than_the_format(config):
    model, batch = randomised(config), tokens(random_batch(config))
    exact = copy.deepcopy(model).double()(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**batch).logits
    unit = 2.0**-8  # half the distance of neighbouring bf16 numbers, relative; a layer rounds about ten times
    error = (logits.double() - exact).abs().max() / exact.abs().max()
    assert 0 < error < unit * 10 * config.num_hidden_layers


def test_queries_keys_and_values_are_those_of_each_layers_input_split_into_heads():
    model = randomised(CONFIGS["bert"], dtype=torch.float64)
    batch = tokens(random_batch(model.config))
    output = model(**batch, output_hidden_states=True, output_qkv=range(2))
    for layer in range(2):
        qkv = model.encoder.layers[layer].attention.qkv
        parts = F.linear(output.hidden_states[layer], *qkv.parameters()).chunk(3, dim=-1)
        for own, part in zip(output.qkv[layer], parts, strict=True):
            assert own.shape == (4, 3, 11, 8)
            torch.testing.assert_close(own[1, 2, 4], part[1, 4, 16:24])  # text 1, head 2, token 4
    scores = attention_scores(*output.qkv[0][:2])
    by_hand = sum(output.qkv[0].query[1, 1, 4, i] * output.qkv[0].key[1, 1, 2, i] for i in range(8)) / 8**0.5
    torch.testing.assert_close(scores[1, 1, 4, 2], by_hand)  # text 1, head 1, query 4, key 2


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@every_config
def test_asking_for_more_changes_no_logits_and_keeps_the_cls_only_last_layer(config, training):
    """In training the same random numbers make the same dropout; all rows of the last layer would draw others."""
    model, batch = randomised(replace(config, **DROPOUTS)).train(training), tokens(random_batch(config))
    rows, results = [], []
    model.encoder.layers[-1].register_forward_hook(lambda _, __, output: rows.append(output[0].shape[1]))
    last = config.num_hidden_layers - 1
    for wanted in ({}, {"output_qkv": [last]}, {"cls_only": True, "output_hidden_states": True, "output_qkv": [last]}):
        torch.manual_seed(0)
        results.append(model(**batch, **wanted).logits)
    assert rows == [1, 1, 1]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_more_tokens_than_positions_are_refused():
    config = CONFIGS["bert"]
    model, most = randomised(config), config.max_position_embeddings
    assert model(torch.full((1, most), 5)).logits.isfinite().all()
    with pytest.raises(ValueError, match=f"{most + 1} tokens: the model has {most} positions"):
        model(torch.full((1, most + 1), 5))


def test_output_holds_only_what_was_asked_for():
    model, batch = randomised(CONFIGS["bert"]), tokens(random_batch(CONFIGS["bert"]))
    assert model(**batch)[1:] == (None, {})
    assert [tuple(h.shape) for h in model(**batch, output_hidden_states=True).hidden_states] == [(4, 11, 24)] * 3
    shapes = [tuple(h.shape) for h in model(**batch, output_hidden_states=True, cls_only=True).hidden_states]
    assert shapes == [(4, 11, 24)] * 2 + [(4, 1, 24)]
    assert list(model(**batch, output_qkv=[1]).qkv) == [1]


def test_deepcopy_is_independent_of_the_original():
    model, batch = randomised(CONFIGS["bert"]), tokens(random_batch(CONFIGS["bert"]))
    twin = copy.deepcopy(model)
    logits = model(**batch).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(**batch).logits, logits) and not model(**batch).logits.any()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in twin.parameters()}


def test_every_parameter_learns():
    model = randomised(CONFIGS["bert"]).train()
    run(model, random_batch(model.config))
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    assert all(isinstance(buffer, nn.Parameter) for buffer in model.state_dict(keep_vars=True).values())
