"""Text to ids: WordPiece by the tokenizers package, with the ids that Hugging Face's BERT tokenizer gives.

WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019, section 3) is the one part of BERT that minikd leaves to a
library: it says nothing about distillation, and the library's Rust is many times as fast as Python. The files of a
tokenizer are read and written in `minikd/checkpoints/tokenizer_files.py`.
"""

from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from tqdm import tqdm

from minikd.errors import MinikdError
from minikd.files import fingerprint

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Tokenizer:
    """A WordPiece vocabulary with BERT's text clean-up, as `[CLS] text [SEP]`."""

    def __init__(self, backend: Backend, truncation_side: str = "right"):
        backend.no_padding()  # some published files pad and truncate by themselves: all-MiniLM-L6-v2's to 128 tokens
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

    def encode(self, texts: list[str], max_length: int, desc: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, end to end, each truncated to `max_length` tokens with `[CLS]` and `[SEP]` counted.

        Returns ids, int32 of shape (tokens,), and offsets, int64 of shape (texts + 1,): text i has
        ids[offsets[i]:offsets[i + 1]]. `desc` shows a progress bar where it takes more than a moment. Raises
        MinikdError for a `max_length` that leaves no room for the text (below 2 the library would not truncate at all).
        """
        if max_length < 3:
            raise MinikdError(
                f"`max_length` {max_length}: must be at least 3, for [CLS], a token of the text and [SEP]"
            )
        self.backend.enable_truncation(max_length, direction=self.truncation_side)
        pieces = []
        with tqdm(total=len(texts), desc=desc, unit="text", delay=1, leave=False, disable=not desc) as bar:
            for start in range(0, len(texts), 1000):
                encodings = self.backend.encode_batch_fast(texts[start : start + 1000])
                pieces += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
                bar.update(len(encodings))
        self.backend.no_truncation()
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32), offsets


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
    """A new uncased vocabulary of at most `vocab_size` entries, learned from `texts`; the same texts give the same."""
    backend = bert_wordpiece({}, {})
    words: set[str] = set()
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
