"""The files of a tokenizer in a model folder, as transformers' AutoTokenizer reads and writes them.

They say the same thing in several places: casing in tokenizer_config.json and in tokenizer.json, added tokens in these
and in two older files. tests/checkpoints/test_tokenizer.py compares the ids with those of transformers for all of them.
"""

import json
from pathlib import Path

from tokenizers import AddedToken
from tokenizers.models import WordPiece

from minikd.checkpoints.reading import read_json, reading
from minikd.errors import MinikdError
from minikd.files import MOST, atomic_write, regular_file, write_json
from minikd.tokenizer import SPECIAL_TOKENS, Tokenizer, bert_wordpiece

# The tokenizer_class of a folder, without "Fast": what transformers takes for BERT's tokenizer, and what it takes for
# tokenizer.json as it is.
BERTS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer", "LxmertTokenizer",
         "MobileBertTokenizer", "SqueezeBertTokenizer")  # fmt: skip
GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")

# tokenizer_config.json's name    tokenizer.json's, in its normalizer
NORMALIZER = {
    "do_lower_case":               "lowercase",
    "strip_accents":               "strip_accents",
    "tokenize_chinese_chars":      "handle_chinese_chars",
}  # fmt: skip

# The values of tokenizer_config.json that are implemented.
VALUES = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
    "split_special_tokens": (False,),
    "truncation_side": ("right", "left"),
}

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
SPECIAL_NAMES = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}  # pad_token: [PAD], …


def load_tokenizer(folder) -> Tokenizer:
    """The tokenizer of a model folder, with the ids that transformers' AutoTokenizer gives.

    The vocabulary is that of tokenizer.json, or else of vocab.txt. Casing, accents and Chinese characters are treated
    as tokenizer_config.json says, with BERT's defaults (uncased), whatever the normalizer of tokenizer.json says. Only
    where the folder names a general tokenizer (PreTrainedTokenizerFast) does tokenizer.json count as it is. Raises
    MinikdError that names the file where both are missing, or where one is damaged or not BERT's WordPiece.
    """
    folder = Path(folder)
    settings = _read_if_there(folder / "tokenizer_config.json")
    general = _is_general(folder, settings)
    with reading(folder / "tokenizer_config.json"):
        _check_settings(settings)
    numbered = {}
    if settings.get("added_tokens_decoder") is None:  # which replaces two older files
        older, numbered = (_read_if_there(folder / f"{name}.json") for name in ("special_tokens_map", "added_tokens"))
        with reading(folder / "special_tokens_map.json"):
            _check_settings(older)
        with reading(folder / "added_tokens.json"):
            if wrong := [token for token, token_id in numbered.items() if type(token_id) is not int]:
                raise MinikdError(f"{wrong[0]!r} has no number as its id")
        settings = settings | older
    content = _read_if_there(folder / "tokenizer.json")
    path = next((folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).exists()), None)
    if path is None:
        raise MinikdError(f"{folder}: has no tokenizer.json or vocab.txt; a model folder needs one of them")
    with reading(path, "is damaged or not a tokenizer ({})"):
        if path.name == "vocab.txt":
            vocab = WordPiece.read_file(str(regular_file(path, MOST)))
        else:
            _check_is_bert(content, general)
            vocab = _vocabulary(content["model"])
            if general:
                settings = settings | _normalizer_settings(content)
        backend = bert_wordpiece(vocab, settings, _added_tokens(settings, content, numbered, general))
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        missing += ["[UNK]"] * ("[UNK]" not in vocab and not missing)  # the library needs this one there
        if missing:
            raise MinikdError(f"the vocabulary has no {', '.join(missing)}")
        direction = (content.get("truncation") or {}).get("direction", "right").lower()
        if direction not in VALUES["truncation_side"]:
            raise MinikdError(f"truncation: direction {direction!r} is not implemented")
        tokenizer = Tokenizer(backend, settings.get("truncation_side", direction))
        _check_tokens(tokenizer)
        return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder, model_type: str, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and vocab.txt so that transformers' AutoTokenizer loads them."""
    folder = Path(folder)
    content = json.loads(tokenizer.backend.to_str())
    atomic_write(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=True))
    tokens = {token_id: token for token, token_id in tokenizer.vocab.items()}
    # An id without a token (a hole in the vocabulary) still needs its line, or every later id would move.
    lines = [tokens.get(i, f"[unused_hole{i}]") for i in range(tokenizer.vocab_size)]
    atomic_write(folder / "vocab.txt", "\n".join(lines) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": {"bert": "BertTokenizer", "distilbert": "DistilBertTokenizer"}[model_type],
            **_normalizer_settings(content),
            "truncation_side": tokenizer.truncation_side,
            "model_max_length": max_length,
            "added_tokens_decoder": {str(token.pop("id")): token for token in content["added_tokens"]},
            **SPECIAL_NAMES,
        },
    )


