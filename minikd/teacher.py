"""The teacher: where it comes from, and the source of its logits."""

import shutil
from dataclasses import replace

import torch

from minikd import cli
from minikd.checkpoint import from_pretrained, save_pretrained
from minikd.config import EncoderConfig
from minikd.defaults import SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.files import UserError, write_json
from minikd.hub import model_folder
from minikd.inference import autocast, model_fingerprint, teacher_logits
from minikd.label_order import match_labels
from minikd.model import Classifier
from minikd.runs import check_tokenizer, environment
from minikd.tokenizer import Tokenizer, load_tokenizer, train_wordpiece


def starting_teacher(args, data, device: torch.device) -> tuple[Classifier | None, Tokenizer]:
    """The teacher before fine-tuning (None for the oracle), and the tokenizer that all models share."""
    sample = args.dataset == "sample"  # the corpus of this project, not a file of that name
    if args.teacher == "oracle" and data.train.probabilities is None:
        raise UserError("--teacher oracle: the true probabilities are known for --dataset sample only")
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
    for file in ("run.json", "log.jsonl"):  # of another teacher that was trained here
        (folder / file).unlink(missing_ok=True)
    for stale in (".partial", "adapter"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    save_pretrained(teacher, folder)
    tokenizer.save(folder, teacher.config.model_type, teacher.config.max_position_embeddings)
    record = {"name": "teacher", "copied_from": args.teacher, "arguments": cli.printable(args)}
    write_json(folder / "run.json", record | environment(device))


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
        teacher.to(device).eval()
        if args.teacher_logits == "cache":
            path = args.output_dir / "teacher-logits.safetensors"
            logits = teacher_logits(teacher, train, path, device, args.precision)
    if logits is not None:
        logits = logits.to(device)
        return lambda batch: logits[batch.index], key  # by example, never by position in the batch

    def online(batch):
        with torch.no_grad(), autocast(device, args.precision):
            return teacher(batch.input_ids, batch.attention_mask).logits

    return online, key
