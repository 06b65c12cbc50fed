"""Labels for new texts, on the screen or in a file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minikd.batching import TokenizedSplit
from minikd.datasets.rows import Layout, read_texts
from minikd.errors import MinikdError
from minikd.evaluation.comparison import answers, load_finished
from minikd.evaluation.label_order import name_outputs
from minikd.experiment.inference import predict
from minikd.files import write_rows
from minikd.model import Classifier


def print_labels(sources: list[str], texts: list[str], args, device: torch.device) -> None:
    """Prints each model's label for each text, with the probability of every label.

    Raises MinikdError for a text that is not valid Unicode, which a terminal's encoding can produce.
    """
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise MinikdError("--text: is not valid text in this terminal's encoding")
    for source in sources:
        model, probs = probabilities(source, texts, args, device)
        for text, row in zip(texts, probs):
            others = ", ".join(f"{label} {prob:.3f}" for label, prob in zip(model.config.labels, row.tolist()))
            print(f"{source}: {model.config.labels[int(row.argmax())]} ({others}): {text}")


def label_file(source: str, texts_file: Path, layout: Layout, output: Path, args, device: torch.device) -> None:
    """Labels every text of `texts_file` (see `read_texts`) into `output`, a .csv or .jsonl file with a row for each in
    the same order (text, predicted, prob_<label> …), and prints a summary.

    Raises MinikdError for a file that cannot be read, and for what `load_finished` and `predict` refuse.
    """
    texts = read_texts(texts_file, layout)
    model, probs = probabilities(source, texts, args, device)
    labelled = zip(texts, answers(probs, model.config.labels))
    write_rows(output, [{"text": text, **answer} for text, answer in labelled])
    counts = torch.bincount(probs.argmax(dim=-1), minlength=len(model.config.labels)).tolist()
    shares = ", ".join(f"{label} {count:,}" for label, count in zip(model.config.labels, counts))
    print(f"{len(texts):,} texts labelled ({shares}): {output}")


def probabilities(source: str, texts: list[str], args, device: torch.device) -> tuple[Classifier, Tensor]:
    """The model at `source`, and its probabilities (N, C) for the texts, truncated to `args.max_length` tokens."""
    model, tokenizer = load_finished(source, args.max_length)
    if args.label_order:
        name_outputs(model, source, args.label_order)
    ids, offsets = tokenizer.encode(texts, args.max_length)
    tokens = TokenizedSplit(ids, offsets, np.zeros(len(texts), dtype=np.int64), tokenizer.pad_token_id, "")
    desc = "label" if len(texts) > 100 else ""
    return model, predict(model.to(device), tokens, device, args.precision, desc=desc).softmax(dim=-1)
