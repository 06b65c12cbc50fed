"""Checkpoints to and from transformers, what is refused, and students made of their teachers' layers."""

import json
import pickle
import shutil
import time
from dataclasses import replace

import pytest
import torch
import transformers
from equality import CONFIGS, load_quietly, random_batch, randomised, round_trip
from safetensors.torch import load_file, save_file

from minikd.checkpoints.config_json import config_to_json
from minikd.checkpoints.hub import is_fine_tuned, model_folder, read_tensors
from minikd.checkpoints.pretrained import from_pretrained, load_tensors, save_pretrained, to_hugging_face
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.errors import MinikdError
from minikd.model import Classifier
from minikd.student import evenly_spaced_layers, student_from_teacher
from minikd.techniques.lora import add_lora

FAMILIES = ["bert", "distilbert"]
PRETRAINING = {
    "bert": {"cls.predictions.bias": 9, "cls.predictions.transform.LayerNorm.gamma": 9, "cls.seq_relationship.bias": 2},
    "distilbert": {"vocab_transform.bias": 24, "vocab_layer_norm.weight": 24, "vocab_projector.bias": 53},
}
both_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def saved(tmp_path, family):
    """A model of either family, and the folder it was saved in."""
    model = randomised(CONFIGS[family], seed=3)
    save_pretrained(model, tmp_path / "model")
    return model, tmp_path / "model"


