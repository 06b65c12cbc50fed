"""A model's labels for texts, on the screen or in a file."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minikd.classifier import TextClassifier
from minikd.datasets import Split
from minikd.datasets.rows import Layout, read_rows
from minikd.files import write_rows

TEXT_SHOWN = 200  # characters of a text in a file of predictions


def print_labels(models: dict[str, TextClassifier], texts: list[str]) -> None:
    """Prints each model's label for each text, with the probability of every label."""
    for name, model in models.items():
        for text, row in zip(texts, model.predict_proba(texts)):
            probs = ", ".join(f"{label} {prob:.3f}" for label, prob in zip(model.labels, row.tolist()))
            print(f"{name}: {model.labels[int(row.argmax())]} ({probs}): {text}")


def label_file(model: TextClassifier, texts: list[str], output: Path) -> None:
    """Writes the label of every text to `output`, a .csv or .jsonl file with a row for each in the same order (text,
    predicted, prob_<label> …), and prints a summary."""
    probs = model.logits(texts, desc="label" if len(texts) > 100 else "").softmax(dim=-1)
    predictions = predictions_of(probs, model.labels)
    write_rows(output, [{"text": text, **prediction} for text, prediction in zip(texts, predictions)])
    counts = torch.bincount(probs.argmax(dim=-1), minlength=len(model.labels)).tolist()
    shares = ", ".join(f"{label} {count:,}" for label, count in zip(model.labels, counts))
    print(f"{len(texts):,} texts labelled ({shares}): {output}")


def texts_of(file: Path, text_column: str | None, encoding: str | None) -> list[str]:
    """The texts of a .txt file (its lines) or of a .csv, .tsv or .jsonl file (its text column). Raises MinikdError."""
    return [row.text for row in read_rows(file, Layout(text_column, encoding=encoding), labelled=False)]


def predictions_file(folder: Path, name: str) -> Path:
    """The file in `folder` for the predictions of the model with this name, in which what no name of a file may hold is
    written as in a URL: "a/b" gives predictions-a%2Fb.csv."""
    quoted = re.sub(r'[\0-\x1f\x7f%/\\:*?"<>|]', lambda match: f"%{ord(match[0]):02X}", name)
    return folder / f"predictions-{quoted}.csv"


def write_predictions(path: Path, split: Split, logits: Tensor, names: Sequence[str]) -> None:
    """Writes a CSV row per example: index in the split, label and predicted (by name), the probability of each label,
    and the text, of which the first 200 characters are enough to recognise it; none is a formula (`write_rows`)."""
    rows = zip(split.labels, predictions_of(logits.double().softmax(dim=-1), names), split.texts)
    write_rows(path, [
        {"index": index, "label": names[label], **prediction,
         "text": text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}…"}
        for index, (label, prediction, text) in enumerate(rows)
    ])  # fmt: skip


def predictions_of(probs: Tensor, names: Sequence[str]) -> list[dict]:
    """{"predicted": label, "prob_<label>": …} for each row of probabilities (N, C)."""
    return [
        {"predicted": names[label], **{f"prob_{name}": round(prob, 6) for name, prob in zip(names, row)}}
        for label, row in zip(probs.argmax(dim=-1).tolist(), probs.tolist())
    ]