def _read_if_there(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _is_general(folder: Path, settings: dict) -> bool:
    """Whether the ids follow tokenizer.json as it is, rather than its vocabulary and tokenizer_config.json.

    Raises MinikdError for a tokenizer_class that is not implemented.
    """
    config = _read_if_there(folder / "config.json")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not kind:
        return "model_type" not in config  # without which transformers does not know that it is a BERT
    name = str(kind).removesuffix("Fast")
    if name not in BERTS + GENERAL:
        raise MinikdError(
            f"{folder}: its tokenizer_class {kind} is not implemented: minikd has {BERTS[0]}, and {GENERAL[0]}Fast for "
            f"BERT's WordPiece in a tokenizer.json"
        )
    return name in GENERAL


def _normalizer_settings(content: dict) -> dict:
    """What the normalizer of a tokenizer.json says, under the names of tokenizer_config.json."""
    return {name: content["normalizer"][theirs] for name, theirs in NORMALIZER.items()}


def _check_settings(settings: dict) -> None:
    """Raises MinikdError for settings in tokenizer_config.json that are wrong or that minikd does not implement."""
    for name in [name for name in VALUES if name in settings]:
        value, values = settings[name], VALUES[name]
        if not any(type(value) is type(one) and value == one for one in values):  # in Python, 1 == True
            raise MinikdError(f"{name} must be one of {', '.join(map(str, values))}, not {value!r}")
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise MinikdError("added_tokens_decoder must be an object of id: token")
    for token_id, token in listed.items():
        if not token_id.isdecimal():
            raise MinikdError(f"added_tokens_decoder: {token_id!r} is no id of a token")
        _token(token, f"added_tokens_decoder: {token_id}")
    for name, token in SPECIAL_NAMES.items():
        found = _token(settings.get(name) or token, name).content
        if found != token:
            raise MinikdError(f"{name} {found!r} is not implemented: BERT has {token}")
    _named_tokens(settings)


def _vocabulary(model: dict) -> dict[str, int]:
    """The vocabulary of a tokenizer.json. Raises MinikdError for other values than ids: the library would panic."""
    vocab = model["vocab"]
    for token, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < 2**31:  # a batch has 32 bits an id
            raise MinikdError(f"vocab: {token!r} has the id {token_id!r}")
    return vocab


def _check_tokens(tokenizer: Tokenizer) -> None:
    """Raises MinikdError where two tokens have one id (in a vocab.txt with the same line twice, an added token gets the
    id of the last line), and for an added token that the library would look for in the form of an empty text."""
    if len(set(tokenizer.vocab.values())) < len(tokenizer.vocab):
        first: dict[int, str] = {}
        for token, token_id in sorted(tokenizer.vocab.items()):
            if first.setdefault(token_id, token) != token:
                raise MinikdError(f"{first[token_id]!r} and {token!r} have the same id, {token_id}")
    for added in tokenizer.backend.get_added_tokens_decoder().values():
        if added.normalized and not tokenizer.backend.normalizer.normalize_str(added.content):
            raise MinikdError(f"the added token {added.content!r} is empty once it is normalized")


def _frames_as_bert(processor: dict) -> bool:
    """Whether a post_processor makes `[CLS] text [SEP]`. The library could tell, but panics at some that do not."""
    if processor.get("type") == "Sequence":
        return any(map(_frames_as_bert, processor["processors"]))
    if processor.get("type") == "TemplateProcessing":
        parts = [part.get("SpecialToken") or part["Sequence"] for part in processor["single"]]
        return [part["id"] for part in parts] == ["[CLS]", "A", "[SEP]"]
    return [(processor.get(end) or [None])[0] for end in ("cls", "sep")] == ["[CLS]", "[SEP]"]


def _check_is_bert(content: dict, general: bool) -> None:
    """Raises MinikdError for a tokenizer.json that is not BERT's WordPiece, or that is to be taken as it is (`general`)
    and differs from BERT's in more than settings."""
    model = content.get("model") or {}
    # Files from before 2021 do not name the kind of the model.
    kinds = [model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else None)]
    kinds += [(content.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise MinikdError(f"is not BERT's WordPiece tokenizer (its parts: {', '.join(map(str, kinds))})")
    if not _frames_as_bert(content.get("post_processor") or {}):
        raise MinikdError("does not frame a text as [CLS] text [SEP]; its post_processor must")
    wanted = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    for name, value in (wanted | {"clean_text": True}).items() if general else ():
        found = (content["normalizer"] if name == "clean_text" else model).get(name)
        if found != value:
            raise MinikdError(f"{name} {found!r} is not implemented: BERT has {value!r}")


def _added_tokens(settings: dict, content: dict, numbered: dict, general: bool) -> list[AddedToken]:
    """The tokens that are found in a text before it is split into words, in the order in which they get their ids.

    tokenizer_config.json (`settings`) lists them, or else tokenizer.json (`content`) and added_tokens.json (`numbered`)
    do; a `general` tokenizer has those of both. The special tokens that are only named come last.
    """
    named = _named_tokens(settings)
    special = [*SPECIAL_TOKENS, *(token.content for token in named)]
    listed = settings.get("added_tokens_decoder")
    tokens = []
    if general or listed is None:
        own = {i: {"content": token, "normalized": token not in special, "special": token in special}
               for token, i in numbered.items()}  # fmt: skip
        own |= {fields["id"]: fields for fields in content.get("added_tokens", [])}
        tokens = [_token(own[i]) for i in sorted(own)]
    tokens += [_token(listed[i]) for i in sorted(listed or {}, key=int)]
    for token in named:
        if token.content not in [known.content for known in tokens]:
            tokens.append(token)
    return tokens


def _named_tokens(settings: dict) -> list[AddedToken]:
    """The special tokens that a file names beside BERT's own. Raises MinikdError that names the field."""
    named = [(name, settings[name]) for name in ("mask_token", "bos_token", "eos_token") if settings.get(name)]
    field = "extra_special_tokens" if settings.get("extra_special_tokens") else "additional_special_tokens"
    extra = settings.get(field) or []
    if not isinstance(extra, list | dict):
        raise MinikdError(f"{field} must be a list of tokens")
    named += [(field, token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    return [_token(token, name, special=True) for name, token in named]


def _token(given, name: str = "a token", **flags) -> AddedToken:
    """The library's object for a token that a file gives as a text or as an object. Raises MinikdError for others."""
    fields = given if isinstance(given, dict) else {"content": given}
    own = {flag: fields[flag] for flag in FLAGS if flag in fields}
    if not isinstance(fields.get("content"), str) or not all(isinstance(flag, bool) for flag in own.values()):
        raise MinikdError(f"{name} must be a text, or an object with its content and flags of true or false")
    return AddedToken(fields["content"], **(own | flags))
