"""Knowledge distillation, the whole experiment: a teacher, a student distilled from it, and as a baseline a student of
the same shape trained on the labels alone, compared on the test set. The baseline gets nothing from the fine-tuned
teacher: where the distilled student starts from layers of the fine-tuned teacher, the baseline starts from the same
layers of the checkpoint before fine-tuning.

    python distill.py --student-layers 4 --alpha 0.5 --T 2
    python distill.py --dataset imdb --student-layers 4 --alpha 0.5 --T 2
    python distill.py --dataset fpb --student-layers 4 --folds 10

Loss of the distilled student:
    alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
In place of T² · KL, --soft-loss picks another one.
"""

import copy
import time
from dataclasses import replace
from functools import partial

from minikd import TextClassifier, distill, evaluate, train
from minikd.cli import start
from minikd.cli.folds import each_fold
from minikd.cli.models import check_losses, check_teachers, is_fine_tuned_already, load_teachers, teacher_names, to_do
from minikd.cli.parse import distill_args
from minikd.cli.students import student_makers
from minikd.distributed import by_first, first_of_machine_first
from minikd.experiment.caches import cached_tokens
from minikd.experiment.folds import pool_folds
from minikd.experiment.lock import only_run_in
from minikd.experiment.results import describe
from minikd.experiment.running import Run
from minikd.experiment.runs import begin
from minikd.experiment.sweep import run_sweep
from minikd.experiment.teacher import add_times, augmented_texts, copy_teacher, logits_files, teacher_logits
from minikd.experiment.tracking import Tracking
from minikd.techniques.augment import Augmentation


def main():
    args = distill_args(__doc__)
    with only_run_in(args.output_dir), Tracking(args.track, args.output_dir) as tracking:
        device = start.set_up(args)
        data = start.load_data(args, unlabelled=args.unlabelled)
        if args.folds:
            repeat(args, data, device, tracking)
        else:
            experiment(args, data, device, tracking)


def repeat(args, data, device, tracking):
    """The experiment on each fold of the data, and the results of all."""
    found, command = [], None
    for own, fold, finished in each_fold(args, data):
        command = command or by_first(begin, args.output_dir, args.resume)  # after its checks
        found.append(finished or experiment(own, fold, device, tracking, command))
    known = {name: found[0]["arguments"][name] for name in ("teacher", "max_length")}  # defaults that the folds settled
    results = pool_folds(found, start.flag_values(args) | known)
    by_first(results.save, args.output_dir, [args.output_dir])
    print(f"\n{results}\n")


