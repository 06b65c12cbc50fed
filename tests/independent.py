"""Figures of saved models computed anew, with transformers, scipy and a few lines of numpy: nothing of minikd's."""

import csv
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import scipy
import tokenizers
import torch
import transformers

transformers.logging.set_verbosity_error()


def read_split(path, labels):
    """The texts of a CSV file and their label ids: positions in `labels`."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([labels.index(row["label"]) for row in rows])


def token_ids(folder, texts, max_length):
    """The ids of each text by the folder's tokenizer.json, truncated."""
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def logits_of(folder, texts, max_length, labels=None):
    """transformers' logits (N, C) of each text, one at a time and thus without padding; columns in the order of
    `labels`, or the model's own."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0] for ids in token_ids(folder, texts, max_length)]
    own = {name: i for i, name in model.config.id2label.items()}
    order = [own[name] for name in labels] if labels else range(len(own))
    return torch.stack(rows)[:, list(order)].double().numpy()


def accuracy(logits, labels):
    return float(np.mean(logits.argmax(axis=1) == labels))


def nll(logits, labels, T=1.0):
    """Mean negative log-likelihood at a temperature."""
    return float(-np.mean(scipy.special.log_softmax(logits / T, axis=1)[np.arange(len(labels)), labels]))


def ece(logits, labels, bins=15):
    """Guo et al. 2017, equation 3: bins (low, high] of the largest probability."""
    probabilities = scipy.special.softmax(logits, axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            total += abs(right[inside].mean() - confidence[inside].mean()) * inside.sum()
    return total / len(labels)


def kl_to_truth(logits, truth):
    """Mean KL(truth ‖ softmax(logits))."""
    return float(np.mean(scipy.special.rel_entr(truth, scipy.special.softmax(logits, axis=1)).sum(axis=1)))


def best_temperature(logits, labels):
    """The temperature between 0.05 and 20 of the least negative log-likelihood."""
    found = scipy.optimize.minimize_scalar(
        lambda log_T: nll(logits, labels, np.exp(log_T)), bounds=np.log((0.05, 20)), method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    return float(np.exp(found.x))


def results_in(folder):
    """results.json, and its rows by the model's name."""
    results = json.loads((Path(folder) / "results.json").read_text())
    return results, {row["name"]: row for row in results["models"]}
