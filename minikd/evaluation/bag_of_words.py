"""A bag-of-words logistic regression: what word counts alone achieve, printed beneath every table of a test set."""

import re
from collections import Counter

import torch
from torch import nn

from minikd.datasets import Dataset, Split
from minikd.metrics import classification_metrics


def bag_of_words(data: Dataset, epochs: int = 5, batch_size: int = 64) -> dict[str, float]:
    """Test metrics of a logistic regression on which words occur in a text (their order is lost).

    The vocabulary holds the words of at least two training texts, 50,000 at most. The L2 penalty is chosen on
    validation. Deterministic.
    """
    counts = Counter(word for text in data.train.texts for word in _words(text))
    vocabulary = {word: i for i, (word, count) in enumerate(counts.most_common(50_000)) if count > 1}
    bias = len(vocabulary)  # one more row, which every text has: the intercept

    def encode(split: Split) -> list[torch.Tensor]:
        known = ([vocabulary[word] for word in _words(text) if word in vocabulary] for text in split.texts)
        return [torch.tensor([bias, *ids]) for ids in known]

    def logits_of(model: nn.EmbeddingBag, texts: list[torch.Tensor]) -> torch.Tensor:
        offsets = torch.tensor([0] + [len(words) for words in texts[:-1]]).cumsum(0)
        return model(torch.cat(texts), offsets)

    @torch.no_grad()
    def metrics(model: nn.EmbeddingBag, texts: list[torch.Tensor], split: Split) -> dict[str, float]:
        predicted = logits_of(model, texts).argmax(dim=-1)
        return classification_metrics(torch.tensor(split.labels), predicted, len(data.labels))

    train, validation, test = encode(data.train), encode(data.validation), encode(data.test)
    labels = torch.tensor(data.train.labels)
    best, best_accuracy = None, -1.0
    for penalty in (1e-6, 1e-5, 1e-4):
        # A sum of rows is exactly a linear layer, with its bias, on the 0/1 vector of words.
        model = nn.EmbeddingBag(len(vocabulary) + 1, len(data.labels), mode="sum")
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for index in torch.randperm(len(train), generator=generator).split(batch_size):
                logits = logits_of(model, [train[i] for i in index])
                loss = nn.functional.cross_entropy(logits, labels[index]) + penalty * model.weight.square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        accuracy = metrics(model, validation, data.validation)["accuracy"]
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
    return metrics(best, test, data.test)


def _words(text: str) -> list[str]:
    """The different words of the text, in lower case and sorted."""
    return sorted(set(re.findall(r"\w+", text.lower())))
