"""Ids against those of transformers' tokenizers, on the real BERT vocabulary and on one learned here."""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import minikd.tokenizer
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.datasets import load_dataset
from minikd.errors import MinikdError
from minikd.tokenizer import SPECIAL_TOKENS, Tokenizer, bert_wordpiece, train_wordpiece

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
    with pytest.raises(MinikdError) as caught:
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


SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
OPPOSITE = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}  # of BERT's defaults


@functools.cache
def letters() -> dict[str, int]:
    """A vocabulary of the letters that NASTY has under any settings, each also as a piece: every difference shows."""
    found = set()
    for values in itertools.product([True, False], repeat=3):
        backend = bert_wordpiece({"[UNK]": 0}, dict(zip(SWITCHES, values)))
        for text in NASTY.values():
            words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
            found.update(letter for word, _ in words for letter in word)
    tokens = SPECIAL_TOKENS + [piece for letter in sorted(found) for piece in (letter, f"##{letter}")]
    return {token: i for i, token in enumerate(tokens)}


def write_folder(folder, *, in_json=None, model_type="bert", config=None, settings=None, files=None, **parts):
    """A model folder: tokenizer.json where `in_json` gives its settings (with other `parts` if wanted), or else
    vocab.txt; config.json; tokenizer_config.json where there are `settings`; and other `files` of JSON."""
    for path in folder.iterdir():
        path.unlink()
    files = {"config.json": {"model_type": model_type} | (config or {})} | (files or {})
    if settings is not None:
        files["tokenizer_config.json"] = settings
    if in_json is None:
        (folder / "vocab.txt").write_text("\n".join(letters()) + "\n", encoding="utf-8")
    else:
        files["tokenizer.json"] = json.loads(bert_wordpiece(letters(), in_json).to_str()) | parts
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", [None, "BertTokenizer", "DistilBertTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("in_json", [None, {}, OPPOSITE], ids=["vocab.txt", "tokenizer.json", "opposite.json"])
def test_ids_equal_transformers_whatever_tokenizer_config_and_tokenizer_json_say(kind, in_json, tmp_path):
    """tokenizer_config.json overrides tokenizer.json in the tokenizers of BERT, also where it leaves a setting out."""
    if kind == "PreTrainedTokenizerFast" and in_json is None:
        pytest.skip("a general tokenizer needs its tokenizer.json")
    seen, texts = set(), list(NASTY.values())
    absent, values = object(), {"strip_accents": [True, False, None]}
    for chosen in itertools.product(*([absent, *values.get(name, [True, False])] for name in SWITCHES)):
        settings = {name: value for name, value in zip(SWITCHES, chosen) if value is not absent}
        write_folder(tmp_path, in_json=in_json, settings=settings | ({"tokenizer_class": kind} if kind else {}))
        assert_same_ids(tmp_path, texts, 512)
        seen.add(tuple(load_tokenizer(tmp_path).encode(texts, 512)[0].tolist()))
    assert len(seen) == (1 if kind == "PreTrainedTokenizerFast" else 8)


@pytest.mark.parametrize("config", [
    {"model_type": "distilbert"}, {"model_type": "bert", "tokenizer_class": "BertTokenizer"},
    {"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"},
])  # fmt: skip
@pytest.mark.parametrize("in_json", [None, {}, OPPOSITE], ids=["vocab.txt", "tokenizer.json", "opposite.json"])
def test_ids_equal_transformers_without_a_tokenizer_config(config, in_json, tmp_path):
    if config.get("tokenizer_class", "").startswith("PreTrained") and in_json is None:
        pytest.skip("a general tokenizer needs its tokenizer.json")
    write_folder(tmp_path, in_json=in_json, config=config)
    assert_same_ids(tmp_path, list(NASTY.values()), 512)


def added(content, **fields):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False} | fields  # fmt: skip


