"""`Dataset` and `Split`, and how train, validation and test are kept apart.

For every corpus: no test text is in train or validation, and no validation text is in train. What is set aside here
keeps the shares of the labels, and no text of it appears, word for word, inside a training text, whatever the case,
accents and punctuation. SST-2's training set holds the phrases of its own sentences: divided at random, 87 of 100
validation texts would be parts of training texts. Which side a text falls on depends on the texts alone, not on their
order in the file or on a random number generator.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minikd.datasets.containment import containment_groups, normalize
from minikd.errors import MinikdError
from minikd.files import fingerprint
from minikd.losses import UNLABELLED

SEED = 42  # fixed: results of different runs are comparable only on the same split
SHARE = 0.1  # of the data, for validation and (where a corpus has no official one) for test
MINIMUM = 2  # training examples of each label
NOTICEABLE = 0.05  # a line is printed where so many of the texts must stay in training


@dataclass(frozen=True)
class Split:
    """Examples in a fixed order; `index` everywhere in the project means a position in these lists."""

    texts: list[str]
    labels: list[int]  # positions in Dataset.labels
    probabilities: np.ndarray | None = None  # (N, C) true label probabilities, known for the embedded sample only
    positions: list[int] | None = None  # where each example was in the one file that all splits were divided from
    label_names: tuple[str, ...] | None = field(default=None, compare=False)  # Dataset.labels, for a split of one


@dataclass(frozen=True)
class Dataset:
    name: str
    labels: tuple[str, ...]  # for two labels the second one is "positive" in precision, recall and F1
    train: Split
    validation: Split
    test: Split
    unlabelled: list[str] = field(default_factory=list)  # more texts, for distillation

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            object.__setattr__(self, name, replace(getattr(self, name), label_names=tuple(self.labels)))

    @classmethod
    def from_examples(
        cls,
        texts: Sequence[str],
        labels: Sequence[str | int],
        *,
        validation: tuple[Sequence[str], Sequence[str | int]] | None = None,
        test: tuple[Sequence[str], Sequence[str | int]] | None = None,
        unlabelled: Sequence[str] = (),
        label_names: Sequence[str] | None = None,
        name: str = "examples",
    ) -> "Dataset":
        """The data set of these texts and labels; a label is a name, or a number: an id where `label_names` lists the
        names, else its own name. `unlabelled` are more texts, for `distill`.

        `test` and `validation` are texts and labels too. Without `test` the examples are divided 80/10/10; without
        `validation` a tenth of them becomes it (`make_dataset`). Raises MinikdError.
        """
        known: Sequence[str | int]
        if label_names is None:
            known = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
            ids = {label: i for i, label in enumerate(known)}
        else:
            known = label_names
            ids = {label: i for i, label in enumerate(known)} | {i: i for i in range(len(known))}
        names = [str(label) for label in known]
        if len(set(names)) < max(2, len(names)):
            raise MinikdError(f"{name}: two or more different labels are needed, not {', '.join(names) or 'none'}")
        if validation and not test:
            raise MinikdError(f"{name}: `validation` without `test`: give both, or neither, or `test` alone")
        data = make_dataset(
            name,
            names,
            _examples(texts, labels, ids, f"{name}, train"),
            test and _examples(*test, ids, f"{name}, test"),
            validation and _examples(*validation, ids, f"{name}, validation"),
        )
        return data.with_unlabelled(_texts(unlabelled, f"{name}, unlabelled"), f"{name}, unlabelled")

    def with_unlabelled(self, texts: Sequence[str], where: str | Path) -> "Dataset":
        """The data set with these texts among its unlabelled ones, less those that also appear in validation or test; a
        printed line says how many, naming them `where`."""
        if not texts:
            return self
        print(f"{where}: {len(texts):,} unlabelled texts")
        unknown = Split(list(texts), [UNLABELLED] * len(texts))
        kept = _without(unknown, "unlabelled", {"validation": self.validation, "test": self.test}, where)
        return replace(self, unlabelled=self.unlabelled + kept.texts)

    @property
    def transfer(self) -> Split:
        """What a student is distilled on, the transfer set of Hinton et al. 2015: train, and after it the unlabelled
        texts, whose label is `UNLABELLED`."""
        if not self.unlabelled:
            return self.train
        labels = self.train.labels + [UNLABELLED] * len(self.unlabelled)
        return Split(self.train.texts + self.unlabelled, labels, label_names=self.train.label_names)

    @property
    def all(self) -> Split:
        """Every example: in the file's order where the splits were one file, else train, validation, test."""
        splits = (self.train, self.validation, self.test)
        texts, labels = ([one for split in splits for one in getattr(split, name)] for name in ("texts", "labels"))
        if all(split.positions is not None for split in splits):
            positions = [i for split in splits for i in split.positions or ()]
            return select(Split(texts, labels), np.argsort(positions).tolist())
        known = all(split.probabilities is not None for split in splits)
        return Split(texts, labels, np.concatenate([split.probabilities for split in splits]) if known else None)


def data_fingerprint(dataset: Dataset) -> str:
    """SHA-256 of label names, texts and label ids of all splits, in order, and not of the dataset's name."""
    parts: list[str | np.ndarray] = ["\n".join(dataset.labels)]
    for split in (dataset.train, dataset.validation, dataset.test):
        # One long text and the lengths of its pieces: as unambiguous as a digest per text, and many times as fast.
        parts += [np.array([len(text) for text in split.texts], np.int64), "".join(split.texts)]
        parts.append(np.array(split.labels, np.int64))
    return fingerprint(*parts)


