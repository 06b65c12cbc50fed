"""LoRA against the peft package on transformers' models, merging, freezing, and folders that do not fit."""

import copy
import json
import math
import re
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from equality import CONFIGS, load_quietly, random_batch, randomised, transformers_twin
from helpers import train
from safetensors.torch import load_file, save_file
from test_model import DROPOUTS, reproducible_dropout
from test_training import CPU, SETTINGS, make_split
from torch.nn import functional as F

from minikd.checkpoints.adapters import base_model, load_adapters, load_merged, save_adapters, target_modules
from minikd.checkpoints.pretrained import save_pretrained
from minikd.config import BERT_BASE
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens
from minikd.model import Classifier, SelfAttention, count_parameters
from minikd.techniques.lora import TARGETS, adapters, add_lora, merge_lora, trainable_parameters, training_state_mb
from minikd.tokenizer import train_wordpiece
from minikd.training import make_optimizer

TARGET_SETS = {
    "query and value": ("query", "value"),
    "all": tuple(TARGETS),
    "key and ffn_output": ("key", "ffn_output"),
}
every_family = pytest.mark.parametrize("config", [CONFIGS["bert"], CONFIGS["distilbert"]], ids=["bert", "distilbert"])
every_target_set = pytest.mark.parametrize("targets", TARGET_SETS.values(), ids=TARGET_SETS)


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="the peft package is not installed")


def adapted(config, targets=("query", "value"), dropout=0.0, dtype=torch.float64, seed=0):
    """A random classifier with adapters whose A and B are far from their start, in eval mode."""
    model = randomised(config, seed, dtype)
    add_lora(model, 3, 7, dropout, targets)
    return with_random_adapters(model)


