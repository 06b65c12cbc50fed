"""From flags to models: the teacher, the student, and train.py's single model."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minikd.checkpoints.adapters import base_model
from minikd.checkpoints.config_json import read_config
from minikd.checkpoints.hub import is_fine_tuned, model_folder
from minikd.checkpoints.label_order import name_outputs
from minikd.checkpoints.load import load_classifier
from minikd.classifier import TextClassifier, check_same_vocabulary, check_tokenizer
from minikd.cli.defaults import SAMPLE_STUDENT, SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.cli.recipes import BERT, RECIPES
from minikd.cli.start import layer_losses, resolve_max_length
from minikd.config import EncoderConfig, bert_like
from minikd.datasets import Dataset
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_logits, cached_tokens
from minikd.model import Classifier
from minikd.student import PRETRAINED_SMALL, StudentPlan, has_bert_vocabulary, plan_student, seeded
from minikd.techniques.layer_losses import LayerLoss
from minikd.tokenizer import Tokenizer, train_wordpiece


def config_of(source: str) -> EncoderConfig:
    """The shape of the model at `source`, a folder (of LoRA adapters too) or a name on the hub."""
    return read_config(model_folder(base_model(source) or source) / "config.json")


def is_finished(source: str) -> bool:
    """Whether there is a classifier with a head of its own at `source`."""
    return bool(base_model(source)) or is_fine_tuned(source)


def load_model(
    source: str, args, device: torch.device, data: Dataset | None = None, seed: int | None = None
) -> TextClassifier:
    """The classifier at `source`. With `data`, its outputs are in the order of the data's labels; without, their names
    are those of --label-order, if given.

    `seed`: it is to be trained; a bare encoder gets a new head from this seed, and a quantised model is refused.
    Raises MinikdError.
    """

    def on_validation(model: Classifier, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        tokens = cached_tokens(data.validation, tokenizer, args.max_length)
        logits = cached_logits(model, tokens, device, args.precision, "label order")
        model.cpu()
        return logits.argmax(dim=-1), torch.tensor(data.validation.labels)

    labels, answers = (data.labels, on_validation if data.validation.texts else None) if data else (None, None)
    with seeded(seed or 0):
        model, tokenizer = load_classifier(source, labels, args.label_order, answers)
    if model.config.quantization and seed is not None:
        raise MinikdError(
            f"{source}: is quantised ({model.config.quantization}), for evaluate.py alone; give the model that it was "
            f"made of"
        )
    if args.label_order and data is None:
        name_outputs(model, source, args.label_order)
    check_tokenizer(tokenizer, model.config, source, args.max_length)
    classifier = TextClassifier(model, tokenizer, max_length=args.max_length, device=device, precision=args.precision)
    classifier.source = source
    return classifier


def new_model(config: EncoderConfig, tokenizer: Tokenizer, args, device: torch.device, seed: int) -> TextClassifier:
    """A classifier of random weights, from the seed."""
    with seeded(seed):
        model = Classifier(config)
    return TextClassifier(model, tokenizer, max_length=args.max_length, device=device, precision=args.precision)


def load_single(args, data: Dataset, device: torch.device) -> TextClassifier:
    """train.py's model before training: a checkpoint, or a new one whose vocabulary is learned from the texts."""
    if args.model or (args.dataset != "sample" and not (args.layers or args.hidden)):
        args.model = args.model or BERT
        check_not_source(args.output_dir, "--model", args.model)
        resolve_max_length(args, config_of(args.model).max_position_embeddings)
        return load_model(args.model, args, device, data, args.seed)
    if args.lora_rank:
        raise MinikdError(
            "--lora-rank: a new model starts from random weights; adapters need learned ones, see --model"
        )
    resolve_max_length(args, 512)
    vocabulary, config = (SAMPLE_VOCABULARY if args.dataset == "sample" else 30522), SAMPLE_TEACHER  # 30522: as BERT
    if args.dataset != "sample" or args.hidden not in (None, config.hidden_size):
        config = bert_like(args.hidden or 256, 4, config)
    tokenizer = train_wordpiece(data.train.texts, vocabulary)
    positions = max(args.max_length, config.max_position_embeddings)
    config = replace(config, num_hidden_layers=args.layers or 4, labels=data.labels, vocab_size=tokenizer.vocab_size,
                     max_position_embeddings=positions)  # fmt: skip
    return new_model(config, tokenizer, args, device, args.seed)


