"""The user's own files: the formats and columns that are recognised, what is refused, and what the scripts record."""

import argparse
import csv
import json
import random
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import save_model

from minikd.cli import start as cli
from minikd.datasets import data_fingerprint, load_dataset
from minikd.datasets.classes import check_classes, label_counts, rare_labels
from minikd.datasets.rows import Layout, Row
from minikd.errors import MinikdError

NAMES = ("train", "validation", "test")
TEXTS = [f"the café opened; number {i:02}, again" for i in range(40)]
ROWS = [(text, ("bad", "good")[i % 2]) for i, text in enumerate(TEXTS)]


def table(rows=ROWS, names=("text", "label"), delimiter=",") -> str:
    """A CSV file as Excel writes it."""
    quote = '"{}"'.format
    return "".join(delimiter.join(map(quote, row)) + "\r\n" for row in [names, *rows])


def labelled(*labels, repeat=10) -> str:
    """A CSV file whose labels are each of `labels`, `repeat` times."""
    return table([(f"text number {i:04}", label) for i, label in enumerate(labels * repeat)])


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(*arguments, **options) -> str:
    """The one line with which `load_dataset` refuses."""
    with pytest.raises(MinikdError) as caught:
        load_dataset(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def expected(tmp_path):
    return data_fingerprint(load_dataset(write(tmp_path / "plain.csv", table())))


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_columns_of_any_name_are_read_where_the_flags_name_them(tmp_path, expected, suffix):
    names = ("review", "label", "text", "stars")  # the usual names are there as well, with other content
    rows = [(text, "x", "y", label) for text, label in ROWS]
    if suffix == ".jsonl":
        content = "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)
    else:
        content = table(rows, names) if suffix == ".csv" else table(rows, names, "\t").replace('"', "")
    path = write(tmp_path / f"own{suffix}", content)
    assert data_fingerprint(load_dataset(path, text_column="review", label_column="stars")) == expected


def test_a_folder_is_read_with_the_same_columns_and_encoding(tmp_path):
    for name, rows in zip(NAMES, (ROWS[:20], ROWS[20:30], ROWS[30:])):
        write(tmp_path / f"{name}.csv", table(rows, ("Titel", "Sparte"), ";").encode("cp1252"))
    data = load_dataset(tmp_path, text_column="Titel", label_column="Sparte", encoding="cp1252")
    assert [getattr(data, name).texts for name in NAMES] == [TEXTS[:20], TEXTS[20:30], TEXTS[30:]]


@pytest.mark.parametrize("names", [("Text", "LABEL"), (" text ", "Label "), ("SENTENCE", "label")])
def test_column_names_may_differ_in_case_and_outer_spaces(tmp_path, capsys, expected, names):
    path = write(tmp_path / "own.csv", table(names=names))
    assert data_fingerprint(load_dataset(path)) == expected
    out = capsys.readouterr().out
    assert f"{path}: " in out and repr(names[0].strip()) in out  # the user sees which columns were taken


def test_the_exact_name_wins_over_another_case(tmp_path, expected):
    rows = [("x", text, label) for text, label in ROWS]
    assert (
        data_fingerprint(load_dataset(write(tmp_path / "own.csv", table(rows, ("TEXT", "text", "label"))))) == expected
    )


@pytest.mark.parametrize(
    "names, options, words",
    [
        (
            ("review", "stars"),
            {},
            ["no text column", "no label column", "'review', 'stars'", "`text_column` NAME and `l"],
        ),
        (("review", "label"), {}, ["no text column", "'review', 'label'", "give `text_column` NAME"]),
        (("text", "stars"), {}, ["no label column", "'text', 'stars'", "`label_column`"]),
        (("text", "sentence"), {}, ["more than one text column", "`text_column`"]),
        (("text", "text"), {}, ["more than one text column"]),
        (("text", "label"), {"text_column": "review"}, ["'review'", "`text_column`", "'text', 'label'"]),
        (("text", "label"), {"label_column": "stars"}, ["'stars'", "`label_column`", "'text', 'label'"]),
        (("text", "label"), {"label_column": "text"}, ["`label_column`", "text column"]),
        (TEXTS[:2], {}, ["line 1, which must name the columns"]),
    ],
)
def test_a_header_without_the_columns_is_refused_with_the_names_it_has_and_the_setting(tmp_path, names, options, words):
    path = write(tmp_path / "own.csv", table(names=names))
    message = refusal(path, **options)
    assert all(word in message for word in [str(path), *words]), message


def test_columns_cannot_be_named_for_a_corpus_with_its_own_reader(tmp_path):
    for flag in ("text_column", "label_column", "encoding"):
        message = refusal("imdb", tmp_path, **{flag: "utf-8"})
        assert f"`{flag}`" in message and "imdb" in message


# --- delimiters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter, word", [(";", "semicolon"), ("\t", "tab")])
def test_a_csv_file_with_another_delimiter_is_recognised_and_that_is_printed(
    tmp_path, capsys, expected, delimiter, word
):
    path = write(tmp_path / "own.csv", "\ufeff\r\n" + table(delimiter=delimiter))
    assert data_fingerprint(load_dataset(path)) == expected
    assert f"{path}: columns separated by {word}" in capsys.readouterr().out


@pytest.mark.parametrize("first", ["sep=;", "SEP=|", '"sep=,"', "sep=\t"])
def test_a_first_line_of_excel_that_names_the_delimiter_is_followed(tmp_path, expected, first):
    delimiter = first.strip('"')[-1]
    path = write(tmp_path / "own.csv", f"\ufeff{first}\r\n" + table(delimiter=delimiter))
    assert data_fingerprint(load_dataset(path)) == expected
    write(path, path.read_bytes() + f'"a text"{delimiter}""\r\n'.encode())
    assert f"line {len(ROWS) + 3}: the label is empty" in refusal(path)


def test_a_comma_is_not_remarked_upon(tmp_path, capsys):
    load_dataset(write(tmp_path / "own.csv", table()))
    assert capsys.readouterr().out == ""


def test_semicolons_in_the_columns_of_a_comma_file_do_not_matter(tmp_path, expected):
    rows = [(text, label, "a;b;c") for text, label in ROWS]
    path = write(tmp_path / "own.csv", table(rows, ("text", "label", "tags;text;label;x")))
    assert data_fingerprint(load_dataset(path)) == expected


def test_where_no_delimiter_gives_the_columns_the_names_are_listed_as_most_of_them_tell(tmp_path):
    names = ("Nr", "Satz, ganz", "Stimmung")
    message = refusal(write(tmp_path / "own.csv", table([("1", *row) for row in ROWS], names, ";").replace('"', "")))
    assert "'Nr', 'Satz, ganz', 'Stimmung'" in message


def test_a_tsv_file_has_tabs_only(tmp_path):
    assert "'text,label'" in refusal(write(tmp_path / "own.tsv", "text,label\n"))


def test_two_delimiters_that_both_give_the_columns_are_refused(tmp_path):
    path = write(tmp_path / "own.csv", "text,label,;text;label\n" + "a,b,;c;d\n" * 20)
    message = refusal(path)
    assert str(path) in message and "comma" in message and "semicolon" in message


def test_quoted_fields_in_a_tsv_file_are_named_as_the_reason(tmp_path):
    for content, line in (('text\tlabel\n"two\nlines"\tgood\n', 2), ('"text"\t"label"\n"x"\t"good"\n', 1)):
        message = refusal(write(tmp_path / "own.tsv", content))
        assert f"line {line}" in message and "quotation marks around its fields is a .csv" in message


def test_lines_without_any_content_are_ignored(tmp_path, expected):
    content = table().replace("\r\n", "\r\n\r\n,\r\n", 3)  # Excel writes a line of delimiters for an empty row
    assert data_fingerprint(load_dataset(write(tmp_path / "own.csv", content))) == expected


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "UTF-8"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_is_read_in_the_encoding_given(tmp_path, expected, suffix, encoding):
    lines = "".join(json.dumps(dict(zip(("text", "label"), row)), ensure_ascii=False) + "\n" for row in ROWS)
    path = write(tmp_path / f"own{suffix}", (table() if suffix == ".csv" else lines).encode(encoding))
    assert data_fingerprint(load_dataset(path, encoding=encoding)) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("flag", [None, "cp1252"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, capsys, expected, encoding, flag):
    path = write(tmp_path / "own.csv", table(delimiter="\t").encode(encoding))  # Excel's "Unicode text"
    assert data_fingerprint(load_dataset(path, encoding=flag)) == expected
    assert (f"{encoding.upper()}, as" in capsys.readouterr().out) == (encoding != "utf-8-sig")


@pytest.mark.parametrize("encoding, half", [("utf-7", b"+2D0-"), ("unicode_escape", b"\\ud83d")])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path, encoding, half, suffix):
    lines = b"text,label\nx,a\nHALF,b\n" if suffix == ".csv" else b'\n{"text": "x"}\n{"text": "HALF"}\n'
    path = write(tmp_path / f"own{suffix}", lines.replace(b"HALF", half))
    message = refusal(path, encoding=encoding)
    assert message.startswith(f"{path}, line 3: half a surrogate pair, read as {encoding}")


def test_other_bytes_than_utf_8_are_refused_with_the_flag_that_reads_them(tmp_path):
    path = write(tmp_path / "own.csv", table().encode("cp1252"))
    message = refusal(path)
    assert f"{path}, line 2: " in message and "0xe9" in message and "`encoding` cp1252" in message


def test_bytes_that_the_encoding_lacks_are_refused_with_its_name(tmp_path):
    path = write(tmp_path / "own.csv", table().encode().replace(b"again", b"\x81", 1))
    message = refusal(path, encoding="cp1252")
    assert "line 2" in message and "cp1252" in message and "0x81" in message


def test_utf_8_read_in_another_encoding_is_remarked_upon(tmp_path, capsys):
    load_dataset(write(tmp_path / "own.csv", table()), encoding="cp1252")
    assert "valid UTF-8" in (out := capsys.readouterr().out) and "cp1252" in out
    load_dataset(write(tmp_path / "own.csv", table().replace("é", "e")), encoding="cp1252")
    load_dataset(write(tmp_path / "own.csv", table()), encoding="utf8")
    load_dataset(write(tmp_path / "own.csv", "\ufeff" + table()), encoding="cp1252")  # read as UTF-8
    assert capsys.readouterr().out == ""


# --- other formats --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("own.txt", "a text\n", ["no labels", ".csv"]),
        ("own.xlsx", b"PK\3\4", ["workbook", "CSV"]),
        ("own.csv", b"PK\3\4\xff\0\0", ["workbook", "CSV"]),
        ("own.parquet", b"PAR1", ["to_csv"]),
        ("own.json", '[{"text": "x", "label": "y"}]', [".jsonl", "one object a line"]),
        ("own.jsonl", '[{"text": "x", "label": "y"}]', [".jsonl", "one object a line"]),
        ("own.jsonl", '[\n{"text": "x", "label": "y"}\n]', [".jsonl", "one object a line"]),
        ("own.dat", "x", [".csv, .tsv, .jsonl"]),
        ("own", "x", [".csv, .tsv, .jsonl"]),
    ],
)
def test_another_format_is_refused_with_what_to_do(tmp_path, name, content, words):
    message = refusal(write(tmp_path / name, content))
    assert str(tmp_path / name) in message and all(word in message for word in words), message


