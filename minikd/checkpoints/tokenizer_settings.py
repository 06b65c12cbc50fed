"""What the files of a model folder say about its tokenizer, as transformers' AutoTokenizer understands them.

The same thing is said in several places: casing in tokenizer_config.json and in tokenizer.json, added tokens in these
and in two older files. tests/checkpoints/test_tokenizer.py compares the ids with those of transformers for all of them.
"""

import json
from pathlib import Path

from tokenizers import AddedToken

from minikd.errors import MinikdError
from minikd.tokenizer import SPECIAL_TOKENS

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

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token

# The values of tokenizer_config.json that are implemented.
VALUES = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
    "split_special_tokens": (False,),
    "truncation_side": ("right", "left"),
}


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} where there is no such file. Raises MinikdError that names a file without one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise MinikdError(f"{path}: is damaged ({error})") from None
    if not isinstance(content, dict):
        raise MinikdError(f"{path}: is damaged (it holds no JSON object)")
    return content


def is_general(folder: Path, settings: dict) -> bool:
    """Whether the ids follow tokenizer.json as it is, rather than its vocabulary and tokenizer_config.json.

    Raises MinikdError for a tokenizer_class that is not implemented.
    """
    config = read_json(folder / "config.json")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not kind:
        return "model_type" not in config  # without which transformers does not know that it is a BERT
    if str(kind).removesuffix("Fast") not in BERTS + GENERAL:
        raise MinikdError(
            f"{folder}: its tokenizer_class {kind} is not implemented: minikd has {BERTS[0]}, and {GENERAL[0]}Fast for "
            f"BERT's WordPiece in a tokenizer.json"
        )
    return str(kind).removesuffix("Fast") in GENERAL


def normalizer_settings(content: dict) -> dict:
    """What the normalizer of a tokenizer.json says, under the names of tokenizer_config.json."""
    return {name: content["normalizer"][theirs] for name, theirs in NORMALIZER.items()}


def check_settings(settings: dict, path: Path) -> None:
    """Raises MinikdError for settings in tokenizer_config.json that are wrong or that minikd does not implement."""
    for name in [name for name in VALUES if name in settings]:
        value, values = settings[name], VALUES[name]
        if not any(type(value) is type(one) and value == one for one in values):  # in Python, 1 == True
            raise MinikdError(f"{path}: {name} must be one of {', '.join(map(str, values))}, not {value!r}")
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise MinikdError(f"{path}: added_tokens_decoder must be an object of id: token")
    for token_id, token in listed.items():
        if not token_id.isdecimal():
            raise MinikdError(f"{path}: added_tokens_decoder: {token_id!r} is no id of a token")
        _check_token(token, f"added_tokens_decoder: {token_id}", path)
    for token in SPECIAL_TOKENS:
        name = f"{token[1:-1].lower()}_token"
        _check_token(settings.get(name) or token, name, path)
        if _content(settings.get(name) or token) != token:
            raise MinikdError(f"{path}: {name} {_content(settings[name])!r} is not implemented: BERT has {token}")


def _check_token(token, name: str, path: Path) -> None:
    """Raises MinikdError where what `path` gives as the token `name` is neither a text nor an object with one."""
    fields = token if isinstance(token, dict) else {"content": token}
    flags = [fields[name] for name in FLAGS if name in fields]
    if not isinstance(fields.get("content"), str) or not all(isinstance(flag, bool) for flag in flags):
        raise MinikdError(f"{path}: {name} must be a text, or an object with its content and flags of true or false")


def check_general(content: dict, path: Path) -> None:
    """Raises MinikdError for a tokenizer.json, to be taken as it is, that differs from BERT's in more than settings."""
    for part, name, wanted in (
        ("model", "unk_token", "[UNK]"),
        ("model", "continuing_subword_prefix", "##"),
        ("model", "max_input_chars_per_word", 100),
        ("normalizer", "clean_text", True),
    ):
        if content[part].get(name) != wanted:
            raise MinikdError(f"{path}: {name} {content[part].get(name)!r} is not implemented: BERT has {wanted!r}")


def added_tokens(folder: Path, settings: dict, content: dict, general: bool) -> list[AddedToken]:
    """The tokens that are found in a text before it is split into words, in the order in which they get their ids.

    tokenizer_config.json (`settings`) lists them, or else tokenizer.json (`content`) and older files do; a `general`
    tokenizer has those of both. The special tokens that are only named come last.
    """
    listed = settings.get("added_tokens_decoder")
    own = {fields["id"]: fields for fields in content.get("added_tokens", [])}
    if listed is None:
        settings = settings | read_json(folder / "special_tokens_map.json")
        special = [*SPECIAL_TOKENS, *map(_content, _extra_special_tokens(settings))]
        old = read_json(folder / "added_tokens.json")
        own = {
            i: {"content": token, "normalized": token not in special, "special": token in special}
            for token, i in old.items()
        } | own
    tokens = [_added(own[i]) for i in sorted(own)] if general or listed is None else []
    tokens += [_added(listed[i]) for i in sorted(listed or {}, key=int)]
    for token in _extra_special_tokens(settings):
        if _content(token) not in [known.content for known in tokens]:
            tokens.append(_added(token, special=True))
    return tokens


def _extra_special_tokens(settings: dict) -> list:
    """The special tokens that are named, each a text or an object with a content: BERT's own and others."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else list(extra)
    return [settings[name] for name in ("mask_token", "bos_token", "eos_token") if settings.get(name)] + extra


def _content(token) -> str:
    """The text of a token that a file gives as a text or as an object."""
    return token["content"] if isinstance(token, dict) else token


def _added(token, **fields) -> AddedToken:
    """The library's object for a token that a file gives as a text or as an object."""
    given = token if isinstance(token, dict) else {"content": token}
    token = {name: given[name] for name in ("content", *FLAGS) if name in given}
    return AddedToken(**(token | fields))
