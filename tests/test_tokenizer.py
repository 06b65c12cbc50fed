"""Ids against those of transformers' tokenizers, on the real BERT vocabulary and on one learned here."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from minikd.datasets import load_dataset
from minikd.files import UserError
from minikd.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_wordpiece

NASTY = {
    "empty": "",
    "whitespace": " \t\r\n \u00a0\u3000\u2003",
    "plain": "The film is, quite simply, wonderful!",
    "capitals": "THE Film Is GREAT",
    "emoji": "😀 good👍🏽 👨‍👩‍👧‍👦 ❤️ 🇩🇪",
    "composed accents": "café naïve Ångström ÉCOLE İstanbul ß ﬁ",
    "decomposed accents": "cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u0301",
    "CJK": "这部电影很好 東京の映画 한국 영화 ｆｕｌｌ　ｗｉｄｔｈ",
    "other scripts": "Привет мир عالم שלום नमस्ते ไทย Ελλάς",
    "control characters": "a\x01b\x7fc\x1bd\x85e\u0090f\x0bg\x0ch",
    "zero-width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f\u00adg",
    "direction marks": "a\u202eb\u200fc",
    "NUL": "a\x00b \x00",
    "replacement character": "a\ufffdb",
    "private use and unassigned": "\ue000x\U0010ffff \u0378y",
    "word of 10,000 letters": "a" * 10_000 + " end",
    "words of 100 and 101 letters": "b" * 100 + " " + "b" * 101,
    "punctuation": "don't-stop...(now)[here]{}|~`^$+<=>«»“”–—…·",
    "special tokens": "[CLS] x [SEP] y [MASK] [PAD] [UNK]",
    "special tokens inside words": "a[CLS]b ##[MASK] [MASK][MASK]",
    "special tokens in other cases": "[cls] [mask] [Mask] [ MASK ] [CLS",
    "word pieces": "##ing un##able [unused1] [unused99]",
    "line separators": "a\u2028b\u2029c\x1cd",
    "HTML": "good<br /><br />bad &amp; ugly",
    "numbers": "3.14 1,000,000 £5bn 10% ½ ² ①",
    "ligature and surrogate pair": "\U0001d54f 𝓗 ﷺ",
}


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.txt", "vocab.txt, cased"])
def folder(request, minilm, tmp_path_factory):
    """Model folders with the three forms in which published models describe their tokenizer."""
    if request.param == "tokenizer.json":
        return minilm
    folder = tmp_path_factory.mktemp("vocab")
    shutil.copy(minilm / "vocab.txt", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')  # by which transformers knows the kind of tokenizer
    if "cased" in request.param:
        settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with open(folder / "vocab.txt", "a", encoding="utf-8") as file:
            file.write("The\nFilm\nIs\nGREAT\ncafé\n##É\n")  # or every capital letter would end as [UNK]
    return folder


def assert_same_ids(folder, texts, max_length):
    """Our ids of all `texts` against transformers' tokenizer of the same folder."""
    theirs = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=max_length)["input_ids"]
    ids, offsets = load_tokenizer(folder).encode(texts, max_length)
    assert len(offsets) == len(texts) + 1
    for i, expected in enumerate(theirs):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == expected, f"text {i}: {texts[i][:100]!r}"


@functools.cache
def real_texts(corpus, data_dir) -> list[str]:
    return load_dataset(corpus, data_dir).train.texts[:2000]


def refusal(load, *arguments) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NASTY)
def test_ids_equal_transformers_on_a_text_of(name, folder):
    assert_same_ids(folder, [NASTY[name]], 512)


@pytest.mark.parametrize("max_length", [3, 4, 7, 128, 512])
def test_ids_equal_transformers_where_texts_are_cut(folder, max_length):
    assert_same_ids(folder, [*NASTY.values(), "an unbelievably long sentence " * 300], max_length)


@pytest.mark.parametrize("corpus", ["imdb", "sst2", "fpb"])
def test_ids_equal_transformers_on_2000_texts_of_the_real(corpus, folder, data_dir):
    texts = real_texts(corpus, data_dir)
    assert len(texts) == 2000
    assert_same_ids(folder, texts, 256)


def test_ids_equal_transformers_on_the_sample(folder):
    assert_same_ids(folder, load_dataset("sample").train.texts[:500], 64)


def test_cased_and_uncased_tokenizers_differ(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    lower, _ = load_tokenizer(tmp_path).encode(["The FILM"], 9)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased, _ = load_tokenizer(tmp_path).encode(["The FILM"], 9)
    assert lower.tolist() == [101, 1996, 2143, 102] and cased.tolist() != lower.tolist()


def test_published_truncation_and_padding_are_not_applied(minilm):
    """all-MiniLM-L6-v2's tokenizer.json pads and cuts to 128 tokens by itself."""
    assert json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))["truncation"]["max_length"] == 128
    tokenizer = load_tokenizer(minilm)
    assert len(tokenizer.encode(["good " * 400], 512)[0]) == 402 and len(tokenizer.encode(["good"], 512)[0]) == 3


def test_encoding_is_flat_with_offsets_and_independent_of_the_neighbours(minilm):
    tokenizer = load_tokenizer(minilm)
    texts = [f"film number {i} " * (i % 5) for i in range(2100)]  # more than one chunk for the library
    ids, offsets = tokenizer.encode(texts, 12)
    assert (ids.dtype, offsets.dtype, offsets[0], offsets[-1]) == (np.int32, np.int64, 0, len(ids))
    for i in (0, 1, 999, 1000, 2099):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == tokenizer.encode([texts[i]], 12)[0].tolist()
    assert np.diff(offsets).min() == 2 and np.diff(offsets).max() == 12
    assert [part.tolist() for part in tokenizer.encode([], 12)] == [[], [0]]


