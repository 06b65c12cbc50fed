"""Texts without a label: where they come from, and that none of them is a validation or test text."""

import pytest

from minikd import Dataset, MinikdError, load_dataset
from minikd.losses import UNLABELLED

ROWS = [(f"the café opened; number {i:02}, again", ("bad", "good")[i % 2]) for i in range(40)]


def csv_file(path, rows):
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows), encoding="utf-8")
    return path


def test_rows_without_a_label_are_unlabelled_and_change_no_split(tmp_path, capsys):
    plain = load_dataset(csv_file(tmp_path / "a.csv", ROWS))
    rows = [("a new text", ""), *ROWS[:5], ("another one", " "), *ROWS[5:]]
    data = load_dataset(csv_file(tmp_path / "b.csv", rows), unlabelled=())
    assert data.unlabelled == ["a new text", "another one"] and plain.unlabelled == []
    assert (data.train, data.validation, data.test) == (plain.train, plain.validation, plain.test)
    assert "rows without a label: 2 unlabelled texts" in capsys.readouterr().out


def test_without_unlabelled_an_empty_label_is_refused_with_its_line(tmp_path):
    with pytest.raises(MinikdError, match="line 7: the label is empty"):
        load_dataset(csv_file(tmp_path / "a.csv", [*ROWS[:5], ("a new text", ""), *ROWS[5:]]))


def test_an_empty_label_in_a_test_file_is_always_refused(tmp_path):
    csv_file(tmp_path / "train.csv", ROWS)
    csv_file(tmp_path / "test.csv", [("one more", "good"), ("which?", "")])
    with pytest.raises(MinikdError, match="test.csv, line 3: the label is empty"):
        load_dataset(tmp_path, unlabelled=())


def test_a_file_in_which_no_row_has_a_label_is_refused(tmp_path):
    with pytest.raises(MinikdError, match="no row has a label"):
        load_dataset(csv_file(tmp_path / "a.csv", [(text, "") for text, _ in ROWS]), unlabelled=())


@pytest.mark.parametrize(
    "name, content",
    [
        ("more.txt", "one\n\n  two \n"),
        ("more.csv", "id,sentence\n1,one\n2,two\n"),
        ("more.tsv", "text\tlabel\none\tbad\ntwo\t\n"),
        ("more.jsonl", '{"text": "one"}\n{"text": "two", "label": 3}\n'),
    ],
)
def test_files_of_every_format_are_read_and_their_labels_ignored(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    data = load_dataset(csv_file(tmp_path / "a.csv", ROWS), unlabelled=[tmp_path / name, tmp_path / name])
    assert data.unlabelled == ["one", "two"] * 2


def test_a_text_column_is_looked_for_in_files_that_have_columns(tmp_path):
    (tmp_path / "a.csv").write_text("body,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS))
    (tmp_path / "more.txt").write_text("one\n")
    (tmp_path / "more.csv").write_text("text,body\nnot this,two\n")
    files = [tmp_path / "more.txt", tmp_path / "more.csv"]
    assert load_dataset(tmp_path / "a.csv", text_column="body", unlabelled=files).unlabelled == ["one", "two"]
    assert load_dataset("sample", text_column="body", unlabelled=files).unlabelled == ["one", "two"]
    for refused in ({"label_column": "body", "unlabelled": files}, {"text_column": "body", "unlabelled": ()}):
        with pytest.raises(MinikdError, match="sample is read as its authors wrote it"):
            load_dataset("sample", **refused)


def test_texts_of_validation_and_test_are_left_out_whatever_their_case_and_counted(tmp_path, capsys):
    data = load_dataset(csv_file(tmp_path / "a.csv", ROWS))
    held_out = data.validation.texts + data.test.texts
    (tmp_path / "more.txt").write_text("\n".join(["new", *(text.upper() for text in held_out), data.train.texts[0]]))
    capsys.readouterr()
    again = load_dataset(tmp_path / "a.csv", unlabelled=[tmp_path / "more.txt"])
    assert again.unlabelled == ["new", data.train.texts[0]]
    out = capsys.readouterr().out
    assert f"{len(held_out) + 2} unlabelled texts" in out
    assert f"{len(held_out)} unlabelled texts dropped because they also appear in validation or test" in out


def test_the_transfer_set_is_train_and_then_the_unlabelled_texts():
    texts, labels = zip(*ROWS)
    data = Dataset.from_examples(texts, labels, unlabelled=["one", "two"])
    assert data.transfer.texts == data.train.texts + ["one", "two"]
    assert data.transfer.labels == data.train.labels + [UNLABELLED] * 2
    assert Dataset.from_examples(texts, labels).transfer.texts == data.train.texts


@pytest.mark.parametrize("wrong", ["one text", [""], [3]])
def test_unlabelled_texts_must_be_texts(wrong):
    texts, labels = zip(*ROWS)
    with pytest.raises(MinikdError, match="unlabelled: every text must be a str"):
        Dataset.from_examples(texts, labels, unlabelled=wrong)


def test_the_reviews_of_imdb_without_a_label_are_in_order_of_their_id(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.datasets.imdb.UNLABELLED_COUNT", 11)
    folder = tmp_path / "imdb" / "aclImdb" / "train" / "unsup"
    folder.mkdir(parents=True)
    for i in range(11):
        (folder / f"{i}_0.txt").write_text(f"review<br />{i}")
    data = load_dataset(csv_file(tmp_path / "a.csv", ROWS), tmp_path, unlabelled=["imdb"])
    assert data.unlabelled == [f"review {i}" for i in range(11)]
    (folder / "10_0.txt").unlink()
    with pytest.raises(MinikdError, match="10 reviews in train/unsup, not 11"):
        load_dataset(tmp_path / "a.csv", tmp_path, unlabelled=["imdb"])


def test_sentences_of_imdb_are_whole_different_and_evenly_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.datasets.imdb.UNLABELLED_COUNT", 4)
    folder = tmp_path / "imdb" / "aclImdb" / "train" / "unsup"
    folder.mkdir(parents=True)
    reviews = [
        'He asked: "Why is it so?" Nobody<br />could say, not  even Mr. Smith. (This is one more!) Too short.',
        "NOBODY could say, not even Mr. Smith. It costs 3.50 at the door... Well, it is worth it",
        " ".join(["word"] * 31) + ". " + " ".join(["word"] * 30) + ".",
        "This is the last one.",
    ]
    for i, review in enumerate(reviews):
        (folder / f"{i}_0.txt").write_text(review)
    found = [
        'He asked: "Why is it so?"', "NOBODY could say, not even Mr.", "(This is one more!)",
        "It costs 3.50 at the door...", "Well, it is worth it", " ".join(["word"] * 30) + ".", "This is the last one.",
    ]  # fmt: skip

    def load():
        return load_dataset(csv_file(tmp_path / "a.csv", ROWS), tmp_path, unlabelled=["imdb-sentences"]).unlabelled

    assert load() == found
    monkeypatch.setattr("minikd.datasets.imdb.SENTENCES", 3)
    assert load() == [found[0], found[2], found[4]]
