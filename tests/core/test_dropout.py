"""Our dropout on the CPU against its definition: the share, independence, reproducibility, expectation and gradient."""

import pytest
import torch

from minikd.config import EncoderConfig
from minikd.dropout import Dropout, keep_mask
from minikd.model import Classifier

N = 1_000_000


@pytest.mark.parametrize("prob", [0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped(prob):
    torch.manual_seed(0)
    keep = keep_mask(torch.empty(N), prob)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert (1 - keep.double()).mean().item() == pytest.approx(prob, abs=5 * (prob * (1 - prob) / N) ** 0.5)


@pytest.mark.parametrize("prob", [0.1, 1 / 3, 0.5, 0.9, 1e-9, 1 - 1e-9])
def test_the_share_is_the_probability_to_within_a_65536th(prob, monkeypatch):
    """Each word of 16 bits is as likely as any other, so that counting all of them leaves nothing to chance."""
    words = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.int64)
    monkeypatch.setattr(torch.Tensor, "random_", lambda drawn, *_: drawn.copy_(words))
    dropped = 1 - keep_mask(torch.empty(2**16), prob).double()
    assert abs(dropped.mean().item() - prob) <= 2**-16


def test_neighbours_are_independent_within_a_draw_of_64_bits_and_across_draws():
    torch.manual_seed(0)
    dropped = 1 - keep_mask(torch.empty(N), 0.1)
    for lag in (1, 2, 3, 4, 5):
        both = (dropped[lag:] * dropped[:-lag]).double().mean().item()
        assert both == pytest.approx(0.01, abs=5 * (0.01 * 0.99 / N) ** 0.5), lag
    by_place = dropped.view(-1, 4).double().mean(dim=0)  # the four words of a draw
    assert by_place.sub(0.1).abs().max() < 5 * (0.09 / (N / 4)) ** 0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5), (0,), (4, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_size_and_format(shape, dtype):
    keep = keep_mask(torch.empty(shape, dtype=dtype), 0.5)
    assert keep.shape == shape and keep.dtype == dtype


@pytest.mark.parametrize("prob", [1e-9, 0.999999])
def test_extreme_probabilities(prob):
    torch.manual_seed(0)
    assert keep_mask(torch.empty(10_000), prob).mean().item() == pytest.approx(1 - prob, abs=1e-3)


def test_the_seed_decides():
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    one = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), one) and not torch.equal(layer(x), one)


def test_values_are_scaled_and_the_gradient_passes_where_the_value_did():
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    y = Dropout(0.2)(x)
    y.sum().backward()
    kept = y != 0
    assert 0 < kept.sum() < 1000
    torch.testing.assert_close(y[kept], x[kept] / 0.8)
    torch.testing.assert_close(x.grad, kept / 0.8)


def test_eval_mode_and_probability_0_change_nothing():
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x and torch.equal(Dropout(0.0)(x), x)


def test_on_other_devices_torchs_own_dropout_is_used():
    """It draws from the generator of the device."""
    state = torch.get_rng_state()
    assert Dropout(0.5)(torch.empty(10, device="meta")).device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)
    Dropout(0.5)(torch.empty(10))
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_compiled_model_in_training_mode_is_one_graph():
    config = EncoderConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    explained = torch._dynamo.explain(Classifier(config).train())(torch.ones(2, 4, dtype=torch.int64))
    assert explained.graph_break_count == 0
    torch._dynamo.reset()
