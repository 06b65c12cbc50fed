"""What each way of making a student better gives: the same student, trained in each of them, on one corpus.

    python train.py --dataset sst2 --model M --epochs 2 --lr 5e-5 --output-dir runs/sst2-teacher
    python tests/ablation.py sst2 --teacher runs/sst2-teacher --base M --layers 3

M is the encoder that the teacher was fine-tuned from. All students get the same number of optimizer steps. With
`--validation` the figures are those of the validation split, on which weights and rates are to be chosen; the test
split is for the table alone: without it, the results go to data/results/ablation-CORPUS.json, for a block
`<!-- ablation ablation-CORPUS -->` of data/results/README.md. What is finished in the output folder is used again.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minikd import LayerLosses, Run, TextClassifier, TrainConfig, distill, evaluate, load_dataset, train  # noqa: E402
from minikd.cli.recipes import RECIPES  # noqa: E402
from minikd.evaluation.significance import compare  # noqa: E402
from minikd.experiment.readme import without_paths  # noqa: E402
from minikd.experiment.recorded import training_costs  # noqa: E402
from minikd.experiment.teacher import augmented_texts, teacher_logits  # noqa: E402
from minikd.files import write_json  # noqa: E402
from minikd.techniques.augment import Augmentation  # noqa: E402

PLAIN = "plain distillation"
LOSSES = {
    "hidden states": {"hidden_loss": 1.0},
    "[CLS] vectors (PKD)": {"cls_loss": 1.0},
    "attention scores": {"score_loss": 1.0},
    "attention and values": {"attention_loss": 1.0, "value_loss": 1.0},
    "relations (MiniLMv2)": {"relation_loss": 1.0},
}


def main() -> None:
    args = read_arguments()
    data = load_dataset(args.corpus, args.data_dir, unlabelled=args.unlabelled)
    options = {"labels": data.labels, "max_length": args.max_length, "device": "cpu"}
    teachers = [TextClassifier.load(folder, **options) for folder in args.teacher]
    teacher = TextClassifier.ensemble(teachers) if len(teachers) > 1 else teachers[0]
    base = TextClassifier.load(args.base, **options)
    ways = dict(ways_of_training(args, data, teachers, base))
    names = [name for name in ways if not args.only or name == PLAIN or any(word in name for word in args.only)]
    models: dict[str, list[TextClassifier]] = {"teacher": [teacher]}
    for seed in range(42, 42 + args.seeds):
        for name in names:
            folder = args.output_dir / name.replace(" ", "-") / f"seed-{seed}"
            config = TrainConfig(max_steps=args.steps, lr=args.lr, seed=seed)
            run = Run(folder, f"{name}, seed {seed}", resume=folder.exists())
            models.setdefault(name, []).append(ways[name](seed, config, run))
    results = compared(models, data.validation if args.validation else data.test)
    results |= {"dataset": data.name, "split": "validation" if args.validation else "test"}
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    teacher, *more = [one.name for one in args.teacher]
    names = {"base": args.base.name, "teacher": teacher, "more_teachers": more}
    names["unlabelled"] = [Path(one).name for one in args.unlabelled]
    results["arguments"] = arguments | names | {"dataset": args.corpus, "fpb_agreement": "50"}
    write_json(args.output_dir / "results.json", results)
    for row in results["models"]:
        print(row["name"], row["accuracy"], row.get("training_minutes"))
    if not args.validation:
        write_json(ROOT / "data" / "results" / f"ablation-{args.corpus}.json", without_paths(results))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("corpus", choices=("sst2", "fpb", "imdb"))
    add(
        "--teacher",
        type=Path,
        nargs="+",
        required=True,
        help="fine-tuned classifiers; plain distillation has the first",
    )
    add("--base", type=Path, required=True, help="the encoder that it was fine-tuned from")
    add("--layers", type=int, default=3, help="of the student (default: 3)")
    add("--seeds", type=int, default=3, help="(default: 3)")
    add("--steps", type=int, default=3800, help="optimizer steps of each student, of 32 texts (default: 3800)")
    add("--lr", type=float, default=1e-4, help="(default: 1e-4)")
    add("--max-length", type=int, default=128, help="(default: 128)")
    add("--augment", type=int, default=4, help="altered versions of each text (default: 4)")
    add("--unlabelled", action="append", default=[], help="more texts, as in distill.py")
    add("--only", nargs="+", help="only the ways whose name contains one of these words, and plain distillation")
    add("--validation", action="store_true", help="evaluate on the validation split")
    add("--data-dir", type=Path, default=ROOT / "data", help="(default: data)")
    add("--output-dir", type=Path, help="(default: runs/ablation-CORPUS)")
    args = parser.parse_args()
    args.output_dir = args.output_dir or Path("runs") / f"ablation-{args.corpus}"
    return args


def ways_of_training(args, data, teachers, base) -> Iterator[tuple]:
    """(name, function of seed, config and run that returns a student) of each way."""
    alone, teacher = replace(data, unlabelled=[]), teachers[0]

    def logits(name: str, dataset, augmented=None, several=False):
        used = teachers if several else teachers[:1]
        files = {f"{name}-{i}": args.output_dir / f"{name}-{i}.safetensors" for i in range(len(used))}
        return teacher_logits(used, dataset, files, augmented)

    def from_base(seed):
        return base.make_student(args.layers, init="teacher", seed=seed)

    def from_teacher(seed):
        return teacher.make_student(args.layers, init="teacher", head=True, seed=seed)

    def on_labels(start):
        def way(seed, config, run):
            student = start(seed)
            train(student, alone, config, run=run)
            return student

        return way

    def distilled(start=from_teacher, name="logits", dataset=alone, augmented=None, alpha=0.5, T=2.0, layers=None,
                  several=False):  # fmt: skip
        def way(seed, config, run):
            student = start(seed)
            knowledge = teacher if layers else logits(name, dataset, augmented, several)
            distill(student, knowledge, dataset, config, alpha=alpha, T=T, augmented=augmented, layers=layers, run=run)
            return student

        return way

    yield "labels alone (baseline)", on_labels(from_base)
    yield "labels alone, from the teacher (control)", on_labels(from_teacher)
    yield PLAIN, distilled()
    yield "from the layers of before fine-tuning", distilled(from_base)
    yield "soft loss alone", distilled(alpha=0.0)
    yield "T 8", distilled(T=8.0)
    for name, weights in LOSSES.items():
        yield name, distilled(layers=LayerLosses(**weights))
    if args.augment:
        altered = augmented_texts(teacher, alone, Augmentation(args.augment), 42)
        yield "augmentation", distilled(name="augmented", augmented=altered)
    if data.unlabelled:
        yield "unlabelled texts", distilled(name="unlabelled", dataset=data)
    if len(teachers) > 1:
        yield f"{len(teachers)} teachers", distilled(several=True)
    recipe = RECIPES[f"{args.corpus}-best"]
    if len(teachers) == recipe.get("teacher_seeds", 1) and bool(data.unlabelled) == ("unlabelled" in recipe):
        name = "unlabelled" if data.unlabelled else "logits"
        yield f"recipe {args.corpus}-best", distilled(name=name, dataset=data, alpha=recipe["alpha"][0],
                                                      T=recipe["T"][0], several=True)  # fmt: skip


def compared(models: dict[str, list[TextClassifier]], split) -> dict:
    """The figures of all models on the split, and each one's difference from plain distillation."""
    seeds = len(models[PLAIN])
    results = evaluate(models, split, cache=True)
    right = {
        name: torch.stack(logits).argmax(dim=-1) == torch.tensor(split.labels)
        for name, logits in results.logits.items()
        if len(logits) == seeds and name != "teacher"
    }
    values = results.values | {"seeds": list(range(42, 42 + seeds))}
    for row in values["models"]:
        costs = [training_costs(one.source) for one in models[row["name"]]]
        for key in ("training_minutes", "optimizer_steps"):
            found = [one[key] for one in costs if key in one]
            row |= {key: found if len(found) > 1 else found[0]} if found else {}
    values["comparisons"] = [
        {"models": [name, PLAIN], **compare(own, right[PLAIN])} for name, own in right.items() if name != PLAIN
    ]
    return values


if __name__ == "__main__":
    main()