@pytest.mark.parametrize("max_length", [2, 1, 0, -5])
def test_length_without_room_for_the_text_is_refused(minilm, max_length):
    message = refusal(load_tokenizer(minilm).encode, ["film"], max_length)
    assert f"--max-length {max_length}: must be at least 3" in message


def test_encoding_does_not_change_the_tokenizer(minilm):
    tokenizer = load_tokenizer(minilm)
    before = tokenizer.backend.to_str()
    tokenizer.encode(["a film"], 3)
    assert tokenizer.backend.to_str() == before


WORDS = ["good", "bad", "boring", "touching", "overacted", "predictable"]
TEXTS = [f"the {noun} is {word}, Café!" for noun in ["plot", "acting", "very end", "score"] for word in WORDS] * 3
PROGRAM = """
import json, sys
from minikd.tokenizer import train_wordpiece
tokenizer = train_wordpiece(json.load(sys.stdin), 120)
print(json.dumps([tokenizer.fingerprint, tokenizer.vocab], sort_keys=True))
"""


def test_same_texts_give_the_same_vocabulary_in_every_process():
    outputs = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        command = [sys.executable, "-c", PROGRAM]
        result = subprocess.run(command, input=json.dumps(TEXTS), env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        outputs.add(result.stdout)
    assert len(outputs) == 1


def test_learned_vocabulary_covers_its_texts_and_keeps_to_its_size():
    tokenizer = train_wordpiece(TEXTS, 120)
    assert tokenizer.vocab_size == len(tokenizer.vocab) <= 120
    assert [tokenizer.vocab[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4] and tokenizer.pad_token_id == 0
    ids, offsets = tokenizer.encode(TEXTS, 64)
    assert tokenizer.vocab["[UNK]"] not in ids
    assert {"the", "good", "plot", "cafe"} <= tokenizer.vocab.keys()
    assert all(ids[start] == 2 and ids[end - 1] == 3 for start, end in zip(offsets, offsets[1:]))
    assert tokenizer.backend.decode(ids[: offsets[1]].tolist()) == "the plot is good, cafe!"


def test_letters_of_a_learned_vocabulary_are_ordinary_text():
    """A letter that counted as a special token would be cut out of the words that it stands in."""
    tokenizer = train_wordpiece(TEXTS, 120)
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    assert special == set(SPECIAL_TOKENS)
    assert tokenizer.backend.encode("good [MASK]").tokens == ["[CLS]", "good", "[MASK]", "[SEP]"]


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_saved_learned_tokenizer_is_loaded_alike_here_and_by_transformers(model_type, tmp_path):
    tokenizer = train_wordpiece(TEXTS, 120)
    tokenizer.save(tmp_path, model_type, 64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert_same_ids(tmp_path, [*TEXTS, *NASTY.values()], 64)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 64
    (tmp_path / "tokenizer.json").unlink()  # vocab.txt alone describes the same
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert_same_ids(tmp_path, [*TEXTS, *NASTY.values()], 64)


def test_saved_and_loaded_tokenizer_has_the_same_ids_and_fingerprint(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    tokenizer.save(tmp_path, "bert", 512)
    loaded, texts = load_tokenizer(tmp_path), list(NASTY.values())
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.vocab == tokenizer.vocab
    assert loaded.encode(texts, 512)[0].tolist() == tokenizer.encode(texts, 512)[0].tolist()
    assert_same_ids(tmp_path, texts, 512)
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).encode(texts, 512)[0].tolist() == tokenizer.encode(texts, 512)[0].tolist()


def test_fingerprint_tells_vocabularies_and_casings_apart(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    prints = {load_tokenizer(tmp_path).fingerprint, train_wordpiece(TEXTS, 120).fingerprint}
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert len(prints | {load_tokenizer(tmp_path).fingerprint}) == 3


def test_vocabulary_with_windows_line_ends_is_the_same(minilm, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(tmp_path).vocab == load_tokenizer(minilm).vocab


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    assert refusal(load_tokenizer, tmp_path) == (
        f"{tmp_path}: has no tokenizer.json or vocab.txt; a model folder needs one of them"
    )


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("tokenizer.json", "{", "is damaged"),
    ("tokenizer.json", "[]", "is damaged"),
    ("tokenizer.json", '{"model": {"type": "BPE"}}', "is not BERT's WordPiece tokenizer"),
    ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\na\n", "the vocabulary has no [SEP], [MASK]"),
    ("vocab.txt", "", "the vocabulary has no [PAD], [UNK], [CLS], [SEP], [MASK]"),
])  # fmt: skip
def test_damaged_or_other_tokenizer_is_refused_by_the_name_of_its_file(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    message = refusal(load_tokenizer, tmp_path)
    assert str(tmp_path / name) in message and reason in message


def test_broken_settings_are_refused_by_the_name_of_their_file(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: is damaged" in refusal(load_tokenizer, tmp_path)


def test_tokenizer_that_does_not_frame_its_texts_is_refused(minilm, tmp_path):
    content = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    assert "does not frame a text as [CLS] text [SEP]" in refusal(load_tokenizer, tmp_path)
