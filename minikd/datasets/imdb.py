"""IMDb: 50,000 film reviews, half for testing (Maas et al. 2011, Learning Word Vectors for Sentiment Analysis)."""

import re
from collections import Counter
from pathlib import Path

from minikd.datasets.archive import Source, damaged, locate, members
from minikd.datasets.splits import Dataset, Split, make_dataset
from minikd.errors import MinikdError

SOURCE = Source(
    corpus="imdb",
    archive="aclImdb_v1.tar.gz",
    folder="aclImdb",
    url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
)
LABELS = ("negative", "positive")
FOLDERS = ("neg", "pos")  # in the order of LABELS
REVIEW = r"(train|test)/(neg|pos)/(\d+)_\d+\.txt"  # id and rating
UNLABELLED = r"(train)/(unsup)/(\d+)_\d+\.txt"
COUNT = 12_500  # reviews in each of the four folders
UNLABELLED_COUNT = 50_000
SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+")
SENTENCE_WORDS = range(4, 31)
SENTENCES = 100_000  # a quarter of those that are there


def load(data_dir) -> Dataset:
    """The official 25,000 test reviews in order of label and id; a tenth of the official train becomes validation.

    `<br />` becomes a space. Raises MinikdError for a missing, damaged or incomplete archive.
    """
    path = locate(SOURCE, data_dir)
    reviews = _read(path, REVIEW)
    counts = Counter(key[:2] for key in reviews)
    for split in ("train", "test"):
        for folder in FOLDERS:
            if counts[split, folder] != COUNT:
                raise damaged(path, f"{counts[split, folder]:,} reviews in {split}/{folder}, not {COUNT:,}")

    keys = sorted(reviews)  # the archive's own order differs between copies
    train, test = ([key for key in keys if key[0] == split] for split in ("train", "test"))
    splits = [Split([reviews[key] for key in part], [FOLDERS.index(key[1]) for key in part]) for part in (train, test)]
    return make_dataset("imdb", LABELS, *splits)


def unlabelled(data_dir) -> list[str]:
    """The 50,000 reviews of train/unsup, which have no label, in order of their id. Raises MinikdError."""
    path = locate(SOURCE, data_dir)
    reviews = _read(path, UNLABELLED)
    if len(reviews) != UNLABELLED_COUNT:
        raise damaged(path, f"{len(reviews):,} reviews in train/unsup, not {UNLABELLED_COUNT:,}")
    return [reviews[key] for key in sorted(reviews)]


def sentences(data_dir) -> list[str]:
    """`SENTENCES` different sentences of 4 to 30 words from the reviews of train/unsup, evenly spaced over them: the
    nearest thing to more of SST-2, whose texts are from film reviews too. Raises MinikdError as `unlabelled` does."""
    parts = (" ".join(part.split()) for review in unlabelled(data_dir) for part in SENTENCE_END.split(review))
    found = list({part.lower(): part for part in parts if part.count(" ") + 1 in SENTENCE_WORDS}.values())
    count = min(SENTENCES, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _read(path: Path, pattern: str) -> dict[tuple[str, str, int], str]:
    """{(split, folder, id): text} of the reviews whose path matches. Raises MinikdError."""
    reviews = {}
    for match, content in members(path, pattern):
        split, folder, number = match.groups()
        try:
            text = content.decode().replace("<br />", " ").strip()
        except UnicodeDecodeError as error:
            raise MinikdError(f"{path}: {match[0]} is not UTF-8 (byte {error.start}): replace the archive") from error
        if text:  # a tree unpacked to a full disk has empty files: they are missing from the counts
            reviews[split, folder, int(number)] = text
    return reviews
