"""Augmentation: altered versions of the training texts, which the teacher labels and the student imitates.

A small student learns more from the teacher's answers to many texts than to few (Tang et al. 2019, Distilling
Task-Specific Knowledge from BERT into Simple Neural Networks, section 3.3; Jiao et al. 2020, TinyBERT, algorithm 1).
The texts need not be good English, nor keep their meaning: the teacher labels them as they are now. There are three
alterations, made in token space. None needs another model:

masking   a word becomes [MASK], all its pieces together (Tang): the teacher shows how much hangs on this word
swaps     a word becomes one of the words nearest to it in the teacher's table of word embeddings. TinyBERT asks a
          masked language model instead (GloVe for words of several pieces), which a fine-tuned teacher no longer is
spans     of a long text only a contiguous part is kept (n-gram sampling, Tang)

N: examples, T: their tokens, W: their words, V: vocabulary, H: width, U: words that are swapped, K: neighbours of each.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minikd.batching import TokenizedSplit
from minikd.errors import MinikdError
from minikd.files import fingerprint
from minikd.losses import UNLABELLED
from minikd.tokenizer import Tokenizer

ROWS = 256  # words whose neighbours are looked for at a time: at BERT's vocabulary 25 MB of cosines

# Words that are neither swapped nor put in another's place: the first two groups can turn a text into its contrary,
# function words hold it together. TinyBERT leaves these alone too (nltk's list of stop words).
NEGATIONS = """no not nor never neither none nobody nothing nowhere without cannot hardly barely scarcely ain aren
couldn didn doesn don hadn hasn isn mightn mustn needn shan shouldn wasn weren wouldn"""
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred
thousand million billion trillion dozen half double twice once first second third ii iii iv vi vii viii ix xi xii"""
FUNCTION_WORDS = """a an the this that these those i me my mine we us our ours you your yours he him his she her hers it
its they them their theirs myself ourselves yourself himself herself itself themselves who whom whose which what when
where why how ever every everyone everybody everything someone somebody something anyone anybody anything am is are was
were be been being have has had having do does did doing done can could will would shall should may might must ought ll
re ve and but or if because as until unless while since than though although however yet thus hence so too very just
only even also of at by for with about against between among into within through during before after above below to
from up down in out on off over under upon via toward towards again then here there all any both each few more most less
least other some such own same much many"""
LEFT_ALONE = frozenset(f"{NEGATIONS} {NUMBERS} {FUNCTION_WORDS}".split())


@dataclass(frozen=True)
class Augmentation:
    """What `augment` does to a text. Raises MinikdError for a value out of its range."""

    copies: int  # altered versions of each example; both papers: 20
    mask: float = 0.1  # the probability that a word is masked (Tang)
    # TinyBERT swaps with probability 0.4, for one of 15 words. Its words fit their context; ours are chosen without it.
    swap: float = 0.25  # the probability that a word which may be swapped is swapped
    neighbours: int = 10  # how many of the nearest words there are to choose from
    span: float = 0.25  # the probability that a part of a long text is kept alone (Tang)
    shortest_span: int = 16  # words; a text that has more is long. Tang's parts have 1 to 5 words

    def __post_init__(self) -> None:
        for one in fields(self):
            value, whole = getattr(self, one.name), one.type is int
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not fits or not (value >= 1 if whole else 0 <= value <= 1):
                wanted = "a whole number of at least 1" if whole else "a probability in [0, 1]"
                raise MinikdError(f"`{one.name}` {value!r}: must be {wanted}")
        if self.mask + self.swap > 1:
            raise MinikdError(
                f"`mask` {self.mask} and `swap` {self.swap}: a word is masked or swapped; at most 1 together"
            )


