"""IMDb: 50,000 film reviews, half for testing (Maas et al. 2011, Learning Word Vectors for Sentiment Analysis)."""

from collections import Counter

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
REVIEW = r"(train|test)/(neg|pos)/(\d+)_\d+\.txt"  # id and rating; train/unsup, without labels, does not match
COUNT = 12_500  # reviews in each of the four folders


def load(data_dir) -> Dataset:
    """The official 25,000 test reviews in order of label and id; a tenth of the official train becomes validation.

    `<br />` becomes a space. Raises MinikdError for a missing, damaged or incomplete archive.
    """
    path = locate(SOURCE, data_dir)
    reviews: dict[tuple[str, str, int], str] = {}
    for match, content in members(path, REVIEW):
        split, folder, number = match.groups()
        try:
            text = content.decode().replace("<br />", " ").strip()
        except UnicodeDecodeError as error:
            raise MinikdError(f"{path}: {match[0]} is not UTF-8 (byte {error.start}): replace the archive") from error
        if text:  # a tree unpacked to a full disk has empty files: they are missing from the count below
            reviews[split, folder, int(number)] = text
    counts = Counter(key[:2] for key in reviews)
    for split in ("train", "test"):
        for folder in FOLDERS:
            if counts[split, folder] != COUNT:
                raise damaged(path, f"{counts[split, folder]:,} reviews in {split}/{folder}, not {COUNT:,}")

    keys = sorted(reviews)  # the archive's own order differs between copies
    train, test = ([key for key in keys if key[0] == split] for split in ("train", "test"))
    splits = [Split([reviews[key] for key in part], [FOLDERS.index(key[1]) for key in part]) for part in (train, test)]
    return make_dataset("imdb", LABELS, *splits)
