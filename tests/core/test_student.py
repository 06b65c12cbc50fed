"""Where students start: layers of the teacher, published weights, or random ones; and that no two share an object."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, WORDS, spread

from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.classifier import TextClassifier
from minikd.cli.students import student_makers
from minikd.config import BERT_BASE, BERT_SMALL, EncoderConfig
from minikd.datasets import load_dataset
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_tokens
from minikd.inference import compute_logits
from minikd.model import Classifier, count_parameters
from minikd.student import PRETRAINED_SMALL, evenly_spaced_layers, has_bert_vocabulary, plan_student
from minikd.tokenizer import Tokenizer as WordPiece
from minikd.tokenizer import bert_wordpiece, train_wordpiece

DATA = SimpleNamespace(labels=("bad", "good"), validation=SimpleNamespace(texts=[]))
CPU = torch.device("cpu")


def flags(**given):
    """distill.py's flags for a teacher and data of the user's own."""
    own = dict(dataset="mine.csv", teacher="mine", student=None, student_layers=None, take_layers=None,
               student_hidden=None, student_init="auto", student_lora_rank=None, max_length=16, label_order=None,
               precision="fp32", seed=42, teacher_base=None, controls=False, no_baseline=True)  # fmt: skip
    return SimpleNamespace(**own | given)


def student_of(model, tokenizer, **given):
    """The function that makes distill.py's student of this teacher, what its first weights are, and its width."""
    teacher = model and TextClassifier(model, tokenizer, max_length=16, device=CPU, precision="fp32")
    students = student_makers(flags(**given), teacher, tokenizer, DATA, CPU)
    return students.distilled, students.first_weights["distilled"], students.config.hidden_size


def shape(teacher, layers, tokenizer):
    """The shape of a student with so many layers."""
    return plan_student(teacher, layers, bert_vocabulary=has_bert_vocabulary(tokenizer)).config


def wide_teacher(tokenizer, layers=5, **shape):
    """A 768-wide BERT, thin inside, for this tokenizer."""
    shape = dict(vocab_size=tokenizer.vocab_size, intermediate_size=32, num_hidden_layers=layers) | shape
    return Classifier(EncoderConfig(**shape, labels=DATA.labels))


def another_vocabulary(tokenizer):
    """A vocabulary of the same size, in which one token differs."""
    vocab = dict(tokenizer.vocab)
    vocab["ostseewelle"] = vocab.pop("film")
    return WordPiece(bert_wordpiece(vocab, {}))


def test_a_wide_teacher_of_another_vocabulary_gives_four_of_its_own_layers(minilm, capsys):
    tokenizer = train_wordpiece(WORDS * 3, 200)
    teacher = wide_teacher(tokenizer)
    for given in ({}, {"student_layers": 4}):
        layers = "layers [0, 1, 3, 4] and head of the fine-tuned teacher"
        new_student, words, width = student_of(teacher, tokenizer, **given)
        assert (words, width) == (layers, 768)
        assert capsys.readouterr().out == (
            f"student: 4 layers, 768 wide, first weights: {layers} (its vocabulary is not that of {PRETRAINED_SMALL})\n"
        )
        spread(teacher)  # fine-tuned in the meantime
        for own, taken in zip(new_student(42).model.encoder.layers, [0, 1, 3, 4], strict=True):
            weights = teacher.encoder.layers[taken].state_dict()
            assert all(torch.equal(tensor, weights[name]) for name, tensor in own.state_dict().items())


def test_a_wide_teacher_of_another_vocabulary_of_the_same_size_gives_its_own_layers_too(minilm, capsys):
    tokenizer = another_vocabulary(load_tokenizer(minilm))
    assert tokenizer.vocab_size == BERT_BASE.vocab_size
    teacher = wide_teacher(tokenizer, layers=4)
    assert student_of(teacher, tokenizer)[1] == "layers [0, 1, 2, 3] and head of the fine-tuned teacher"


