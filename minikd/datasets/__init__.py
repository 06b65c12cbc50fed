"""The corpora: each loader returns a `Dataset` of three splits of plain texts and label ids."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minikd.datasets import fpb, imdb, own, sample, sst2
from minikd.datasets.rows import Layout, read_rows
from minikd.datasets.splits import Dataset, Split, data_fingerprint
from minikd.errors import MinikdError

__all__ = ["Dataset", "Split", "data_fingerprint", "load_dataset"]
CORPORA = ("imdb", "sst2", "fpb", "sample")
UNLABELLED_CORPORA = {"imdb": imdb.unlabelled, "imdb-sentences": imdb.sentences}


def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] = "data",
    *,
    agreement: str = "50",
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
    model_labels: Sequence[str] | None = None,
    unlabelled: Sequence[str | os.PathLike[str]] | None = None,
) -> Dataset:
    """The corpus called imdb, sst2, fpb or sample, or the user's own data at a path (see minikd/datasets/own.py).

    Archives are looked for in `data_dir` and downloaded into it where missing. `agreement` is the least share of
    annotators that agree on a Financial PhraseBank sentence: 50, 66, 75 or all. `model_labels` are the labels of a
    finished model, with which nothing is trained: splits and classes may then be as small as they like.

    `unlabelled`: where more texts for `distill` come from, "imdb" (its 50,000 unlabelled reviews), "imdb-sentences"
    (100,000 sentences of these) or files (.txt: a line each; .csv, .tsv, .jsonl: their text column). Where it is given,
    if only as (), rows of the user's own data whose label is empty are such texts too; else they are refused. The other
    settings are for the user's own data, and those of texts and encoding for these files too. Raises MinikdError.
    """
    name = os.fspath(name_or_path)
    layout = Layout(text_column, label_column, encoding)
    if name not in CORPORA:
        if not os.path.exists(name):
            raise MinikdError(f"`dataset` {name}: no such file or folder, and none of the names {', '.join(CORPORA)}")
        data = own.load(name, layout, model_labels, may_lack_labels=unlabelled is not None)
    else:
        reads_files = any(source not in UNLABELLED_CORPORA for source in unlabelled or ())
        for field, value in vars(layout).items():
            if value is not None and not (reads_files and field != "label_column"):
                raise MinikdError(f"`{field}`: {name} is read as its authors wrote it; leave it out")
        data = _corpus(name, data_dir, agreement)
    for source in unlabelled or ():
        corpus = UNLABELLED_CORPORA.get(os.fspath(source))
        texts = corpus(data_dir) if corpus else _texts(Path(source), layout)
        data = data.with_unlabelled(texts, str(source))
    return data


def _corpus(name: str, data_dir: str | os.PathLike[str], agreement: str) -> Dataset:
    if name == "sample":
        return sample.load()
    if name == "fpb":
        return fpb.load(data_dir, agreement)
    return imdb.load(data_dir) if name == "imdb" else sst2.load(data_dir)


def _texts(path: Path, layout: Layout) -> list[str]:
    """The texts of a file; labels, if it has some, are ignored. Raises MinikdError."""
    layout = replace(layout, text_column=None) if path.suffix.lower() == ".txt" else layout
    return [row.text for row in read_rows(path, layout, labelled=False, skip_empty=True)]
