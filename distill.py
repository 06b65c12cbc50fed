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
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minikd import cli
from minikd.batching import tokenize_split
from minikd.checkpoint import from_pretrained, save_pretrained
from minikd.config import EncoderConfig
from minikd.defaults import SAMPLE_TEACHER, SAMPLE_VOCABULARY
from minikd.evaluation import evaluate_models, write_predictions
from minikd.files import UserError, write_json
from minikd.hub import is_fine_tuned, model_folder
from minikd.inference import autocast, model_fingerprint, teacher_logits
from minikd.model import Classifier
from minikd.recipes import RECIPES
from minikd.report import results_of, write_results
from minikd.runs import check_not_source, check_tokenizer, environment, train_or_reuse
from minikd.significance import compare
from minikd.student import starting_student, student_from_teacher
from minikd.sweep import run_sweep
from minikd.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from minikd.tracking import Tracking


def parse_args():
    parser = cli.Parser(description=__doc__, epilog=cli.defaults_text())
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="the settings of a published experiment; any flag given beside it wins (minikd/recipes.py)",
    )
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
        nargs="+",
        default=[0.5],
        metavar="X",
        help="weight of the hard loss, against the labels; 1 − alpha weighs the soft loss, against the teacher "
        "(default: 0.5)",
    )
    group.add_argument(
        "--T",
        type=cli.real(0.01, 100),
        nargs="+",
        default=[2.0],
        metavar="X",
        help="temperature of the soft loss (default: 2); several values of --alpha or --T: a sweep over all pairs, "
        "and the one that is best on validation goes on",
    )
    group.add_argument(
        "--teacher-logits",
        choices=("cache", "online"),
        default="cache",
        help="compute them once for all epochs, or anew in each step (default: cache)",
    )
    group.add_argument("--no-baseline", action="store_true", help="leave out the student trained without the teacher")
    group.add_argument(
        "--seeds",
        type=cli.integer(1, 100),
        default=1,
        metavar="N",
        help="train the students N times, with seeds --seed, --seed + 1, …: mean ± std, and whether the difference is "
        "more than chance (default: 1)",
    )
    cli.add_data_flags(parser)
    cli.add_training_flags(parser)
    group = cli.add_lora_flags(parser, "the teacher")
    group.add_argument("--student-lora-rank", type=cli.integer(1), metavar="R", help="the same for the students")
    cli.add_device_flags(parser)
    cli.add_output_flag(parser, "runs/<recipe or dataset>")
    args = parser.parse_args()
    if args.recipe:
        flags = dict(RECIPES[args.recipe].flags)
        if args.student or args.student_layers or args.student_hidden or args.take_layers:
            flags.pop("student", None), flags.pop("student_layers", None)  # the user names another student
        parser.set_defaults(**{name: [value] if name in ("alpha", "T") else value for name, value in flags.items()})
        args = parser.parse_args()
        args.output_dir = args.output_dir or Path("runs") / args.recipe
    if args.student and (args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"):
        parser.error(
            "--student brings its own shape and weights: leave out --student-layers, --student-hidden, "
            "--take-layers and --student-init"
        )
    cli.fill_defaults(args)
    return args


def main():
    args = parse_args()
    with Tracking(args.track, args.output_dir) as tracking:
        run(args, tracking)


def run(args, tracking):
    """The experiment, in four steps."""
    device = cli.start(args)
    data = cli.load_data(args)
    settings = cli.training_settings(args)
    output = args.output_dir

    # 1. Where both models start. Everything that can be wrong with them is found here, before any training.
    teacher, tokenizer = starting_teacher(args, data)
    student, layers = starting_student(args, teacher, tokenizer, data, args.seed)
    fine_tuned = teacher is not None and args.teacher is not None and is_fine_tuned(args.teacher)
    check_sources(args, fine_tuned, has_teacher=teacher is not None)
    train, validation, test = (
        tokenize_split(split, tokenizer, args.max_length) for split in (data.train, data.validation, data.test)
    )
    full = np.mean(train.lengths == args.max_length)
    print(f"training texts that fill all {args.max_length} tokens (longer ones are cut there): {full:.1%}")
    training = partial(
        train_or_reuse,
        tokenizer=tokenizer,
        data=train,
        validation=validation,
        device=device,
        arguments=cli.printable(args),
        compile=args.compile,
        resume=args.resume,
        tracking=tracking,
    )

    # 2. The teacher, fine-tuned unless it is already; and its logits on the training examples.
    if fine_tuned:
        keep_copy(teacher, tokenizer, args, device)
    elif teacher is not None:
        teacher = training(
            "teacher",
            teacher,
            settings=replace(settings, epochs=args.teacher_epochs, lr=args.teacher_lr),
            folder=output / "teacher",
            lora=cli.lora_settings(args, args.lora_rank),
            base=args.teacher,
            reuse=True,
        )
    logits_of, teacher_key = source_of_logits(teacher, train, data, args, device)

    # 3. The student: distilled, or trained on the labels alone, from the same first weights for the same seed.
    def new_student(seed):
        if layers:
            torch.manual_seed(seed)
            return student_from_teacher(teacher, layers)
        first = student if seed == args.seed else starting_student(args, teacher, tokenizer, data, seed)[0]
        return copy.deepcopy(first)

    training = partial(training, lora=cli.lora_settings(args, args.student_lora_rank), base=args.student)

    def distil(seed, alpha, T, folder, name="distilled", reuse=False):
        return training(
            name,
            new_student(seed),
            settings=replace(settings, seed=seed, alpha=alpha, T=T),
            folder=folder,
            teacher=logits_of,
            teacher_key=teacher_key,
            reuse=reuse,
        )

    def fine_tune(seed, folder):
        return training("baseline", new_student(seed), settings=replace(settings, seed=seed), folder=folder)

    sweep, alpha, T = None, args.alpha[0], args.T[0]
    if len(args.alpha) * len(args.T) > 1:  # a student for each pair; the best on validation goes on
        sweep = run_sweep(args.alpha, args.T, partial(distil, args.seed), validation, device, args.precision, output)
        alpha, T = sweep["chosen"]["alpha"], sweep["chosen"]["T"]

    folders = {args.seed + i: output / f"seed-{args.seed + i}" if i else output for i in range(args.seeds)}
    models = {"teacher": ([output / "teacher"], [teacher], test)} if teacher else {}
    runs = {folder / "distilled": distil(seed, alpha, T, folder / "distilled", reuse=bool(sweep) and seed == args.seed)
            for seed, folder in folders.items()}  # fmt: skip
    models["distilled"] = (list(runs), list(runs.values()), test)
    if not args.no_baseline:
        runs = {folder / "baseline": fine_tune(seed, folder / "baseline") for seed, folder in folders.items()}
        models["baseline"] = (list(runs), list(runs.values()), test)

    # 4. The comparison, on the test set, which nothing above has seen.
    rows, logits = evaluate_models(models, data.test, device, args.precision)
    for row, (paths, _, _) in zip(rows, models.values()):
        for seed, folder in enumerate(paths):
            tracking.summary(folder, row, seed)
    labels = torch.tensor(data.test.labels)
    for name, of_seeds in logits.items():
        for folder, one in zip(folders.values(), of_seeds):
            write_predictions(folder / f"predictions-{name}.csv", labels, one, data.labels)
    results = results_of(rows, data, "test", cli.printable(args), device) | {"seeds": list(folders)}
    if sweep:
        results["sweep"] = sweep
    if not args.no_baseline:  # who is right where, (seeds, examples) each
        distilled, baseline = (torch.stack(logits[name]).argmax(dim=-1) == labels for name in ("distilled", "baseline"))
        results["significance"] = compare(distilled, baseline)
    write_results(results, output)


def check_sources(args, fine_tuned: bool, has_teacher: bool) -> None:
    """Raises UserError where the run would write over a model it reads, or where flags ask for training that is not
    to happen."""
    if args.lora_rank and (fine_tuned or not has_teacher):
        raise UserError("--lora-rank: this teacher is not trained here; leave it out (students: --student-lora-rank)")
    for name in ("teacher", "distilled", "baseline"):
        check_not_source(args.output_dir / name, "--student", args.student)
        if name != "teacher" or not fine_tuned:  # a fine-tuned teacher may lie where this run would copy it to
            check_not_source(args.output_dir / name, "--teacher", args.teacher)


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
        teacher.to(device).eval().requires_grad_(False)
        if args.teacher_logits == "cache":
            path = args.output_dir / "teacher-logits.safetensors"
            logits = teacher_logits(teacher, train, path, device, args.precision, args.batch_size)
    if logits is not None:
        logits = logits.to(device)
        return lambda batch: logits[batch.index], key  # by example, never by position in the batch

    def online(batch):
        with torch.no_grad(), autocast(device, args.precision):
            return teacher(batch.input_ids, batch.attention_mask).logits

    return online, key


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