def load_teacher(args, data: Dataset, device: torch.device) -> tuple[TextClassifier | None, Tokenizer]:
    """The teacher before fine-tuning (None for the oracle), and the tokenizer that all models share."""
    if args.teacher == "oracle" and data.train.probabilities is None:
        raise MinikdError("--teacher oracle: the true probabilities are known for --dataset sample only")
    own = has_sample_teacher(args)
    args.teacher = args.teacher or (None if own else BERT)
    sources = [source for source in (args.teacher, args.student) if source not in (None, "oracle")]
    configs = [config_of(source) for source in sources] + [SAMPLE_TEACHER] * own
    resolve_max_length(args, *(config.max_position_embeddings for config in configs))
    if not own:
        teacher = load_model(args.teacher, args, device, data, args.seed)
        return teacher, teacher.tokenizer
    tokenizer = train_wordpiece(data.train.texts, SAMPLE_VOCABULARY)
    config = replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
    return None if args.teacher else new_model(config, tokenizer, args, device, args.seed), tokenizer


def has_sample_teacher(args) -> bool:
    """Whether the teacher is the sample's own: a new model, or the oracle."""
    return args.dataset == "sample" and args.teacher in (None, "oracle")


def student_maker(
    args, teacher: TextClassifier | None, tokenizer: Tokenizer, data: Dataset, device: torch.device
) -> tuple[Callable[[int], TextClassifier], str, EncoderConfig]:
    """The function that makes a student from a seed; what its first weights are, in words; and its shape.

    All that can be wrong with it is found here. Layers of the teacher are taken when the student is made, which is
    after the teacher's fine-tuning.
    """
    if args.student or (plan := _plan_student(args, teacher, tokenizer, data)).init == "pretrained":
        name = args.student or PRETRAINED_SMALL
        words = f"the weights of {Path(name).resolve().name if Path(name).is_dir() else name}"
        first = load_model(name, args, device, data, args.seed)
        check_same_vocabulary(first.tokenizer, tokenizer, name)
        print(f"student: {_shape(first.model.config)}, first weights: {words}")

        def loaded(seed: int) -> TextClassifier:
            return copy.deepcopy(first) if seed == args.seed else load_model(name, args, device, data, seed)

        return loaded, words, first.model.config
    words = f"the fine-tuned teacher's layers {plan.layers}" if plan.init == "teacher" else "random weights"
    note = ""
    if plan.init == "teacher" and plan.config.hidden_size == 768 and len(plan.layers) == 4 and not args.take_layers:
        note = "" if has_bert_vocabulary(tokenizer) else f" (its vocabulary is not that of {PRETRAINED_SMALL})"
    print(f"student: {_shape(plan.config)}, first weights: {words}{note}")
    check_tokenizer(tokenizer, plan.config, "the student", args.max_length)
    if plan.init == "random" and args.student_lora_rank:
        raise MinikdError("--student-lora-rank: this student starts from random weights; adapters need learned ones")

    def made(seed: int) -> TextClassifier:
        if plan.init == "random":
            return new_model(plan.config, tokenizer, args, device, seed)
        return teacher.make_student(plan.layers, init="teacher", seed=seed)

    return made, words, plan.config


