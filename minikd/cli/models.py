"""From flags to models: the teacher, and train.py's single model. The students are made in students.py."""

import math
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
from minikd.cli.defaults import SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.cli.recipes import BERT, RECIPES
from minikd.cli.start import layer_losses, resolve_max_length
from minikd.config import EncoderConfig, bert_like
from minikd.datasets import Dataset
from minikd.errors import MinikdError
from minikd.experiment.caches import cached_logits, cached_tokens
from minikd.losses import check_soft_loss
from minikd.model import Classifier
from minikd.student import seeded
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


def load_teachers(args, data: Dataset, device: torch.device) -> tuple[list[TextClassifier], Tokenizer]:
    """The teachers before fine-tuning (none for the oracle), and the tokenizer that all models share."""
    if args.teacher == "oracle" and (data.train.probabilities is None or data.unlabelled):
        raise MinikdError("--teacher oracle: the true probabilities are known for the texts of --dataset sample only")
    own = has_sample_teacher(args)
    args.teacher = args.teacher or (None if own else BERT)
    sources = [source for source in (args.teacher, *args.more_teachers, args.student) if source not in (None, "oracle")]
    configs = [config_of(source) for source in sources] + [SAMPLE_TEACHER] * own
    resolve_max_length(args, *(config.max_position_embeddings for config in configs))
    seeds = range(args.seed, args.seed + args.teacher_seeds)
    if own:
        tokenizer = train_wordpiece(data.train.texts, SAMPLE_VOCABULARY)
        config = replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
        return [new_model(config, tokenizer, args, device, seed) for seed in seeds if not args.teacher], tokenizer
    names = [args.teacher, *args.more_teachers]
    if args.teacher_seeds > 1 and is_finished(args.teacher):
        if not args.recipe or args.teacher_seeds != RECIPES[args.recipe].get("teacher_seeds"):
            raise MinikdError(f"--teacher-seeds: {args.teacher} is fine-tuned already; leave it out")
        print(f"--teacher-seeds {args.teacher_seeds} of the recipe is ignored: {args.teacher} is fine-tuned already")
        args.teacher_seeds = 1
    names = names if args.more_teachers else names * args.teacher_seeds
    teachers = [load_model(name, args, device, data, args.seed + i) for i, name in enumerate(names)]
    for teacher, name in zip(teachers, names):
        check_same_vocabulary(teacher.tokenizer, teachers[0].tokenizer, name)
    return teachers, teachers[0].tokenizer


def has_sample_teacher(args) -> bool:
    """Whether the teacher is the sample's own: a new model, or the oracle."""
    return args.dataset == "sample" and args.teacher in (None, "oracle")


def check_not_source(output: Path, flag: str, source, allowed: str | None = None) -> None:
    """Raises MinikdError where a run into `output` would write over the model it starts from: the folder itself, or one
    of the folders of models in it, but for the one that is `allowed`."""
    if not source or not Path(source).exists() or not Path(source).resolve().is_relative_to(output.resolve()):
        return
    first = (*Path(source).resolve().relative_to(output.resolve()).parts, "")[0]
    written = ("", "teacher", "first-stage", "distilled", "control", "baseline", "sweep")
    if first != allowed and (first in written or first.startswith(("seed-", "teacher-"))):
        raise MinikdError(f"{flag} {source}: the run would write over it; give another --output-dir")


def check_teachers(args, teachers: list[TextClassifier]) -> None:
    """Raises MinikdError where distill.py would write over a model it reads, or train adapters that cannot be had."""
    fine_tuned = any(map(is_fine_tuned_already, teachers))
    for name, source in zip(teacher_names(teachers), (args.teacher, *args.more_teachers)):
        check_not_source(args.output_dir, "--teacher", source, allowed=name if fine_tuned else None)  # in place
    check_not_source(args.output_dir, "--student", args.student)
    if args.lora_rank and (fine_tuned or not teachers):
        if not args.recipe or args.lora_rank != RECIPES[args.recipe].get("lora_rank"):
            raise MinikdError(
                "--lora-rank: this teacher is not trained here; leave it out (students: --student-lora-rank)"
            )
        print(f"--lora-rank {args.lora_rank} of the recipe is ignored: this teacher is not trained here")
    if args.lora_rank and args.teacher is None:
        raise MinikdError(
            "--lora-rank: the sample's own teacher starts from random weights; adapters need learned ones"
        )


def check_losses(args, teachers: list[TextClassifier], student: EncoderConfig, num_labels: int) -> None:
    """Raises MinikdError where these models cannot have the soft loss, the layer losses or the adapters."""
    check_soft_loss(args.soft_loss, num_labels)
    if layers := layer_losses(args):
        LayerLoss(layers, student, teachers[0].model.config)
    teacher_width = min((teacher.model.config.hidden_size for teacher in teachers), default=math.inf)
    for flag, width in (("lora_rank", teacher_width), ("student_lora_rank", student.hidden_size)):
        if (rank := getattr(args, flag)) and rank > width:
            raise MinikdError(f"`{flag}` {rank}: the matrices of this model take 1 to {width}")


def teacher_names(teachers: list[TextClassifier]) -> list[str]:
    """What the teachers are called in folders and tables: teacher, or teacher-1, teacher-2, …"""
    return ["teacher"] if len(teachers) == 1 else [f"teacher-{i}" for i, _ in enumerate(teachers, start=1)]


def is_fine_tuned_already(teacher: TextClassifier) -> bool:
    """Whether the teacher came with a head of its own."""
    return bool(teacher.source) and is_finished(teacher.source)


def to_do(args, examples: int, teachers: list[TextClassifier]) -> str:
    """What distill.py will train, and how often, in a line."""
    untrained = len(teachers) - sum(map(is_fine_tuned_already, teachers))
    pairs = len(set(args.alpha)) * len(set(args.T))
    distilled = args.seeds - (pairs > 1)  # the sweep's best is that of the first seed
    students = [f"distil {distilled}"] * (distilled > 0)
    alone = args.seeds * (args.controls + (not args.no_baseline))
    students += [f"train {alone} on the labels alone"] * (alone > 0)
    students += [f"before distilling, {args.layer_epochs} epochs of layer losses"] * (args.layer_epochs > 0)
    which = "the teacher" if untrained == 1 else f"{untrained} teachers"
    steps = [f"fine-tune {which} ({args.teacher_epochs} epochs)"] * bool(untrained)
    layers = layer_losses(args)
    if teachers and args.teacher_logits == "cache" and not (layers and layers.logit_loss):
        altered = f" and {args.augment} altered versions of each training text" if args.augment else ""
        steps.append(f"cache {'its' if len(teachers) == 1 else 'their'} logits on {examples:,} texts{altered}")
    steps += [f"sweep over {pairs} students"] * (pairs > 1)
    steps += ["students: " + ", ".join(students)] * bool(students)
    again = "; a finished teacher that fits is not trained again, students are" if untrained else ""
    again = "; finished models are not trained again" if args.resume else again
    long = f"{args.max_steps:,} steps" if args.max_steps else f"{args.epochs} epochs"
    return f"to do: {'; '.join(steps)} ({long} a student){again}"
