"""8- and 4-bit models: rounding errors, exact integer products, files, refusals, and evaluate.py --quantize."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from equality import CONFIGS, load_quietly, random_batch, randomised, real_batch

from minikd.checkpoints.adapters import load_merged, save_adapters
from minikd.checkpoints.config_json import config_from_json, config_to_json
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.errors import MinikdError
from minikd.evaluation.costs import model_size
from minikd.techniques.lora import add_lora
from minikd.techniques.quantize import (
    CAN_PACK,
    QuantizedEmbedding,
    QuantizedLinear,
    dequantize,
    group_size,
    quantize,
    to_int4,
    to_int8,
)

every_format = pytest.mark.parametrize("format", ["int8", "int4"])
EVEN = {name: config for name, config in CONFIGS.items() if config.hidden_size % 2 == config.intermediate_size % 2 == 0}
BERT = EVEN["bert"]
QUICK = ["--max-length", "16", "--precision", "fp32", "--device", "cpu"]


def tokens(config):
    return {name: value for name, value in random_batch(config).items() if name != "labels"}


def test_int8_rounds_to_the_nearest_multiple_of_a_scale_per_row():
    torch.manual_seed(0)
    weight = torch.randn(50, 30) * torch.logspace(-4, 3, 50)[:, None]
    q, scale = to_int8(weight)
    assert q.dtype == torch.int8 and scale.shape == (50, 1)
    assert (q.abs().amax(dim=1) == 127).all()
    assert ((dequantize(q, scale) - weight).abs() <= 0.5001 * scale).all()


def test_a_row_of_zeros_stays_zero():
    for to_whole in (to_int8, to_int4):
        assert torch.equal(dequantize(*to_whole(torch.zeros(3, 8))), torch.zeros(3, 8))
        assert (to_whole(torch.zeros(3, 8))[1] > 0).all()  # 0/0 is no whole number


@pytest.mark.parametrize("width", [2, 24, 312, 384])
def test_int4_holds_two_weights_a_byte_and_finds_better_scales_than_the_largest_weight_gives(width):
    torch.manual_seed(0)
    weight = torch.randn(20, width)
    packed, scale = to_int4(weight)
    assert packed.shape == (20, width // 2) and packed.dtype == torch.uint8
    assert scale.shape == (20, width // group_size(width))
    assert group_size(width) == {2: 2, 24: 24, 312: 104, 384: 128}[width]  # the largest divisor up to 128
    groups = weight.unflatten(1, (scale.shape[1], -1))
    plain = groups.abs().amax(dim=-1, keepdim=True) / 7
    naive = ((groups / plain).round() * plain - groups).square().sum()
    found = (dequantize(packed, scale) - weight).square().sum()
    assert found < (naive if width > 2 else naive * 1.01)


def test_the_scale_of_each_int4_group_is_the_best_of_eleven():
    torch.manual_seed(0)
    weight = torch.rand(40, 256) * 2 - 1
    weight[:, ::128] = 1 + torch.arange(40)[:, None] / 25  # one lies out, by more and more, so that clipping pays
    packed, scale = to_int4(weight)
    errors = (dequantize(packed, scale) - weight).unflatten(1, (scale.shape[1], -1)).square().sum(dim=-1)
    groups, found = weight.unflatten(1, (scale.shape[1], -1)), []
    for tenths in range(11):
        candidate = ((1 - tenths / 20) * groups.abs().amax(dim=-1, keepdim=True) / 7).half().float()
        found.append((((groups / candidate).round().clamp(-8, 7) * candidate) - groups).square().sum(dim=-1))
    best, chosen = torch.stack(found).min(dim=0)
    torch.testing.assert_close(errors, best, rtol=1e-4, atol=1e-6)
    assert len(chosen.unique()) > 4


@every_format
def test_a_quantised_copy_leaves_its_original_alone_and_the_small_parts_in_fp32(format):
    model = randomised(BERT).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = quantize(model, format)
    assert model.training and model.config == BERT and not quantized.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    whole = {name for name, tensor in quantized.state_dict().items() if tensor.dtype == torch.float32}
    whole -= {name for name in whole if name.endswith(".scale")}
    small = re.compile(r"bias$|LayerNorm|_norm\.|position_embeddings|token_type_embeddings|classifier")
    assert whole == {name for name in before if small.search(name)}
    assert all(torch.equal(quantized.state_dict()[name], before[name]) for name in whole)
    shared = {tensor.data_ptr() for tensor in quantized.state_dict().values()}
    assert not shared & {tensor.data_ptr() for tensor in model.state_dict().values()}


def test_int4_gives_back_every_value_it_can_hold():
    weight = torch.arange(-8.0, 8).repeat(2).view(1, 32) * 0.25
    packed, scale = to_int4(weight)
    values = dequantize(packed, scale) / scale.float()
    assert set(values.round().int().flatten().tolist()) >= set(range(-7, 8))
    assert torch.allclose(values, values.round(), atol=1e-4)


def test_the_int8_product_is_exact_for_the_rounded_numbers():
    torch.manual_seed(0)
    layer = QuantizedLinear(33, 70, "int8")
    weight, scale = to_int8(torch.randn(33, 70))
    layer.load_state_dict({"weight": weight, "scale": scale, "bias": torch.randn(33)})
    for shape in ((1, 300, 70), (3, 5, 70), (7, 70), (1025, 70), (3, 700, 70)):  # also more than fit into one turn
        x = torch.randn(shape)
        rounded = dequantize(*to_int8(x)).double()
        expected = rounded @ dequantize(weight, scale).double().T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer(x, slice(5, 20)), layer(x)[..., 5:20])


@pytest.mark.skipif(not CAN_PACK, reason="torch cannot pack int8 weights for this processor")
def test_a_single_short_text_has_one_scale():
    """From its least to its largest value, and 0, in 255 steps: each is wrong by half a step at most."""
    torch.manual_seed(0)
    layer = QuantizedLinear(33, 70, "int8")
    weight, scale = to_int8(torch.randn(33, 70))
    layer.load_state_dict({"weight": weight, "scale": scale, "bias": torch.randn(33)})
    rows = dequantize(weight, scale).double()
    for shape in ((1, 1, 70), (1, 256, 70), (1, 70)):
        x = torch.randn(shape) * torch.tensor([1.0, 100.0]).repeat(35)  # rounded coarsely: one scale for all
        step = (x.amax().clamp_min(0) - x.amin().clamp_max(0)).double() / 255
        error = (layer(x).double() - (x.double() @ rows.T + layer.bias.double())).abs()
        assert error.max() <= (step * rows.abs().sum(dim=1)).max() * 0.51
        assert error.max() > 0.01 * step  # and not by less, as with a scale for each token
        torch.testing.assert_close(layer(x, slice(5, 20)), layer(x)[..., 5:20])
    with torch.no_grad():
        layer.weight.neg_()  # packed weights follow
    torch.testing.assert_close(layer(x).double(), layer.bias - x.double() @ rows.T, rtol=0, atol=float(step) * 70)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    before = layer(x)
    layer.load_state_dict({"weight": weight, "scale": scale * 2, "bias": torch.zeros(33)}, assign=True)
    assert not layer(x).equal(before) and len(layer.packed) == 1


@every_format
@pytest.mark.parametrize("name", EVEN)
def test_logits_are_those_of_the_rounded_weights_and_the_cls_only_layer_agrees_with_all_rows(name, format):
    config = EVEN[name]
    model = randomised(config)
    quantized, batch = quantize(model, format), tokens(config)
    with torch.no_grad():  # what the whole numbers stand for
        for name, module in quantized.named_modules():
            if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
                model.get_submodule(name).weight.copy_(dequantize(module.weight, module.scale))
    full, logits = model(**batch).logits, quantized(**batch).logits
    assert (logits - full).abs().max() < {"int8": 0.05, "int4": 1e-4}[format] * full.abs().max()
    torch.testing.assert_close(quantized(**batch, cls_only=False).logits, logits, rtol=1e-4, atol=1e-4)


def test_an_example_has_the_same_logits_in_any_company():
    """Alone, where one scale serves all its tokens, the same but for rounding."""
    batch = tokens(BERT)
    model = quantize(randomised(BERT), "int8")
    together = model(**batch).logits
    for i in range(4):
        pair = model(**{name: value[[i, (i + 1) % 4]] for name, value in batch.items()}).logits[0]
        torch.testing.assert_close(pair, together[i], rtol=1e-5, atol=1e-5)
        alone = model(**{name: value[i : i + 1] for name, value in batch.items()}).logits[0]
        assert (alone - together[i]).abs().max() < 0.05 * together.abs().max()


@every_format
@pytest.mark.parametrize("name", EVEN)
def test_saved_and_loaded_to_the_bit(name, format, tmp_path, capsys):
    model, batch = quantize(randomised(EVEN[name]), format), tokens(EVEN[name])
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path).eval()
    assert again.config == model.config and again.config.quantization == format
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["quantization_config"] == {"quant_method": "minikd", "format": format}
    with pytest.raises(ValueError, match="minikd_"):  # rather than to read whole numbers as weights
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


@every_format
def test_real_weights_shrink_as_promised_and_the_representation_stays(minilm, format):
    model, batch = load_quietly(minilm), real_batch(minilm)
    quantized = quantize(model, format)
    linear = [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    used = sum(t.numel() * t.element_size() for module in linear for t in (module.weight, module.scale))
    full = sum(4 * p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ("layers" in n or "pooler" in n))
    assert used / full == pytest.approx({"int8": 1 / 4, "int4": 1 / 8}[format], rel=0.04)
    assert model_size(quantized)["parameters"] == model_size(model)["parameters"]
    assert model_size(quantized)["size_mb"] < model_size(model)["size_mb"] * {"int8": 0.27, "int4": 0.15}[format]
    vectors = [m.encoder(batch["input_ids"], batch["attention_mask"])[0][:, 0] for m in (model, quantized)]
    assert torch.cosine_similarity(*vectors).min() > {"int8": 0.99, "int4": 0.9}[format]


@every_format
def test_adapters_are_not_added_to_a_quantised_model(format, tmp_path):
    model = randomised(BERT)
    save_pretrained(quantize(model, format), tmp_path / "base")
    add_lora(model, 2, 4.0, 0.0, ["query"])
    save_adapters(model, tmp_path / "adapter", str(tmp_path / "base"))
    with pytest.raises(MinikdError, match=rf"base: is quantised \({format}\)"):
        load_merged(tmp_path / "adapter")


def test_what_cannot_be_quantised_or_read_is_refused_by_name(tmp_path):
    with pytest.raises(MinikdError, match="quantised already"):
        quantize(quantize(randomised(BERT), "int8"), "int4")
    with pytest.raises(MinikdError, match="width must be even"):
        quantize(randomised(CONFIGS["bert-4-layers-5-heads"]), "int4")
    broken = randomised(BERT)
    broken.pooler.weight.data[0, 0] = torch.nan
    with pytest.raises(MinikdError, match="pooler.weight: holds values that are not finite"):
        quantize(broken, "int4")
    with pytest.raises(MinikdError, match="int3"):
        quantize(randomised(BERT), "int3")
    with pytest.raises(MinikdError, match="bitsandbytes"):
        config_from_json(config_to_json(BERT) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(MinikdError, match="quantization_config"):
        config_from_json(config_to_json(BERT) | {"quantization_config": "int8"})
    with pytest.raises(MinikdError, match="minikd_bert"):
        config_from_json(config_to_json(BERT) | {"model_type": "minikd_bert"})


def test_weights_of_another_type_than_the_config_says_are_refused(tmp_path):
    model = randomised(BERT)
    save_pretrained(quantize(model, "int8"), tmp_path)
    config = (tmp_path / "config.json").read_text()
    save_pretrained(model, tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(MinikdError, match="scale"):
        from_pretrained(tmp_path)


def test_evaluate_adds_saves_and_reads_quantised_models(script, corpus, fine_tuned, tmp_path):
    status, out, err = script(
        "evaluate.py", fine_tuned, "--dataset", corpus, "--quantize", "int8", "int4", "--output-dir", "compared", *QUICK
    )
    assert status == 0, err
    results = json.loads(open("compared/results.json").read())
    rows = {row["name"].rpartition("-")[2] if "int" in row["name"] else "fp32": row for row in results["models"]}
    assert list(rows) == ["fp32", "int8", "int4"]
    assert rows["int4"]["size_mb"] < rows["int8"]["size_mb"] < rows["fp32"]["size_mb"]
    assert rows["int8"]["agreement"] >= 0.9 and "agreement" not in rows["fp32"]
    folder = rows["int8"]["path"]
    status, out, err = script("evaluate.py", folder, "--dataset", corpus, "--output-dir", "again", *QUICK)
    assert status == 0, err
    again = json.loads(open("again/results.json").read())["models"][0]
    assert again["accuracy"] == rows["int8"]["accuracy"] and again["nll"] == pytest.approx(rows["int8"]["nll"])
    for refused in (("train.py", "--model", folder), ("distill.py", "--teacher", folder)):
        status, out, err = script(*refused, "--dataset", corpus, "--output-dir", "refused", *QUICK)
        assert status == 2 and "is quantised (int8)" in err
    status, out, err = script("evaluate.py", folder, "--dataset", corpus, "--quantize", "int4", *QUICK)
    assert status == 2 and "quantised already" in err
    status, out, err = script("evaluate.py", folder, "--text", "fine", *QUICK)
    assert status == 0 and folder in out

    again = ("evaluate.py", fine_tuned, "--dataset", corpus, "--quantize", "int8", "--output-dir", "compared", *QUICK)
    (Path(folder) / "run.json").write_text("{}")  # no longer a copy that this script left
    status, out, err = script(*again)
    assert status == 2 and "is no quantised copy" in err
    results["arguments"]["epochs"] = 3
    Path("compared/results.json").write_text(json.dumps(results))
    status, out, err = script(*again)
    assert status == 2 and "holds the results of training" in err


def test_weights_of_another_type_are_refused_rather_than_wrapped(tmp_path, minilm):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "int8"
    save_pretrained(quantize(load_quietly(minilm), "int8"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.int8)
    for other in (tensors[name].int() * 1000, tensors[name].view(torch.uint8)):
        save_file(tensors | {name: other}, folder / "model.safetensors")
        with pytest.raises(MinikdError, match=f"{name} holds"):
            from_pretrained(folder)


def test_weights_beyond_the_scales_of_int4_are_refused():
    weight = torch.zeros(2, 8)
    weight[1, 3] = 1e6
    with pytest.raises(MinikdError, match="int4: a weight is too large"):
        to_int4(weight)