def _plan_student(args, teacher: TextClassifier | None, tokenizer: Tokenizer, data: Dataset) -> StudentPlan:
    """What the student will be, from the flags. Raises MinikdError."""
    count = len(args.take_layers) if args.take_layers else args.student_layers or 4
    if args.student_layers not in (None, count):
        raise MinikdError(f"--student-layers {args.student_layers}: --take-layers names {count}")
    if teacher is None and (args.take_layers or args.student_init == "teacher"):
        raise MinikdError("--teacher oracle: has no layers to take; leave out --take-layers and --student-init teacher")
    sample = replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
    like = teacher.model.config if teacher else sample
    init = "random" if teacher is None and args.student_init == "auto" else args.student_init
    narrow = args.student_hidden in (None, SAMPLE_STUDENT["hidden_size"]) and not args.take_layers
    if has_sample_teacher(args) and init in ("auto", "random") and narrow:
        return StudentPlan(replace(like, num_hidden_layers=count, **SAMPLE_STUDENT), "random", [])
    try:
        return plan_student(like, args.take_layers or count, args.student_hidden, init, has_bert_vocabulary(tokenizer))
    except MinikdError as error:  # the settings of make_student have longer names here
        flag = "`take_layers`" if args.take_layers else "`student_layers`"
        words = str(error).replace("`layers`", flag).replace("`hidden`", "`student_hidden`")
        raise MinikdError(words.replace("`init`", "`student_init`")) from None


def check_not_source(output: Path, flag: str, source, allowed: str | None = None) -> None:
    """Raises MinikdError where a run into `output` would write over the model it starts from: the folder itself, or one
    of the folders of models in it, but for the one that is `allowed`."""
    if not source or not Path(source).exists() or not Path(source).resolve().is_relative_to(output.resolve()):
        return
    first = (*Path(source).resolve().relative_to(output.resolve()).parts, "")[0]
    of_runs = ("", "teacher", "first-stage", "distilled", "baseline", "sweep")
    if first != allowed and (first in of_runs or first.startswith("seed-")):
        raise MinikdError(f"{flag} {source}: the run would write over it; give another --output-dir")


def check_before_training(args, teacher: TextClassifier | None, student: EncoderConfig, fine_tuned: bool) -> None:
    """Raises MinikdError where distill.py would write over a model it reads, or where these models cannot have the
    adapters or the layer losses."""
    check_not_source(args.output_dir, "--teacher", args.teacher, allowed="teacher" if fine_tuned else None)  # in place
    check_not_source(args.output_dir, "--student", args.student)
    if args.lora_rank and (fine_tuned or teacher is None):
        if not args.recipe or args.lora_rank != RECIPES[args.recipe].get("lora_rank"):
            raise MinikdError(
                "--lora-rank: this teacher is not trained here; leave it out (students: --student-lora-rank)"
            )
        print(f"--lora-rank {args.lora_rank} of the recipe is ignored: this teacher is not trained here")
    if args.lora_rank and args.teacher is None:
        raise MinikdError(
            "--lora-rank: the sample's own teacher starts from random weights; adapters need learned ones"
        )
    if layers := layer_losses(args):
        LayerLoss(layers, student, teacher.model.config)
    teacher_width = teacher.model.config.hidden_size if teacher else math.inf
    for flag, width in (("lora_rank", teacher_width), ("student_lora_rank", student.hidden_size)):
        if (rank := getattr(args, flag)) and rank > width:
            raise MinikdError(f"`{flag}` {rank}: the matrices of this model take 1 to {width}")


def to_do(args, examples: int, trains_teacher: bool) -> str:
    """What distill.py will train, and how often, in a line."""
    pairs = len(set(args.alpha)) * len(set(args.T))
    distilled = args.seeds - (pairs > 1)  # the sweep's best is that of the first seed
    students = [f"distil {distilled}"] * (distilled > 0)
    students += [f"train {args.seeds} on the labels alone"] * (not args.no_baseline)
    students += [f"before distilling, {args.layer_epochs} epochs of layer losses"] * (args.layer_epochs > 0)
    steps = [f"fine-tune the teacher ({args.teacher_epochs} epochs)"] * trains_teacher
    layers = layer_losses(args)
    if args.teacher != "oracle" and args.teacher_logits == "cache" and not (layers and layers.logit_loss):
        steps.append(f"cache its logits on {examples:,} texts")
    steps += [f"sweep over {pairs} students"] * (pairs > 1)
    steps += ["students: " + ", ".join(students)] * bool(students)
    again = "; a finished teacher that fits is not trained again, students are" if trains_teacher else ""
    again = "; finished models are not trained again" if args.resume else again
    return f"to do: {'; '.join(steps)} ({args.epochs} epochs a student){again}"


def _shape(config) -> str:
    return f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
