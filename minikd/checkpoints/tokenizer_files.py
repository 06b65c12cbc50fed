"""The files of a tokenizer in a model folder, as transformers' AutoTokenizer reads and writes them."""

import json
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece

from minikd.checkpoints.tokenizer_settings import (
    added_tokens,
    check_general,
    check_settings,
    is_general,
    normalizer_settings,
    read_json,
)
from minikd.errors import MinikdError
from minikd.files import atomic_write, write_json
from minikd.tokenizer import SPECIAL_TOKENS, Tokenizer, bert_wordpiece


def load_tokenizer(folder) -> Tokenizer:
    """The tokenizer of a model folder, with the ids that transformers' AutoTokenizer gives.

    The vocabulary is that of tokenizer.json, or else of vocab.txt. Casing, accents and Chinese characters are treated
    as tokenizer_config.json says, with BERT's defaults (uncased), whatever the normalizer of tokenizer.json says. Only
    where the folder names a general tokenizer (PreTrainedTokenizerFast) does tokenizer.json count as it is. Raises
    MinikdError that names the file where both are missing, or where one is damaged or not BERT's WordPiece.
    """
    folder = Path(folder)
    settings = read_json(folder / "tokenizer_config.json")
    general = is_general(folder, settings)
    check_settings(settings, folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    content = read_json(path)
    try:
        if path.exists():
            vocab = _vocabulary_of(content, path)
            if general:
                check_general(content, path)
                settings = settings | normalizer_settings(content)
        else:
            path = folder / "vocab.txt"
            if not path.exists():
                raise MinikdError(f"{folder}: has no tokenizer.json or vocab.txt; a model folder needs one of them")
            vocab = WordPiece.read_file(str(path))
        backend = bert_wordpiece(vocab, settings, added_tokens(folder, settings, content, general))
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise MinikdError(f"{path}: the vocabulary has no {', '.join(missing)}")
        direction = (content.get("truncation") or {}).get("direction", "right").lower()
        return Tokenizer(backend, settings.get("truncation_side", direction))
    except MinikdError:
        raise
    except OSError as error:
        raise MinikdError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # the library raises plain Exception for a file that it cannot parse
        raise MinikdError(f"{path}: is damaged or not a tokenizer ({error})") from None


def _vocabulary_of(content: dict, path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json. Raises MinikdError where it is not BERT's WordPiece."""
    model = content.get("model") or {}
    # Files from before 2021 do not name the kind of the model.
    kinds = [model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else None)]
    kinds += [(content.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise MinikdError(f"{path}: is not BERT's WordPiece tokenizer (its parts: {', '.join(map(str, kinds))})")
    backend = Backend.from_file(str(path))
    backend.no_padding()
    if backend.encode("").tokens != ["[CLS]", "[SEP]"]:
        raise MinikdError(f"{path}: does not frame a text as [CLS] text [SEP]; its post_processor must")
    return model["vocab"]


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
            **normalizer_settings(content),
            "truncation_side": tokenizer.truncation_side,
            "model_max_length": max_length,
            "added_tokens_decoder": {str(token.pop("id")): token for token in content["added_tokens"]},
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        },
    )
