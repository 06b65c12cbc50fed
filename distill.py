"""Knowledge distillation, the whole experiment: a teacher, a student distilled from it, and as a baseline the same
student trained on the labels alone, compared on the test set. Both students have the same first weights. Where these
are layers of the fine-tuned teacher, the baseline profits from the teacher too, though not from its logits.

    python distill.py --student-layers 4 --alpha 0.5 --T 2
    python distill.py --dataset imdb --student-layers 4 --alpha 0.5 --T 2

Loss of the distilled student:
    alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
"""

import time
from dataclasses import replace
from functools import partial

from minikd import distill, evaluate, train
from minikd.cli import start
from minikd.cli.models import check_before_training, is_finished, load_teacher, student_maker, to_do
from minikd.cli.parse import distill_args
from minikd.experiment.caches import cached_tokens
from minikd.experiment.lock import only_run_in
from minikd.experiment.results import describe
from minikd.experiment.running import Run
from minikd.experiment.sweep import run_sweep
from minikd.experiment.teacher import add_times, copy_teacher, logits_file, teacher_logits
from minikd.experiment.tracking import Tracking


def main():
    args = distill_args(__doc__)
    with only_run_in(args.output_dir), Tracking(args.track, args.output_dir) as tracking:
        run(args, tracking)


def run(args, tracking):
    """The experiment, in four steps."""
    began, output = time.time(), args.output_dir
    device = start.set_up(args)
    data = start.load_data(args)
    config = start.train_config(args)

    # 1. Where both models start. Everything that can be wrong with them is found here, before any training.
    teacher, tokenizer = load_teacher(args, data, device)
    new_student, first_weights, shape = student_maker(args, teacher, tokenizer, data, device)
    fine_tuned = args.teacher not in (None, "oracle") and is_finished(args.teacher)
    check_before_training(args, teacher, shape, fine_tuned)
    print(to_do(args, len(data.train.texts), trains_teacher=teacher is not None and not fine_tuned))
    recorded = start.flag_values(args)  # max_length is known by now
    new_run = partial(Run, resume=args.resume, compile=args.compile, tracking=tracking, arguments=recorded)

    # 2. The teacher, fine-tuned unless it is already; and what it knows: its logits on the training texts.
    if fine_tuned:
        copy_teacher(teacher, args.teacher, output / "teacher", recorded)
    elif teacher is not None:
        own = replace(config, epochs=args.teacher_epochs, lr=args.teacher_lr)
        train(teacher, data, own, lora=start.lora(args, args.lora_rank),
              run=new_run(output / "teacher", "teacher", reuse=True))  # fmt: skip
    layers = start.layer_losses(args)
    together = layers is not None and not args.layer_epochs  # layer losses and logits, in one stage
    online = teacher is not None and (together or args.teacher_logits == "online")
    knowledge = teacher if online else teacher_logits(teacher, data, logits_file(output))

    # 3. The student: distilled, or trained on the labels alone, from the same first weights for the same seed.
    lora = start.lora(args, args.student_lora_rank)

    def distil(seed, alpha, T, folder, name="distilled", reuse=False):
        student = new_student(seed)
        if args.layer_epochs:  # the first of two stages: the layer losses alone, the same for every alpha and T
            own = replace(config, seed=seed, epochs=args.layer_epochs, lr=args.layer_lr, patience=0)
            first = (output if seed == args.seed else output / f"seed-{seed}") / "first-stage"
            distill(student, teacher, data, own, layers=layers, run=new_run(first, "first stage", reuse=True))
        distill(student, knowledge, data, replace(config, seed=seed), alpha=alpha, T=T, online=online, lora=lora,
                layers=layers if together else None, run=new_run(folder, name, reuse=reuse))  # fmt: skip
        return student

    def fine_tune(seed, folder):
        student = new_student(seed)
        train(student, data, replace(config, seed=seed), lora=lora, run=new_run(folder, "baseline"))
        return student

    sweep, alpha, T = None, args.alpha[0], args.T[0]
    if len(args.alpha) * len(args.T) > 1:  # a student for each pair; the best on validation is kept
        validation = cached_tokens(data.validation, tokenizer, args.max_length)
        sweep = run_sweep(args.alpha, args.T, partial(distil, args.seed), validation, output, args.choose)
        alpha, T = sweep["chosen"]["alpha"], sweep["chosen"]["T"]

    seeds = [args.seed + i for i in range(args.seeds)]
    folders = [output, *(output / f"seed-{seed}" for seed in seeds[1:])]
    models = {"teacher": [teacher]} if teacher else {}
    models |= {"distilled": []} if args.no_baseline else {"distilled": [], "baseline": []}
    for seed, folder in zip(seeds, folders):
        in_sweep = bool(sweep) and seed == args.seed
        models["distilled"].append(distil(seed, alpha, T, folder / "distilled", reuse=in_sweep))
        if not args.no_baseline:
            models["baseline"].append(fine_tune(seed, folder / "baseline"))

    # 4. The comparison, on the test set, which nothing above has seen.
    results = evaluate(models, data.test, costs=True, cache=True)
    describe(results, data, "test", recorded)
    results.values |= {"seeds": seeds, "first_weights": first_weights} | ({"sweep": sweep} if sweep else {})
    cache = logits_file(output) if teacher and not online else None
    results.values["found_finished"] = add_times(results.values["models"], models, cache, began)
    tracking.summaries(models, results.values["models"])
    results.save(output, folders)
    print(f"\n{results}\n")


if __name__ == "__main__":
    start.run(main)