def with_random_adapters(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(model).values():
            for matrix in (adapter.lora_A.weight, adapter.lora_B.weight):
                matrix.copy_(0.3 * torch.randn(matrix.shape, generator=generator, dtype=torch.float64))
    return model


def tokens(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def logits_and_gradients(model, batch):
    """The logits, and the gradients of the cross-entropy by tensor name."""
    model.zero_grad(set_to_none=True)
    logits = model(**tokens(batch)).logits
    F.cross_entropy(logits, batch["labels"]).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_peft(peft, model, base, folder):
    """`model`, through files, as a PeftModel on transformers' twin of `base`; unmatched tensors are an error."""
    save_adapters(model, folder, "some-base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*", category=UserWarning)
        return peft.PeftModel.from_pretrained(transformers_twin(base), folder, is_trainable=True).train(model.training)


def peft_name(name):
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


@pytest.mark.parametrize("cls_only", [True, False], ids=["[CLS] only", "all rows"])
@every_target_set
@every_family
def test_logits_and_gradients_equal_those_of_peft_with_our_files(peft, config, targets, cls_only, tmp_path):
    model, batch = adapted(config, targets), random_batch(config)
    model.forward = partial(model.forward, cls_only=cls_only)
    base = randomised(config, dtype=torch.float64)
    with torch.no_grad():
        model.classifier.weight.add_(1)  # a trained head differs from the base's
        model.pooler.bias.add_(1)
    theirs, their_gradients = logits_and_gradients(in_peft(peft, model, base, tmp_path), batch)
    their_gradients = {peft_name(name): gradient for name, gradient in their_gradients.items()}
    ours, gradients = logits_and_gradients(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ours, base(**tokens(batch)).logits, atol=1e-2)

    state = load_file(tmp_path / "adapter_model.safetensors")
    assert their_gradients.keys() == state.keys()
    ours_by_value = {tuple(state[name].flatten().tolist()): name for name in state}  # every tensor is random: unlike
    assert len(ours_by_value) == len(state) == len(gradients)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            twin = ours_by_value[tuple(parameter.flatten().tolist())]
            torch.testing.assert_close(gradients[name], their_gradients[twin], rtol=1e-10, atol=1e-13, msg=name)


@every_target_set
@every_family
def test_peft_adapts_exactly_the_modules_that_our_files_name(peft, config, targets, tmp_path):
    config = replace(config, num_hidden_layers=11)  # layers 0 and 10: one name ends like the other
    twin = in_peft(peft, adapted(config, targets), randomised(config, dtype=torch.float64), tmp_path)
    theirs = {peft_name(name) for name, _ in twin.named_parameters() if ".lora_" in name}
    assert theirs == {name for name in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" in name}


def test_target_modules_have_their_usual_names():
    assert target_modules(CONFIGS["bert"], ("query", "value")) == ["query", "value"]
    assert target_modules(CONFIGS["distilbert"], TARGETS) == ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]
    rest = ["attention.output.dense", "intermediate.dense", "0.output.dense", "1.output.dense"]
    assert target_modules(CONFIGS["bert"], ("attention_output", "intermediate", "ffn_output")) == rest


@pytest.mark.parametrize("whole_head", [True, False], ids=["whole head", "classifier alone"])
@every_target_set
@every_family
def test_what_peft_saves_gives_the_same_logits_here(peft, config, targets, whole_head, tmp_path, capsys):
    base = randomised(config, dtype=torch.float64)
    pooler = "pooler" if config.model_type == "bert" else "pre_classifier"
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=7, lora_dropout=0.2, target_modules=target_modules(config, targets),
        modules_to_save=[pooler, "classifier"] if whole_head else None,
    )  # fmt: skip
    twin = peft.get_peft_model(transformers_twin(base), settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    twin.save_pretrained(tmp_path)
    load_adapters(base, tmp_path)
    batch = random_batch(config)
    torch.testing.assert_close(base(**tokens(batch)).logits, twin(**tokens(batch)).logits, rtol=1e-12, atol=1e-12)
    assert {(a.rank, a.alpha, a.dropout.p) for a in adapters(base).values()} == {(3, 7, 0.2)}
    kept = not whole_head and config.model_type == "bert"  # to peft, "classifier" means pre_classifier as well
    assert ("left as they were: pooler.weight, pooler.bias" in capsys.readouterr().out) == kept


@every_family
def test_dropout_stands_where_it_does_in_peft(peft, config, tmp_path, monkeypatch):
    config = replace(config, **DROPOUTS)
    model = adapted(config, tuple(TARGETS), dropout=0.15).train()
    model.forward = partial(model.forward, cls_only=False)
    base, batch = randomised(config, dtype=torch.float64).train(), random_batch(config)
    twin = in_peft(peft, model, base, tmp_path)
    calls = reproducible_dropout(monkeypatch)
    theirs = twin(**tokens(batch)).logits
    their_calls = calls.copy()
    calls.clear()
    ours = model(**tokens(batch)).logits
    assert calls == their_calls and sum(p == 0.15 for p, _ in calls) == 6 * config.num_hidden_layers
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_dropout_of_adapters_acts_in_training_alone():
    config = replace(CONFIGS["bert"], **dict.fromkeys(DROPOUTS, 0.0))
    model, batch = adapted(config, dropout=0.5), tokens(random_batch(config))
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


@every_target_set
@every_family
def test_new_adapters_change_no_logit_and_start_as_in_peft(config, targets):
    model, batch = randomised(config, dtype=torch.float64), tokens(random_batch(config))
    logits = model(**batch).logits
    add_lora(model, 8, 16, 0.1, targets)
    torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=1e-13)
    assert len(adapters(model)) == config.num_hidden_layers * len(targets)
    for adapter in adapters(model).values():
        bound = adapter.lora_A.in_features**-0.5
        assert 0.8 * bound < adapter.lora_A.weight.abs().max() <= bound
        assert adapter.lora_A.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert not adapter.lora_B.weight.any()


def test_order_and_repetition_of_targets_do_not_matter():
    states = []
    for targets in (("query", "value"), ["value", "query", "value"]):
        model = randomised(CONFIGS["bert"])
        torch.manual_seed(0)
        add_lora(model, 4, 8, 0.1, targets)
        states.append(model.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_adapters_on_query_and_value_leave_the_key_alone():
    config = CONFIGS["bert"]
    base, model = randomised(config).encoder.layers[0].attention, adapted(config, dtype=torch.float32)
    x = torch.randn(2, 5, config.hidden_size, generator=torch.Generator().manual_seed(0))
    for cls_only in (False, True):
        before, after = base.project(x, cls_only), model.encoder.layers[0].attention.project(x, cls_only)
        assert [torch.equal(*pair) for pair in zip(before, after)] == [False, True, False]
        assert [t.shape for t in before] == [t.shape for t in after]


@every_target_set
@every_family
def test_merged_model_is_an_ordinary_one_with_the_same_logits(config, targets):
    model, batch = adapted(config, targets, dropout=0.3), tokens(random_batch(config))
    logits = model(**batch).logits
    merge_lora(model)
    plain = randomised(config, dtype=torch.float64)
    torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=1e-12)
    assert not torch.allclose(logits, plain(**batch).logits, atol=1e-2)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters()) and not adapters(model)


