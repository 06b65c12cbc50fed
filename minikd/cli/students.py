"""From flags to students: their shape, and where the distilled one, the control and the baseline start."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.load import load_classifier
from minikd.classifier import TextClassifier, check_same_vocabulary, check_tokenizer
from minikd.cli.defaults import SAMPLE_STUDENT, SAMPLE_TEACHER
from minikd.cli.models import has_sample_teacher, is_finished, load_model, new_model
from minikd.cli.recipes import BERT
from minikd.config import BERT_BASE, EncoderConfig, same_shape
from minikd.datasets import Dataset
from minikd.errors import MinikdError
from minikd.experiment.runs import read_run
from minikd.model import Classifier
from minikd.student import PRETRAINED_SMALL, StudentPlan, has_bert_vocabulary, plan_student, seeded
from minikd.tokenizer import Tokenizer

Maker = Callable[[int], TextClassifier]  # from a seed to a student


class Students(NamedTuple):
    """How the students of an experiment are made."""

    distilled: Maker  # the control starts in the same way
    baseline: Maker  # gets nothing from the fine-tuned teacher
    first_weights: dict[str, str]  # of each student, in words
    config: EncoderConfig


def student_makers(
    args, teacher: TextClassifier | None, tokenizer: Tokenizer, data: Dataset, device: torch.device
) -> Students:
    """The functions that make the students. All that can be wrong with them is found here, before any training.

    To be called before the teacher's fine-tuning, so that the baseline's layers are those of before; the distilled
    student's are taken when it is made, which is after it. Raises MinikdError.
    """
    if args.student or (plan := _plan_student(args, teacher, tokenizer, data)).init == "pretrained":
        return _one_start(args, *_pretrained(args, tokenizer, data, device))
    check_tokenizer(tokenizer, plan.config, "the student", args.max_length)
    if plan.init != "teacher":
        _check_no_adapters(args, "this student starts")
        return _one_start(
            args, lambda seed: new_model(plan.config, tokenizer, args, device, seed), "random weights", plan.config
        )

    def from_teacher(seed: int) -> TextClassifier:
        return teacher.make_student(plan.layers, init="teacher", head=True, seed=seed)

    if args.student_init == "checkpoint":
        return _one_start(args, *_before_fine_tuning(args, teacher, plan, data, device), plan.config)
    if args.no_baseline and args.teacher_base:
        raise MinikdError(f"--teacher-base {args.teacher_base}: nothing starts from it; leave it out")
    own = f"layers {plan.layers} and head of the fine-tuned teacher"
    words, from_checkpoint = {"distilled": own, "control": own}, None
    if not args.no_baseline:
        from_checkpoint, words["baseline"] = _before_fine_tuning(args, teacher, plan, data, device)
    usual = plan.config.hidden_size == 768 and len(plan.layers) == 4 and not args.take_layers
    other = usual and not has_bert_vocabulary(tokenizer)
    note = f" (its vocabulary is not that of {PRETRAINED_SMALL})" if other else ""
    print(f"student: {_shape(plan.config)}, first weights: {words['distilled']}{note}")
    if from_checkpoint:
        print(f"baseline: first weights: {words['baseline']}")
    return Students(from_teacher, from_checkpoint or from_teacher, words, plan.config)


def _one_start(args, maker: Maker, words: str, config: EncoderConfig) -> Students:
    """Students that all start alike. Raises MinikdError for flags that make no sense then."""
    if args.teacher_base and args.student_init != "checkpoint":
        raise MinikdError(f"--teacher-base {args.teacher_base}: these students start from {words}; leave it out")
    if args.controls:
        raise MinikdError(
            f"--controls: distilled and baseline both start from {words}: the baseline is the control; leave it out"
        )
    print(f"student: {_shape(config)}, first weights: {words}")
    return Students(maker, maker, {"distilled": words, "baseline": words}, config)


def _pretrained(args, tokenizer: Tokenizer, data: Dataset, device: torch.device) -> tuple[Maker, str, EncoderConfig]:
    """Students of published or the user's weights: their maker, these weights in words, and their shape."""
    name = args.student or PRETRAINED_SMALL
    first = load_model(name, args, device, data, args.seed)
    check_same_vocabulary(first.tokenizer, tokenizer, name)

    def loaded(seed: int) -> TextClassifier:
        return copy.deepcopy(first) if seed == args.seed else load_model(name, args, device, data, seed)

    words = f"the weights of {Path(name).resolve().name if Path(name).is_dir() else name}"
    return loaded, words, first.model.config


