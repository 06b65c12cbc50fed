"""Five published distillation experiments: their settings, and the figures that their authors printed.

`python distill.py --recipe NAME` takes the settings as its defaults; any flag given beside it wins. Only what an
author stated stands here: None leaves minikd's own default. The published figures are other people's, in the words
they printed; the report shows them beside ours and never among them.
"""

from typing import NamedTuple

FLAGS = ("dataset", "teacher", "student", "student_layers", "alpha", "T", "teacher_epochs", "epochs", "batch_size",
         "teacher_lr", "lr", "lora_rank", "teacher_logits")  # fmt: skip

BERT, DISTILBERT = "bert-base-uncased", "distilbert-base-uncased"
SETTINGS = {
    #                    data   teacher student  layers alpha  T    epochs      batch  rates       LoRA  logits
    "imdb-small":      ("imdb", BERT, None,           4, 0.5, 2.0, None, None, None, None, None, None, None),
    "fpb-distilbert":  ("fpb",  BERT, DISTILBERT,  None, None, None, None, None, None, None, None, None, None),
    "sst2-lora":       ("sst2", BERT, DISTILBERT,  None, None, None, None, None, None, None, None,    8, None),
    "imdb-cached":     ("imdb", BERT, DISTILBERT,  None, None, None,    1,    1, None, None, None, None, "cache"),
    "imdb-online":     ("imdb", BERT, DISTILBERT,  None, 0.5, 2.0,    1,    1,   16, 2e-5, 2e-5, None, "online"),
}  # fmt: skip

# By experiment, model and the report's key of the figure. "baseline" is the student trained without the teacher.
PUBLISHED = {
    "imdb-small": {
        "distilled": {"parameters": "28,764,674", "accuracy": "0.8784", "f1": "0.8742", "precision": "0.9054",
                      "recall": "0.8450", "latency_ms": "0.2207"},
        "baseline": {"parameters": "28,764,674", "accuracy": "0.8644", "f1": "0.8611", "precision": "0.8826",
                     "recall": "0.8406", "latency_ms": "0.2206"},
    },
    "fpb-distilbert": {
        "teacher": {"accuracy": "94.41 %", "size_mb": "417.65", "latency_1_ms": "7.66"},
        "distilled": {"accuracy": "95.29 %", "size_mb": "255.42", "latency_1_ms": "3.98"},
    },
    "sst2-lora": {
        "teacher": {"accuracy": "91 %", "f1": "91 %", "precision": "90 %", "recall": "92 %"},
        "distilled": {"accuracy": "90 %", "f1": "91 %", "precision": "89 %", "recall": "92 %"},
        "baseline": {"accuracy": "83 %", "f1": "83 %", "precision": "84 %", "recall": "82 %"},
    },
    "imdb-cached": {
        "teacher": {"accuracy": "0.9211", "f1": "0.9210", "parameters": "109,483,778"},
        "distilled": {"accuracy": "0.9111", "f1": "0.9106", "parameters": "66,955,010", "retention": "98.9 %",
                      "f1_retention": "98.9 %", "parameter_fraction": "61.2 %", "efficiency_ratio": "161.7 %",
                      "speed_up": "1.9×"},
    },
    "imdb-online": {
        "teacher": {"accuracy": "93.45 %", "weighted_f1": "0.9345", "batch_100_ms": "47.6", "throughput": "2,099",
                    "parameters": "109 M", "size_mb": "417"},
        "distilled": {"accuracy": "92.69 %", "weighted_f1": "0.9269", "batch_100_ms": "24.2", "throughput": "4,139",
                      "parameters": "67 M", "size_mb": "255", "accuracy_change": "−0.76"},
    },
}  # fmt: skip


class Recipe(NamedTuple):
    flags: dict  # what the author stated, by the name of distill.py's flag
    published: dict[str, dict[str, str]]


RECIPES = {
    name: Recipe({flag: value for flag, value in zip(FLAGS, values) if value is not None}, PUBLISHED[name])
    for name, values in SETTINGS.items()
}


def recipe_defaults(args) -> dict:
    """What the recipe that the flags name sets, as defaults of these flags; a student that the user shapes by flags of
    its own replaces the recipe's."""
    flags = dict(RECIPES[args.recipe].flags)
    if args.student_layers or args.student_hidden or args.take_layers or args.student_init != "auto":
        flags.pop("student", None)
    if args.student or args.take_layers:
        flags.pop("student_layers", None)
    return {name: [value] if name in ("alpha", "T") else value for name, value in flags.items()}  # a sweep has several