@pytest.mark.parametrize("rows", [30522, 30528], ids=["as many rows as tokens", "rows to spare"])
def test_a_wide_teacher_of_the_published_vocabulary_means_the_published_student(minilm, monkeypatch, tmp_path, rows):
    from huggingface_hub import constants

    tokenizer, commit = load_tokenizer(minilm), "0123456789" * 4
    repository = tmp_path / f"models--{PRETRAINED_SMALL.replace('/', '--')}"  # the hub's cache
    snapshot = repository / "snapshots" / commit
    published = Classifier(BERT_SMALL)
    save_pretrained(published, snapshot)
    save_tokenizer(tokenizer, snapshot, "bert", 512)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with torch.device("meta"):
        teacher = wide_teacher(tokenizer, layers=1, vocab_size=rows)
    new_student, words, width = student_of(teacher, tokenizer, label_order=["bad", "good"])
    assert words == f"the weights of {PRETRAINED_SMALL}" and width == 512
    student = new_student(42).model
    assert student.config == replace(BERT_SMALL, labels=DATA.labels)
    weights = student.encoder.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in published.encoder.state_dict().items())


def test_published_weights_asked_for_with_another_vocabulary_are_refused(minilm):
    tokenizer = another_vocabulary(load_tokenizer(minilm))
    with torch.device("meta"):
        teacher = wide_teacher(tokenizer, layers=4)
    for given in ({}, {"student_hidden": 512}):
        with pytest.raises(MinikdError, match="^`student_init` pretrained: .* of this shape and vocabulary"):
            student_of(teacher, tokenizer, student_init="pretrained", **given)


@pytest.mark.parametrize("given,words", [
    ({"teacher": "oracle", "take_layers": [0, 1]}, "--teacher oracle: has no layers to take"),
    ({"teacher": "oracle", "student_init": "teacher"}, "--teacher oracle: has no layers to take"),
    ({"student_init": "random", "student_lora_rank": 2}, "--student-lora-rank: this student starts from random"),
    ({"student_init": "random", "take_layers": [0, 1]}, r"`take_layers` \[0, 1\]: this student takes no layers"),
    ({"take_layers": [0, 1], "student_layers": 3}, "--student-layers 3: --take-layers names 2"),
])  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(given, words):
    tokenizer = train_wordpiece(WORDS * 3, 200)
    teacher = None if "teacher" in given else wide_teacher(tokenizer, hidden_size=64, num_attention_heads=1)
    with pytest.raises(MinikdError, match=f"^{words}"):
        student_of(teacher, tokenizer, **{"dataset": "sample"} | given)


@pytest.mark.parametrize("given,words", [
    ({"layers": 6}, "`layers` 6: the teacher has 5 layers to take from; choose 1 to 5"),
    ({"layers": [0, 5]}, "`layers` [0, 5]: the teacher's layers are numbered 0 to 4"),
    ({"layers": [0, 1], "hidden": 32}, "`layers` [0, 1]: this student takes no layers of the teacher"),
    ({"init": "teacher", "hidden": 32}, "`init` teacher: the student is 32 wide and the teacher 64"),
    ({"init": "pretrained"}, "`init` pretrained: no published weights of this shape and vocabulary are known"),
    ({"init": "zeros"}, "`init` 'zeros': must be auto, teacher, pretrained or random"),
    ({"hidden": 33}, "`hidden` 33: must be a multiple of 32"),
])  # fmt: skip
def test_a_student_that_cannot_be_made_is_refused_by_the_name_of_the_setting(given, words):
    tokenizer = train_wordpiece(WORDS * 3, 200)
    teacher = wide_teacher(tokenizer, hidden_size=64, num_attention_heads=1)
    with pytest.raises(MinikdError) as refused:
        TextClassifier(teacher, tokenizer, device=CPU, precision="fp32").make_student(**given)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("hidden", [64, 512, 768])