def _before_fine_tuning(
    args, teacher: TextClassifier, plan: StudentPlan, data: Dataset, device: torch.device
) -> tuple[Maker, str]:
    """Students of the checkpoint that the teacher is, or was, fine-tuned from, with new heads; and this in words."""
    name, checkpoint = args.teacher, teacher
    if args.teacher_base and not (name and is_finished(name)):
        raise MinikdError("--teacher-base: this teacher is fine-tuned here, from what --teacher names; leave it out")
    if not name:
        _check_no_adapters(args, "the baseline would start")
        words = f"layers {plan.layers} of the teacher before its training"
    elif not is_finished(name):
        words = f"layers {plan.layers} of {Path(name).name} before fine-tuning"
    else:
        name = args.teacher_base or checkpoint_of(name) or _published_base(teacher)
        if name == "random":
            _check_no_adapters(args, "the baseline would start")
            return lambda seed: new_model(plan.config, teacher.tokenizer, args, device, seed), "random weights"
        if not name:
            raise MinikdError(
                f"--teacher {args.teacher}: it is not known which checkpoint this was fine-tuned from, whose layers "
                f"the baseline takes; give --teacher-base NAME_OR_DIR, or --teacher-base random, or --no-baseline"
            )
        model, tokenizer = _checkpoint(args, name, data)
        check_same_vocabulary(tokenizer, teacher.tokenizer, name)
        if not same_shape(model.config, teacher.model.config):
            raise MinikdError(f"--teacher-base {name}: has another shape than --teacher {args.teacher}")
        checkpoint = TextClassifier(
            model, tokenizer, max_length=args.max_length, device=device, precision=args.precision
        )
        words = f"layers {plan.layers} of {Path(name).name}, which the teacher was fine-tuned from"
    taken = checkpoint.make_student(plan.layers, init="teacher", seed=args.seed)  # copies: training changes the teacher
    every_layer = list(range(len(plan.layers)))
    return lambda seed: taken.make_student(every_layer, init="teacher", seed=seed), words


def _checkpoint(args, name: str, data: Dataset) -> tuple[Classifier, Tokenizer]:
    """What a finished teacher was fine-tuned from, `name`, with a new head. Raises MinikdError."""
    try:
        wrong = "is fine-tuned itself" if is_finished(name) else ""
        if not wrong:
            with seeded(args.seed):
                return load_classifier(name, data.labels)
    except MinikdError as error:
        if args.teacher_base:
            raise
        wrong = f"cannot be read ({error})"
    if args.teacher_base:
        raise MinikdError(f"--teacher-base {name}: {wrong}; name the encoder of before")
    raise MinikdError(
        f"--teacher {args.teacher}: was fine-tuned from {name}, which {wrong}; give --teacher-base NAME_OR_DIR, the "
        f"encoder of before, or --no-baseline"
    )


def _check_no_adapters(args, who: str) -> None:
    if args.student_lora_rank:
        raise MinikdError(f"--student-lora-rank: {who} from random weights; adapters need learned ones")


def checkpoint_of(source: str) -> str | None:
    """The checkpoint that the fine-tuned classifier at `source` was made from: "random" for a new model, None where its
    files do not say."""
    if base := base_model(source):
        return base
    run = read_run(model_folder(source))
    if run.get("copied_from"):
        try:
            return checkpoint_of(run["copied_from"])
        except (MinikdError, RecursionError):  # it is gone, or a copy of itself
            return None
    kind, _, number = run.get("name", "").partition("-")
    if kind not in ("teacher", "model"):
        return None
    more = run["arguments"].get("more_teachers") if kind == "teacher" else None
    sources = [run["arguments"].get(kind), *(more if isinstance(more, list) else [])]
    numbered = {str(i): source for i, source in enumerate(sources, start=1)}
    found = numbered.get(number, False) if len(sources) > 1 else sources[0]
    return found or "random" if found is None or isinstance(found, str) else None


def _published_base(teacher: TextClassifier) -> str | None:
    """BERT-base, where the teacher has its shape and vocabulary."""
    return BERT if same_shape(teacher.model.config, BERT_BASE) and has_bert_vocabulary(teacher.tokenizer) else None


def _plan_student(args, teacher: TextClassifier | None, tokenizer: Tokenizer, data: Dataset) -> StudentPlan:
    """What the student will be, from the flags. Raises MinikdError."""
    count = len(args.take_layers) if args.take_layers else args.student_layers or 4
    if args.student_layers not in (None, count):
        raise MinikdError(f"--student-layers {args.student_layers}: --take-layers names {count}")
    init = "teacher" if args.student_init == "checkpoint" else args.student_init
    if teacher is None and (args.take_layers or init == "teacher"):
        raise MinikdError(
            f"--teacher oracle: has no layers to take; leave out --take-layers and --student-init {args.student_init}"
        )
    sample = replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
    like = teacher.model.config if teacher else sample
    init = "random" if teacher is None and init == "auto" else init
    narrow = args.student_hidden in (None, SAMPLE_STUDENT["hidden_size"]) and not args.take_layers
    if has_sample_teacher(args) and init in ("auto", "random") and narrow:
        return StudentPlan(replace(like, num_hidden_layers=count, **SAMPLE_STUDENT), "random", [])
    try:
        return plan_student(like, args.take_layers or count, args.student_hidden, init, has_bert_vocabulary(tokenizer))
    except MinikdError as error:  # the settings of make_student have longer names here
        flag = "`take_layers`" if args.take_layers else "`student_layers`"
        words = str(error).replace("`layers`", flag).replace("`hidden`", "`student_hidden`")
        words = words.replace("`init` teacher", f"`init` {args.student_init}")
        raise MinikdError(words.replace("`init`", "`student_init`")) from None


def _shape(config: EncoderConfig) -> str:
    return f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