def augment(
    tokens: TokenizedSplit, tokenizer: Tokenizer, word_embeddings: Tensor, settings: Augmentation, seed: int
) -> TokenizedSplit:
    """Altered versions of every example, without labels (`UNLABELLED`): first one of each, then a second of each, ….

    `word_embeddings` is the teacher's table (V, H). No version is longer than its original, and masks alone are never
    left of a text. A version that equals its original is dropped, so that there are at most `settings.copies` times as
    many versions as examples; a short text may have the same version twice. The versions follow from the arguments
    alone, and fewer copies give the first of them.

    Raises MinikdError for a vocabulary without [MASK] or whose pieces do not begin with ##, and for a table that has no
    row for one of its tokens.
    """
    if "[MASK]" not in tokenizer.vocab or getattr(tokenizer.backend.model, "continuing_subword_prefix", "") != "##":
        raise MinikdError("augmentation needs BERT's WordPiece: a vocabulary with [MASK], whose later pieces have a ##")
    if len(word_embeddings) < tokenizer.vocab_size:
        rows = f"has {len(word_embeddings)} rows for the tokenizer's {tokenizer.vocab_size} tokens"
        raise MinikdError(f"augmentation: the table of word embeddings {rows}; give the table of the tokenizer's model")
    kinds = swappable_kinds(tokenizer)
    words = find_words(tokens, tokenizer, kinds)
    used = np.unique(tokens.ids[words.first[words.swappable]])
    nearest = nearest_words(used, kinds, word_embeddings, settings.neighbours)

    versions, lengths = [], []
    for copy in range(settings.copies):
        random = np.random.default_rng((seed, copy))
        masked, swapped, kept = _draw(words, settings, random)
        ids = tokens.ids.copy()
        places = words.first[swapped]
        neighbours = random.integers(settings.neighbours, size=len(places))
        ids[places] = nearest[np.searchsorted(used, ids[places]), neighbours]
        ids[np.append(masked, False)[words.of_token]] = tokenizer.vocab["[MASK]"]  # no word: -1, the last
        kept_tokens = np.append(kept, True)[words.of_token]
        altered = np.logical_or.reduceat((ids != tokens.ids) | ~kept_tokens, tokens.offsets[:-1])
        kept_tokens &= np.repeat(altered, tokens.lengths)
        versions.append(ids[kept_tokens])
        lengths.append(np.add.reduceat(kept_tokens, tokens.offsets[:-1], dtype=np.int64)[altered])
    ids, offsets = np.concatenate(versions), np.append(0, np.cumsum(np.concatenate(lengths)))
    labels = np.full(len(offsets) - 1, UNLABELLED, dtype=np.int64)
    # Of the versions rather than of the table and the settings: processors round cosines differently.
    key = fingerprint("augmented 1", tokens.fingerprint, ids, offsets)
    return TokenizedSplit(ids, offsets, labels, tokens.pad_token_id, key)


def decode(tokens: TokenizedSplit, tokenizer: Tokenizer, examples: list[int]) -> list[str]:
    """These examples as texts, without [CLS] and [SEP]: "a [MASK] film"."""
    pieces = [tokens.ids[tokens.offsets[i] + 1 : tokens.offsets[i + 1] - 1] for i in examples]
    return [tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) for ids in pieces]


@dataclass(frozen=True)
class Words:
    """The words of a split, each a token with the ## pieces after it. [CLS] and [SEP] belong to none."""

    first: np.ndarray  # (W,) the position of its first token
    example: np.ndarray  # (W,) the example that it is in
    place: np.ndarray  # (W,) its place among the words of this example
    maskable: np.ndarray  # (W,) whether it may be masked
    swappable: np.ndarray  # (W,) whether it may be swapped
    counts: np.ndarray  # (N,) the words of each example
    of_token: np.ndarray  # (T,) the word of each token; -1 at [CLS] and [SEP]


