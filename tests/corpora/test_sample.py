"""The embedded corpus: its files, its size, its known probabilities and its loader."""

import csv
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from minikd.datasets import Split, sample
from minikd.errors import MinikdError

NAMES = ("train", "validation", "test")
GENERATOR = sample.FOLDER / "generate.py"


@pytest.fixture(scope="module")
def dataset():
    return sample.load()


def splits(dataset):
    return [getattr(dataset, name) for name in NAMES]


def words(text):
    return re.findall(r"\w+", text.lower())


def test_generator_reproduces_the_committed_files_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, GENERATOR, "--output", tmp_path / "new"], check=True, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"{name}.csv" for name in NAMES)
    for name in NAMES:
        assert (tmp_path / "new" / f"{name}.csv").read_bytes() == (sample.FOLDER / f"{name}.csv").read_bytes(), name


def test_corpus_has_the_promised_size(dataset):
    assert [len(split.texts) >= least for split, least in zip(splits(dataset), (4000, 1000, 2000))] == [True] * 3
    assert sum((sample.FOLDER / f"{name}.csv").stat().st_size for name in NAMES) < 1_500_000
    assert 11 <= np.mean([len(words(text)) for text in dataset.train.texts]) <= 22  # short, so that training is quick


def test_vocabulary_is_several_hundred_words_and_train_knows_them_all(dataset):
    train, validation, test = ({word for text in split.texts for word in words(text)} for split in splits(dataset))
    assert 300 <= len(train) <= 1000
    assert validation | test <= train


def test_no_text_stands_twice_in_the_corpus(dataset):
    texts = [" ".join(words(text)) for split in splits(dataset) for text in split.texts]
    assert len(set(texts)) == len(texts)


def test_labels_fall_as_often_as_their_probabilities_say(dataset):
    for split in splits(dataset):
        labels, p = np.array(split.labels), split.probabilities[:, 1].astype(float)
        for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01)):
            inside = (p >= low) & (p < high)
            noise = np.sqrt((p[inside] * (1 - p[inside])).sum())  # standard deviation of the number of positives
            assert abs(labels[inside].sum() - p[inside].sum()) < 4 * noise
    assert 0.47 < np.mean(dataset.train.labels) < 0.53


def test_p_positive_has_four_decimals_and_is_never_certain():
    with open(sample.FOLDER / "train.csv", newline="", encoding="utf-8") as file:
        column = [row["p_positive"] for row in csv.DictReader(file)]
    assert all(re.fullmatch(r"0\.\d{4}", p) and 0 < float(p) < 1 for p in column)


def test_best_possible_accuracy_leaves_room_for_noise_but_not_much(dataset):
    for split in splits(dataset):
        drawn, expected = sample.bayes_accuracy(split), split.probabilities.max(axis=1).mean()
        assert abs(drawn - expected) < 4 * 0.5 / len(split.labels) ** 0.5
        assert 0.82 < expected < 0.95


def test_bayes_accuracy_counts_the_drawn_labels():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    assert sample.bayes_accuracy(Split(list("abcd"), [0, 1, 1, 1], probabilities)) == 0.75
    even = np.full((4, 2), 0.5, np.float32)
    assert sample.bayes_accuracy(Split(list("abcd"), [0, 0, 0, 1], even)) == 0.75  # p = 0.5 is answered negative
    with pytest.raises(ValueError):
        sample.bayes_accuracy(Split(["a"], [0]))


@pytest.mark.parametrize(
    ("name", "sentence", "value"),
    [
        ("clause", "the plot was never good", -0.75),
        ("clause", "the plot is very good", 1.5),
    ],
)
def test_grammar_writes_the_values_that_it_documents(name, sentence, value):
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    grammar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grammar)
    for seed in range(200_000):
        text, found = getattr(grammar, name)(grammar.Dice(seed), 1 if value > 0 else -1)
        if text == sentence:
            assert found == value
            return
    pytest.fail(f"the grammar never wrote {sentence!r}")


def test_loader_gives_labels_and_probabilities_of_equal_length(dataset):
    assert (dataset.name, dataset.labels) == ("sample", ("negative", "positive"))
    for split in splits(dataset):
        assert len(split.texts) == len(split.labels)
        assert split.probabilities.shape == (len(split.texts), 2) and split.probabilities.dtype == np.float32
        assert np.allclose(split.probabilities.sum(axis=1), 1)
        assert set(split.labels) == {0, 1}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"text,label\nfine,positive\n", "line 1, which must name the columns: no label column 'p_positive'"),
        (b"", "is empty"),
        (b"text,label,p_positive\n", "has no examples"),
        (b"text,label,p_positive\nfine,positive,0.9\nfine,positive\n", "line 3: 2 fields"),
        (b"text,label,p_positive\n ,positive,0.9\n", "line 2: the text is empty"),
        (b"text,label,p_positive\nfine,good,0.9\n", "line 2: the label 'good'"),
        (b"text,label,p_positive\nfine,positive,often\n", "line 2: p_positive is often"),
        (b"text,label,p_positive\nfine,positive,nan\n", "line 2: p_positive is nan"),
        (b"text,label,p_positive\nfine,positive,1.5\n", "line 2: p_positive is 1.5"),
        (b"text,p_positive\nfine,0.9\n", "no label column"),
        (b'text,label,p_positive\n"fine,positive,0.9\n', "line 2: unexpected end"),
        (b"text,label,p_positive\n\xff,positive,0.9\n", "line 2: not UTF-8"),
    ],
)
def test_broken_file_is_refused_with_one_line_that_names_it(tmp_path, content, complaint):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(MinikdError) as error:
        sample.load(tmp_path)
    message = str(error.value)
    assert "train.csv" in message and complaint in message and "\n" not in message


def test_missing_file_is_refused_with_one_line_that_says_what_to_run(tmp_path):
    with pytest.raises(MinikdError, match=r"train\.csv cannot be read: .*generate\.py"):
        sample.load(tmp_path)
