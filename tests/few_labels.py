"""What distillation gives where labels are few and texts are many: 300 labelled sentences of Financial PhraseBank, and
3,000 without their labels.

    python tests/few_labels.py --base sentence-transformers/all-MiniLM-L6-v2

Trains a teacher on the labelled sentences, and for each of five seeds a student of half its layers, distilled on all
sentences, and on the labelled ones, in as many steps, a control that starts as it does and a baseline that starts from
the checkpoint. They are tested on the corpus's other sentences, and the figures go to data/results/few-labels.json.
From the command line, the same is

    python distill.py --dataset 300.csv --unlabelled 3000.txt --teacher … --student-layers 3 --teacher-epochs 20 \
        --teacher-lr 1e-4 --epochs 3 --lr 1e-4 --seeds 5 --controls
"""

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minikd import Dataset, Run, Split, TextClassifier, TrainConfig, distill, evaluate, load_dataset, train  # noqa: E402
from minikd.experiment.readme import without_paths  # noqa: E402
from minikd.files import write_json  # noqa: E402

LABELLED, UNLABELLED, SEEDS, STUDENT_LAYERS = 300, 3000, 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the encoder: a folder or a name on the hub")
    parser.add_argument("--data-dir", default=ROOT / "data", help="(default: data)")
    args = parser.parse_args()
    data, test = few_labels(load_dataset("fpb", args.data_dir))
    quiet, config = Run(progress=False), TrainConfig(epochs=3, lr=1e-4)
    steps = config.total_steps(len(data.transfer.texts))

    torch.manual_seed(42)  # the heads of the encoders that are loaded
    before = TextClassifier.load(args.base, labels=data.labels, max_length=128)
    teacher = TextClassifier.load(args.base, labels=data.labels, max_length=128)
    train(teacher, data, TrainConfig(epochs=20, lr=1e-4), run=quiet)
    models: dict[str, list[TextClassifier]] = {"teacher": [teacher], "distilled": [], "control": [], "baseline": []}
    for seed in range(42, 42 + SEEDS):
        own = replace(config, seed=seed)
        student, control = (
            teacher.make_student(STUDENT_LAYERS, init="teacher", head=True, seed=seed) for _ in range(2)
        )
        distill(student, teacher, data, own, alpha=0.5, T=2.0, run=quiet)
        models["distilled"].append(student)
        baseline = before.make_student(STUDENT_LAYERS, init="teacher", seed=seed)
        for name, alone in (("control", control), ("baseline", baseline)):
            train(alone, data, replace(own, max_steps=steps), run=quiet)
            models[name].append(alone)
        print(f"seed {seed} of {42 + SEEDS - 1}")
    results = evaluate(models, test)
    print(results)
    values = results.values | {"dataset": "fpb", "split": "test", "seeds": list(range(42, 42 + SEEDS))}
    start = "layers and head of the fine-tuned teacher"
    values["first_weights"] = {"distilled": start, "control": start, "baseline": "layers of the checkpoint before"}
    values["arguments"] = {"dataset": "fpb", "fpb_agreement": "50"}
    write_json(ROOT / "data" / "results" / "few-labels.json", without_paths(values))


def few_labels(data: Dataset) -> tuple[Dataset, Split]:
    """The corpus with most labels forgotten, and its other sentences as the test split."""
    every = data.all
    order = random.Random(0).sample(range(len(every.texts)), len(every.texts))
    known, unknown, rest = order[:LABELLED], order[LABELLED : LABELLED + UNLABELLED], order[LABELLED + UNLABELLED :]
    texts, labels = [every.texts[i] for i in known], [every.labels[i] for i in known]
    hidden = [every.texts[i] for i in unknown]
    few = Dataset.from_examples(texts, labels, unlabelled=hidden, label_names=data.labels, name="fpb")
    seen = {text.casefold() for text in (*texts, *hidden)}
    rest = [i for i in rest if every.texts[i].casefold() not in seen]
    return few, Split([every.texts[i] for i in rest], [every.labels[i] for i in rest], label_names=data.labels)


if __name__ == "__main__":
    main()
