"""The student: its shape, and its first weights.

Sanh et al. 2019 take six of the teacher's twelve layers, evenly spaced; starting from random weights instead costs
them 3.7 points of GLUE.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from minikd.config import BERT_SMALL, EncoderConfig, bert_like, same_shape
from minikd.errors import MinikdError
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer

PRETRAINED_SMALL = "google/bert_uncased_L-4_H-512_A-8"  # published weights of the shape BERT_SMALL
# SHA-256 of its vocab.txt, which is bert-base-uncased's: whether it fits a teacher is known before it is downloaded.
PRETRAINED_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class StudentPlan(NamedTuple):
    """What a student will be, known before there is one."""

    config: EncoderConfig
    init: str  # its first weights: "teacher" (some of the teacher's layers), "pretrained" (published) or "random"
    layers: list[int]  # the layers of the teacher, counted from 0; [] for other first weights


def plan_student(
    teacher: EncoderConfig,
    layers: int | list[int] = 4,
    hidden: int | None = None,
    init: str = "auto",
    bert_vocabulary: bool = False,
) -> StudentPlan:
    """The shape and the first weights of a student of this teacher. Raises MinikdError for what cannot be had.

    layers  how many, or which of the teacher's, counted from 0
    hidden  its width; None: the teacher's. One exception: with a 768-wide teacher of BERT's vocabulary
            (`bert_vocabulary`), 4 layers mean the published BERT_SMALL, which is 512 wide
    init    teacher, pretrained or random; auto: the first of these that fits the shape
    """
    if init not in ("auto", "teacher", "pretrained", "random"):
        raise MinikdError(f"`init` {init!r}: must be auto, teacher, pretrained or random")
    chosen = None if isinstance(layers, int) else list(layers)
    depth = layers if isinstance(layers, int) else len(layers)
    if hidden and hidden != teacher.hidden_size:
        config = bert_like(hidden, depth, teacher)
    elif bert_vocabulary and teacher.hidden_size == 768 and depth == 4 and not (hidden or chosen or init == "teacher"):
        config = replace(BERT_SMALL, labels=teacher.labels, pad_token_id=teacher.pad_token_id)
    else:
        config = replace(teacher, num_hidden_layers=depth)

    published = bert_vocabulary and same_shape(config, BERT_SMALL)
    if init == "auto":
        fits = config.hidden_size == teacher.hidden_size
        init = "teacher" if fits else "pretrained" if published else "random"
    if chosen and init != "teacher":
        raise MinikdError(
            f"`layers` {chosen}: this student takes no layers of the teacher; give their number, or leave out `hidden` "
            f"and `init`"
        )
    if init == "pretrained" and not published:
        raise MinikdError(
            "`init` pretrained: no published weights of this shape and vocabulary are known; choose another `init`"
        )
    if init == "teacher" and config.hidden_size != teacher.hidden_size:
        raise MinikdError(
            f"`init` teacher: the student is {config.hidden_size} wide and the teacher {teacher.hidden_size}; "
            f"widths must agree"
        )
    if init != "teacher":
        return StudentPlan(config, init, [])
    if chosen is None:
        chosen = evenly_spaced_layers(teacher.num_hidden_layers, depth)
    check_layers(teacher, chosen)
    return StudentPlan(config, init, chosen)


def evenly_spaced_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher layers a student takes, evenly from first to last: 6 of 12 gives DistilBERT's 0, 2, 4, 7, 9, 11.

    A single layer is the first. Raises MinikdError for more layers than the teacher has, or none.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise MinikdError(
            f"`layers` {student_layers}: the teacher has {teacher_layers} layers to take from; choose 1 to "
            f"{teacher_layers}"
        )
    step = (teacher_layers - 1) / max(student_layers - 1, 1)
    return [round(i * step) for i in range(student_layers)]


def check_layers(teacher: EncoderConfig, layers: list[int]) -> None:
    """Raises MinikdError where the teacher has no such layers."""
    count = teacher.num_hidden_layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise MinikdError(f"`layers` {layers}: the teacher's layers are numbered 0 to {count - 1}")


def student_from_teacher(teacher: Classifier, layers: list[int], seed: int, head: bool = False) -> Classifier:
    """A student of the teacher's width: the given layers, embeddings and pooler copied. Its output layer is a copy too
    with `head` (the reused classifier of SimKD, Chen et al. 2022), else new, of random weights from the seed."""
    check_layers(teacher.config, layers)
    with seeded(seed):
        student = Classifier(replace(teacher.config, num_hidden_layers=len(layers)))
    student.encoder.embeddings.load_state_dict(teacher.encoder.embeddings.state_dict())
    for own, source in zip(student.encoder.layers, layers):
        own.load_state_dict(teacher.encoder.layers[source].state_dict())
    student.pooler.load_state_dict(teacher.pooler.state_dict())
    if head:
        student.classifier.load_state_dict(teacher.classifier.state_dict())
    return student


def has_bert_vocabulary(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the vocabulary of bert-base-uncased, token by token."""
    lines = "".join(f"{token}\n" for token in sorted(tokenizer.vocab, key=lambda token: tokenizer.vocab[token]))
    return hashlib.sha256(lines.encode()).hexdigest() == PRETRAINED_VOCABULARY


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, random numbers on the CPU follow from the seed; afterwards those of before continue."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