def experiment(args, data, device, tracking, command=None):
    """The experiment, in four steps. Returns its figures. `command`: the name of that of which it is a part."""
    began, output = time.time(), args.output_dir
    config = start.train_config(args)

    # 1. Where both models start. Everything that can be wrong with them is found here, before any training.
    with first_of_machine_first():  # it downloads
        teachers, tokenizer = load_teachers(args, data, device)  # none: the oracle
        check_teachers(args, teachers)
        students = student_makers(args, teachers[0] if teachers else None, tokenizer, data, device)
    check_losses(args, teachers, students.config, len(data.labels))
    print(to_do(args, len(data.transfer.texts), teachers))
    recorded = start.flag_values(args)  # max_length is known by now
    command = by_first(begin, output, args.resume) if command is None else command
    new_run = partial(Run, resume=args.resume, command=command, save_minutes=args.save_minutes, compile=args.compile,
                      tracking=tracking, arguments=recorded)  # fmt: skip

    # 2. The teacher, fine-tuned unless it is already; and what it knows: its logits on the training texts. Of several
    #    teachers, the probabilities are averaged.
    names = teacher_names(teachers)
    prepare_teachers(args, dict(zip(names, teachers)), data, config, new_run)
    augmented = augmented_texts(teachers[0], data, Augmentation(args.augment), args.seed) if args.augment else None
    layers = start.layer_losses(args)
    together = layers is not None and not args.layer_epochs  # layer losses and logits, in one stage
    online = bool(teachers) and (together or args.teacher_logits == "online")
    knowledge = teachers[0] if online else teacher_logits(teachers, data, logits_files(output, names), augmented)

    # 3. The students: distilled, or trained on the labels alone for as many steps.
    lora = start.lora(args, args.student_lora_rank)
    examples = len(data.transfer.texts) + (len(augmented) if augmented else 0)
    first_stage, first_stages = None, []
    if args.layer_epochs:  # layer losses alone, the same for every alpha and T; then the logits
        first_stage = replace(config, epochs=args.layer_epochs, max_steps=0, lr=args.layer_lr, patience=0)
    steps = config.total_steps(examples) + (first_stage.total_steps(examples) if first_stage else 0)
    longer = args.equal_steps and steps > config.total_steps(len(data.train.texts))
    # Not stopped early then: their epochs are shorter, and so would be their patience. The best epoch is kept anyway.
    alone = replace(config, max_steps=steps, patience=0) if longer else config

    def distil(seed, alpha, T, folder, name="distilled", reuse=False):
        student = students.distilled(seed)
        if first_stage:
            own = (output if seed == args.seed else output / f"seed-{seed}") / "first-stage"
            distill(student, teachers[0], data, replace(first_stage, seed=seed), augmented=augmented, layers=layers,
                    run=new_run(own, "first stage", reuse=True))  # fmt: skip
            first_stages.append(copy.copy(student))
        distill(student, knowledge, data, replace(config, seed=seed), alpha=alpha, T=T, soft=args.soft_loss,
                online=online, augmented=augmented, layers=layers if together else None, lora=lora,
                run=new_run(folder, name, reuse=reuse))  # fmt: skip
        return student

    def fine_tune(student, seed, folder, name):
        train(student, data, replace(alone, seed=seed), lora=lora, run=new_run(folder / name, name))
        return student

    sweep, alpha, T = None, args.alpha[0], args.T[0]
    if len(args.alpha) * len(args.T) > 1:  # a student for each pair; the best on validation is kept
        validation = cached_tokens(data.validation, tokenizer, args.max_length)
        sweep = run_sweep(args.alpha, args.T, partial(distil, args.seed), validation, output, args.choose)
        alpha, T = sweep["chosen"]["alpha"], sweep["chosen"]["T"]

    seeds = [args.seed + i for i in range(args.seeds)]
    folders = [output, *(output / f"seed-{seed}" for seed in seeds[1:])]
    models = dict(zip(names, [[teacher] for teacher in teachers]))
    if len(teachers) > 1:
        models = {"teacher": [TextClassifier.ensemble(teachers)]} | models
    models |= {"distilled": []} | ({"control": []} if args.controls else {})
    models |= {} if args.no_baseline else {"baseline": []}
    for seed, folder in zip(seeds, folders):
        in_sweep = bool(sweep) and seed == args.seed
        models["distilled"].append(distil(seed, alpha, T, folder / "distilled", reuse=in_sweep))
        if args.controls:
            models["control"].append(fine_tune(students.distilled(seed), seed, folder, "control"))
        if not args.no_baseline:
            models["baseline"].append(fine_tune(students.baseline(seed), seed, folder, "baseline"))

    # 4. The comparison, on the test set, which nothing above has seen.
    results = evaluate(models, data.test, costs=True, cache=True)

    def report():
        describe(results, data, "test", recorded)
        results.values |= {"seeds": seeds, "first_weights": students.first_weights}
        results.values |= {"sweep": sweep} if sweep else {}
        caches = {} if online else logits_files(output, names)
        rows = results.values["models"]
        results.values["found_finished"] = add_times(rows, models | {"first stage": first_stages}, caches, began)
        tracking.summaries(models, rows)
        results.save(output, folders)
        print(f"\n{results}\n")
        return results.values

    return by_first(report)


def prepare_teachers(args, teachers, data, config, new_run):
    """Fine-tunes the teachers, by name, that have no head yet; the others are copied to the output."""
    config = replace(config, epochs=args.teacher_epochs, max_steps=0, lr=args.teacher_lr)
    for i, (name, teacher) in enumerate(teachers.items()):
        folder = args.output_dir / name
        if is_fine_tuned_already(teacher):
            copy_teacher(teacher, folder, start.flag_values(args))
        else:
            train(teacher, data, replace(config, seed=args.seed + i), lora=start.lora(args, args.lora_rank),
                  run=new_run(folder, name, reuse=True))  # fmt: skip


if __name__ == "__main__":
    start.run(main)