@every_target_set
@every_family
def test_merging_in_fp32_moves_logits_by_less_than_a_millionth(config, targets):
    """With weights and adapters of the size that training gives them; wild ones amplify fp32's own rounding."""
    torch.manual_seed(0)
    model, batch = Classifier(replace(config, initializer_range=0.1)).eval(), tokens(random_batch(config))
    before = model(**batch).logits
    add_lora(model, 8, 16, 0.0, targets)
    for adapter in adapters(model).values():
        torch.nn.init.normal_(adapter.lora_B.weight, std=0.1)
    logits = model(**batch).logits
    merge_lora(model)
    assert (model(**batch).logits - logits).abs().max() <= 1e-6 < 1e-2 < (logits - before).abs().max()


def test_sums_are_rounded_once_when_merged():
    """A, B and their product in fp64: so the weight is the nearest one to W + (alpha / r) · B A."""
    model = adapted(CONFIGS["bert"], dtype=torch.float32)
    adapter, qkv = adapters(model)[0, "query"], model.encoder.layers[0].attention.qkv
    A, B = (matrix.weight.detach().double() for matrix in (adapter.lora_A, adapter.lora_B))
    exact = qkv.weight.detach()[: len(B)].double() + 7 / 3 * B @ A
    merge_lora(model)
    assert torch.equal(qkv.weight[: len(B)], exact.float())


@every_family
def test_merged_model_loads_in_transformers_with_the_same_logits(config, tmp_path):
    model, batch = adapted(config, tuple(TARGETS), dtype=torch.float32), tokens(random_batch(config))
    logits = model(**batch).logits
    merge_lora(model)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(**batch).logits, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(load_quietly(tmp_path)(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("cls_only", [True, False], ids=["[CLS] only", "all rows"])
@every_target_set
def test_training_changes_adapters_and_head_alone(targets, cls_only, tmp_path):
    splits = make_split(40, 0), make_split(16, 1)
    tokenizer = train_wordpiece(splits[0].texts, 200)
    data, validation = (cached_tokens(split, tokenizer, 16) for split in splits)
    model = Classifier(replace(CONFIGS["bert"], vocab_size=200))
    model.forward = partial(model.forward, cls_only=cls_only)
    add_lora(model, 4, 8, 0.1, targets)
    before = copy.deepcopy(model.state_dict())
    train(model, data, validation, replace(SETTINGS, epochs=1), tmp_path, CPU)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name or name.startswith(("pooler.", "classifier."))}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_optimizer_holds_adapters_and_head_alone():
    model = adapted(CONFIGS["bert"])
    optimizer = make_optimizer(model, SETTINGS, CPU)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) == (
        trainable_parameters(model)
    )


