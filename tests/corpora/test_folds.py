"""What folds.py promises, on random data with repeated texts, and with texts that one or several others contain."""

import random
from collections import Counter

import pytest
from test_splits import CLASSES, LABELS, assert_apart, examples, identities, pairs

from minikd.datasets import Dataset, Split, data_fingerprint, load_dataset
from minikd.datasets.containment import words_of
from minikd.datasets.folds import folds
from minikd.datasets.splits import make_dataset
from minikd.errors import MinikdError

SEEDS = range(6)


def with_parts(seed: int, count: int) -> Split:
    """`examples`, and beginnings of two to four words: some in one text alone, the two-word ones in several."""
    whole, rng = examples(seed, count), random.Random(seed)
    parts = [" ".join(rng.choice(whole.texts).split()[: rng.randint(2, 4)]) for _ in range(count // 10)]
    return Split(whole.texts + parts, whole.labels + rng.choices(range(CLASSES), weights=(6, 3, 1), k=len(parts)))


def divided(whole: Split) -> Dataset:
    return make_dataset("films", LABELS, whole)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("K", [2, 5, 10])
def test_every_example_is_tested_once_by_models_that_have_seen_nothing_of_it(seed, K):
    whole = with_parts(seed, 300)
    made = folds(divided(whole), K)
    assert len(made) == K
    assert sorted(i for fold in made for i in fold.test.positions) == list(range(len(whole.texts)))
    for fold in made:
        assert_apart(fold.train, fold.validation, fold.test)
        for split in (fold.train, fold.validation, fold.test):
            assert split.texts == [whole.texts[i] for i in split.positions]
            assert split.labels == [whole.labels[i] for i in split.positions]
            assert split.positions == sorted(split.positions)
        around = [f" {words_of(text)}" for text in fold.train.texts]
        for held_out, others in ((fold.test, fold.validation), (fold.validation, Split([], []))):
            texts = around + [f" {words_of(text)}" for text in others.texts]
            assert not [text for text in held_out.texts if any(f" {words_of(text)}" in other for other in texts)]


def test_the_data_of_these_tests_have_texts_that_several_groups_contain(capsys):
    folds(divided(with_parts(0, 300)), 5)
    assert "texts are left out of training because a test text appears inside them\n" in capsys.readouterr().out


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_are_tested_together_and_the_rest_is_trained_on(seed):
    whole = examples(seed, 300)  # no text is a part of another, so that nothing is left out
    for fold in folds(divided(whole), 5):
        assert pairs(fold.train) + pairs(fold.validation) + pairs(fold.test) == pairs(whole)
        assert not identities(fold.test) & (identities(fold.train) | identities(fold.validation))


@pytest.mark.parametrize("K", [2, 3, 7, 10])
def test_labels_and_sizes_differ_by_at_most_one_example_between_folds(K):
    rng = random.Random(K)
    texts = [f"{word} {i}" for i, word in enumerate(rng.choices("great dull slow".split(), k=503))]
    texts += texts[:20]  # pairs of copies, with labels that may differ
    whole = Split(texts, rng.choices(range(CLASSES), weights=(60, 30, 10), k=len(texts)))
    made = folds(divided(whole), K)
    for label, count in Counter(whole.labels).items():
        assert {Counter(fold.test.labels)[label] for fold in made} <= {count // K, -(-count // K)}
    sizes = [len(fold.test.texts) for fold in made]
    assert max(sizes) - min(sizes) <= 2
    for fold in made:
        rest = Counter(fold.train.labels) + Counter(fold.validation.labels)
        assert all(abs(fold.validation.labels.count(label) - n / 10) <= 1 for label, n in rest.items())


def test_large_groups_are_dealt_first_so_that_the_others_can_level_the_folds():
    rng = random.Random(0)
    texts = [f"film {i} {word}" for i, word in enumerate(rng.choices("great dull".split(), k=200))]
    texts += [text for i, text in enumerate(texts[:8]) for _ in range(5 * i + 4)]  # eight groups of 5 to 40 copies
    made = folds(make_dataset("films", ("good",), Split(texts, [0] * len(texts))), 5)
    sizes = [len(fold.test.texts) for fold in made]
    assert max(sizes) - min(sizes) <= 1


def test_the_folds_are_different_data_sets_also_in_what_they_validate_on():
    made = folds(divided(examples(0, 400)), 5)
    assert len({data_fingerprint(fold) for fold in made}) == 5
    validated = Counter(text for fold in made for text in identities(fold.validation))
    assert len(validated) > 0.7 * sum(validated.values())  # one draw for all folds would repeat nearly all of them


@pytest.mark.parametrize("seed", SEEDS)
def test_folds_depend_on_the_texts_and_labels_and_not_on_their_order(seed):
    whole = with_parts(seed, 200)
    order = random.Random(seed).sample(range(len(whole.texts)), len(whole.texts))
    shuffled = Split([whole.texts[i] for i in order], [whole.labels[i] for i in order])
    for fold, again in zip(folds(divided(whole), 4), folds(divided(shuffled), 4), strict=True):
        for name in ("train", "validation", "test"):
            one, other = getattr(fold, name), getattr(again, name)
            assert identities(one) == identities(other) and Counter(one.labels) == Counter(other.labels)


def test_a_file_of_ones_own_and_examples_from_python_have_the_same_folds(tmp_path):
    whole = examples(1, 100)
    names = [LABELS[label] for label in whole.labels]
    rows = [f'"{text}",{name}\n' for text, name in zip(whole.texts, names)]
    (tmp_path / "films.csv").write_text("".join(["text,label\n", *rows]), encoding="utf-8")
    own = folds(load_dataset(tmp_path / "films.csv"), 3)
    made = folds(Dataset.from_examples([text.strip() for text in whole.texts], names), 3)
    assert list(map(data_fingerprint, own)) == list(map(data_fingerprint, made))
    assert {fold.name for fold in own} == {"films"}


def test_data_with_a_test_set_of_their_own_are_refused():
    whole, other = examples(0, 100), examples(1, 50)
    for data in (load_dataset("sample"), make_dataset("films", LABELS, whole, other)):
        with pytest.raises(MinikdError, match=f"`folds`: {data.name} has a test set of its own, which is the one to"):
            folds(data, 5)


def test_a_fold_without_an_example_of_a_label_is_refused():
    texts = [f"film {i}" for i in range(40)]
    data = Dataset.from_examples(texts, ["good"] * 33 + ["bad"] * 7)
    assert all(0 in fold.test.labels for fold in folds(data, 7))
    for K in (1, 8):
        with pytest.raises(MinikdError, match=f"`folds` {K}: .* label 'bad', the rarest, has 7: each fold must test"):
            folds(data, K)


def test_a_fold_that_leaves_too_few_examples_to_train_is_refused():
    texts = [f"film {i}" for i in range(40)]
    few = make_dataset("few", ("bad", "good"), Split(texts, [0] * 3 + [1] * 37), minimum=0)
    with pytest.raises(MinikdError, match="few, fold 1 of 2: 0 of its examples are left to train label 'bad'"):
        folds(few, 2)