def find_words(tokens: TokenizedSplit, tokenizer: Tokenizer, kinds: np.ndarray) -> Words:
    """The words of all examples. In a text that was truncated on the left, a ## piece may be the first word.

    Special and added tokens in a text, [UNK] above all, are not masked. Swapped are words of a single token of a kind
    above 0 (`swappable_kinds`), but not before 't, where "won" is a part of "won't".
    """
    ids, vocab = tokens.ids, tokenizer.vocab
    later_piece = np.isin(ids, [token_id for token, token_id in vocab.items() if token.startswith("##")])
    frame = np.zeros(len(ids), dtype=bool)
    frame[tokens.offsets[:-1]] = frame[tokens.offsets[1:] - 1] = True
    begins = ~later_piece
    begins[tokens.offsets[:-1] + 1] = True
    first = np.flatnonzero(begins & ~frame)
    of_token = np.where(frame, -1, np.cumsum(begins & ~frame) - 1)
    example = np.repeat(np.arange(len(tokens)), tokens.lengths)[first]
    counts = np.bincount(example, minlength=len(tokens))
    place = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)

    maskable = ~np.isin(ids[first], list(tokenizer.backend.get_added_tokens_decoder()))
    apostrophe, letter_t = (np.isin(ids, [vocab[one] for one in ones if one in vocab]) for ones in ("'\u2019", "tT"))
    before_t = np.append(apostrophe[1:-1] & letter_t[2:], [False, False])
    swappable = (kinds[ids[first]] > 0) & ~later_piece[first + 1] & ~before_t[first]
    return Words(first, example, place, maskable, swappable, counts, of_token)


def swappable_kinds(tokenizer: Tokenizer) -> np.ndarray:
    """The kind of each token, int8 (V,): 0 for one that is never swapped, else 1 to 4 by its capitals.

    0 are pieces, special and added tokens, whatever is not of letters alone (numbers, punctuation, [unused1]), single
    letters, and `LEFT_ALONE`. "film", "Film", "iPod" and "USA" are of four kinds, so that a swap keeps the capitals.
    A token that no ## precedes is taken for a word, as nearly all are in BERT's vocabulary; in one of a few thousand
    tokens some are only beginnings of words.
    """
    kinds = np.zeros(tokenizer.vocab_size, dtype=np.int8)
    added = tokenizer.backend.get_added_tokens_decoder()
    for token, token_id in tokenizer.vocab.items():
        if len(token) > 1 and token.isalpha() and token.lower() not in LEFT_ALONE and token_id not in added:
            kinds[token_id] = 1 + (token[0] != token[0].lower()) + 2 * (token[1:] != token[1:].lower())
    return kinds


def nearest_words(used: np.ndarray, kinds: np.ndarray, word_embeddings: Tensor, count: int) -> np.ndarray:
    """The `count` words of its kind that are nearest, by cosine, to each of the token ids `used`: ids (U, K), the
    nearest first. Where the kind has too few words, the word itself fills the row."""
    nearest = np.repeat(used[:, None], count, axis=1)
    for kind in np.unique(kinds[used]):
        candidates = np.flatnonzero(kinds == kind)
        vectors = F.normalize(word_embeddings.detach()[torch.from_numpy(candidates)].float().cpu(), dim=-1)
        rows = np.flatnonzero(kinds[used] == kind)
        for part in np.split(rows, range(ROWS, len(rows), ROWS)):
            own = torch.from_numpy(np.searchsorted(candidates, used[part]))
            cosines = vectors[own] @ vectors.T
            cosines[torch.arange(len(own)), own] = -torch.inf
            found = cosines.topk(min(count, len(candidates))).indices.numpy()
            nearest[part, : found.shape[1]] = candidates[found]
    return nearest


def _draw(
    words: Words, settings: Augmentation, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which words are masked, which are swapped and which are kept, (W,) each.

    One number decides between masking and swapping a word, so that the two exclude each other (Tang). The part of a
    long text that is kept has `shortest_span` words or more, and fewer than all; each length is as probable as every
    other, and so is each place.
    """
    u = random.random(len(words.first))
    masked = words.maskable & (u < settings.mask)
    swapped = words.swappable & (settings.mask <= u) & (u < settings.mask + settings.swap)

    whether, how_long, where = random.random((3, len(words.counts)))
    cut = (words.counts > settings.shortest_span) & (whether < settings.span)
    spare = words.counts - settings.shortest_span
    length = np.where(cut, settings.shortest_span + (how_long * spare).astype(np.int64), words.counts)
    start = (where * (words.counts - length + 1)).astype(np.int64)  # 0 where all is kept
    kept = (start[words.example] <= words.place) & (words.place < (start + length)[words.example])

    readable = np.bincount(words.example[kept & ~masked], minlength=len(words.counts)) > 0
    return masked & readable[words.example], swapped, kept
