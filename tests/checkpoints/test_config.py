"""config.json of both families: what is read, what is written, what is refused."""

import json
from dataclasses import fields, replace

import pytest
import transformers
from equality import CONFIGS

from minikd.checkpoints.config_json import DISTILBERT_NAMES, config_from_json, config_to_json, read_config
from minikd.config import BERT_BASE, BERT_SMALL, DISTILBERT, EncoderConfig, bert_like, same_shape
from minikd.errors import MinikdError

# The fields of the published files.
BERT_BASE_UNCASED = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
BERT_SMALL_2019 = {
    "hidden_size": 512, "hidden_act": "gelu", "initializer_range": 0.02, "vocab_size": 30522,
    "hidden_dropout_prob": 0.1, "num_attention_heads": 8, "type_vocab_size": 2, "max_position_embeddings": 512,
    "num_hidden_layers": 4, "intermediate_size": 2048, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
DISTILBERT_BASE_UNCASED = {
    "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
    "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
    "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
}  # fmt: skip


def read(tmp_path, content) -> EncoderConfig:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_config(path)


def refusal(load, *arguments, **options) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(MinikdError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("published", "named"), [
    (BERT_BASE_UNCASED, BERT_BASE), (BERT_SMALL_2019, BERT_SMALL), (DISTILBERT_BASE_UNCASED, DISTILBERT),
], ids=["bert-base-uncased", "bert_uncased_L-4_H-512_A-8", "distilbert-base-uncased"])  # fmt: skip
def test_published_files_are_the_named_shapes(tmp_path, published, named):
    assert read(tmp_path, published) == named


def test_real_file_of_minilm_is_read(minilm):
    expected = replace(BERT_BASE, num_hidden_layers=6, hidden_size=384, intermediate_size=1536)
    assert read_config(minilm / "config.json") == expected


def test_family_of_an_old_file_without_model_type_is_told_by_its_field_names(tmp_path):
    old = {name: value for name, value in DISTILBERT_BASE_UNCASED.items() if name != "model_type"}
    assert read(tmp_path, old) == DISTILBERT
    assert read(tmp_path, BERT_SMALL_2019).model_type == "bert"


def test_labels_come_from_id2label_in_the_order_of_their_numbers(tmp_path):
    names = {str(i): f"name{i}" for i in range(12)}
    shuffled = {i: names[i] for i in sorted(names)}  # "10" before "2", the order of text in some files
    assert read(tmp_path, BERT_BASE_UNCASED | {"id2label": shuffled}).labels == tuple(names.values())


@pytest.mark.parametrize("field", ["num_labels", "_num_labels"])
def test_labels_of_files_without_names_are_generic(tmp_path, field):
    assert read(tmp_path, BERT_BASE_UNCASED | {field: 3}).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read(tmp_path, BERT_BASE_UNCASED).labels == ("LABEL_0", "LABEL_1")


def test_missing_fields_have_the_defaults_of_their_family(tmp_path):
    assert read(tmp_path, {"model_type": "bert"}) == BERT_BASE
    assert read(tmp_path, {"model_type": "distilbert"}) == DISTILBERT


def test_null_fields_mean_the_default(tmp_path):
    assert read(tmp_path, BERT_BASE_UNCASED | {"layer_norm_eps": None, "classifier_dropout": None}) == BERT_BASE
    assert read(tmp_path, BERT_BASE_UNCASED | {"problem_type": None, "position_embedding_type": None}) == BERT_BASE


@pytest.mark.parametrize("published", [BERT_BASE_UNCASED, DISTILBERT_BASE_UNCASED])
def test_null_padding_means_no_row_for_padding_as_in_transformers(tmp_path, published):
    config = read(tmp_path, published | {"pad_token_id": None})
    assert config.pad_token_id is None and config_to_json(config)["pad_token_id"] is None
    assert transformers.AutoConfig.from_pretrained(tmp_path).pad_token_id is None
    assert read(tmp_path, config_to_json(config)) == config
    without = {name: value for name, value in published.items() if name != "pad_token_id"}
    assert read(tmp_path, without).pad_token_id == 0


def test_fields_of_bert_in_a_distilbert_file_are_ignored_as_transformers_ignores_them(tmp_path):
    assert read(tmp_path, DISTILBERT_BASE_UNCASED | {"type_vocab_size": 2, "layer_norm_eps": 1e-5}) == DISTILBERT


VARIED = {  # no value is its family's default
    "bert": EncoderConfig(
        vocab_size=100, hidden_size=30, num_hidden_layers=3, num_attention_heads=5, intermediate_size=70,
        max_position_embeddings=64, type_vocab_size=1, hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.15,
        classifier_dropout=0.25, layer_norm_eps=1e-5, initializer_range=0.03, pad_token_id=7, labels=("x", "y", "z"),
    ),
    "distilbert": EncoderConfig(
        model_type="distilbert", vocab_size=100, hidden_size=30, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=70, max_position_embeddings=64, type_vocab_size=0, hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.15, classifier_dropout=0.25, initializer_range=0.03, pad_token_id=7,
        labels=("x", "y", "z"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", [*CONFIGS.values(), *VARIED.values(), BERT_BASE, DISTILBERT])
def test_to_dict_and_from_dict_are_inverses_also_through_json(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize("family", VARIED)
def test_transformers_reads_the_same_values_from_what_we_write(family):
    config = VARIED[family]
    theirs = transformers.AutoConfig.for_model(**config_to_json(config))
    names = DISTILBERT_NAMES if family == "distilbert" else {}
    for field in fields(EncoderConfig):
        constant = family == "distilbert" and field.name in ("type_vocab_size", "layer_norm_eps")
        if field.name not in ("labels", "quantization") and not constant:
            assert getattr(theirs, names.get(field.name, field.name)) == getattr(config, field.name), field.name
    assert theirs.id2label == {0: "x", 1: "y", 2: "z"} and theirs.label2id == {"x": 0, "y": 1, "z": 2}
    assert theirs.num_labels == 3 and getattr(theirs, names.get("hidden_act", "hidden_act")) == "gelu"


@pytest.mark.parametrize("family", VARIED)
def test_we_read_the_same_values_from_what_transformers_writes(family, tmp_path):
    config = VARIED[family]
    theirs = transformers.AutoConfig.for_model(**config_to_json(config))
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(("published", "change", "named"), [
    (BERT_BASE_UNCASED, {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
    (BERT_BASE_UNCASED, {"hidden_act": "relu"}, "hidden_act 'relu'"),
    (DISTILBERT_BASE_UNCASED, {"activation": "relu"}, "activation 'relu'"),
    (BERT_BASE_UNCASED, {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    (BERT_BASE_UNCASED, {"is_decoder": True}, "is_decoder True"),
    (BERT_BASE_UNCASED, {"add_cross_attention": True}, "add_cross_attention True"),
    (BERT_BASE_UNCASED, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    (BERT_BASE_UNCASED, {"problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification'"),
    (BERT_BASE_UNCASED, {"problem_type": "regression"}, "problem_type 'regression'"),
    (BERT_BASE_UNCASED, {"model_type": "roberta"}, "model_type 'roberta'"),
    (BERT_BASE_UNCASED, {"num_attention_heads": 7}, "hidden_size 768 is not divisible by num_attention_heads 7"),
    (BERT_BASE_UNCASED, {"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
    (BERT_BASE_UNCASED, {"intermediate_size": 0}, "intermediate_size must be at least 1"),
    (BERT_BASE_UNCASED, {"hidden_size": "768"}, "hidden_size must be a whole number"),
    (BERT_BASE_UNCASED, {"vocab_size": 1.5}, "vocab_size must be a whole number"),
    (BERT_BASE_UNCASED, {"pad_token_id": 30522}, "pad_token_id 30522 is not below vocab_size 30522"),
    (BERT_BASE_UNCASED, {"layer_norm_eps": "small"}, "layer_norm_eps must be a number"),
    (BERT_BASE_UNCASED, {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be a probability"),
    (DISTILBERT_BASE_UNCASED, {"seq_classif_dropout": "x"}, "classifier_dropout must be a probability"),
    (BERT_BASE_UNCASED, {"id2label": {"0": "same", "1": "same"}}, "two or more different labels"),
    (BERT_BASE_UNCASED, {"id2label": {"zero": "a", "one": "b"}}, "is not a model's config.json"),
])  # fmt: skip
def test_what_is_not_implemented_is_refused_by_the_name_of_the_file_and_the_field(tmp_path, published, change, named):
    message = refusal(read, tmp_path, published | change)
    assert str(tmp_path / "config.json") in message and named in message


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"7", b"\xff"], ids=["empty", "cut", "list", "7", "bytes"])
def test_broken_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json: is not a model's config.json" in refusal(read_config, tmp_path / "config.json")


def test_missing_file_is_refused_by_name(tmp_path):
    assert "config.json: cannot be read" in refusal(read_config, tmp_path / "config.json")


def test_distilbert_with_segments_is_refused():
    assert "type_vocab_size" in refusal(EncoderConfig, model_type="distilbert")


def test_config_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        BERT_BASE.hidden_size = 1
    assert BERT_BASE.with_labels(["a", "b"]).labels == ("a", "b") and BERT_BASE.labels == ("LABEL_0", "LABEL_1")


def test_a_new_shape_has_berts_proportions_and_the_vocabulary_positions_and_labels_of_another():
    like = VARIED["bert"]
    for hidden, heads in ((32, 1), (96, 3), (448, 14), (512, 8), (544, 17), (768, 12)):
        assert bert_like(hidden, 3, like) == EncoderConfig(
            hidden_size=hidden, num_hidden_layers=3, num_attention_heads=heads, intermediate_size=4 * hidden,
            vocab_size=100, max_position_embeddings=64, pad_token_id=7, labels=("x", "y", "z"),
        )  # fmt: skip
    for hidden in (31, 100, 513):
        assert f"`hidden` {hidden}: must be a multiple of 32" in refusal(bert_like, hidden, 3, like)


def test_a_shape_is_another_where_a_weight_or_its_use_by_heads_is_and_not_by_labels_and_dropouts():
    one = VARIED["bert"]
    others = {"vocab_size": 101, "hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 6,
              "intermediate_size": 71, "max_position_embeddings": 65, "type_vocab_size": 2}  # fmt: skip
    assert not [name for name, value in others.items() if same_shape(one, replace(one, **{name: value}))]
    without = replace(one, type_vocab_size=0, layer_norm_eps=1e-12)  # as DistilBERT has none
    assert same_shape(one, one) and not same_shape(without, replace(without, model_type="distilbert"))
    alike = {"labels": ("a", "b"), "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    assert same_shape(one, replace(one, classifier_dropout=0.3, **alike))