@pytest.mark.parametrize("layers", [None, 1, 4, 5])
def test_a_student_is_random_only_where_the_user_asked_for_its_width_or_for_that(hidden, layers, capsys):
    tokenizer = train_wordpiece(WORDS * 3, 200)
    heads = dict(hidden_size=hidden, num_attention_heads=hidden // 64)
    for sizes in (heads, heads | dict(model_type="distilbert", type_vocab_size=0, classifier_dropout=0.2)):
        teacher = wide_teacher(tokenizer, **sizes)
        taken = evenly_spaced_layers(5, layers or 4)
        words = f"layers {taken} and head of the fine-tuned teacher"
        assert student_of(teacher, tokenizer, student_layers=layers)[1] == words
        assert f"first weights: {words}" in capsys.readouterr().out
        for given in ({"student_hidden": 32}, {"student_init": "random"}):
            given["student_layers"] = layers
            new_student, words, width = student_of(teacher, tokenizer, **given)
            assert words == "random weights" and "first weights: random" in capsys.readouterr().out
            config = new_student(42).model.config
            assert (config.num_hidden_layers, config.hidden_size) == (layers or 4, width)
            assert width == given.get("student_hidden", hidden)


@pytest.mark.parametrize("layers", [4, 6])
def test_a_student_keeps_the_padding_id_and_labels_of_its_teacher(minilm, layers):
    like = replace(BERT_BASE, pad_token_id=1, labels=("a", "b", "c"))
    config = shape(like, layers, load_tokenizer(minilm))
    assert (config.pad_token_id, config.labels) == (1, ("a", "b", "c"))
    assert config.hidden_size == {4: 512, 6: 768}[layers]


def test_named_student_shapes_have_the_published_sizes(minilm):
    tokenizer = load_tokenizer(minilm)  # of bert-base-uncased's vocabulary
    with torch.device("meta"):
        assert shape(BERT_BASE, 4, tokenizer) == BERT_SMALL
        assert count_parameters(Classifier(shape(BERT_BASE, 4, tokenizer))) == 28_764_674
        assert count_parameters(Classifier(shape(BERT_BASE, 6, tokenizer))) == 66_956_546
    small = replace(BERT_BASE, num_hidden_layers=6, hidden_size=384, intermediate_size=1536)
    assert shape(small, 4, tokenizer) == replace(small, num_hidden_layers=4)


def test_a_width_that_is_asked_for_is_given_even_where_a_published_student_has_another():
    assert plan_student(BERT_BASE, 4, bert_vocabulary=True).config.hidden_size == 512
    plan = plan_student(BERT_BASE, 4, hidden=768, bert_vocabulary=True)
    assert (plan.config.hidden_size, plan.init, plan.layers) == (768, "teacher", [0, 4, 7, 11])


def made_from(folder):
    return json.loads(Path(folder, "run.json").read_text())["made_from"]["initial_weights"]


@pytest.mark.parametrize("start", ["layers", "pretrained", "random"])
def test_every_student_starts_from_the_first_weights_of_its_seed_untouched_by_the_others(
    script, corpus, fine_tuned, bare, start
):
    own = {
        "layers": ["--student-layers", 2, "--teacher-base", bare],
        "pretrained": ["--student", bare],
        "random": ["--student-hidden", 32],
    }
    command = ["distill.py", "--dataset", corpus, "--teacher", fine_tuned, *own[start], "--alpha", 0, 0.9]
    assert script(*command, "--seeds", 2, *QUICK)[0] == 0
    output, second = Path("runs/films"), Path("runs/films/seed-43")
    first, second_first = made_from(output / "distilled"), made_from(second / "distilled")
    for name in ("sweep/alpha-0.0-T-2.0", "sweep/alpha-0.9-T-2.0"):
        assert made_from(output / name) == first, name
    baselines = made_from(output / "baseline"), made_from(second / "baseline")
    if start == "layers":  # the head is copied too: nothing of the distilled one is random
        assert first == second_first not in baselines and baselines[0] != baselines[1]
    else:
        assert baselines == (first, second_first) and first != second_first
    for folder in (output, second):  # the models in memory are those that were saved, not one object trained twice
        for name in ("distilled", "baseline"):
            assert predicted(folder / f"predictions-{name}.csv") == pytest.approx(
                saved(folder / name, corpus), abs=2e-6
            )


def predicted(path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["prob_good"]) for row in csv.DictReader(file)]


def saved(folder, corpus) -> list[float]:
    """The probabilities of a saved model on the corpus's test split."""
    model, test = from_pretrained(folder), load_dataset(corpus).test
    tokens = cached_tokens(test, load_tokenizer(folder), 16)
    return compute_logits(model, tokens, CPU, "fp32").softmax(dim=-1)[:, 1].tolist()
