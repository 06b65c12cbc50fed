"""Knowledge distillation, the whole experiment: a teacher, a student distilled from it, and as a baseline the same
student trained on the labels alone, compared on the test set. Both students have the same first weights. Where these
are layers of the fine-tuned teacher, the baseline profits from the teacher too, though not from its logits.

    python distill.py --student-layers 4 --alpha 0.5 --T 2
    python distill.py --dataset imdb --student-layers 4 --alpha 0.5 --T 2

Loss of the distilled student:
    alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
"""

import copy
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minikd.batching import tokenize_split
from minikd.checkpoints.hub import is_fine_tuned
from minikd.cli import flags
from minikd.cli import start as cli
from minikd.errors import MinikdError
from minikd.evaluation.comparison import distilled_against_baseline, evaluate_models, write_predictions
from minikd.experiment.inference import caching_minutes
from minikd.experiment.lock import only_run_in
from minikd.experiment.recipes import RECIPES, recipe_defaults
from minikd.experiment.runs import check_not_source, train_or_reuse, trained_before
from minikd.experiment.sweep import run_sweep
from minikd.experiment.teacher import keep_copy, logits_path, source_of_logits, starting_teacher
from minikd.experiment.tracking import Tracking
from minikd.report.tables import results_of, write_results
from minikd.student import starting_student, student_from_teacher


