"""Knowledge distillation, the whole experiment: a teacher, a student distilled from it, and the same student trained
without it, compared on the test set.

    python distill.py --student-layers 4 --alpha 0.5 --T 2
    python distill.py --dataset imdb --student-layers 4 --alpha 0.5 --T 2

Loss of the distilled student:
    alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
"""

import copy
import shutil
from dataclasses import replace

import numpy as np
import torch

from minikd import cli
from minikd.batching import tokenize_split
from minikd.checkpoint import from_pretrained, save_pretrained
from minikd.config import EncoderConfig
from minikd.defaults import SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.files import UserError, write_json
from minikd.hub import is_fine_tuned, model_folder
from minikd.inference import autocast, model_fingerprint, teacher_logits
from minikd.model import Classifier
from minikd.report import evaluate_models, results_of, write_results
from minikd.runs import check_not_source, check_tokenizer, environment, train_or_reuse
from minikd.student import starting_student, student_from_teacher
from minikd.tokenizer import Tokenizer, load_tokenizer, train_wordpiece


def parse_args():
    parser = cli.Parser(description=__doc__, epilog=cli.defaults_text())
    group = parser.add_argument_group("teacher and student")
    group.add_argument(
        "--teacher",
        type=cli.non_empty,
        metavar="NAME_OR_DIR",
        help="a fine-tuned classifier (used as it is) or a bare encoder (fine-tuned first); a folder or a name "
        "on the hub; oracle: the true probabilities, known for the sample only (default: "
        "bert-base-uncased; for the sample a new 4-layer model)",
    )
    group.add_argument("--teacher-epochs", type=cli.integer(1), metavar="N", help="--epochs of the teacher")
    group.add_argument("--teacher-lr", type=cli.real(0, exclusive=True), metavar="X", help="--lr of the teacher")
    group.add_argument(
        "--student", type=cli.non_empty, metavar="NAME_OR_DIR", help="start the student from this pre-trained model"
    )
    group.add_argument(
        "--student-layers",
        type=cli.integer(1),
        metavar="N",
        help="layers of the student; with a 768-wide teacher, 4 means the published 4-layer, 512-wide shape, "
        "otherwise N layers are taken from the teacher, evenly spaced; students of the sample's own teacher are 128 "
        "wide (default: 4)",
    )
    group.add_argument(
        "--take-layers",
        type=cli.integer(0),
        nargs="+",
        metavar="I",
        help="take these layers of the teacher (numbered from 0) instead of evenly spaced ones",
    )
    group.add_argument("--student-hidden", type=cli.integer(32), metavar="H", help="width of the student")
    group.add_argument(
        "--student-init",
        choices=("auto", "teacher", "pretrained", "random"),
        default="auto",
        help="the student's first weights: layers of the teacher, published weights of its shape, or random; "
        "auto: the first of these that fits the shape (default: auto)",
    )
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--alpha",
        type=cli.real(0, 1),
        default=0.5,
        metavar="X",
        help="weight of the hard loss, against the labels; 1 − alpha weighs the soft loss, against the teacher "
        "(default: 0.5)",
    )
    group.add_argument(
        "--T",
        type=cli.real(0.01, 100),
        default=2.0,
        metavar="X",
        help="temperature of the soft loss (default: 2)",
    )
    group.add_argument(
        "--teacher-logits",
        choices=("cache", "online"),
        default="cache",
        help="compute them once for all epochs, or anew in each step (default: cache)",
    )
    group.add_argument("--no-baseline", action="store_true", help="leave out the student trained without the teacher")
    cli.add_data_flags(parser)
    cli.add_training_flags(parser)
    cli.add_device_flags(parser)
    cli.add_output_flag(parser)
    args = parser.parse_args()
    if args.student and (args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"):
        parser.error(
            "--student brings its own shape and weights: leave out --student-layers, --student-hidden, "
            "--take-layers and --student-init"
        )
    cli.fill_defaults(args)
    return args


def main():
    args = parse_args()
    device = cli.start(args)
    data = cli.load_data(args)
    settings = cli.training_settings(args)
    output = args.output_dir

    # 1. Where both models start. Everything that can be wrong with them is found here, before any training.
    teacher, tokenizer = starting_teacher(args, data)
    student, layers = starting_student(args, teacher, tokenizer, data)
    fine_tuned = teacher is not None and args.teacher is not None and is_fine_tuned(args.teacher)
    for name in ("teacher", "distilled", "baseline"):
        check_not_source(output / name, "--student", args.student)
        if name != "teacher" or not fine_tuned:  # a fine-tuned teacher may lie where this run would copy it to
            check_not_source(output / name, "--teacher", args.teacher)
    train, validation, test = (
        tokenize_split(split, tokenizer, args.max_length) for split in (data.train, data.validation, data.test)
    )
    full = np.mean(train.lengths == args.max_length)
    print(f"training texts that fill all {args.max_length} tokens (longer ones are cut there): {full:.1%}")

    shared = dict(device=device, arguments=cli.printable(args), compile=args.compile, resume=args.resume)

    # 2. The teacher, fine-tuned unless it is already.
    if fine_tuned:
        keep_copy(teacher, tokenizer, args, device)
    elif teacher is not None:
        teacher = train_or_reuse(
            "teacher",
            teacher,
            tokenizer,
            train,
            validation,
            replace(settings, epochs=args.teacher_epochs, lr=args.teacher_lr),
            output / "teacher",
            reuse=True,
            **shared,
        )

    # 3. Its logits for the training examples: computed once, or by the teacher in each step. The oracle's are log p: at
    #    any T, the student that fits them best has p itself as its probabilities.
    if teacher is None:
        logits, teacher_key = torch.from_numpy(data.train.probabilities).clamp_min(1e-6).log(), "oracle"
    else:
        logits, teacher_key = None, model_fingerprint(teacher)
        teacher.to(device).eval().requires_grad_(False)
        if args.teacher_logits == "cache":
            path = output / "teacher-logits.safetensors"
            logits = teacher_logits(teacher, train, path, device, args.precision, args.batch_size)
    if logits is not None:
        logits = logits.to(device)

    def teacher_logits_of(batch):
        if logits is not None:
            return logits[batch.index]  # by example, never by position in the batch
        with torch.no_grad(), autocast(device, args.precision):
            return teacher(batch.input_ids, batch.attention_mask).logits

    # 4. The student, distilled; and from the same first weights, trained on the labels alone.
    torch.manual_seed(args.seed)
    student = student or student_from_teacher(teacher, layers)
    baseline = copy.deepcopy(student)
    distilled = train_or_reuse(
        "distilled",
        student,
        tokenizer,
        train,
        validation,
        replace(settings, alpha=args.alpha, T=args.T),
        output / "distilled",
        teacher=teacher_logits_of,
        teacher_key=teacher_key,
        **shared,
    )
    models = {"teacher": teacher, "distilled": distilled} if teacher else {"distilled": distilled}
    if not args.no_baseline:
        models["baseline"] = train_or_reuse(
            "baseline", baseline, tokenizer, train, validation, settings, output / "baseline", **shared
        )

    # 5. The comparison, on the test set, which nothing above has seen.
    rows = evaluate_models(
        {name: (output / name, model, test) for name, model in models.items()},
        data.test,
        device,
        args.precision,
        output,
    )
    write_results(results_of(rows, data, "test", cli.printable(args), device), output)


def starting_teacher(args, data) -> tuple[Classifier | None, Tokenizer]:
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
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    save_pretrained(teacher, folder)
    tokenizer.save(folder, teacher.config.model_type, teacher.config.max_position_embeddings)
    record = {"name": "teacher", "copied_from": args.teacher, "arguments": cli.printable(args)}
    write_json(folder / "run.json", record | environment(device))


if __name__ == "__main__":
    cli.run(main)
