"""Text to ids: WordPiece by the tokenizers package, with the ids that Hugging Face's BERT tokenizer gives.

WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019, section 3) is the one part of BERT that minikd leaves to a
library: it says nothing about distillation, and the library's Rust is many times as fast as Python.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from tqdm import tqdm

from minikd.checkpoints.tokenizer_settings import (
    SPECIAL_TOKENS,
    added_tokens,
    check_general,
    check_settings,
    is_general,
    normalizer_settings,
    read_json,
)
from minikd.errors import MinikdError
from minikd.files import atomic_write, fingerprint, write_json


class Tokenizer:
    """A WordPiece vocabulary with BERT's text clean-up, as `[CLS] text [SEP]`."""

    def __init__(self, backend: Backend, truncation_side: str = "right"):
        backend.no_padding()  # some published files pad and cut by themselves: all-MiniLM-L6-v2's to 128 tokens
        backend.no_truncation()
        self.backend = backend
        self.vocab: dict[str, int] = backend.get_vocab()
        self.pad_token_id = self.vocab["[PAD]"]
        self.truncation_side = truncation_side  # the end that a long text loses: "right" or "left"
        self.fingerprint = fingerprint(backend.to_str(), *[truncation_side] * (truncation_side != "right"))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self.vocab.values()) + 1

    def encode(self, texts: list[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, end to end, each truncated to `max_length` tokens with `[CLS]` and `[SEP]` counted.

        Returns ids, int32 of shape (tokens,), and offsets, int64 of shape (texts + 1,): text i has
        ids[offsets[i]:offsets[i + 1]]. The library works on all cores; a progress bar shows for more than a moment's
        work. Raises MinikdError for a `max_length` that leaves no room for the text (the library would not cut at all
        below 2).
        """
        if max_length < 3:
            raise MinikdError(
                f"--max-length {max_length}: must be at least 3, for [CLS], a token of the text and [SEP]"
            )
        self.backend.enable_truncation(max_length, direction=self.truncation_side)
        pieces = []
        with tqdm(total=len(texts), desc="tokenize", unit="text", delay=1, leave=False) as bar:
            for start in range(0, len(texts), 1000):
                encodings = self.backend.encode_batch_fast(texts[start : start + 1000])
                pieces += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
                bar.update(len(encodings))
        self.backend.no_truncation()
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32), offsets

    def save(self, folder, model_type: str, max_length: int) -> None:
        """Writes tokenizer.json, tokenizer_config.json and vocab.txt so that transformers' AutoTokenizer loads them."""
        folder = Path(folder)
        content = json.loads(self.backend.to_str())
        atomic_write(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        tokens = {token_id: token for token, token_id in self.vocab.items()}
        # An id without a token (a hole in the vocabulary) still needs its line, or every later id would move.
        lines = [tokens.get(i, f"[unused_hole{i}]") for i in range(self.vocab_size)]
        atomic_write(folder / "vocab.txt", "\n".join(lines) + "\n")
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": {"bert": "BertTokenizer", "distilbert": "DistilBertTokenizer"}[model_type],
                **normalizer_settings(content),
                "truncation_side": self.truncation_side,
                "model_max_length": max_length,
                "added_tokens_decoder": {str(token.pop("id")): token for token in content["added_tokens"]},
                **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
            },
        )


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


def bert_wordpiece(vocab: dict[str, int], settings: dict, added: Sequence[AddedToken] = ()) -> Backend:
    """BERT's pipeline around a vocabulary; `settings` are tokenizer_config.json's, with its defaults (uncased).

    `added` tokens, and BERT's special ones, count as such where a text contains them literally, as in Hugging Face's
    tokenizer; those that the vocabulary lacks get the next ids.
    """
    backend = Backend(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),  # None: strip them exactly when lower-casing
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    known = {token.content for token in added}
    backend.add_tokens(
        [AddedToken(token, special=True) for token in SPECIAL_TOKENS if token in vocab and token not in known]
    )
    backend.add_tokens(list(added))
    frame = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if None not in dict(frame).values():
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
        )
    return backend


def train_wordpiece(texts: list[str], vocab_size: int) -> Tokenizer:
    """A new uncased vocabulary of at most `vocab_size` entries, learned from `texts`: always the same from the same."""
    backend = bert_wordpiece({}, {})
    words = set()
    for text in texts:
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    letters = sorted({word[0] for word in words} | {f"##{letter}" for word in words for letter in word[1:]})
    # The library settles ties between merges by the numbers of their parts, and numbers the "##" letters in the order
    # of a hash table, which differs from run to run. Letters listed as special tokens are numbered as listed.
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL_TOKENS + letters, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(bert_wordpiece(backend.get_vocab(), {}))  # anew, for the letters are not special in a text