def parse_args():
    parser = flags.Parser(description=__doc__, epilog=flags.defaults_text())
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="the settings of a published experiment; any flag given beside it wins, see minikd/experiment/recipes.py "
        "(default: none)",
    )
    flags.add_model_flags(parser)
    flags.add_distillation_flags(parser)
    flags.add_data_flags(parser)
    flags.add_training_flags(parser, " of the students")
    flags.add_lora_flags(parser, "the teacher", students=True)
    flags.add_device_flags(parser)
    flags.add_output_flag(parser, "runs/<recipe or dataset>")
    args = parser.parse_args()
    if args.recipe:  # parsed a second time, with the recipe's settings as the defaults
        parser.set_defaults(output_dir=Path("runs") / args.recipe, **recipe_defaults(args))
        args = parser.parse_args()
    if args.student and (args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto"):
        parser.error(
            "--student brings its own shape and weights: leave out --student-layers, --student-hidden, "
            "--take-layers and --student-init"
        )
    if args.label_order and args.teacher in (None, "oracle") and not args.student:
        parser.error("--label-order: names the outputs of --teacher or --student; give one of them")
    if args.choose != "accuracy" and len(args.alpha) * len(args.T) == 1:
        parser.error(
            f"--choose {args.choose}: chooses among the pairs of a sweep; give several values of --alpha or --T"
        )
    cli.fill_defaults(args)
    return args


def main():
    args = parse_args()
    with only_run_in(args.output_dir), Tracking(args.track, args.output_dir) as tracking:
        run(args, tracking)


def run(args, tracking):
    """The experiment, in four steps."""
    began = time.time()
    device = cli.start(args)
    data = cli.load_data(args)
    settings = cli.training_settings(args)
    output = args.output_dir

    # 1. Where both models start. Everything that can be wrong with them is found here, before any training.
    teacher, tokenizer = starting_teacher(args, data, device)
    student, layers, first_weights = starting_student(args, teacher, tokenizer, data, args.seed, device)
    fine_tuned = teacher is not None and args.teacher is not None and is_fine_tuned(args.teacher)
    check_plan(args, teacher, student, fine_tuned)
    print(plan(args, len(data.train.texts), trains_teacher=teacher is not None and not fine_tuned))
    train, validation, test = (
        tokenize_split(split, tokenizer, args.max_length) for split in (data.train, data.validation, data.test)
    )
    full = np.mean(train.lengths == args.max_length)
    print(f"training texts that fill all {args.max_length} tokens (longer ones are truncated): {full:.1%}")
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
        first = student if seed == args.seed else starting_student(args, teacher, tokenizer, data, seed, device)[0]
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
    if len(args.alpha) * len(args.T) > 1:  # a student for each pair; the best on validation is kept
        sweep = run_sweep(
            args.alpha, args.T, partial(distil, args.seed), validation, device, args.precision, output, args.choose
        )
        alpha, T = sweep["chosen"]["alpha"], sweep["chosen"]["T"]

    seeds = [args.seed + i for i in range(args.seeds)]
    folders = [output, *(output / f"seed-{seed}" for seed in seeds[1:])]
    models = {"teacher": [(output / "teacher", teacher)]} if teacher else {}
    models["distilled"], models["baseline"] = [], []
    for seed, folder in zip(seeds, folders):
        in_sweep = sweep is not None and seed == args.seed
        models["distilled"].append((folder / "distilled", distil(seed, alpha, T, folder / "distilled", reuse=in_sweep)))
        if not args.no_baseline:
            models["baseline"].append((folder / "baseline", fine_tune(seed, folder / "baseline")))
    if args.no_baseline:
        del models["baseline"]

    # 4. The comparison, on the test set, which nothing above has seen.
    tokens = dict.fromkeys(models, test)  # one tokenizer for all
    rows, logits = evaluate_models(models, tokens, data.test, device, args.precision)
    for stale in output.glob("predictions-*.csv"):  # of an earlier run with other models
        stale.unlink()
    for row in rows:
        for i, (path, _) in enumerate(models[row["name"]]):
            tracking.summary(path, row, i)
            predictions = folders[i] / f"predictions-{path.name}.csv"
            write_predictions(predictions, data.test, logits[row["name"]][i], data.labels)
    results = results_of(rows, data, "test", cli.printable(args), device)
    cache = logits_path(args) if teacher and args.teacher_logits == "cache" else None
    found_finished = add_minutes(rows, models, cache, began)
    results |= {"seeds": seeds, "first_weights": first_weights, "found_finished": found_finished}
    results |= distilled_against_baseline(logits, data.test) | ({"sweep": sweep} if sweep else {})
    write_results(results, output)


def plan(args, examples: int, trains_teacher: bool) -> str:
    """What the experiment will train, and how often, in a line."""
    pairs = len(set(args.alpha)) * len(set(args.T))
    steps = [f"fine-tune the teacher ({args.teacher_epochs} epochs)"] * trains_teacher
    if args.teacher != "oracle" and args.teacher_logits == "cache":
        steps.append(f"cache its logits on {examples:,} texts")
    if pairs > 1:
        steps.append(f"sweep over {pairs} students")
    distilled = args.seeds - (pairs > 1)  # the sweep's best is that of the first seed
    counts = [f"distil {distilled}"] if distilled else []
    if not args.no_baseline:
        counts.append(f"train {args.seeds} on the labels alone")
    if counts:
        steps.append("students: " + ", ".join(counts))
    again = "; a finished teacher that fits is not trained again, students are" if trains_teacher else ""
    again = "; finished models are not trained again" if args.resume else again
    return f"to do: {'; '.join(steps)} ({args.epochs} epochs a student){again}"


def add_minutes(rows, models, cache: Path | None, began: float) -> list[str]:
    """Puts into the rows how long the logits in `cache` and the whole run took. Returns the names of what this run
    found finished: that time is not in its own."""
    found = [name for name, seeds in models.items() if any(trained_before(began, folder) for folder, _ in seeds)]
    for row in rows:
        if row["name"] == "teacher" and cache:
            row["caching_minutes"] = caching_minutes(cache)
            if cache.stat().st_mtime < began:
                found.append("the teacher's logits")
        if row["name"] == "distilled":
            row["run_minutes"] = (time.time() - began) / 60
    return found


def check_plan(args, teacher, student, fine_tuned: bool) -> None:
    """Raises MinikdError where the run would write over a model it reads, or the adapters asked for cannot be had."""
    for flag, source in (("--teacher", args.teacher), ("--student", args.student)):
        used_in_place = flag == "--teacher" and fine_tuned  # it may lie where this run would copy it to
        check_not_source(args.output_dir, flag, source, allowed="teacher" if used_in_place else None)
    if args.lora_rank and (fine_tuned or teacher is None):
        if not args.recipe or args.lora_rank != RECIPES[args.recipe].flags.get("lora_rank"):
            raise MinikdError(
                "--lora-rank: this teacher is not trained here; leave it out (students: --student-lora-rank)"
            )
        print(f"--lora-rank {args.lora_rank} of the recipe is ignored: this teacher is not trained here")
    if args.lora_rank and args.teacher is None:
        raise MinikdError(
            "--lora-rank: the sample's own teacher starts from random weights; adapters need learned ones"
        )
    for flag, rank, model in (
        ("--lora-rank", args.lora_rank, teacher),
        ("--student-lora-rank", args.student_lora_rank, student or teacher),  # or: made of the teacher's layers
    ):
        if rank and model and rank > model.config.hidden_size:
            raise MinikdError(f"{flag} {rank}: the matrices of this model take 1 to {model.config.hidden_size}")


if __name__ == "__main__":
    cli.run(main)