def test_labels_that_differ_in_case_alone_and_nan_are_warned_of(tmp_path, capsys):
    path = write(tmp_path / "own.csv", labelled("Pos", "pos", "neg", "nan"))
    load_dataset(path)
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: warning: labels that differ in case alone are different classes: Pos/pos",
        f"{path}: warning: 'nan' is taken as a class: remove its rows if their label is missing",
    ]


# --- labels ---------------------------------------------------------------------------------------

REFUSED = {
    "fractions": (labelled("3.7", "1", "4.25"), ["line 2", "'3.7'", "fraction", "`label_column`"]),
    "fractions with a decimal comma": (labelled("3,7", "2,5"), ["line 2", "'3,7'", "fraction"]),
    "scientific numbers": (labelled("1e-3", "2e-3"), ["line 2", "'1e-3'", "fraction"]),
    "a label for each text": (labelled(*map(str, range(0, 400, 5)), repeat=1), ["80 different labels", "80 rows"]),
    "columns exchanged": (table([(label, text) for text, label in ROWS]), ["40 different labels", "`label_column`"]),
    "JSON lists": (labelled("good", '["good", "fast"]'.replace('"', '""')), ["line 3", "several labels"]),
    "Python lists": (labelled("['a']", "['b']"), ["line 2", "several labels"]),
    "multi-hot": (labelled("[0 1 1]", "[1 0 0]"), ["line 2", "several labels"]),
    "empty list": (labelled("good", "bad", "[]"), ["line 4", "several labels"]),
    "joined by semicolon": (labelled("sports", "politics", "sports;politics"), ["line 4", "'sports;politics'"]),
    "joined by comma": (labelled("sports", "politics", "politics, sports"), ["line 4", "several labels"]),
    "joined by bar": (labelled("a", "b", "c", "a|b|c"), ["line 5", "several labels"]),
    "in two orders": (labelled("sports;politics", "politics;sports"), ["several labels"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_no_classes_are_refused_with_the_reason(tmp_path, case):
    content, words = REFUSED[case]
    path = write(tmp_path / "own.csv", content)
    message = refusal(path)
    assert str(path) in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    "label, words",
    [
        (["a", "b"], "several labels"),
        (3.7, "fraction"),
        (float("nan"), "neither"),
        (None, "label is empty"),
        ({"a": 1}, "neither"),
    ],
)
def test_json_labels_that_are_no_classes_are_refused_with_their_line(tmp_path, label, words):
    rows = [{"text": f"text {i:02}", "label": "good" if i != 1 else label} for i in range(20)]
    if label == 3.7:
        rows = [row | {"label": label if row["label"] == label else 1} for row in rows]
    message = refusal(write(tmp_path / "own.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert "line 2" in message and words in message, message


@pytest.mark.parametrize(
    "labels",
    [
        ("Books, new", "Books, used", "Films, new", "Films, used"),
        ("Payday loan", "Payday loan, title loan, or personal loan", "Credit reporting", "Credit card"),
        ("Business; finance", "Sports; games"),
        ("a,b", "c"),
        ("[NEG]", "[POS]", "[not sure]"),
        ("1.0", "1.1", "2.0-beta"),
        ("1e5", "2b7"),
        ("nan", "inf"),
        ("yes/no", "yes", "no"),
        ("|", "; "),
        tuple(f"intent {i:02}" for i in range(100)),
        tuple(str(i) for i in range(77)),
    ],
)
def test_honest_labels_are_not_refused(tmp_path, labels):
    data = load_dataset(write(tmp_path / "own.csv", labelled(*labels)))
    assert set(data.labels) == {label.strip() for label in labels}


def test_a_text_may_be_longer_than_the_csv_module_reads_by_itself(tmp_path):
    long = "word " * 40_000  # its limit is 131,072 characters
    data = load_dataset(write(tmp_path / "own.csv", table([*ROWS, (long, "good")])))
    assert long.strip() in data.all.texts


@pytest.mark.parametrize("count, refused", [(10, False), (11, True)])
def test_up_to_half_as_many_labels_as_rows_are_classes(count, refused):
    rows = [Row(i + 2, f"text {i}", f"intent {i % count}") for i in range(20)]
    with pytest.raises(MinikdError, match="own.csv: 11 different labels in 20 rows") if refused else nullcontext():
        check_classes(rows, "own.csv")


@pytest.mark.parametrize("zero, one", [("0.0", "1.0"), ("0.00", "1"), (0.0, 1.0)])
def test_whole_numbers_written_as_fractions_are_read_as_whole_numbers(tmp_path, capsys, zero, one):
    """pandas writes a column of whole numbers so where it has, or had, a missing value."""
    rows = [{"text": f"text {i:02}", "label": (zero, one)[i % 2]} for i in range(40)]
    path = write(tmp_path / "own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    data = load_dataset(path)
    assert data.labels == ("0", "1") and "'1.0' as '1'" in capsys.readouterr().out or one == "1"
    assert all(int(text[5:]) % 2 == label for text, label in zip(data.test.texts, data.test.labels))


def test_all_files_of_a_folder_have_their_labels_read_alike(tmp_path):
    write(tmp_path / "train.csv", labelled("0.0", "1.0"))
    write(tmp_path / "test.csv", table([("third", "1"), ("fourth", "0.0")]))
    data = load_dataset(tmp_path)
    assert data.labels == ("0", "1") and data.test.labels == [1, 0]


def test_a_label_of_the_test_file_that_is_no_training_label_is_named_as_it_is_written(tmp_path):
    write(tmp_path / "train.csv", labelled("0.0", "1.0"))
    message = refusal(write(tmp_path / "test.csv", table([("third", "2.0")])).parent)
    assert "test.csv, line 2" in message and "'2.0'" in message


def test_few_examples_of_many_labels_are_not_taken_for_a_number(tmp_path):
    """Few-shot data: two training examples of each of a hundred labels, and a test file."""
    labels = [f"intent {i:02}" for i in range(100)]
    write(tmp_path / "train.csv", labelled(*labels, repeat=2))
    write(tmp_path / "validation.csv", table([(f"dev {label}", label) for label in labels]))
    write(tmp_path / "test.csv", table([(f"test {label}", label) for label in labels]))
    assert len(load_dataset(tmp_path).labels) == 100


# --- honest evaluation ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder with three files; a text of train is in validation, and one in test."""
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    parts = shuffled[:24], shuffled[24:30] + shuffled[:1], shuffled[30:] + shuffled[1:2]
    (tmp_path / "data").mkdir()
    for name, rows in zip(NAMES, parts):
        write(tmp_path / "data" / f"{name}.csv", table(rows))
    return tmp_path / "data"


def poison(path: Path) -> None:
    """Replaces every good by bad in the label column of a file, and bad by good."""
    path.write_bytes(
        re.sub(rb'"(good|bad)"\r', lambda m: b'"bad"\r' if m[1] == b"good" else b'"good"\r', path.read_bytes())
    )


@pytest.mark.parametrize("validation", [True, False])
def test_poisoned_test_labels_change_nothing_in_train_and_validation(folder, validation):
    if not validation:
        (folder / "validation.csv").unlink()
    honest = load_dataset(folder)
    poison(folder / "test.csv")
    poisoned = load_dataset(folder)
    assert (poisoned.labels, poisoned.train, poisoned.validation) == (honest.labels, honest.train, honest.validation)
    assert poisoned.test.texts == honest.test.texts
    assert poisoned.test.labels == [1 - label for label in honest.test.labels]


def test_the_order_of_the_test_file_changes_nothing_in_train_and_validation(folder):
    honest = load_dataset(folder)
    lines = (folder / "test.csv").read_bytes().splitlines(keepends=True)
    (folder / "test.csv").write_bytes(b"".join(lines[:1] + lines[:0:-1]))
    reversed_ = load_dataset(folder)
    assert (reversed_.train, reversed_.validation) == (honest.train, honest.validation)
    assert reversed_.test.texts == honest.test.texts[::-1]


def test_a_test_file_of_other_numbers_does_not_change_how_labels_are_read(tmp_path):
    write(tmp_path / "train.csv", labelled("0", "1"))
    honest = load_dataset(write(tmp_path / "test.csv", table([("x", "1"), ("y", "0")])).parent)
    again = load_dataset(write(tmp_path / "test.csv", table([("x", "1.0"), ("y", "1.0")])).parent)
    assert (again.labels, again.train) == (honest.labels, honest.train) and again.test.labels == [1, 1]


def test_the_vocabulary_of_a_new_model_is_learned_from_training_texts_alone(script, folder):
    """And its weights, the epoch chosen and the early stop know no test label."""
    flags = ["--layers", 1, "--hidden", 32, "--epochs", 4, "--patience", 1, "--lr", "1e-2", "--precision", "fp32"]
    flags += ["--max-length", 16]
    assert script("train.py", "--dataset", folder, *flags, "--output-dir", "honest")[0] == 0
    rows = list(csv.reader((folder / "test.csv").open(newline="", encoding="utf-8")))[1:]
    new = [("zzyzx qwfp zzyzx qwfp " + text, "good") for text, _ in rows[:-1]]  # the last text is in train, too
    write(folder / "test.csv", table([*new, rows[-1]]))
    assert script("train.py", "--dataset", folder, *flags, "--output-dir", "poisoned")[0] == 0
    for name in ("tokenizer.json", "vocab.txt", "model.safetensors"):
        assert Path("honest", name).read_bytes() == Path("poisoned", name).read_bytes(), name
    assert Path("honest/results.json").read_text() != Path("poisoned/results.json").read_text()


# --- what a run prints and records ----------------------------------------------------------------


@pytest.fixture
def excel(corpus, tmp_path):
    """The films of `corpus` as a semicolon file in cp1252, with other column names."""
    rows = [(row["text"] + " à voir", row["label"]) for row in csv.DictReader(corpus.open(newline=""))]
    return write(tmp_path / "kritik.csv", table(rows, ("Kritik", "Urteil"), ";").encode("cp1252"))


COLUMNS = ["--text-column", "Kritik", "--label-column", "Urteil", "--encoding", "cp1252"]


def test_evaluate_reads_the_data_as_the_model_was_trained(script, excel, corpus, tmp_path):
    flags = ["--layers", 1, "--hidden", 32, "--epochs", 1, "--precision", "fp32", "--max-length", 16]
    status, out, err = script("train.py", "--dataset", excel, *COLUMNS, *flags)
    assert (status, err) == (0, "") and "columns separated by semicolons" in out
    model = Path("runs/kritik-model")
    recorded = json.loads((model / "run.json").read_text())["arguments"]
    assert [recorded[name] for name in ("text_column", "label_column", "encoding")] == ["Kritik", "Urteil", "cp1252"]
    accuracy = json.loads((model / "results.json").read_text())["models"][0]["accuracy"]
    status, _, err = script("evaluate.py", model, "--output-dir", "again", "--precision", "fp32")
    assert (status, err) == (0, "")
    assert json.loads(Path("again/results.json").read_text())["models"][0]["accuracy"] == accuracy

    # New data: the columns are looked for there, too, but not the encoding.
    rows = [(text + " à voir", "good" if i % 2 else "bad") for i, text in enumerate(TEXTS)]
    new = write(tmp_path / "neu.csv", table(rows, ("Kritik", "Urteil")))
    status, out, err = script("evaluate.py", model, "--dataset", new)
    assert (status, err) == (0, "") and "UTF-8" not in out
    status, _, err = script("evaluate.py", model, "--input", new, "--output", "labels.csv")
    assert (status, err) == (0, "") and "café" in Path("labels.csv").read_text(encoding="utf-8")
    write(tmp_path / "new.txt", "a café\n")
    assert script("evaluate.py", model, "--input", "new.txt", "--output", "labels.csv")[0] == 0
    status, _, err = script("evaluate.py", model, "--dataset", corpus)
    assert status == 2 and "'Kritik' (given, or recorded in training)" in err and "--text-column" in err
    assert script("evaluate.py", model, "--dataset", corpus, "--text-column", "text", "--label-column", "label")[0] == 0


def test_new_texts_are_read_from_the_column_and_encoding_given(script, excel, fine_tuned):
    flags = ["--input", excel, "--output", "labels.csv", "--text-column", "Kritik", "--encoding", "cp1252"]
    assert script("evaluate.py", fine_tuned, *flags)[0] == 0
    rows = list(csv.DictReader(Path("labels.csv").open(newline="", encoding="utf-8")))
    assert len(rows) == 200 and all(row["text"].endswith(" à voir") for row in rows)


@pytest.mark.parametrize("labels", [["bad"] * 2 + ["good"] * 4, ["good"] * 6, ["bad"], ["good"] * 30])
def test_all_examples_of_a_small_file_or_of_one_class_are_enough_for_a_finished_model(script, tmp_path, labels):
    model = save_model(tmp_path / "m", labels=("bad", "good"))
    write(tmp_path / "own.csv", table([(f"a film {i}", label) for i, label in enumerate(labels)]))
    status, _, err = script("evaluate.py", model, "--dataset", "own.csv", "--split", "all", "--output-dir", "out")
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(Path("out/predictions-m.csv").open(newline="", encoding="utf-8")))
    assert [row["label"] for row in rows] == labels
    assert [row["text"] for row in rows] == [f"a film {i}" for i in range(len(labels))]


def test_other_labels_than_the_models_are_still_refused_and_unnamed_outputs_need_names(script, tmp_path):
    model = save_model(tmp_path / "m", labels=("bad", "good"))
    write(tmp_path / "own.csv", table([("a film", "fine"), ("a plot", "fine")]))
    status, _, err = script("evaluate.py", model, "--dataset", "own.csv", "--split", "all")
    assert status == 2 and "'fine'" in err and err.count("\n") == 1
    unnamed = save_model(tmp_path / "u", labels=("LABEL_0", "LABEL_1"))
    write(tmp_path / "two.csv", table([("a film", "good"), ("a film", "bad")]))
    flags = ["--dataset", "two.csv", "--split", "all"]
    status, _, err = script("evaluate.py", unnamed, *flags)
    assert status == 2 and "--label-order" in err and err.count("\n") == 1
    assert script("evaluate.py", unnamed, *flags, "--label-order", "bad,good")[0] == 0


@pytest.mark.parametrize(
    "name, flags, words",
    [
        ("train.py", ["--dataset", "a.csv", "--encoding", "klingon"], "--encoding klingon: "),
        ("train.py", ["--dataset", "a.csv", "--encoding", "base64"], "--encoding base64: "),
        ("train.py", ["--text-column", ""], "--text-column: the value is empty"),
        ("distill.py", ["--text-column", "review"], "--text-column: sample"),
        ("evaluate.py", ["MODEL", "--text", "x", "--encoding", "cp1252"], "--encoding"),
        ("evaluate.py", ["MODEL", "--text", "x", "--text-column", "y"], "--text-column"),
        ("evaluate.py", ["MODEL", "--input", "a.csv", "--output", "b.csv", "--label-column", "y"], "--label-column"),
        (
            "evaluate.py",
            ["MODEL", "--input", "a.txt", "--output", "b.csv", "--text-column", "y"],
            "a.txt has no columns",
        ),
    ],
)
def test_a_column_flag_without_a_use_is_refused_in_one_line(script, fine_tuned, tmp_path, name, flags, words):
    for file in ("a.csv", "a.txt"):
        write(tmp_path / file, table())
    flags = [fine_tuned if flag == "MODEL" else flag for flag in flags]
    status, _, err = script(name, *flags)
    assert status == 2 and words in err and err.count("\n") == 1, err


def test_a_run_prints_the_examples_of_each_label_and_warns_of_rare_ones(capsys, tmp_path):
    labels = ["good"] * 60 + ["bad"] * 30 + ["odd"] * 5
    path = write(tmp_path / "own.csv", table([(f"film number {i:02}", label) for i, label in enumerate(labels)]))
    args = argparse.Namespace(
        dataset=str(path), data_dir=tmp_path, fpb_agreement="50", label_order=None, **vars(Layout())
    )
    data = cli.load_data(args)
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        "own: 75 train, 10 validation, 10 test",
        "labels (train + validation + test): bad: 24 + 3 + 3; good: 48 + 6 + 6; odd: 3 + 1 + 1",
    ]
    assert out[2].startswith("warning: few examples of 'odd' (3 training, 1 validation, 1 test)") and len(out) == 3
    assert data.train.labels.count(0) == 24


def test_a_label_missing_from_test_is_warned_of_and_balanced_data_are_not(capsys, tmp_path):
    write(tmp_path / "train.csv", labelled("a", "b"))
    write(tmp_path / "validation.csv", table([("dev 1", "a"), ("dev 2", "b")]))
    write(tmp_path / "test.csv", table([("test 1", "a"), ("test 2", "b")]))
    assert rare_labels(load_dataset(tmp_path)) == ""
    write(tmp_path / "test.csv", table([("test 1", "a")]))
    assert "'b' (10 training, 1 validation, 0 test)" in rare_labels(load_dataset(tmp_path))


def test_of_many_labels_the_most_and_the_least_frequent_are_printed(tmp_path):
    rows = [(f"text {i:02} {j:03}", f"intent {i:02}") for i in range(30) for j in range(10 + 10 * i)]
    counts = label_counts(load_dataset(write(tmp_path / "own.csv", table(rows))))
    assert counts.startswith("30 labels (train + validation + test): intent 29: 240 + 30 + 30; intent 28: ")
    assert counts.endswith("; intent 00: 8 + 1 + 1") and "intent 15" not in counts