def _examples(texts: Sequence[str], labels: Sequence[str | int], ids: dict[str | int, int], where: str) -> Split:
    """The split of these texts and labels. Raises MinikdError for what is no text, and for labels without an id."""
    texts, labels = _texts(texts, where), list(labels)
    if len(texts) != len(labels):
        raise MinikdError(f"{where}: {len(texts):,} texts but {len(labels):,} labels; give each text one label")
    if unknown := [label for label in labels if label not in ids]:
        raise MinikdError(f"{where}: the label {unknown[0]!r} is none of {', '.join(map(str, ids))[:200]}")
    return Split(texts, [ids[label] for label in labels])


def _texts(texts: Sequence[str], where: str) -> list[str]:
    """`texts` as a list. Raises MinikdError for what is no text."""
    if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise MinikdError(f"{where}: every text must be a str that is not empty")
    return list(texts)


def make_dataset(
    name: str,
    labels: Sequence[str],
    train: Split,
    test: Split | None = None,
    validation: Split | None = None,
    where: str | Path | None = None,
    minimum: int = MINIMUM,
) -> Dataset:
    """The `Dataset` of the splits given, making those that are missing.

    Without `test` the data are divided 80/10/10 (`validation` must be missing too). Without `validation` a tenth of
    train becomes it. Training texts that also appear in a given test or validation split are dropped, and so are
    validation texts that appear in test; a printed line says how many. Messages name the data `where` (or `name`).
    Raises MinikdError where a label would have fewer than `minimum` training examples or, unless that is 0, a split
    would be empty.
    """
    where, undivided = where or name, None
    if test is None:
        undivided = train
        train, validation, test = hold_out(undivided, 2, where)
    elif validation is None:
        undivided = _without(train, "training", {"test": test}, where)
        train, validation = hold_out(undivided, 1, where)
    else:
        validation = _without(validation, "validation", {"test": test}, where)
        train = _without(train, "training", {"test": test, "validation": validation}, where)
    counts = Counter(train.labels)
    for label, label_name in enumerate(labels):
        if counts[label] < minimum:
            left = f"{counts[label]} of its examples are left to train label {label_name!r} with"
            needed = f"at least {minimum} are needed: give more examples of it, or none"
            raise MinikdError(f"{where}: {left}, where {needed}")
    for split_name, split in (("validation", validation), ("test", test)):
        if minimum and not split.texts:
            remedy = (undivided and _about_largest_group(undivided)) or "give more (distinct) examples"
            raise MinikdError(f"{where}: no example is left for the {split_name} split: {remedy}")
    return Dataset(name, tuple(labels), train, validation, test)


def hold_out(examples: Split, parts: int, where: str | Path = "data", seed: int = SEED) -> list[Split]:
    """[rest, part 1, …]: `parts` disjoint tenths of `examples` that are held out, and the rest, each in their order.

    Stratified: of a label with n examples, a part takes round(n / 10), at least one, or fewer where whole groups do not
    fit. Grouped: a text and those that it contains move together (`containment_groups`), and a text that several
    groups contain stays in the rest; where these are 5 % or more, a line says how many, naming the data `where`.
    """
    group_of, shared = containment_groups(examples.texts)
    if sum(shared) >= NOTICEABLE * len(shared) > 0:
        share = f"{sum(shared):,} of {len(shared):,} texts ({sum(shared) / len(shared):.0%})"
        consequence = "stay in training; the parts set aside hold longer texts"
        print(f"{where}: {share} appear inside several others and {consequence}")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(group_of):
        if not shared[index]:
            groups[name].append(index)

    tenth = {label: max(1.0, round(SHARE * n)) for label, n in Counter(examples.labels).items()}
    room = [tenth.copy() for _ in range(parts)]
    room.append(dict.fromkeys(tenth, math.inf))  # the rest takes every group that fits nowhere else
    sides: list[list[int]] = [[] for _ in range(parts)] + [[i for i, stays in enumerate(shared) if stays]]
    for name in sorted(groups, key=lambda name: draw(name, seed)):
        needed = Counter(examples.labels[index] for index in groups[name])
        side = next(i for i, free in enumerate(room) if all(free[label] >= n for label, n in needed.items()))
        sides[side] += groups[name]
        for label, n in needed.items():
            room[side][label] -= n
    rest = sides.pop()
    return [replace(select(examples, sorted(side)), positions=sorted(side)) for side in (rest, *sides)]


def draw(name: str, seed: int = SEED) -> bytes:
    """What groups of texts are sorted by, so that their names alone decide where they go: as good as a random order."""
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()


def _about_largest_group(examples: Split) -> str:
    """The text that contains more others than a part may hold, in words; empty where there is none."""
    texts: dict[str, str] = {}  # normalized -> as it is first written
    for text in examples.texts:
        texts.setdefault(normalize(text), text)
    ((name, size),) = Counter(containment_groups(list(texts))[0]).most_common(1)
    if size < max(2, SHARE * len(texts)):
        return ""
    others = f"{size - 1:,} of the other texts, with which it must stay together"
    return f"the text {texts[name][:60]!r} contains {others}: remove it or split it up"


def select(split: Split, indices: Sequence[int]) -> Split:
    """The examples of `split` at these indices, in their order."""
    return Split([split.texts[i] for i in indices], [split.labels[i] for i in indices])


def _without(split: Split, kind: str, held_out: dict[str, Split], where: str | Path) -> Split:
    """`split` less the texts that appear in the splits `held_out`; prints how many, if any."""
    seen = {normalize(text) for other in held_out.values() for text in other.texts}
    kept = [index for index, text in enumerate(split.texts) if normalize(text) not in seen]
    if dropped := len(split.texts) - len(kept):
        print(f"{where}: {dropped} {kind} texts dropped because they also appear in {' or '.join(held_out)}")
    return select(split, kept) if dropped else split
