"""The student: its shape, and where its first weights come from.

Sanh et al. 2019 take every other layer of the teacher; starting from random weights instead costs them 3.7 points of
GLUE.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.pretrained import from_pretrained
from minikd.cli.defaults import SAMPLE_STUDENT, SAMPLE_TEACHER
from minikd.config import BERT_SMALL, EncoderConfig, bert_like, same_shape
from minikd.errors import MinikdError
from minikd.evaluation.label_order import match_labels
from minikd.experiment.runs import check_tokenizer
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer, load_tokenizer

PRETRAINED_SMALL = "google/bert_uncased_L-4_H-512_A-8"  # published weights of the 4-layer, 512-wide student
# SHA-256 of its vocab.txt, which is bert-base-uncased's: whether it fits a teacher is known
# before it is downloaded (`pretrained_student` then compares the vocabularies themselves).
PRETRAINED_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def starting_student(
    args, teacher, tokenizer, data, seed: int, device: torch.device
) -> tuple[Classifier | None, list[int], str]:
    """(student, [], its first weights in words); or (None, layers, the same in words) where the student will be made of
    these layers of the teacher, which is not fine-tuned yet.

    `seed` decides whatever is random in it: all of the weights, or those of the new classifier.
    """
    torch.manual_seed(seed)
    if args.student:
        source = Path(args.student).resolve().name if Path(args.student).is_dir() else args.student
        return pretrained_student(args.student, args, tokenizer, data, device), [], f"the weights of {source}"

    like = teacher.config if teacher else replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
    count = len(args.take_layers) if args.take_layers else args.student_layers or 4
    if args.student_layers not in (None, count):
        raise MinikdError(f"--student-layers {args.student_layers}: --take-layers names {count}")
    if teacher is None and (args.take_layers or args.student_init == "teacher"):
        raise MinikdError("--teacher oracle: has no layers to take; leave out --take-layers and --student-init teacher")
    config = student_config(args, like, count, tokenizer)
    check_tokenizer(tokenizer, config, "the student", args.max_length)
    init, published = args.student_init, same_shape(config, BERT_SMALL) and has_published_vocabulary(tokenizer)
    if init == "auto":
        fits = teacher is not None and config.hidden_size == like.hidden_size
        init = "teacher" if fits else "pretrained" if published else "random"
    if args.take_layers and init != "teacher":
        raise MinikdError(
            "--take-layers: this student takes no layers of the teacher; leave it out, or --student-hidden "
            "and --student-init"
        )
    unlike_published = like.hidden_size == 768 and count == 4 and not has_published_vocabulary(tokenizer)
    layers = args.take_layers or evenly_spaced_layers(like.num_hidden_layers, count) if init == "teacher" else []
    words = {
        "teacher": f"the fine-tuned teacher's layers {layers}",
        "pretrained": f"the weights of {PRETRAINED_SMALL}",
        "random": "random weights",
    }[init]
    other = f" (its vocabulary is not that of {PRETRAINED_SMALL})" if init == "teacher" and unlike_published else ""
    print(f"student: {config.num_hidden_layers} layers, {config.hidden_size} wide, first weights: {words}{other}")
    if init == "random":
        if args.student_lora_rank:
            raise MinikdError(
                "--student-lora-rank: this student starts from random weights; adapters need learned ones"
            )
        return Classifier(config), [], words
    if init == "pretrained":
        if not published:
            raise MinikdError(
                "--student-init pretrained: no published weights of this shape and vocabulary are known; name some by "
                "--student"
            )
        return pretrained_student(PRETRAINED_SMALL, args, tokenizer, data, device), [], words
    if config.hidden_size != like.hidden_size:
        raise MinikdError(
            f"--student-init teacher: the student is {config.hidden_size} wide and the teacher {like.hidden_size}; "
            f"widths must agree"
        )
    student_from_teacher(teacher, layers)  # a rehearsal: unknown layers are complained of now, not after the training
    return None, layers, words


def pretrained_student(name: str, args, tokenizer, data, device: torch.device) -> Classifier:
    """A student from published weights. It must read the ids that the teacher's tokenizer gives."""
    student = from_pretrained(name, labels=data.labels)
    if load_tokenizer(model_folder(name)).vocab != tokenizer.vocab:
        raise MinikdError(
            f"{name}: its vocabulary is not the teacher's; name another by --student, or give --student-init random"
        )
    check_tokenizer(tokenizer, student.config, name, args.max_length)
    match_labels(student, name, data, tokenizer, args, device)
    return student


def has_published_vocabulary(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the vocabulary of the published small student, token by token."""
    lines = "".join(f"{token}\n" for token in sorted(tokenizer.vocab, key=tokenizer.vocab.get))
    return hashlib.sha256(lines.encode()).hexdigest() == PRETRAINED_VOCABULARY


def student_config(args, like: EncoderConfig, layers: int, tokenizer: Tokenizer) -> EncoderConfig:
    """The student's shape, from the flags, the teacher's shape and its vocabulary."""
    own_sizes = args.dataset == "sample" and args.teacher in (None, "oracle")
    if own_sizes and not args.take_layers and args.student_init != "teacher":
        if args.student_hidden in (None, SAMPLE_STUDENT["hidden_size"]):
            return replace(like, num_hidden_layers=layers, **SAMPLE_STUDENT)
    if args.student_hidden and args.student_hidden != like.hidden_size:
        return bert_like(args.student_hidden, layers, like)
    if args.student_hidden or args.take_layers or args.student_init == "teacher":
        return replace(like, num_hidden_layers=layers)
    if like.hidden_size == 768 and layers == 4 and has_published_vocabulary(tokenizer):
        return replace(BERT_SMALL, labels=like.labels, pad_token_id=like.pad_token_id)
    return replace(like, num_hidden_layers=layers)


def evenly_spaced_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher layers a student takes, evenly from first to last: 6 of 12 gives DistilBERT's 0, 2, 4, 7, 9, 11.

    A single layer is the first. Raises MinikdError for more layers than the teacher has, or none.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise MinikdError(
            f"--student-layers {student_layers}: the teacher has {teacher_layers} layers to take from; "
            f"choose 1 to {teacher_layers}"
        )
    step = (teacher_layers - 1) / max(student_layers - 1, 1)
    return [round(i * step) for i in range(student_layers)]


def student_from_teacher(teacher: Classifier, layers: list[int]) -> Classifier:
    """A student of the teacher's width: the given layers, embeddings and pooler copied, the classifier new."""
    count = teacher.config.num_hidden_layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise MinikdError(f"student layers {layers}: the teacher's layers are numbered 0 to {count - 1}")
    student = Classifier(replace(teacher.config, num_hidden_layers=len(layers)))
    student.encoder.embeddings.load_state_dict(teacher.encoder.embeddings.state_dict())
    for own, source in zip(student.encoder.layers, layers):
        own.load_state_dict(teacher.encoder.layers[source].state_dict())
    student.pooler.load_state_dict(teacher.pooler.state_dict())
    return student