def test_trainable_share_and_memory_of_bert_base_are_those_computed_by_hand():
    with torch.device("meta"):
        model = Classifier(BERT_BASE)
        full = count_parameters(model)
        assert training_state_mb(model) == pytest.approx(full * 16 / 2**20)  # fp32: 4 bytes, four times
        add_lora(model, 8, 16, 0.1, ("query", "value"))
    learning = 12 * 2 * 8 * (768 + 768)  # layers × targets × rank × (inputs + outputs)
    head = 768 * 768 + 768 + 2 * 768 + 2
    assert trainable_parameters(model) == learning + head == 887_042
    assert training_state_mb(model) == pytest.approx((full * 4 + learning * 4 + (learning + head) * 12) / 2**20)


def test_copies_and_checkpoints_keep_the_adapters():
    model, batch = adapted(CONFIGS["bert"], tuple(TARGETS)), tokens(random_batch(CONFIGS["bert"]))
    logits, twin = model(**batch).logits, copy.deepcopy(model)
    other = adapted(CONFIGS["bert"], tuple(TARGETS), seed=9)
    other.load_state_dict(model.state_dict())
    merge_lora(model)
    assert torch.equal(twin(**batch).logits, logits) and torch.equal(other(**batch).logits, logits)
    assert type(model.encoder.layers[0].attention) is SelfAttention
    assert type(twin.encoder.layers[0].attention) is not SelfAttention


def test_compiled_model_has_the_same_logits_with_adapters_and_after_merging():
    model, batch = adapted(CONFIGS["bert-1-layer"], tuple(TARGETS)), tokens(random_batch(CONFIGS["bert"]))
    compiled, logits = torch.compile(model, backend="eager", fullgraph=True), model(**batch).logits
    torch.testing.assert_close(compiled(**batch).logits, logits)
    merge_lora(model)
    torch.testing.assert_close(compiled(**batch).logits, logits)


def test_adapters_can_be_put_on_again_after_merging():
    model, batch = adapted(CONFIGS["bert"]), tokens(random_batch(CONFIGS["bert"]))
    logits = model(**batch).logits
    with pytest.raises(ValueError, match="merge_lora first"):
        add_lora(model, 2, 4, 0.0, ("key",))
    merge_lora(model)
    add_lora(model, 2, 4, 0.0, ("key",))
    torch.testing.assert_close(model(**batch).logits, logits)
    assert {target for _, target in adapters(model)} == {"key"}


