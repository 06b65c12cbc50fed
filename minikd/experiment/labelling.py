"""Labels for new texts, on the screen or in a file."""

from pathlib import Path

import torch

from minikd.classifier import TextClassifier
from minikd.datasets.rows import Layout, read_texts
from minikd.experiment.results import answers
from minikd.files import write_rows


def print_labels(models: dict[str, TextClassifier], texts: list[str]) -> None:
    """Prints each model's label for each text, with the probability of every label."""
    for name, model in models.items():
        for text, row in zip(texts, model.predict_proba(texts)):
            others = ", ".join(f"{label} {prob:.3f}" for label, prob in zip(model.labels, row.tolist()))
            print(f"{name}: {model.labels[int(row.argmax())]} ({others}): {text}")


def label_file(model: TextClassifier, texts: list[str], output: Path) -> None:
    """Writes the label of every text to `output`, a .csv or .jsonl file with a row for each in the same order (text,
    predicted, prob_<label> …), and prints a summary."""
    probs = model.logits(texts, desc="label" if len(texts) > 100 else "").softmax(dim=-1)
    write_rows(output, [{"text": text, **answer} for text, answer in zip(texts, answers(probs, model.labels))])
    counts = torch.bincount(probs.argmax(dim=-1), minlength=len(model.labels)).tolist()
    shares = ", ".join(f"{label} {count:,}" for label, count in zip(model.labels, counts))
    print(f"{len(texts):,} texts labelled ({shares}): {output}")


def texts_of(file: Path, text_column: str | None, encoding: str | None) -> list[str]:
    """The texts of a .txt, .csv, .tsv or .jsonl file (`read_texts`). Raises MinikdError."""
    return read_texts(file, Layout(text_column, encoding=encoding))
