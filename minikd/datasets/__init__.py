"""The corpora: each loader returns a `Dataset` of three splits of plain texts and label ids."""

import os
from collections.abc import Sequence

from minikd.datasets import fpb, imdb, own, sample, sst2
from minikd.datasets.rows import Layout
from minikd.datasets.splits import Dataset, Split, data_fingerprint
from minikd.errors import MinikdError

__all__ = ["Dataset", "Split", "data_fingerprint", "load_dataset"]
CORPORA = ("imdb", "sst2", "fpb", "sample")


def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] = "data",
    *,
    agreement: str = "50",
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
    model_labels: Sequence[str] | None = None,
) -> Dataset:
    """The corpus called imdb, sst2, fpb or sample, or the user's own data at a path (see minikd/datasets/own.py).

    Archives are looked for in `data_dir` and downloaded into it where missing. `agreement` is the least share of
    annotators that agree on a Financial PhraseBank sentence: 50, 66, 75 or all. The other settings are for the user's
    own data. `model_labels` are the labels of a finished model, with which nothing is trained: splits and classes may
    then be as small as they like. Raises MinikdError.
    """
    name = os.fspath(name_or_path)
    layout = Layout(text_column, label_column, encoding)
    if name not in CORPORA:
        if not os.path.exists(name):
            raise MinikdError(f"`dataset` {name}: no such file or folder, and none of the names {', '.join(CORPORA)}")
        return own.load(name, layout, model_labels)
    for field, value in vars(layout).items():
        if value is not None:
            raise MinikdError(f"`{field}`: {name} is read as its authors wrote it; leave it out")
    if name == "sample":
        return sample.load()
    if name == "fpb":
        return fpb.load(data_dir, agreement)
    return imdb.load(data_dir) if name == "imdb" else sst2.load(data_dir)
