"""Folds (cross-validation): K data sets of the same examples, in each of which another K-th of them is the test split.

For a corpus without an official test set: all of its examples are tested, each by models that were trained without it.
"""

from collections import Counter, defaultdict
from dataclasses import replace

from minikd.datasets.containment import containment_groups, parts_within, words_of
from minikd.datasets.splits import SEED, Dataset, Split, draw, hold_out, make_dataset, select
from minikd.errors import MinikdError


def folds(dataset: Dataset, K: int) -> list[Dataset]:
    """K data sets whose test splits are disjoint and together all examples of `dataset`, which was divided from one
    file or list; in each, a tenth of the other examples is the validation split.

    Stratified: a label's numbers of test examples differ by at most one, or by a little more where whole groups do not
    fit. Each data set keeps the rules of splits.py: a text and those that it contains are tested together, and what
    contains a test text is not trained on. The folds depend on the texts alone, not on their order.
    Raises MinikdError for data with a test set of their own, for a label with fewer than K examples, and as
    `make_dataset` does.
    """
    if dataset.test.positions is None or dataset.train.positions is None:
        raise MinikdError(f"`folds`: {dataset.name} has a test set of its own, which is the one to use; leave it out")
    examples = dataset.all
    rarest, count = min(Counter(examples.labels).items(), key=lambda item: item[1])
    if not 2 <= K <= count:
        label = f"label {dataset.labels[rarest]!r}, the rarest, has {count:,}: each fold must test one"
        raise MinikdError(f"`folds` {K}: give a number from 2 on, and at most the examples of a label; {label}")

    group_of, shared = containment_groups(examples.texts)
    # A text that several groups contain is tested with one of them; in that fold the others are not trained on.
    parts = [words_of(text) if is_part else "" for text, is_part in zip(examples.texts, shared)]
    within = parts_within(examples.texts, set(parts) - {""})
    fold_of = _deal(examples, group_of, K)
    made = []
    for k in range(K):
        test = [i for i, fold in enumerate(fold_of) if fold == k]
        tested, others = {parts[i] for i in test}, [i for i, fold in enumerate(fold_of) if fold != k]
        rest = [i for i in others if not within[i] & tested]
        where = f"{dataset.name}, fold {k + 1} of {K}"
        if left_out := len(others) - len(rest):
            print(f"{where}: {left_out:,} texts are left out of training because a test text appears inside them")
        # With a seed of its own, so that not the same texts are validated on, and never trained on, in all folds.
        held_out = hold_out(select(examples, rest), 1, where, SEED + k)
        train, validation = ([rest[i] for i in split.positions or ()] for split in held_out)
        splits = (replace(select(examples, one), positions=one) for one in (train, test, validation))
        fold = make_dataset(dataset.name, dataset.labels, *splits, where)
        made.append(fold.with_unlabelled(dataset.unlabelled, f"{where}, unlabelled"))
    return made


def _deal(examples: Split, group_of: list[str], K: int) -> list[int]:
    """The fold of each example. Groups go, the largest first, each to the fold that has the fewest examples of their
    labels, and of these to the smallest."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(group_of):
        groups[name].append(index)
    fold_of, labels_in, sizes = [0] * len(group_of), [Counter() for _ in range(K)], [0] * K
    for name in sorted(groups, key=lambda name: (-len(groups[name]), draw(name))):
        counts = Counter(examples.labels[index] for index in groups[name])
        fold = min(range(K), key=lambda k: (sum(labels_in[k][label] for label in counts), sizes[k], k))
        labels_in[fold] += counts
        sizes[fold] += len(groups[name])
        for index in groups[name]:
            fold_of[index] = fold
    return fold_of
