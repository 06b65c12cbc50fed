"""The simple baseline: which words it knows, what chooses its penalty, and that it is the same every time."""

from collections import Counter

import numpy as np
import pytest
import torch

import minikd.evaluation.bag_of_words
from minikd.datasets import Dataset, Split
from minikd.evaluation.bag_of_words import bag_of_words


def noisy(random, count):
    """Texts of four words of 40; one word tells the label of six in ten."""
    texts = [" ".join(f"w{i}" for i in random.choice(40, 4)) for _ in range(count)]
    return Split(texts, [int(("w1" in text.split()) ^ (random.random() < 0.4)) for text in texts])


def test_a_word_of_a_single_training_text_is_not_known_however_often_it_occurs_there():
    once = Split([f"film solo{i} solo{i}" for i in range(60)], [i % 2 for i in range(60)])
    assert bag_of_words(Dataset("once", ("bad", "good"), once, once, once))["accuracy"] == 0.5
    twice = Split(once.texts * 2, once.labels * 2)
    assert bag_of_words(Dataset("twice", ("bad", "good"), twice, once, once))["accuracy"] == 1.0


@pytest.fixture
def models(monkeypatch):
    """The models that are made, one for each penalty."""
    made, bag = [], torch.nn.EmbeddingBag
    monkeypatch.setattr(
        minikd.evaluation.bag_of_words.nn,
        "EmbeddingBag",
        lambda *size, **more: made.append(bag(*size, **more)) or made[-1],
    )
    return made


def test_the_vocabulary_ends_at_50000_words(models):
    text = " ".join(f"w{i}" for i in range(50_010))
    split = Split([text, text, "w1 w2"], [0, 1, 0])
    bag_of_words(Dataset("long", ("bad", "good"), split, split, split), epochs=1)
    assert [model.weight.shape for model in models] == [(50_001, 2)] * 3  # one row more, the intercept


def test_words_of_one_count_are_in_the_order_of_their_letters(monkeypatch):
    """Or the 50,000 that are kept would differ from process to process, as the order of a set does."""
    counted = []
    monkeypatch.setattr(Counter, "most_common", lambda counts, most: counted.extend(counts) or list(counts.items()))
    text = " ".join(f"w{i}" for i in range(1000))
    split = Split([text, text], [0, 1])
    bag_of_words(Dataset("long", ("bad", "good"), split, split, split), epochs=1)
    assert counted == sorted(text.split())


def test_how_often_a_word_occurs_in_a_text_does_not_count():
    split = Split(["good film", "good good film"] * 50, [0, 1] * 50)
    assert bag_of_words(Dataset("often", ("bad", "good"), split, split, split), epochs=150)["accuracy"] == 0.5


def test_a_larger_penalty_leaves_smaller_weights(models):
    random = np.random.default_rng(0)
    splits = [noisy(random, count) for count in (60, 30, 30)]
    bag_of_words(Dataset("noisy", ("bad", "good"), *splits), epochs=100)
    norms = [model.weight.norm().item() for model in models]
    assert norms[0] > norms[1] > norms[2] > 1


def test_no_test_label_chooses_the_penalty():
    random = np.random.default_rng(0)
    train, validation, test = (noisy(random, count) for count in (60, 30, 400))
    turned = Split(test.texts, [1 - label for label in test.labels])
    data = [Dataset("noisy", ("bad", "good"), train, validation, split) for split in (test, turned)]
    honest, poisoned = (bag_of_words(one, epochs=400, batch_size=60)["accuracy"] for one in data)
    assert honest + poisoned == pytest.approx(1)  # the same predictions


def test_the_figures_depend_on_nothing_but_the_data():
    random, figures = np.random.default_rng(0), []
    splits = [noisy(random, count) for count in (300, 30, 400)]
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        figures.append(bag_of_words(Dataset("noisy", ("bad", "good"), *splits)))
    assert figures[0] == figures[1] == figures[2]


def test_the_intercept_learns_the_shares_of_the_labels():
    split = Split(["film"] * 2 + ["?"] * 8, [0] * 2 + [1] * 8)  # texts without any word
    assert bag_of_words(Dataset("odd", ("bad", "good"), split, split, split))["recall"] == 1.0
