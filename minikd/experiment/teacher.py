"""The teacher: where it comes from, and the source of its logits."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.cli import start as cli
from minikd.cli.defaults import SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.evaluation.label_order import match_labels
from minikd.experiment.inference import autocast, model_fingerprint, teacher_logits
from minikd.experiment.runs import check_tokenizer, environment, finish_publishing, publish, read_run
from minikd.files import write_json
from minikd.model import Classifier
from minikd.tokenizer import Tokenizer, load_tokenizer, train_wordpiece


def starting_teacher(args, data, device: torch.device) -> tuple[Classifier | None, Tokenizer]:
    """The teacher before fine-tuning (None for the oracle), and the tokenizer that all models share."""
    sample = args.dataset == "sample"  # the corpus of this project, not a file of that name
    if args.teacher == "oracle" and data.train.probabilities is None:
        raise MinikdError("--teacher oracle: the true probabilities are known for --dataset sample only")
    if sample and args.teacher in (None, "oracle"):
        tokenizer = train_wordpiece(data.train.texts, SAMPLE_VOCABULARY)
        torch.manual_seed(args.seed)
        config = replace(SAMPLE_TEACHER, vocab_size=tokenizer.vocab_size, labels=data.labels)
        teacher = None if args.teacher == "oracle" else Classifier(config)
    else:
        args.teacher = args.teacher or "bert-base-uncased"
        torch.manual_seed(args.seed)
        teacher = from_pretrained(args.teacher, labels=data.labels)
        tokenizer = load_tokenizer(model_folder(args.teacher))
    shapes = [teacher.config if teacher else SAMPLE_TEACHER]
    if args.student:
        shapes.append(EncoderConfig.from_file(model_folder(args.student) / "config.json"))
    cli.settle_length(args, min(shape.max_position_embeddings for shape in shapes))
    if teacher is not None:
        check_tokenizer(tokenizer, teacher.config, args.teacher or "the sample's teacher", args.max_length)
    if teacher is not None and args.teacher:
        match_labels(teacher, args.teacher, data, tokenizer, args, device)
    return teacher, tokenizer


def keep_copy(teacher: Classifier, tokenizer: Tokenizer, args, device: torch.device) -> None:
    """Leaves a teacher that needed no training in OUTPUT/teacher too, with its labels in the data's order."""
    folder = args.output_dir / "teacher"
    if folder.exists() and folder.samefile(model_folder(args.teacher)):
        print(f"teacher: {args.teacher} is fine-tuned already and is used as it is")
        return
    print(f"teacher: {args.teacher} is fine-tuned already and is used as it is; a copy goes to {folder}")
    partial = folder / ".partial"
    if partial.exists():  # of another teacher that was being trained here
        print(f"teacher: the interrupted run in {folder} is discarded")
        shutil.rmtree(partial, ignore_errors=True)
    finish_publishing(folder)
    (folder / "log.jsonl").unlink(missing_ok=True)  # the copy brings none
    save_pretrained(teacher, partial)
    tokenizer.save(partial, teacher.config.model_type, teacher.config.max_position_embeddings)
    record = {"name": "teacher", "copied_from": args.teacher, "arguments": cli.printable(args)}
    write_json(partial / "run.json", training_of(model_folder(args.teacher)) | record | environment(device))
    publish(partial, folder)


def training_of(folder: Path) -> dict:
    """What the run.json of a model says of its training's costs, for that of a copy; {} where it has none.

    Its confusion matrices are left out: their labels may come in another order than the copy's.
    """
    run = read_run(folder)
    costs = {key: run[key] for key in ("trained_parameters", "training_peak_mb", "training_memory_mb") if key in run}
    if run.get("history"):
        costs["history"] = [{k: v for k, v in epoch.items() if k != "confusion"} for epoch in run["history"]]
    return costs


def source_of_logits(teacher, train, data, args, device):
    """The function batch → teacher's logits (B, C), and a key that tells teachers apart.

    The logits are computed once for all examples, or by the teacher in each step. The oracle's are log p: at any T, the
    student that fits them best has p itself as its probabilities.
    """
    logits, key = None, "oracle"
    if teacher is None:
        logits = torch.from_numpy(data.train.probabilities).clamp_min(1e-6).log()
    else:
        key = model_fingerprint(teacher)
        teacher.eval()
        if args.teacher_logits == "cache":
            logits = teacher_logits(teacher, train, logits_path(args), device, args.precision)
            teacher.cpu()  # a GPU's memory is for the students
    if logits is not None:
        logits = logits.to(device)
        return lambda batch: logits[batch.index], key  # by example, never by position in the batch

    teacher.to(device)

    def online(batch):
        with torch.no_grad(), autocast(device, args.precision):
            return teacher(batch.input_ids, batch.attention_mask).logits

    return online, key


def logits_path(args) -> Path:
    """Where the cache of the teacher's logits lies."""
    return args.output_dir / "teacher-logits.safetensors"