OBJECT = {"__type": "AddedToken"}  # by which transformers knows a token among the settings
SPECIALS = {str(i): added(token, special=True) for i, token in enumerate(SPECIAL_TOKENS)}
ENTITY = "a<ent>b < ent> <ENT> good<ent> bad [PAD]  <ent>. ¿Qué? <new word> café-bar cafe-bar </s> <s>"
ADDED = {
    "in tokenizer.json": {
        "in_json": {},
        "added_tokens": [added(t["content"], id=int(i), special=True) for i, t in SPECIALS.items()]
        + [added("<ent>", id=9000, special=True), added("<new word>", id=9001, normalized=True)],
    },
    "with blanks at their sides": {
        "in_json": {},
        "added_tokens": [added(t["content"], id=int(i), special=True, lstrip=True) for i, t in SPECIALS.items()]
        + [added("bad", id=9000, rstrip=True), added("café-bar", id=9001, normalized=True, single_word=True)],
    },
    "in tokenizer_config.json": {
        "settings": {"added_tokens_decoder": SPECIALS | {"9000": added("<ent>"), "7": added("good", normalized=True)}},
    },
    "in both files": {
        "in_json": {}, "settings": {"added_tokens_decoder": SPECIALS | {"9000": added("<new word>")}},
        "added_tokens": [added("<ent>", id=9000)],
    },
    "in old files": {
        "files": {"added_tokens.json": {"<ent>": 9000, "café-bar": 9001},
                  "special_tokens_map.json": {"cls_token": "[CLS]", "additional_special_tokens": ["<new word>"]}},
    },
    "as additional_special_tokens": {
        "settings": {"additional_special_tokens": ["<ent>", added("<new word>", lstrip=True) | OBJECT],
                     "eos_token": "</s>"},
    },
    "as extra_special_tokens": {"in_json": {}, "settings": {"extra_special_tokens": ["<ent>"]}},
    "as extra_special_tokens with names": {"settings": {"extra_special_tokens": {"entity": "<ent>"}}},
    "as the mask with blanks": {"settings": {"mask_token": added("[MASK]", lstrip=True) | OBJECT}},
}  # fmt: skip


@pytest.mark.parametrize("where", ADDED)
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_ids_equal_transformers_with_added_tokens(where, kind, tmp_path):
    parts = dict(ADDED[where])
    if kind == "PreTrainedTokenizerFast" and "in_json" not in parts:
        pytest.skip("a general tokenizer needs its tokenizer.json")
    write_folder(tmp_path, **parts | {"settings": parts.get("settings", {}) | {"tokenizer_class": kind}})
    texts = [ENTITY, *NASTY.values()]
    assert_same_ids(tmp_path, texts, 512)
    tokenizer = load_tokenizer(tmp_path)  # and what we save reads the same, here and there, with either file
    assert tokenizer.vocab == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    ids = tokenizer.encode(texts, 512)[0].tolist()
    write_folder(tmp_path)
    save_tokenizer(tokenizer, tmp_path, "bert", 512)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    for file in ("vocab.txt", "tokenizer.json"):
        assert load_tokenizer(tmp_path).encode(texts, 512)[0].tolist() == ids
        assert_same_ids(tmp_path, texts, 512)
        (tmp_path / file).unlink()
        save_tokenizer(tokenizer, tmp_path, "bert", 512) if file == "vocab.txt" else None


