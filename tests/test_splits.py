"""What splits.py promises, on random data: repeated texts in other cases and spacings, and with conflicting labels."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from minikd.datasets import Dataset, Split
from minikd.datasets.splits import assemble, divide, identity
from minikd.files import UserError

SEEDS = range(20)
CLASSES = 3
LABELS = ("a", "b", "c")
WORDS = "der die das film war gut schön straße lang a b c".split()


def variant(random, text: str) -> str:
    """The same text as an uncased tokenizer sees it."""
    text = random.choice((str, str.upper, str.title))(text)
    return random.choice((text, f" {text}", text.replace(" ", "  ", 1), text.replace(" ", "\u00a0", 1)))


def examples(seed: int, count: int, vocabulary=WORDS) -> Split:
    """Texts of six words, a quarter of them repeated. Of equal length, none contains another unless they are equal."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(vocabulary, k=6)) for _ in range(count * 3 // 4)]
    texts += [variant(rng, rng.choice(texts)) for _ in range(count - len(texts))]
    rng.shuffle(texts)
    return Split(texts, rng.choices(range(CLASSES), weights=(6, 3, 1), k=count))


def pairs(split: Split) -> Counter:
    return Counter(zip(split.texts, split.labels))


def identities(split: Split) -> set[str]:
    return set(map(identity, split.texts))


def assert_apart(*splits: Split):
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            assert not identities(one) & identities(other)


def is_subsequence(part: Split, whole: Split) -> bool:
    rest = iter(zip(whole.texts, whole.labels))
    return all(pair in rest for pair in zip(part.texts, part.labels))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_division_loses_nothing_repeats_nothing_and_parts_no_identical_texts(seed, parts):
    whole = examples(seed, 200)
    divided = divide(whole, parts)
    assert len(divided) == parts + 1
    assert sum(map(pairs, divided), Counter()) == pairs(whole)
    assert all(is_subsequence(part, whole) for part in divided)
    assert_apart(*divided)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_set_aside_is_at_most_a_tenth_of_each_label_and_nearly_that(seed):
    whole = examples(seed, 400)
    totals = Counter(whole.labels)
    for part in divide(whole, 2)[1:]:
        taken = Counter(part.labels)
        for label, total in totals.items():
            wanted = max(1, round(total / 10))
            assert wanted - 1 <= taken[label] <= wanted  # a group of several may not fit into the last place


@pytest.mark.parametrize("seed", SEEDS)
def test_a_division_depends_on_the_texts_and_labels_and_not_on_their_order(seed):
    whole = examples(seed, 200)
    order = random.Random(seed).sample(range(200), 200)
    shuffled = Split([whole.texts[i] for i in order], [whole.labels[i] for i in order])
    for part, again in zip(divide(whole, 2), divide(shuffled, 2)):
        assert pairs(part) == pairs(again)


def given_splits(seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test with many texts in common."""
    words = WORDS[:4]
    return examples(seed, 300, words), examples(seed + 1000, 60, words), examples(seed + 2000, 60, words)


def made(train: Split, test: Split, validation: Split | None) -> Dataset:
    return assemble("corpus", LABELS, train, test, validation)


@pytest.mark.parametrize("seed", SEEDS)
def test_given_splits_lose_only_what_is_also_held_out_and_test_loses_nothing(seed):
    train, validation, test = given_splits(seed)
    data = made(train, test, validation)
    assert data.test == test
    assert_apart(data.train, data.validation, data.test)
    assert is_subsequence(data.train, train) and is_subsequence(data.validation, validation)
    assert identities(data.validation) == identities(validation) - identities(test)
    assert identities(data.train) == identities(train) - identities(test) - identities(validation)
    kept = [text for text in train.texts if identity(text) in identities(data.train)]
    assert data.train.texts == kept  # every copy of a text that is kept at all
    assert len(kept) < len(train.texts)  # the data have texts in common, or the test would show nothing


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_validation_split_is_taken_from_train_alone(seed):
    train, _, test = given_splits(seed)
    data = made(train, test, None)
    assert data.test == test
    assert_apart(data.train, data.validation, data.test)
    kept = Counter({pair: n for pair, n in pairs(train).items() if identity(pair[0]) not in identities(test)})
    assert pairs(data.train) + pairs(data.validation) == kept


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_validation", [True, False])
def test_poisoned_test_labels_change_nothing_but_the_test_split(seed, with_validation):
    train, validation, test = given_splits(seed)
    validation = validation if with_validation else None
    honest = made(train, test, validation)
    poisoned = made(train, Split(test.texts, [(label + 1) % CLASSES for label in test.labels]), validation)
    assert replace(poisoned, test=test) == honest and poisoned.test != test


@pytest.mark.parametrize("seed", SEEDS)
def test_poisoned_validation_labels_change_nothing_in_train(seed):
    train, validation, test = given_splits(seed)
    honest = made(train, test, validation)
    poisoned = made(train, test, Split(validation.texts, [(label + 1) % CLASSES for label in validation.labels]))
    assert replace(poisoned, validation=honest.validation) == honest


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_the_test_split_changes_nothing_in_train_and_validation(seed):
    train, validation, test = given_splits(seed)
    reversed_ = made(train, Split(test.texts[::-1], test.labels[::-1]), validation)
    assert replace(reversed_, test=test) == made(train, test, validation)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_split_that_would_be_empty_or_lack_a_label_is_refused_and_never_returned(seed):
    rng = random.Random(seed)
    whole = examples(seed, rng.randrange(4, 30))
    try:
        data = assemble("corpus", LABELS, whole)
    except UserError as error:
        assert "corpus: " in str(error)
        return
    assert data.validation.texts and data.test.texts
    assert min(Counter(data.train.labels)[label] for label in range(CLASSES)) >= 2