@pytest.mark.parametrize(("arguments", "message"), [
    ((3, 6, 0.1, ("query", "qurey")), "LoRA target qurey: choose from query, key, value, attention_output, inter"),
    ((3, 6, 0.1, ()), "LoRA target (none): choose from"),
    ((25, 6, 0.1, ("value",)), "LoRA rank 25: the adapted matrices of this model take 1 to 24"),
    ((0, 6, 0.1, ("ffn_output",)), "LoRA rank 0: the adapted matrices of this model take 1 to 24"),
    ((3, 6, 1.0, ("query",)), "LoRA dropout 1.0: must be a probability"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_named_and_leave_the_model_alone(arguments, message):
    model = randomised(CONFIGS["bert"])
    with pytest.raises(MinikdError, match=re.escape(message)) as error:
        add_lora(model, *arguments)
    assert "\n" not in str(error.value)
    assert not adapters(model) and all(parameter.requires_grad for parameter in model.parameters())


def edit_config(**fields):
    def edit(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def edit_tensors(change):
    def edit(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


LAYER = "base_model.model.bert.encoder.layer.0"
QUERY_A = f"{LAYER}.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: cannot be read"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: cannot be read"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not LoRA's adapter_config.json"),
    (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff"), "is not LoRA's adapter_config.json"),
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is not LoRA's adapter_config.json"),
    (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "cannot be loaded as weights"),
    (edit_config(peft_type="IA3"), "peft_type 'IA3' is not implemented"),
    (edit_config(use_dora=True), "use_dora True is not implemented"),
    (edit_config(use_rslora=True), "use_rslora True is not implemented"),
    (edit_config(bias="all"), "bias 'all' is not implemented"),
    (edit_config(init_lora_weights="pissa"), "init_lora_weights 'pissa' is not implemented"),
    (edit_config(alpha_pattern={"query": 2}), "alpha_pattern {'query': 2} is not implemented"),
    (edit_config(something_new=3), "something_new 3 is not implemented"),
    (edit_config(r="3"), "r must be a number, not '3'"),
    (edit_config(lora_alpha=None), "lora_alpha must be a number, not None"),
    (edit_config(lora_dropout=2), "LoRA dropout 2: must be a probability"),
    (edit_config(r=99), "LoRA rank 99"),
    (edit_config(r=4), f"tensor {QUERY_A} has shape [3, 24], but the configuration asks for [4, 24]"),
    (edit_tensors(lambda t: t.pop(QUERY_A)), f"misses 1 tensor(s): {QUERY_A}"),
    (edit_tensors(lambda t: [t.pop(name) for name in list(t) if ".layer.0." in name]), "misses 4 tensor(s)"),
    (edit_tensors(lambda t: t.update({f"{LAYER}.x": torch.ones(1)})), f"does not know 1 tensor(s): {LAYER}.x"),
    (edit_tensors(lambda t: t.update({"base_model.model.classifier.bias": torch.ones(3)})), "bias has shape [3], but"),
    (edit_tensors(lambda t: [t.pop(name) for name in list(t) if "lora" in name]), "misses 24 tensor(s)"),
])  # fmt: skip
def test_a_folder_that_does_not_fit_gives_one_line_and_leaves_the_model_alone(spoil, message, tmp_path):
    save_adapters(adapted(CONFIGS["bert"], dtype=torch.float32), tmp_path, "some-base")
    spoil(tmp_path)
    model = randomised(CONFIGS["bert"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MinikdError, match=re.escape(message)) as error:
        load_adapters(model, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_of_another_family_do_not_fit(tmp_path):
    save_adapters(adapted(CONFIGS["distilbert"]), tmp_path, None)
    with pytest.raises(MinikdError, match=r"does not know \d+ tensor\(s\): base_model.model.distilbert"):
        load_adapters(randomised(CONFIGS["bert"]), tmp_path)


def test_a_model_without_adapters_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="add_lora first"):
        save_adapters(randomised(CONFIGS["bert"]), tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_adapters_come_back_from_their_files_to_the_same_bits(tmp_path, capsys):
    model, batch = adapted(CONFIGS["bert"], dtype=torch.float32), tokens(random_batch(CONFIGS["bert"]))
    save_adapters(model, tmp_path, "some-base")
    back = randomised(CONFIGS["bert"])
    load_adapters(back, tmp_path)
    assert capsys.readouterr().out == f"loaded {tmp_path / 'adapter_model.safetensors'}: rank 3 on query, value\n"
    assert torch.equal(back(**batch).logits, model(**batch).logits)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("base", [None, "", 7])
def test_adapters_that_name_no_base_model_are_refused_and_other_folders_are_no_adapters(base, tmp_path):
    assert base_model(tmp_path) is None and base_model("someone/some-model") is None
    save_adapters(adapted(CONFIGS["bert"]), tmp_path, "some-base")
    assert base_model(tmp_path) == "some-base"
    edit_config(base_model_name_or_path=base)(tmp_path)
    with pytest.raises(MinikdError, match="adapter_config.json: does not name its base model"):
        base_model(tmp_path)


def test_a_merged_model_has_the_labels_that_we_recorded_or_else_those_of_its_base(tmp_path):
    base = randomised(CONFIGS["bert"].with_labels(("bad", "good")))
    save_pretrained(base, tmp_path / "base")
    model = adapted(CONFIGS["bert"].with_labels(("no", "yes")), dtype=torch.float32)
    save_adapters(model, tmp_path / "ours", str(tmp_path / "base"))
    assert load_merged(tmp_path / "ours").config.labels == ("no", "yes")
    path = tmp_path / "ours" / "adapter_model.safetensors"
    save_file(load_file(path), path)  # PEFT records none
    assert load_merged(tmp_path / "ours").config.labels == ("bad", "good")