@pytest.mark.parametrize("parts", [
    {"settings": {"truncation_side": "left"}},
    {"settings": {"truncation_side": "left", "model_max_length": 9}, "in_json": {}},
    {"in_json": {}, "truncation": {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 3}},
    {"in_json": {}, "settings": {"truncation_side": "right"},
     "truncation": {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}},
    {"in_json": {}, "padding": {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None,
                                   "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}},
], ids=["left", "left and shorter", "left in tokenizer.json", "right after all", "padded"])  # fmt: skip
def test_ids_equal_transformers_where_files_say_how_to_truncate_and_pad(parts, tmp_path):
    write_folder(tmp_path, **parts)
    texts = ["", "one two three four five six seven eight", "a"]
    assert_same_ids(tmp_path, texts, 12)
    tokenizer = load_tokenizer(tmp_path)
    write_folder(tmp_path)
    right = load_tokenizer(tmp_path)
    differs = tokenizer.encode(texts, 12)[0].tolist() != right.encode(texts, 12)[0].tolist()
    assert differs == (tokenizer.fingerprint != right.fingerprint)  # by which tokens are cached
    save_tokenizer(tokenizer, tmp_path, "bert", 512)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert_same_ids(tmp_path, texts, 12)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_what_we_save_has_the_same_ids_as_what_we_read(kind, tmp_path):
    """A general tokenizer, which goes by tokenizer.json alone, is saved as BERT's with the settings of that file."""
    opposite = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True}
    write_folder(tmp_path, in_json=OPPOSITE, settings=opposite | {"tokenizer_class": kind})
    texts = list(NASTY.values())
    tokenizer = load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path, "bert", 512)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(tmp_path).encode(texts, 512)[0].tolist() == tokenizer.encode(texts, 512)[0].tolist()
    assert_same_ids(tmp_path, texts, 512)


def test_tokenizer_json_of_before_2021_does_not_name_its_kind(tmp_path):
    model = json.loads(bert_wordpiece(letters(), {}).to_str())["model"]
    del model["type"]
    write_folder(tmp_path, in_json={}, model=model)
    assert_same_ids(tmp_path, list(NASTY.values()), 512)


def test_blanks_behind_a_token_of_vocab_txt_do_not_count(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("\na\n", "\na \t\n"), encoding="utf-8")
    assert_same_ids(tmp_path, ["a banana"], 512)
    assert load_tokenizer(tmp_path).vocab["a"] == letters()["a"]


