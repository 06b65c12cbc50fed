"""What splits.py promises, on random data: repeated texts in other cases and spacings, and with conflicting labels."""

import random
import re
import time
from collections import Counter
from dataclasses import replace

import pytest

from minikd.datasets import Dataset, Split
from minikd.datasets.containment import containment_groups, normalize, words_of
from minikd.datasets.splits import hold_out, make_dataset
from minikd.errors import MinikdError

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
    return set(map(normalize, split.texts))


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
    divided = hold_out(whole, parts)
    assert len(divided) == parts + 1
    assert sum(map(pairs, divided), Counter()) == pairs(whole)
    assert all(is_subsequence(part, whole) for part in divided)
    assert_apart(*divided)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_set_aside_is_at_most_a_tenth_of_each_label_and_nearly_that(seed):
    whole = examples(seed, 400)
    totals = Counter(whole.labels)
    for part in hold_out(whole, 2)[1:]:
        taken = Counter(part.labels)
        for label, total in totals.items():
            wanted = max(1, round(total / 10))
            assert wanted - 1 <= taken[label] <= wanted  # a group of several may not fit into the last place


@pytest.mark.parametrize("seed", SEEDS)
def test_a_division_depends_on_the_texts_and_labels_and_not_on_their_order(seed):
    whole = examples(seed, 200)
    order = random.Random(seed).sample(range(200), 200)
    shuffled = Split([whole.texts[i] for i in order], [whole.labels[i] for i in order])
    for part, again in zip(hold_out(whole, 2), hold_out(shuffled, 2)):
        assert pairs(part) == pairs(again)


def given_splits(seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test with many texts in common."""
    words = WORDS[:4]
    return examples(seed, 300, words), examples(seed + 1000, 60, words), examples(seed + 2000, 60, words)


def made(train: Split, test: Split, validation: Split | None) -> Dataset:
    return make_dataset("corpus", LABELS, train, test, validation)


@pytest.mark.parametrize("seed", SEEDS)
def test_given_splits_lose_only_what_is_also_held_out_and_test_loses_nothing(seed):
    train, validation, test = given_splits(seed)
    data = made(train, test, validation)
    assert data.test == test
    assert_apart(data.train, data.validation, data.test)
    assert is_subsequence(data.train, train) and is_subsequence(data.validation, validation)
    assert identities(data.validation) == identities(validation) - identities(test)
    assert identities(data.train) == identities(train) - identities(test) - identities(validation)
    kept = [text for text in train.texts if normalize(text) in identities(data.train)]
    assert data.train.texts == kept  # every copy of a text that is kept at all
    assert len(kept) < len(train.texts)  # the data have texts in common, or the test would show nothing


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_validation_split_is_taken_from_train_alone(seed):
    train, _, test = given_splits(seed)
    data = made(train, test, None)
    assert data.test == test
    assert_apart(data.train, data.validation, data.test)
    kept = Counter({pair: n for pair, n in pairs(train).items() if normalize(pair[0]) not in identities(test)})
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
        data = make_dataset("corpus", LABELS, whole)
    except MinikdError as error:
        assert "corpus: " in str(error)
        return
    assert data.validation.texts and data.test.texts
    assert min(Counter(data.train.labels)[label] for label in range(CLASSES)) >= 2


def groups_by_definition(texts: list[str]) -> tuple[list[str], list[bool]]:
    """What `containment_groups` says, by comparing each text with each."""
    words = [f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} " for text in texts]
    names, shared = [], []
    for text, own in zip(texts, words):
        around = {other for other in words if own in other and own.strip()}
        around = {one for one in around if not any(one in other and one != other for other in around)}
        longest = min(around, key=lambda other: (-other.count(" "), other)) if around else None
        alike = [other for other, its in zip(texts, words) if its == longest] if around else [text]
        names.append(min(map(normalize, alike)))
        shared.append(len(around) > 1)
    return names, shared


@pytest.mark.parametrize("seed", range(40))
def test_groups_are_those_of_comparing_each_text_with_each(seed):
    rng = random.Random(seed)
    vocabulary, longest = rng.choice((1, 2, 3, 20)), rng.choice((2, 4, 12))
    words = [f"{letter}{i}" for i in range(vocabulary) for letter in "wW"]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, longest))) + rng.choice(("", "!", " .")) for _ in range(60)]
    assert containment_groups(texts) == groups_by_definition(texts)


def of_words(count: int, vocabulary: int, shortest: int, longest: int) -> list[str]:
    rng = random.Random(0)
    return [
        " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(shortest, longest))) for _ in range(count)
    ]


MANY = {
    "short texts": of_words(30_000, 200, 4, 8),
    "few different words": of_words(8_000, 20, 10, 20),
    "beginnings of one another": [" ".join(f"w{i}" for i in range(end)) for end in range(1, 1_500)],
    "one word, repeated": ["a " * count for count in range(1, 1_500)],
}


@pytest.mark.parametrize("kind", MANY)
def test_grouping_many_texts_takes_seconds(kind):
    start = time.process_time()
    containment_groups(MANY[kind])
    assert time.process_time() - start < 4


SENTENCE = "我们昨天在城里看了一部很好的电影但是没有买票"


@pytest.mark.parametrize(
    "part, whole",
    [
        ("resume", "My Résumé, attached"),
        ("NAÏVE", "a naive film"),
        ("e\u0301tude", "une étude"),
        ("看了一部", SENTENCE),
        ("电影", SENTENCE),
        ("film 电", f"the film{SENTENCE[14:]}"),
        ("straße", "die STRASSE"),
    ],
)
def test_a_part_is_found_whatever_its_accents_and_without_spaces_between_chinese_characters(part, whole):
    assert containment_groups([part, whole])[0] == [normalize(whole)] * 2


def test_words_are_those_of_an_uncased_tokenizer():
    assert words_of("Ça, c'est L’ÉTÉ!") == "ca c est l ete "
    assert words_of("GPT在2024年") == "gpt 在 2024 年 "
    assert words_of("Rock'n'Roll がく ...") == "rock n roll かく "


def test_no_phrase_of_a_chinese_sentence_is_set_aside_while_the_sentence_trains():
    rng = random.Random(0)
    texts = []
    for _ in range(60):
        sentence = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(12))
        texts += [sentence, sentence[2:6], sentence[7:]]
    train, *held_out = hold_out(Split(texts, [0, 1, 0] * 60), 2)
    assert all(part.texts for part in held_out)
    assert not [text for part in held_out for text in part.texts if any(text in other for other in train.texts)]
