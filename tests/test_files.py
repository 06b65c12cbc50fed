"""Files are written whole or not at all, their errors name them, and a clean-up hides no error."""

import csv
import json
import math
import os

import numpy as np
import pytest

from minikd.files import CleanUp, atomic_file, atomic_write, fingerprint, write_json, write_rows


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def full_disk(*_):
    raise OSError(28, "No space left on device")


def failing_disk(*_):
    raise OSError(5, "Input/output error")


def test_a_file_has_its_name_only_once_the_block_has_ended_well(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"all of it")
        file.flush()
        assert not path.exists()
    assert content_of(path.parent) == {"file": b"all of it"}
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_file(path) as file:
            file.write(b"a part")
            raise error
    assert content_of(path.parent) == {"file": b"all of it"}


def test_an_error_within_the_block_that_names_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other") and not content_of(tmp_path)


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Or a crash of the machine could leave an empty file under the name."""
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(("disk", os.fstat(file).st_size)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: steps.append("name") or replace(*names))
    atomic_write(tmp_path / "file", "content")
    assert steps == [("disk", 7), "name"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace", "unlink"])
def test_an_error_while_writing_names_the_file_and_leaves_the_old_one(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    if step == "unlink":  # of the temporary file: must not hide the first error
        monkeypatch.setattr(os, "fsync", full_disk)
        monkeypatch.setattr(os, "unlink", failing_disk)
    else:
        monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(path, "new")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    assert step == "unlink" or content_of(tmp_path) == {"file": b"old"}


def test_others_may_read_a_file(tmp_path):
    atomic_write(tmp_path / "file", "content")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [{"loss": math.nan}, [math.inf], {"loss": object()}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(value, tmp_path):
    write_json(tmp_path / "file", {"loss": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file", value)
    assert json.loads((tmp_path / "file").read_text()) == {"loss": 1}


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.JSONL"])
def test_rows_come_back_as_they_were_whatever_their_texts_hold(name, tmp_path, monkeypatch):
    texts = ["a, b", 'a "quote"', "two\nlines", "a\rreturn", "both\r\n", " spaces ", "é 电 \u2028", "7", ""]
    rows = [{"text": text, "label": i} for i, text in enumerate(texts)]
    path = tmp_path / name
    write_rows(path, rows)
    content = path.read_bytes().decode("utf-8")
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            read = [{"text": row["text"], "label": int(row["label"])} for row in csv.DictReader(file)]
    else:
        read = [json.loads(line) for line in content.removesuffix("\n").split("\n")]
    assert read == rows and "é 电" in content
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_rows(path, rows[:2])
    assert path.read_bytes().decode("utf-8") == content


def test_a_fingerprint_tells_where_one_part_ends_and_the_next_begins():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("c", "ab")]
    assert len({fingerprint(*one) for one in parts}) == len(parts)
    assert fingerprint("é", np.array([1, 2], np.int32)) == fingerprint("é".encode(), b"\1\0\0\0\2\0\0\0")
    assert fingerprint("half \ud83d") != fingerprint("half \udc4d")


def test_a_clean_up_that_fails_is_a_note_to_the_first_error_or_the_error_itself():
    done = []
    with pytest.raises(KeyError) as caught, CleanUp() as at_the_end:
        at_the_end.callback(done.append, "the rest")
        at_the_end.callback(full_disk)
        raise KeyError("first")
    assert done == ["the rest"] and "No space left" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="No space left"), CleanUp() as at_the_end:
        at_the_end.callback(full_disk)