@pytest.mark.parametrize(("parts", "reason"), [
    ({"config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "tokenizer_class BertJapaneseTokenizer is not impl"),
    ({"settings": {"tokenizer_class": "MPNetTokenizer"}, "in_json": {}}, "tokenizer_class MPNetTokenizer is not"),
    ({"settings": {"do_lower_case": "no"}}, "config.json: do_lower_case must be one of True, False, not 'no'"),
    ({"settings": {"do_lower_case": 1}}, "tokenizer_config.json: do_lower_case must be one of True, False, not 1"),
    ({"settings": {"strip_accents": 0}}, "tokenizer_config.json: strip_accents must be one of True, False, None"),
    ({"settings": {"tokenize_chinese_chars": 1.0}}, "tokenizer_config.json: tokenize_chinese_chars must be one of"),
    ({"settings": {"split_special_tokens": 0}}, "tokenizer_config.json: split_special_tokens must be one of False"),
    ({"settings": {"truncation_side": ["left"]}}, "tokenizer_config.json: truncation_side must be one of right, left"),
    ({"settings": {"strip_accents": "no"}}, "tokenizer_config.json: strip_accents must be one of"),
    ({"settings": {"truncation_side": "middle"}}, "tokenizer_config.json: truncation_side must be one of right, left"),
    ({"settings": {"split_special_tokens": True}}, "tokenizer_config.json: split_special_tokens must be one of False"),
    ({"settings": {"cls_token": "<s>"}}, "tokenizer_config.json: cls_token '<s>' is not implemented"),
    ({"settings": {"pad_token": {"content": "<pad>"}}}, "tokenizer_config.json: pad_token '<pad>' is not implemented"),
    ({"settings": {"added_tokens_decoder": ["x"]}}, "tokenizer_config.json: added_tokens_decoder must be an object"),
    ({"settings": {"added_tokens_decoder": {"x": {"content": "<a>"}}}},
     "tokenizer_config.json: added_tokens_decoder: 'x' is no id of a token"),
    ({"settings": {"added_tokens_decoder": {"5": {"special": True}}}},
     "tokenizer_config.json: added_tokens_decoder: 5 must be a text, or an object with its content"),
    ({"settings": {"added_tokens_decoder": {"5": 7}}},
     "tokenizer_config.json: added_tokens_decoder: 5 must be a text, or an object with its content"),
    ({"settings": {"added_tokens_decoder": {"5": {"content": "<a>", "special": 1}}}},
     "tokenizer_config.json: added_tokens_decoder: 5 must be a text, or an object with its content and flags"),
    ({"settings": {"cls_token": {"special": True}}}, "tokenizer_config.json: cls_token must be a text, or an object"),
    ({"settings": []}, "tokenizer_config.json: is damaged"),
], ids=str)  # fmt: skip
def test_tokenizers_and_settings_that_are_not_implemented_are_refused(parts, reason, tmp_path):
    write_folder(tmp_path, **parts)
    assert reason in refusal(load_tokenizer, tmp_path)


@pytest.mark.parametrize(("part", "name", "value"), [
    ("model", "max_input_chars_per_word", 50), ("model", "continuing_subword_prefix", "@@"),
    ("normalizer", "clean_text", False),
])  # fmt: skip
def test_a_general_tokenizer_that_is_not_berts_in_all_it_does_is_refused(part, name, value, tmp_path):
    content = json.loads(bert_wordpiece(letters(), {}).to_str())
    write_folder(tmp_path, in_json={}, **{part: content[part] | {name: value}})
    assert_same_ids(tmp_path, list(NASTY.values()), 512)  # BERT's own class ignores it
    write_folder(tmp_path, in_json={}, settings={"tokenizer_class": "PreTrainedTokenizerFast"},
                 **{part: content[part] | {name: value}})  # fmt: skip
    assert f"tokenizer.json: {name} {value!r} is not implemented" in refusal(load_tokenizer, tmp_path)


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
    assert f"`max_length` {max_length}: must be at least 3" in message


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
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
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
    """A letter that counted as a special token would be cut out of the words in which it appears."""
    tokenizer = train_wordpiece(TEXTS, 120)
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    assert special == set(SPECIAL_TOKENS)
    assert tokenizer.backend.encode("good [MASK]").tokens == ["[CLS]", "good", "[MASK]", "[SEP]"]


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_saved_learned_tokenizer_is_loaded_alike_here_and_by_transformers(model_type, tmp_path):
    tokenizer = train_wordpiece(TEXTS, 120)
    save_tokenizer(tokenizer, tmp_path, model_type, 64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert_same_ids(tmp_path, [*TEXTS, *NASTY.values()], 64)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 64
    (tmp_path / "tokenizer.json").unlink()  # vocab.txt alone describes the same
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert_same_ids(tmp_path, [*TEXTS, *NASTY.values()], 64)


def test_saved_and_loaded_tokenizer_has_the_same_ids_and_fingerprint(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, tmp_path, "bert", 512)
    loaded, texts = load_tokenizer(tmp_path), list(NASTY.values())
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.vocab == tokenizer.vocab
    assert loaded.encode(texts, 512)[0].tolist() == tokenizer.encode(texts, 512)[0].tolist()
    assert_same_ids(tmp_path, texts, 512)
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).encode(texts, 512)[0].tolist() == tokenizer.encode(texts, 512)[0].tolist()


def test_ids_stay_where_the_vocabulary_has_holes(tmp_path):
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | {"fine": 7, "film": 9}
    tokenizer = Tokenizer(bert_wordpiece(vocab, {}))
    assert tokenizer.vocab_size == 10  # the rows that an embedding needs
    save_tokenizer(tokenizer, tmp_path, "bert", 16)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for _ in range(2):
        assert load_tokenizer(tmp_path).encode(["fine film"], 16)[0].tolist() == [2, 7, 9, 3]
        assert_same_ids(tmp_path, ["fine film"], 16)
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)  # vocab.txt alone gives an id by its line


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


def test_a_bar_is_shown_where_it_has_a_name(minilm, monkeypatch):
    bars = []
    show = minikd.tokenizer.tqdm
    monkeypatch.setattr(minikd.tokenizer, "tqdm", lambda **settings: bars.append(settings) or show(**settings))
    for desc in ("tokens", ""):
        load_tokenizer(minilm).encode(["a film"] * 1001, 8, desc)
    assert [(bar["total"], bar["desc"], bar["disable"]) for bar in bars] == [(1001, "tokens", False), (1001, "", True)]
