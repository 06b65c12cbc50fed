"""The corpus loaders: what they read, what they keep apart, what they refuse. MINIKD_DATA=DIR adds real archives."""

import hashlib
import http.server
import io
import json
import os
import random
import re
import tarfile
import threading
import zipfile
from collections import Counter

import pytest

from minikd.datasets import Dataset, Split, data_fingerprint, load_dataset
from minikd.datasets.archive import Source, download, locate
from minikd.datasets.splits import containment_groups, hold_out, make_dataset
from minikd.errors import MinikdError

REAL = os.environ.get("MINIKD_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="MINIKD_DATA names no folder with the real archives")


def refusal(load, *arguments, **options) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(MinikdError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def plain(texts) -> set[str]:
    return {" ".join(text.lower().split()) for text in texts}


def assert_kept_apart(dataset: Dataset):
    train, validation, test = (plain(split.texts) for split in (dataset.train, dataset.validation, dataset.test))
    assert not train & test and not train & validation and not validation & test
    for split in (dataset.train, dataset.validation, dataset.test):
        assert len(split.texts) == len(split.labels) and all(split.texts)
        assert set(split.labels) == set(range(len(dataset.labels)))


# --- splits ---------------------------------------------------------------------------------------


def numbered(counts, name="text") -> Split:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Split([f"{name} {i}" for i in range(len(labels))], labels)


def test_parts_hold_a_tenth_of_each_label_within_rounding():
    rest, validation, test = hold_out(numbered([604, 2879, 1363]), 2)
    assert Counter(validation.labels) == Counter(test.labels) == {0: 60, 1: 288, 2: 136}
    assert Counter(rest.labels) == {0: 484, 1: 2303, 2: 1091}


def test_each_example_falls_into_exactly_one_part_and_keeps_its_label_and_order():
    examples = numbered([70, 30])
    label_of = dict(zip(examples.texts, examples.labels))
    parts = hold_out(examples, 2)
    assert sorted(text for part in parts for text in part.texts) == sorted(examples.texts)
    for part in parts:
        assert part.labels == [label_of[text] for text in part.texts]
        assert part.texts == sorted(part.texts, key=examples.texts.index)


def test_repeated_texts_stay_on_one_side_whatever_their_label_case_or_spacing():
    texts = [variant for i in range(200) for variant in (f"Text {i}", f"text  {i}", f"TEXT {i} ")]
    parts = hold_out(Split(texts, [(i // 7) % 2 for i in range(600)]), 2)
    sides = [plain(part.texts) for part in parts]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert all(part.texts for part in parts)


def appears_in(part: str, text: str) -> bool:
    """Whether the words of `part` appear side by side in `text`: by definition, without an index."""
    part, text = (re.findall(r"\w+", side.lower()) for side in (part, text))
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text)))


def phrases(sentences=400, seed=0) -> Split:
    """Sentences of 4 to 9 of 60 words, and phrases of them, some with other case and punctuation."""
    dice, texts = random.Random(seed), []
    for _ in range(sentences):
        words = [f"w{dice.randrange(60)}" for _ in range(dice.randint(4, 9))]
        texts.append(" ".join(words))
        for _ in range(dice.randrange(4)):
            start = dice.randrange(len(words) - 1)
            texts.append(" ".join(words[start : start + dice.randint(1, 4)]).title() + dice.choice(("", " .", "!")))
    dice.shuffle(texts)
    return Split(texts, [dice.randrange(2) for _ in texts])


@pytest.mark.parametrize("parts", [1, 2])
def test_no_text_set_aside_appears_word_for_word_in_a_training_text(parts):
    examples = phrases()
    train, *held_out = hold_out(examples, parts)
    for part in held_out:
        assert not [text for text in part.texts if any(appears_in(text, other) for other in train.texts)]
        assert len(part.texts) == pytest.approx(len(examples.texts) / 10, abs=2)
    if parts == 2:  # nor the other way round between the two that judge
        validation, test = held_out
        assert not [text for text in validation.texts if any(appears_in(text, other) for other in test.texts)]
        assert not [text for text in test.texts if any(appears_in(text, other) for other in validation.texts)]


def test_a_text_joins_the_longest_text_that_contains_it():
    longest = "it is a fine film ."
    texts = ["a fine film", "Fine film!", longest, "film", "a dull film", "art", "a part", "...", "...", "!"]
    names, shared = containment_groups(texts)
    assert names[:4] == [longest] * 4 and shared[:3] == [False] * 3
    assert shared[3]  # "a dull film" contains it too
    assert names[4:7] == ["a dull film", "art", "a part"] and not any(shared[4:])
    assert names[7:] == ["...", "...", "!"]  # without words, only the same text is the same


@pytest.mark.parametrize("shorter, told", [(14, True), (13, False)])
def test_texts_that_stay_in_training_because_several_contain_them_are_counted_from_a_twentieth_on(
    capsys, shorter, told
):
    texts = [f"the fine film {i}" for i in range(260)] + ["fine film", "FINE film!"] * (shorter // 2)
    texts += ["the film"] * (shorter % 2)  # appears in none
    make_dataset("corpus", ("a", "b"), Split(texts, [i % 2 for i in range(len(texts))]))
    line = "corpus: 14 of 274 texts (5%) appear inside several others and stay in training; "
    out = capsys.readouterr().out
    assert out == told * (line + "the parts set aside hold longer texts\n")


def test_a_text_that_contains_all_others_is_named_as_the_reason_for_an_empty_split():
    texts = [f"word{i}" for i in range(40)]
    texts.insert(7, "The whole list,\nin one: " + ", ".join(texts))
    message = refusal(make_dataset, "corpus", ("a", "b"), Split(texts, [i % 2 for i in range(41)]), where="own.csv")
    assert message.startswith("own.csv: no example is left for the validation split: the text 'The whole list,\\nin ")
    assert "contains 40 of the other texts" in message and "remove it" in message and "distinct" not in message


def test_the_side_of_a_text_does_not_depend_on_the_order_of_the_file():
    examples = numbered([300, 200])
    order = random.Random(1).sample(range(500), 500)
    shuffled = Split([examples.texts[i] for i in order], [examples.labels[i] for i in order])
    for part, again in zip(hold_out(examples, 2), hold_out(shuffled, 2)):
        assert set(part.texts) == set(again.texts)


def test_the_split_is_the_same_today_and_in_later_versions():
    _, validation = hold_out(numbered([20, 20]), 1)
    assert validation.texts == ["text 5", "text 7", "text 33", "text 35"]


def test_training_texts_of_the_test_split_are_dropped_and_counted(capsys):
    train, test = numbered([30, 30]), numbered([10, 10], "other")
    test = Split(test.texts + ["TEXT 5"], test.labels + [1])
    dataset = make_dataset("corpus", ("a", "b"), train, test)
    assert capsys.readouterr().out == "corpus: 1 training texts dropped because they also appear in test\n"
    assert_kept_apart(dataset)
    assert len(dataset.train.texts) + len(dataset.validation.texts) == 59 and len(dataset.test.texts) == 21


def test_given_validation_texts_leave_train_and_test_texts_leave_both(capsys):
    train, validation, test = numbered([10, 10]), numbered([3, 3], "dev"), numbered([3, 3], "test")
    validation.texts[0], train.texts[0], train.texts[1] = "test 1", "test 2", "dev 1"
    dataset = make_dataset("corpus", ("a", "b"), train, test, validation)
    assert_kept_apart(dataset)
    assert "1 validation texts" in (out := capsys.readouterr().out) and "2 training texts" in out
    assert len(dataset.test.texts) == 6


@pytest.mark.parametrize("position", range(3))
def test_fingerprint_changes_with_each_text_label_and_border(position):
    splits = [Split(["ab", "c"], [0, 1]) for _ in range(3)]
    original = data_fingerprint(Dataset("x", ("n", "p"), *splits))
    assert original == data_fingerprint(Dataset("y", ("n", "p"), *splits))
    assert original != data_fingerprint(Dataset("x", ("n", "q"), *splits))
    for other in (Split(["ab", "d"], [0, 1]), Split(["a", "bc"], [0, 1]), Split(["ab", "c"], [1, 0])):
        changed = splits[:position] + [other] + splits[position + 1 :]
        assert data_fingerprint(Dataset("x", ("n", "p"), *changed)) != original


# --- own data -------------------------------------------------------------------------------------


def csv_of(count=40, labels=("bad", "good")) -> str:
    return "text,label\n" + "".join(f"review number {i},{labels[i % len(labels)]}\n" for i in range(count))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_tsv_and_jsonl_of_the_same_rows_give_the_same_dataset(tmp_path):
    rows = [(f"review, number {i}", ("bad", "good")[i % 2]) for i in range(40)]
    write(tmp_path / "a.csv", "p_good,label,text\r\n" + "".join(f'0.5,{label},"{text}"\r\n' for text, label in rows))
    write(tmp_path / "b.tsv", "sentence\tlabel\n" + "".join(f"{text} \t{label}\n" for text, label in rows))
    write(
        tmp_path / "c.jsonl",
        "".join(json.dumps({"text": text, "label": label, "id": 1}) + "\n" for text, label in rows),
    )
    datasets = [load_dataset(tmp_path / name) for name in ("a.csv", "b.tsv", "c.jsonl")]
    assert [dataset.name for dataset in datasets] == ["a", "b", "c"]
    assert len({data_fingerprint(dataset) for dataset in datasets}) == 1
    assert_kept_apart(datasets[0])
    assert [len(s.texts) for s in (datasets[0].train, datasets[0].validation, datasets[0].test)] == [32, 4, 4]


def test_csv_keeps_quoted_line_breaks_and_tsv_keeps_quotation_marks(tmp_path):
    quoted = write(tmp_path / "a.csv", '\ufefftext,label\n"two\nlines, ""quoted""",bad\n' + csv_of()[11:])
    dataset = load_dataset(quoted)
    assert 'two\nlines, "quoted"' in dataset.train.texts + dataset.validation.texts + dataset.test.texts
    plain = write(tmp_path / "b.tsv", ('text,label\n"open quote,bad\n' + csv_of()[11:]).replace(",", "\t"))
    dataset = load_dataset(plain)
    assert '"open quote' in dataset.train.texts + dataset.validation.texts + dataset.test.texts


@pytest.mark.parametrize(
    "given, expected",
    [
        (("good", "bad"), ("bad", "good")),
        (("10", "9", "0"), ("0", "9", "10")),
        (("1", "-1"), ("-1", "1")),
        (("10", "9", "x"), ("10", "9", "x")),
    ],
)
def test_labels_are_sorted_as_numbers_if_all_are_and_as_names_otherwise(tmp_path, given, expected):
    dataset = load_dataset(write(tmp_path / "own.csv", csv_of(60, given)))
    assert dataset.labels == expected
    for split in (dataset.train, dataset.validation, dataset.test):
        for text, label in zip(split.texts, split.labels):
            assert expected[label] == given[int(text.split()[-1]) % len(given)]


def test_json_numbers_and_csv_digits_are_the_same_labels(tmp_path):
    path = write(
        tmp_path / "own.jsonl", "".join(json.dumps({"text": f"t {i}", "label": i % 2}) + "\n" for i in range(20))
    )
    assert load_dataset(path).labels == ("0", "1")


@pytest.mark.parametrize("name", ["validation.csv", "valid.csv", "val.csv", "dev.csv"])
def test_a_folder_keeps_its_own_splits(tmp_path, name):
    write(tmp_path / "train.csv", csv_of())
    write(tmp_path / name, "text,label\nfirst,good\nsecond,bad\n")
    write(tmp_path / "test.tsv", "sentence\tlabel\nthird\tgood\nfourth\tbad\n")
    dataset = load_dataset(str(tmp_path))
    assert dataset.name == tmp_path.name and len(dataset.train.texts) == 40
    assert dataset.validation == Split(["first", "second"], [1, 0]) and dataset.test == Split(
        ["third", "fourth"], [1, 0]
    )


def test_a_folder_without_validation_gives_a_tenth_of_train(tmp_path):
    write(tmp_path / "train.csv", csv_of())
    write(tmp_path / "test.csv", "text,label\nthird,good\nfourth,bad\n")
    dataset = load_dataset(tmp_path)
    assert Counter(dataset.validation.labels) == {0: 2, 1: 2} and len(dataset.train.texts) == 36


BAD_FILES = {
    "no label column": ("a.csv", "text,score\nx,1\n", ["no label column", "'text', 'score'"]),
    "no text column": ("a.jsonl", '{"review": "x", "label": 1}\n', ["line 1", "no text column", "'review'"]),
    "two text columns": ("a.csv", "text,sentence,label\nx,y,1\n", ["more than one text column"]),
    "empty text": ("a.csv", "text,label\nx,1\n  ,1\n", ["line 3", "text is empty"]),
    "empty label": ("a.csv", "text,label\nx,\n", ["line 2", "label is empty"]),
    "too few fields": ("a.csv", 'text,label\n"x\ny",1\n\nz\n', ["line 5", "1 fields", "2"]),
    "too many fields": ("a.tsv", "text\tlabel\nx\ty\t1\n", ["line 2", "3 fields"]),
    "open quotation mark": ("a.csv", 'text,label\nx,1\n"y,1\nz,0\n', ["line 3", "quotation mark"]),
    "very long open quotation": ("a.csv", 'text,label\n"y,1\n' + "z,0\n" * 40_000, ["line 2", "quotation mark"]),
    "not UTF-8": ("a.csv", b"text,label\nx,1\ncaf\xe9,1\n", ["line 3", "not UTF-8", "0xe9"]),
    "not UTF-8 after a mark": ("a.csv", b"\xef\xbb\xbftext,label\nx\xff,1\n", ["line 2", "not UTF-8", "0xff"]),
    "UTF-16 without a mark": ("a.csv", "text,label\nx,1\n".encode("utf-16-le"), ["line 1", "NUL", "`encoding`"]),
    "UTF-16, cut": ("a.csv", "text,label\nx,1\n".encode("utf-16")[:-1], ["line 2", "not utf-16"]),
    "NUL": ("a.csv", "text,label\nx,1\ny\0,1\n", ["line 3", "NUL"]),
    "one class": ("a.csv", csv_of(labels=("good",)), ["'good'", "at least two"]),
    "empty": ("a.csv", "", ["is empty"]),
    "header only": ("a.csv", "text,label\n", ["no examples"]),
    "blank lines only": ("a.jsonl", "\n\n", ["no examples"]),
    "invalid JSON": ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', ["line 2", "not valid JSON"]),
    "deep JSON": ("a.jsonl", "[" * 100_000, ["line 1", "not valid JSON"]),
    "no JSON object": ("a.jsonl", '["x", 1]\n', ["line 1", "not a JSON object"]),
    "text that is no string": ("a.jsonl", '{"text": null, "label": 1}\n', ["line 1", "null"]),
    "label that is a fraction": ("a.jsonl", '{"text": "x", "label": 0.5}\n', ["line 1", "0.5"]),
    "label that is a truth value": ("a.jsonl", '{"text": "x", "label": true}\n', ["line 1", "true"]),
    "half a surrogate pair": ("a.jsonl", '{"text": "\\ud83d", "label": 1}\n', ["line 1", "surrogate"]),
    "line break in a label": ("a.csv", csv_of() + 'x,"a\nb"\n', ["'a\\nb'", "at least 2"]),
    "too few of a label": ("a.csv", csv_of() + "x,rare\ny,rare\nz,rare\n", ["'rare'", "at least 2"]),
    "too few examples": ("a.csv", csv_of(4), ["at least 2"]),
    "one text repeated": (
        "a.csv",
        "text,label\n" + "x,0\n" * 20 + "y,1\n" * 20,
        ["no example is left for the validation"],
    ),
    "unknown format": ("a.dat", csv_of(), [".csv, .tsv, .jsonl"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_file_and_line(tmp_path, case):
    name, content, expected = BAD_FILES[case]
    message = refusal(load_dataset, write(tmp_path / name, content))
    assert str(tmp_path / name) in message
    for part in expected:
        assert part in message, message


def test_unknown_names_and_missing_paths_are_refused(tmp_path):
    assert "imdb, sst2, fpb, sample" in refusal(load_dataset, "imbd")
    assert str(tmp_path / "none.csv") in refusal(load_dataset, tmp_path / "none.csv")


def test_a_folder_where_a_file_is_expected_is_refused(tmp_path):
    write(tmp_path / "test.csv", csv_of())
    (tmp_path / "train.csv").mkdir()
    assert f"{tmp_path / 'train.csv'} cannot be read: Is a directory" in refusal(load_dataset, tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_refused(tmp_path):
    path = write(tmp_path / "own.csv", csv_of())
    path.chmod(0)
    assert "Permission denied" in refusal(load_dataset, path)


def test_an_incomplete_or_ambiguous_folder_is_refused(tmp_path):
    assert "no train file" in refusal(load_dataset, tmp_path)
    write(tmp_path / "train.csv", csv_of())
    assert "no test file" in refusal(load_dataset, tmp_path)
    write(tmp_path / "test.csv", csv_of())
    write(tmp_path / "dev.csv", csv_of())
    write(tmp_path / "val.tsv", csv_of())
    assert "both val.tsv and dev.csv" in refusal(load_dataset, tmp_path)


def test_a_label_unseen_in_training_is_refused_with_its_file_and_line(tmp_path):
    write(tmp_path / "train.csv", csv_of())
    write(tmp_path / "test.csv", "text,label\nx,good\ny,ugly\n")
    message = refusal(load_dataset, tmp_path)
    assert f"{tmp_path / 'test.csv'}, line 3" in message and "'ugly'" in message


def test_train_equal_to_test_is_refused_and_not_trained_on(tmp_path):
    write(tmp_path / "train.csv", csv_of())
    write(tmp_path / "test.csv", csv_of())
    assert "0 of its examples are left" in refusal(load_dataset, tmp_path)


# --- IMDb -----------------------------------------------------------------------------------------


def imdb_members(count=12_500) -> dict[str, str]:
    """4 x `count` reviews of a few words; train/pos 7 and 8 also appear in test, and member order is not id order."""
    reviews = {}
    for split in ("test", "train"):
        for folder in ("pos", "neg"):
            for number in reversed(range(count)):
                text = f"A {folder} film<br /><br />of the {split} split, number {number}."
                reviews[f"aclImdb/{split}/{folder}/{number}_{number % 10 + 1}.txt"] = text
    for number in (7, 8):
        reviews[f"aclImdb/train/pos/{number}_{number + 1}.txt"] = f"a POS film of the test split,  number {number}."
    return reviews


def pack_tar(path, contents: dict[str, str]):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, text in contents.items():
            info, data = tarfile.TarInfo(name), text.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def imdb_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    contents = imdb_members()
    extra = {
        "aclImdb/train/unsup/0_0.txt": "no label",
        "aclImdb/train/labeledBow.feat": "",
        "../../outside.txt": "hostile",
    }
    (folder / "imdb").mkdir()
    pack_tar(folder / "imdb" / "aclImdb_v1.tar.gz", extra | contents)
    return folder


@pytest.fixture(scope="module")
def imdb(imdb_dir):
    return load_dataset("imdb", imdb_dir)


def test_imdb_is_in_order_of_label_and_id_and_without_html(imdb):
    assert imdb.labels == ("negative", "positive")
    assert imdb.test.texts[0] == "A neg film  of the test split, number 0."
    assert imdb.test.texts[12_510] == "A pos film  of the test split, number 10."
    assert imdb.test.labels == [0] * 12_500 + [1] * 12_500


def test_imdb_training_texts_that_stand_in_test_are_dropped(imdb):
    assert_kept_apart(imdb)
    assert len(imdb.train.texts) + len(imdb.validation.texts) == 24_998
    assert Counter(imdb.validation.labels) == {0: 1250, 1: 1250}


def test_imdb_archive_is_read_without_unpacking_anything(imdb, imdb_dir):
    assert [path.name for path in imdb_dir.rglob("*")] == ["imdb", "aclImdb_v1.tar.gz"]
    assert not (imdb_dir.parent / "outside.txt").exists()


def test_imdb_tree_and_archive_give_the_same_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("minikd.datasets.imdb.COUNT", 100)  # 50,000 files would take longer to write than to test
    contents = imdb_members(100)
    (tmp_path / "packed").mkdir()
    pack_tar(tmp_path / "packed" / "aclImdb_v1.tar.gz", contents)
    for split in ("train", "test"):
        for folder in ("pos", "neg"):
            (tmp_path / "aclImdb" / split / folder).mkdir(parents=True)
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    packed = load_dataset("imdb", tmp_path / "packed")
    assert data_fingerprint(load_dataset("imdb", tmp_path)) == data_fingerprint(packed)
    (tmp_path / "aclImdb" / "test" / "neg" / "12_3.txt").write_text("")
    message = refusal(load_dataset, "imdb", tmp_path)
    assert str(tmp_path / "aclImdb") in message and "99 reviews in test/neg, not 100" in message


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.5, 0.99999])
def test_a_cut_imdb_archive_is_refused_by_name(imdb_dir, tmp_path, share):
    whole = (imdb_dir / "imdb" / "aclImdb_v1.tar.gz").read_bytes()
    path = write(tmp_path / "aclImdb_v1.tar.gz", whole[: int(len(whole) * share)])
    message = refusal(load_dataset, "imdb", tmp_path)
    assert message.startswith(f"{path} is incomplete or damaged (") and "delete it" in message


def test_a_flipped_bit_in_the_imdb_archive_is_noticed(imdb_dir, tmp_path):
    content = bytearray((imdb_dir / "imdb" / "aclImdb_v1.tar.gz").read_bytes())
    content[-6] ^= 1  # in the checksum at the end, behind everything that tar itself looks at
    write(tmp_path / "aclImdb_v1.tar.gz", bytes(content))
    assert "CRC check failed" in refusal(load_dataset, "imdb", tmp_path)


# --- SST-2 and Financial PhraseBank ---------------------------------------------------------------


def sst2_files() -> dict[str, bytes]:
    def table(name, count):
        return ("sentence\tlabel\n" + "".join(f'{name} " {i} \t{i % 2}\n' for i in range(count))).encode()

    return {
        "SST-2/train.tsv": table("a phrase", 67_349),
        "SST-2/dev.tsv": table("a sentence", 872),
        "SST-2/test.tsv": b"index",
    }


def pack_zip(path, contents: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_sst2_zip_and_folder_give_the_same_dataset(tmp_path):
    pack_zip(tmp_path / "zip" / "sst2" / "SST-2.zip", sst2_files())
    for name, content in sst2_files().items():
        write(tmp_path / "folder" / name, content)
    dataset = load_dataset("sst2", tmp_path / "zip")
    assert data_fingerprint(dataset) == data_fingerprint(load_dataset("sst2", tmp_path / "folder"))
    assert_kept_apart(dataset)
    assert dataset.labels == ("negative", "positive") and dataset.test.texts[:2] == ['a sentence " 0', 'a sentence " 1']
    assert Counter(dataset.validation.labels) == {0: 3368, 1: 3367} and len(dataset.train.texts) == 67_349 - 6735


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda files: files.pop("SST-2/dev.tsv"), "no dev.tsv"),
        (lambda files: files.update({"SST-2/dev.tsv": b"sentence\tlabel\nx\t1\n"}), "1 examples in dev.tsv, not 872"),
        (lambda files: files.update({"SST-2/dev.tsv": b""}), "0 examples in dev.tsv"),
        (lambda files: files.update({"SST-2/dev.tsv": b"sentence\tlabel\nx\n"}), "dev.tsv, line 2: 1 fields"),
        (lambda files: files.update({"SST-2/dev.tsv": b"index\tsentence\n0\tx\n"}), "no label column"),
        (lambda files: files.update({"SST-2/dev.tsv": b"sentence\tlabel\n" + b"x\t2\n" * 872}), "line 2: label '2'"),
        (lambda files: files.update({"SST-2/dev.tsv": b"sentence\tlabel\n" + b"x\t1\n" * 872}), "one label only"),
    ],
)
def test_sst2_with_other_content_is_refused(tmp_path, change, expected):
    files = sst2_files()
    change(files)
    path = pack_zip(tmp_path / "SST-2.zip", files)
    message = refusal(load_dataset, "sst2", tmp_path)
    assert message.startswith(str(path)) and expected in message


def test_a_damaged_zip_is_refused_by_name(tmp_path):
    path = pack_zip(tmp_path / "SST-2.zip", sst2_files())
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"<html>not found</html>",
        whole[:1000] + b"\xff" * 100 + whole[1100:],
    ):
        path.write_bytes(content)
        assert refusal(load_dataset, "sst2", tmp_path).startswith(f"{path} is incomplete or damaged (")


def fpb_file(count=2264) -> bytes:
    labels = ("neutral", "positive", "negative")
    lines = [f"Caf\xe9 shares@home rose by {i // 2 if i < 40 else i} % .@{labels[i % 3]}\r\n" for i in range(count)]
    return "".join(lines).encode("latin-1")


def test_fpb_reads_latin_1_splits_at_the_last_at_sign_and_keeps_repeated_sentences_together(tmp_path):
    name = "FinancialPhraseBank-v1.0/Sentences_AllAgree.txt"
    pack_zip(tmp_path / "fpb" / "FinancialPhraseBank-v1.0.zip", {f"__MACOSX/{name}": b"\0\5\26\7", name: fpb_file()})
    dataset = load_dataset("fpb", tmp_path, agreement="all")
    assert_kept_apart(dataset)
    assert dataset.labels == ("negative", "neutral", "positive")
    sentences = dict(zip(dataset.train.texts, dataset.train.labels))
    assert all(text.startswith("Café shares@home rose by ") and text.endswith(" % .") for text in sentences)
    assert all(label == (1, 2, 0)[int(t.split()[-3]) % 3] for t, label in sentences.items() if int(t.split()[-3]) >= 40)
    assert [len(split.texts) for split in (dataset.train, dataset.validation, dataset.test)] == [1810, 227, 227]


def test_fpb_with_other_content_is_refused(tmp_path):
    folder = tmp_path / "FinancialPhraseBank-v1.0"
    assert "`agreement` 60" in refusal(load_dataset, "fpb", tmp_path, agreement="60")
    write(folder / "Sentences_AllAgree.txt", fpb_file(2263))
    assert "2,263 sentences" in refusal(load_dataset, "fpb", tmp_path, agreement="all")
    assert "no Sentences_50Agree.txt" in refusal(load_dataset, "fpb", tmp_path)
    write(folder / "Sentences_AllAgree.txt", fpb_file(10) + b"no label here\r\n")
    assert "line 11" in refusal(load_dataset, "fpb", tmp_path, agreement="all")


# --- download -------------------------------------------------------------------------------------

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<html>Please log in.</html>"
LENGTHS = {"/page": str(len(PAGE)), "/short": "1000", "/odd": "many"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT: /plain ignores ranges, /cut closes the connection half-way, anything else honours ranges.

    /page is a page of HTML; /short and /odd say a length that is too small, and one that is no number.
    """

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = 0
        if self.path == "/missing":
            return self.send_error(404)
        if self.path in LENGTHS:
            self.send_response(200)
            self.send_header("Content-Length", LENGTHS[self.path])
            self.end_headers()
            return self.wfile.write(PAGE if self.path == "/page" else CONTENT)
        if wanted and self.path != "/plain":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : len(CONTENT) // 2] if self.path == "/cut" else CONTENT[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_missing_archive_is_downloaded_once_and_leaves_no_part(server, tmp_path):
    source = Source("corpus", "archive.zip", "folder", f"{server.url}/ranges", SHA256)
    for _ in range(2):
        path = locate(source, tmp_path / "data")
        assert path == tmp_path / "data" / "corpus" / "archive.zip" and path.read_bytes() == CONTENT
    assert server.ranges == [None] and os.listdir(path.parent) == ["archive.zip"]


def test_a_cut_download_keeps_its_part_and_the_next_one_goes_on_from_there(server, tmp_path):
    path = tmp_path / "archive.zip"
    message = refusal(download, f"{server.url}/cut", path, SHA256)
    assert "cut at 150,000 of 300,000 bytes" in message and str(path) in message and not path.exists()
    assert (tmp_path / "archive.zip.part").read_bytes() == CONTENT[:150_000]
    download(f"{server.url}/ranges", path, SHA256)
    assert server.ranges == [None, "bytes=150000-"]
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["archive.zip"]


def test_a_server_without_ranges_sends_the_file_again(server, tmp_path):
    write(tmp_path / "archive.zip.part", CONTENT[:1000])
    download(f"{server.url}/plain", tmp_path / "archive.zip", SHA256)
    assert server.ranges == ["bytes=1000-"] and (tmp_path / "archive.zip").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_started_again(server, tmp_path):
    write(tmp_path / "archive.zip.part", CONTENT + b"more")
    download(f"{server.url}/ranges", tmp_path / "archive.zip", SHA256)
    assert server.ranges == ["bytes=300004-", None] and (tmp_path / "archive.zip").read_bytes() == CONTENT


def test_a_whole_part_is_used_without_a_request(server, tmp_path):
    write(tmp_path / "archive.zip.part", CONTENT)
    download(f"{server.url}/ranges", tmp_path / "archive.zip", SHA256)
    assert server.ranges == [] and os.listdir(tmp_path) == ["archive.zip"]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    message = refusal(download, f"{server.url}/ranges", tmp_path / "archive.zip", "0" * 64)
    assert "wrong SHA-256" in message and f"{server.url}/ranges" in message and os.listdir(tmp_path) == []


@pytest.mark.parametrize("part", [b"", CONTENT[:1000]], ids=["new", "continued"])
def test_another_length_than_the_files_is_noticed_and_one_that_is_no_number_ignored(server, tmp_path, part):
    path = tmp_path / "archive.zip"
    for wrong in ("page", "short"):
        write(tmp_path / "archive.zip.part", part)
        message = refusal(download, f"{server.url}/{wrong}", path, SHA256)
        assert "wrong SHA-256" in message and str(path) in message and os.listdir(tmp_path) == []
    write(tmp_path / "archive.zip.part", part)
    download(f"{server.url}/odd", path, SHA256)
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ["archive.zip"]


def test_no_network_is_one_line_with_address_and_place(server, tmp_path):
    path = tmp_path / "archive.zip"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as unused:
        closed = f"http://127.0.0.1:{unused.server_port}/archive.zip"
    for url, reason in ((closed, "refused"), (f"{server.url}/missing", "Not Found")):
        message = refusal(download, url, path, SHA256)
        assert url in message and str(path) in message and reason in message
    assert os.listdir(tmp_path) == []


def test_a_data_dir_that_is_a_file_is_refused(server, tmp_path):
    write(tmp_path / "data", "")
    message = refusal(locate, Source("corpus", "a.zip", "a", server.url, SHA256), tmp_path / "data")
    assert str(tmp_path / "data") in message and server.ranges == []


# --- the real archives ----------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    "name, agreement, total, test_counts",
    [
        ("imdb", "50", 50_000 - 123, {0: 12_500, 1: 12_500}),
        ("sst2", "50", 67_349 + 872, {0: 428, 1: 444}),
        ("fpb", "50", 4846, {0: 60, 1: 288, 2: 136}),
        ("fpb", "66", 4217, {0: 51, 1: 254, 2: 117}),
        ("fpb", "75", 3453, {0: 42, 1: 215, 2: 89}),
        ("fpb", "all", 2264, {0: 30, 1: 139, 2: 57}),
    ],
)
def test_real_corpora_have_the_published_counts_and_keep_their_splits_apart(name, agreement, total, test_counts):
    dataset = load_dataset(name, REAL, agreement=agreement)
    assert_kept_apart(dataset)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(len(split.texts) for split in splits) == total
    assert Counter(dataset.test.labels) == test_counts
    divided = Counter(dataset.train.labels) + Counter(dataset.validation.labels)
    if name == "fpb":
        divided += Counter(dataset.test.labels)
    for label, count in divided.items():
        assert abs(Counter(dataset.validation.labels)[label] - count / 10) <= 0.5
    held_out = dataset.validation.texts + (dataset.test.texts if name == "fpb" else [])
    words = [" ".join(re.findall(r"\w+", text.casefold())) for text in (*dataset.train.texts, *held_out)]
    everything = "\n".join(f" {own} " for own in words[: len(dataset.train.texts)])
    sampled = random.Random(0).sample(words[len(dataset.train.texts) :], 200)
    assert not [own for own in sampled if f" {own} " in everything]
    assert not any("<br />" in text for split in splits for text in split.texts)
