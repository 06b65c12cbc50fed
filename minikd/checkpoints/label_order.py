"""Which output of a classifier stands for which label of the data.

A config.json names the outputs. Where it has only LABEL_0, LABEL_1, … (what transformers writes when nobody named
them), the order is unknown, and a wrong guess gives a teacher that is confidently wrong. So it needs proof: the flag
`label_order`, or the labels of the validation split.
"""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minikd.errors import MinikdError
from minikd.model import Classifier

MAX_LABELS = 8  # whose 40,320 orders are compared
OnValidation = Callable[[], tuple[Tensor, Tensor]]


def match_labels(
    model: Classifier,
    source,
    labels: tuple[str, ...],
    label_order: Sequence[str] | None = None,
    on_validation: OnValidation | None = None,
) -> None:
    """Puts the rows of the model's classifier into the order of `labels`, in place, and renames its labels.

    The order is that of the names in config.json; where they are LABEL_0, LABEL_1, … or others than `labels`, that of
    `label_order`, the names of the outputs; and for LABEL_0, LABEL_1, … without it, that of the labels 0, 1, … where
    `labels` are these, or else the one that clearly fits the validation split (`best_order`): `on_validation` returns
    the model's answers (N,) there, ids of outputs, and the right labels (N,); None: there are no such texts. Raises
    MinikdError that names the model, `source`, where there is none of these.
    """
    own = model.config.labels
    order, unnamed = order_by_name(own, labels), all(re.fullmatch(r"LABEL_\d+", name) for name in own)
    if label_order and order is not None and not unnamed:
        print(f"{source}: has the data's labels by name; the order given is ignored")
    elif len(own) != len(labels) or order is None and not label_order and not unnamed:
        raise MinikdError(
            f"{source}: the model's labels {list(own)} are not the data's {list(labels)}"
            + ("; name them by `label_order`" if len(own) == len(labels) else "")
        )
    elif label_order:
        order = order_by_name(label_order, labels)
        if order is None:
            raise MinikdError(f"`label_order` {', '.join(label_order)}: must name the labels {', '.join(labels)}")
    elif order is None:
        order = _order_on_validation(source, labels, on_validation)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config = model.config.with_labels(labels)


def name_outputs(model: Classifier, source, label_order: list[str]) -> None:
    """Gives the model's outputs the names of `label_order`, where there is no data to compare them with.

    A model that has these names already keeps its own order. Raises MinikdError for another number of names.
    """
    if order_by_name(model.config.labels, label_order) is not None:
        print(f"{source}: its config.json has these names; the order given is ignored")
    elif len(model.config.labels) != len(label_order):
        raise MinikdError(
            f"`label_order`: {len(label_order)} names, but {source} has {len(model.config.labels)} outputs"
        )
    else:
        model.config = model.config.with_labels(label_order)


def order_by_name(own, labels) -> list[int] | None:
    """For each of `labels` the position in `own` of the same name; None where the names are not the same.

    Names are compared exactly, or else without regard to case, or else with LABEL_0 as the name of the label 0.
    """
    for plain in (str, str.lower, lambda name: re.sub(r"^label_(?=\d+$)", "", name.lower())):
        mine, theirs = [plain(name) for name in own], [plain(name) for name in labels]
        if sorted(mine) == sorted(theirs) and len(set(mine)) == len(mine):
            return [mine.index(name) for name in theirs]
    return None


def _order_on_validation(source, labels: tuple[str, ...], on_validation: OnValidation | None) -> list[int]:
    """The order of outputs that clearly fits the validation split. Prints its accuracy. Raises MinikdError."""
    unknown = f"{source}: its config.json does not say which labels LABEL_0, … are"
    if len(labels) > MAX_LABELS:
        raise MinikdError(f"{unknown}; name all {len(labels)} by `label_order`, in the order of the outputs")
    if on_validation is None:
        raise MinikdError(f"{unknown}, and there are no validation texts to tell; name them by `label_order`")
    answers, right_labels = on_validation()
    counts = np.zeros((len(labels),) * 2, dtype=np.int64)
    np.add.at(counts, (answers.numpy(), right_labels.numpy()), 1)
    order, clear = best_order(counts)
    total = counts.sum()
    right = counts[order, np.arange(len(order))].sum() / total
    names = ",".join(labels[order.index(output)] for output in range(len(order)))
    if not clear:
        raise MinikdError(
            f"{unknown}, and no order clearly fits the {total:,} validation texts (the best, {names}, is right on "
            f"{right:.1%}); name them by `label_order`, in the order of the outputs"
        )
    print(f"{source}: outputs taken as {names}, the order that fits validation (right on {right:.1%} of {total:,})")
    return order


def best_order(counts: np.ndarray) -> tuple[list[int], bool]:
    """The assignment of outputs to labels that is right most often, and whether it clearly is.

    `counts` (C, C): entry [o, t] is the number of examples of label t whose largest logit is that of output o. The
    assignment is a list: for each label, its output. It is clear if its lead is more than chance would give, by
    McNemar's test: over every other assignment, more than 3 standard errors; over the most frequent label given to all
    examples, which a constant model reaches, more than 2. The standard error of a lead is the square root of the number
    of examples that only one of the two gets right.
    """
    labels = np.arange(len(counts))
    orders = np.array(list(itertools.permutations(labels)))  # (C!, C)
    hits = counts[orders, labels]  # (C!, C): examples of each label that each order gets right
    best = hits.sum(axis=1).argmax()
    order, own = orders[best], hits[best]
    moved = np.delete(orders, best, axis=0) != order  # (C! - 1, C)
    others = np.delete(hits, best, axis=0)
    leads, differ = own.sum() - others.sum(axis=1), ((own + others) * moved).sum(axis=1)
    totals = counts.sum(axis=0)
    most = totals.argmax()
    lead, differ_most = own.sum() - totals[most], own.sum() + totals[most] - 2 * own[most]
    clear = (leads > 3 * np.sqrt(differ)).all() and lead > 2 * np.sqrt(differ_most)
    return order.tolist(), bool(clear)