def rewrite(folder, change):
    """Passes the tensors of a saved model through `change` and saves what it returns."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def refusal(load, *arguments, **options) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(MinikdError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_weights(model, other, but=()):
    for name, tensor in model.state_dict().items():
        assert name.startswith(tuple(but)) or torch.equal(tensor, other.state_dict()[name]), name


def logits(model, **extra):
    batch = {name: value for name, value in random_batch(model.config).items() if name != "labels"}
    with torch.no_grad():
        return model(**batch, **extra).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_through_transformers_changes_no_bit(name, tmp_path):
    assert round_trip(randomised(replace(CONFIGS[name], labels=("bad", "so-so", "good"))), tmp_path) == []


@both_families
def test_transformers_loads_what_we_save_with_the_same_logits_and_label_names(family, tmp_path):
    model = randomised(CONFIGS[family].with_labels(("bad", "good")))
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = {name: value for name, value in random_batch(model.config).items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}


@both_families
def test_we_load_what_transformers_saves_with_the_same_logits_and_label_names(family, tmp_path):
    fields = config_to_json(CONFIGS[family]) | {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = transformers.AutoConfig.for_model(**fields)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)
    model = load_quietly(tmp_path)
    batch = {name: value for name, value in random_batch(model.config).items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, theirs(**batch).logits, rtol=1e-5, atol=1e-5)
    assert model.config.labels == ("bad", "good")


def test_saved_folder_is_a_whole_model_and_tokenizer_for_transformers(minilm, tmp_path):
    tokenizer, model = load_tokenizer(minilm), randomised(replace(CONFIGS["bert"], vocab_size=30522))
    save_pretrained(model, tmp_path)
    save_tokenizer(tokenizer, tmp_path, "bert", 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"
    ]  # fmt: skip
    classify = transformers.pipeline("text-classification", str(tmp_path))
    text = "A fine film."
    ids = torch.tensor([tokenizer.encode([text], 128)[0].tolist()])
    with torch.no_grad():
        expected = model(ids).logits.softmax(dim=1).max().item()
    assert classify(text)[0]["score"] == pytest.approx(expected, rel=1e-4)


@both_families
def test_encoder_saved_alone_without_prefix_is_loaded_and_only_the_head_is_new(saved, family, capsys):
    model, folder = saved
    prefix = f"{family}."
    head = ("classifier.", "pre_classifier.")
    rewrite(folder, lambda tensors: {n.removeprefix(prefix): t for n, t in tensors.items() if not n.startswith(head)})
    loaded = from_pretrained(folder)
    printed = capsys.readouterr().out
    new = ["classifier.weight", "classifier.bias"]
    if family == "distilbert":
        new = ["pooler.weight", "pooler.bias", *new]
    assert printed.count("\n") == 1 and printed.endswith(f"new, untrained: {', '.join(new)}\n")
    assert_same_weights(model, loaded, but=[name.split(".")[0] for name in new])
    assert not is_fine_tuned(folder)


@both_families
def test_pretraining_heads_and_position_ids_are_ignored_by_name(saved, family, capsys):
    model, folder = saved
    extra = {name: torch.ones(size) for name, size in PRETRAINING[family].items()}
    extra |= {f"{family}.embeddings.position_ids": torch.arange(19)[None]}
    rewrite(folder, lambda tensors: tensors | extra)
    assert_same_weights(model, from_pretrained(folder))
    assert f"{len(extra)} ignored" in capsys.readouterr().out
    assert is_fine_tuned(folder)


@pytest.mark.parametrize("family", ["bert"])
def test_old_layer_norm_names_gamma_and_beta_are_read(saved):
    model, folder = saved
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def change(tensors):
        for new_name, old_name in old.items():
            tensors = {name.replace(new_name, old_name): tensor for name, tensor in tensors.items()}
        return tensors

    rewrite(folder, change)
    assert sum(name.endswith(("gamma", "beta")) for name in load_file(folder / "model.safetensors")) == 10
    assert_same_weights(model, load_quietly(folder))


@both_families
@pytest.mark.parametrize("name", ["foo.gamma", "foo.weight", "bert.pooler.gamma", "roberta.embeddings.position_ids.x"])
def test_unknown_tensor_is_refused_under_its_own_name(saved, name):
    rewrite(saved[1], lambda tensors: tensors | {name: torch.ones(3)})
    message = refusal(from_pretrained, saved[1])
    assert "model.safetensors" in message and "does not know" in message and name in message


@both_families
def test_every_tensor_of_the_encoder_is_needed(saved):
    model, folder = saved
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "classifier" in name or "pooler" in name:
            continue
        message = refusal(load_tensors, Classifier(model.config), {n: t for n, t in tensors.items() if n != name})
        assert f"misses 1 tensor(s): {name}" in message
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if "layer.1." not in n})
    assert "misses 16 tensor(s)" in refusal(from_pretrained, folder)


@both_families
def test_a_trained_head_must_be_whole(saved, family):
    """A bare encoder may lack its head. A classifier on a pooler that is made new at random would answer nonsense."""
    folder, pooler = saved[1], {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}[family]
    tensors = load_file(folder / "model.safetensors")
    for lacking in ([f"{pooler}.weight", f"{pooler}.bias"], [f"{pooler}.bias"], ["classifier.bias"]):
        save_file({n: t for n, t in tensors.items() if n not in lacking}, folder / "model.safetensors")
        message = refusal(from_pretrained, folder, ("bad", "good"))
        assert f"misses {len(lacking)} tensor(s): {lacking[0]}" in message


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize(("name", "other"), [
    ("bert.pooler.dense.bias", "pooler.dense.bias"),
    ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
])  # fmt: skip
def test_one_tensor_under_two_names_is_refused(saved, name, other):
    rewrite(saved[1], lambda tensors: tensors | {other: tensors[name] + 1})
    message = refusal(from_pretrained, saved[1])
    assert name in message and other in message and message.endswith("are the same tensor under two names")


def test_a_model_with_adapters_is_not_written_in_hugging_faces_layout(tmp_path):
    model = randomised(CONFIGS["bert"])
    add_lora(model, 2, 4.0, 0.0, ["query"])
    with pytest.raises(ValueError, match="merge_lora first"):
        to_hugging_face(model)


@both_families
def test_every_tensor_must_have_its_shape(saved):
    model, folder = saved
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        for wrong in (tensor[:-1], tensor[None], tensor.flatten()[:1]):
            message = refusal(load_tensors, Classifier(model.config), tensors | {name: wrong})
            assert name in message and str(list(wrong.shape)) in message and str(list(tensor.shape)) in message


@both_families
def test_refused_load_leaves_the_model_as_it_was(saved):
    model, folder = saved
    other = randomised(model.config, seed=9)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    tensors = load_file(folder / "model.safetensors")
    last = list(to_hugging_face(model))[-1]
    mis_shaped, unknown = tensors | {last: torch.ones(1, 1)}, tensors | {"foo": torch.ones(1)}
    for damaged in (mis_shaped, unknown, dict(list(tensors.items())[:9])):
        refusal(load_tensors, other, damaged)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@both_families
def test_pytorch_model_bin_is_read(saved):
    model, folder = saved
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_weights(model, load_quietly(folder))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize(
    "writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))], ids=["zip", "pickle"]
)
def test_pickle_that_would_run_code_is_refused_and_does_not_run(saved, tmp_path, writer):
    folder = saved[1]
    (folder / "model.safetensors").unlink()
    writer({"classifier.weight": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: cannot be loaded as weights" in refusal(from_pretrained, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", ["bert"])
def test_pytorch_model_bin_that_holds_no_tensors_is_refused(saved):
    folder = saved[1]
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    assert "not a dictionary of tensors" in refusal(from_pretrained, folder)
    (folder / "pytorch_model.bin").write_bytes(b"<html>404</html>")
    assert "pytorch_model.bin: cannot be loaded as weights" in refusal(from_pretrained, folder)


@both_families
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_file_becomes_an_fp32_model(saved, dtype):
    model, folder = saved
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    loaded = load_quietly(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_same_weights(model.to(dtype).float(), loaded)


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_safetensors_is_refused_by_name(saved, size):
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path}: cannot be loaded as weights" in refusal(from_pretrained, saved[1])


@pytest.mark.parametrize("family", ["bert"])
def test_folder_without_weights_or_config_is_refused_by_name(saved, tmp_path):
    config = (saved[1] / "config.json").read_text()
    (saved[1] / "config.json").unlink()
    assert "config.json: cannot be read" in refusal(from_pretrained, saved[1])
    (saved[1] / "config.json").write_text(config[:50])
    assert "config.json: is not a model's config.json" in refusal(from_pretrained, saved[1])
    (saved[1] / "model.safetensors").unlink()
    assert "has no model.safetensors or pytorch_model.bin" in refusal(from_pretrained, saved[1])


@pytest.mark.parametrize("family", ["bert"])
def test_config_of_another_shape_is_refused_with_the_tensor(saved):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 12}))
    message = refusal(from_pretrained, saved[1])
    assert "word_embeddings.weight has shape [53, 24], but the configuration asks for [53, 12]" in message


@both_families
def test_a_head_in_the_file_keeps_its_own_labels_and_order(family, tmp_path, capsys):
    model = randomised(CONFIGS[family].with_labels(("positive", "negative", "neutral")))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, ("negative", "neutral", "positive"))
    assert loaded.config.labels == ("positive", "negative", "neutral")
    assert_same_weights(model, loaded)


def test_missing_head_is_made_for_the_labels_of_the_data(minilm, capsys):
    model = from_pretrained(minilm, ("negative", "neutral", "positive"))
    assert tuple(model.classifier.weight.shape) == (3, 384) and model.config.labels[2] == "positive"
    assert "1 ignored" in capsys.readouterr().out


def test_real_weights_survive_both_ways_bit_for_bit(minilm, tmp_path):
    model = load_quietly(minilm)
    assert round_trip(model, tmp_path) == []
    published = {name: tensor for name, tensor in read_tensors(minilm)[1].items() if not name.endswith("position_ids")}
    ours = to_hugging_face(model)
    assert all(torch.equal(ours[f"bert.{name}"], tensor) for name, tensor in published.items())


@pytest.mark.parametrize(("teacher", "student", "layers"), [
    (12, 6, [0, 2, 4, 7, 9, 11]), (12, 12, list(range(12))), (12, 1, [0]), (12, 2, [0, 11]), (6, 3, [0, 2, 5]),
    (1, 1, [0]),
])  # fmt: skip
def test_evenly_spaced_layers_are_those_of_distilbert(teacher, student, layers):
    assert evenly_spaced_layers(teacher, student) == layers


def test_evenly_spaced_layers_are_distinct_and_span_the_teacher():
    for teacher in range(2, 25):
        for student in range(2, teacher + 1):
            layers = evenly_spaced_layers(teacher, student)
            assert sorted(set(layers)) == layers and len(layers) == student
            assert (layers[0], layers[-1]) == (0, teacher - 1)


@pytest.mark.parametrize("student", [0, 13, -1])
def test_more_layers_than_the_teacher_has_are_refused(student):
    assert f"`layers` {student}: the teacher has 12 layers" in refusal(evenly_spaced_layers, 12, student)


@pytest.mark.parametrize("name", ["bert-4-layers-5-heads", "distilbert-4-layers-7-heads"])
def test_student_takes_exactly_those_layers_and_shares_no_memory(name):
    teacher = randomised(CONFIGS[name])
    student = student_from_teacher(teacher, [0, 3], seed=0).eval()
    assert student.config == replace(teacher.config, num_hidden_layers=2)
    for own, source in enumerate([0, 3]):
        assert_same_weights(student.encoder.layers[own], teacher.encoder.layers[source])
    assert_same_weights(student.encoder.embeddings, teacher.encoder.embeddings)
    assert_same_weights(student.pooler, teacher.pooler)
    assert not torch.equal(student.classifier.weight, teacher.classifier.weight)
    before = logits(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(logits(teacher), before)


def test_student_of_all_layers_computes_what_its_teacher_computes():
    teacher = randomised(CONFIGS["bert"])
    student = student_from_teacher(teacher, [0, 1], seed=0).eval()
    student.classifier.load_state_dict(teacher.classifier.state_dict())
    assert torch.equal(logits(student), logits(teacher))
    assert not torch.equal(logits(student_from_teacher(teacher, [1, 0], seed=0).eval()), logits(teacher))


@pytest.mark.parametrize("layers", [[], [4], [0, -1]])
def test_student_layers_that_do_not_exist_are_refused(layers):
    message = refusal(student_from_teacher, randomised(CONFIGS["bert-4-layers-5-heads"]), layers, 0)
    assert str(layers) in message and "numbered 0 to 3" in message


@pytest.mark.parametrize("name", ["some-model", "someone/some-model"])
def test_name_that_is_not_here_is_answered_offline_at_once_with_what_to_put_where(name):
    start = time.monotonic()
    message = refusal(from_pretrained, name)
    assert time.monotonic() - start < 5
    for part in (name, "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer.json"):
        assert part in message


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/model", "folder/"])
def test_path_that_does_not_exist_is_not_looked_for_on_the_hub(name):
    assert refusal(from_pretrained, name) == f"{name}: no such model folder"


def test_name_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "no such model folder" in refusal(from_pretrained, tmp_path / "file")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_model_fetched_earlier_is_found_offline_with_either_kind_of_weights(tmp_path, monkeypatch, weights):
    """The hub's cache as an earlier run leaves it: many older models have pytorch_model.bin alone."""
    from huggingface_hub import constants

    model, commit = randomised(CONFIGS["bert"]), "0123456789" * 4
    repository = tmp_path / "models--someone--some-model"
    snapshot = repository / "snapshots" / commit
    save_pretrained(model, snapshot)
    if weights == "pytorch_model.bin":
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / weights)
        (snapshot / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_folder("someone/some-model") == snapshot
    assert_same_weights(model, load_quietly("someone/some-model"))
    shutil.rmtree(repository)
    assert "someone/some-model" in refusal(model_folder, "someone/some-model")


@pytest.mark.parametrize("family", ["bert"])
def test_saving_again_replaces_the_files_whole(saved):
    model, folder = saved
    other = randomised(model.config, seed=11)
    save_pretrained(other, folder)
    assert_same_weights(other, load_quietly(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
