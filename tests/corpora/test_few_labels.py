"""tests/few_labels.py: what it learns from and what it is tested on."""

import few_labels

from minikd import Dataset
from minikd.losses import UNLABELLED


def test_no_sentence_that_is_learned_from_is_tested_and_labels_stay_with_their_texts(monkeypatch):
    monkeypatch.setattr(few_labels, "LABELLED", 40)
    monkeypatch.setattr(few_labels, "UNLABELLED", 100)
    texts = [f"sentence number {i:03}" for i in range(100)]
    texts += [text.upper() for text in texts]  # each is there twice
    labels = [("bad", "good")[i % 2] for i in range(200)]
    few, test = few_labels.few_labels(Dataset.from_examples(texts, labels))
    known = few.train.texts + few.validation.texts + few.test.texts
    assert len(known) == 40 and 80 < len(few.unlabelled) <= 100 and 5 < len(test.texts) < 60
    learned = {text.casefold() for text in (*few.transfer.texts, *few.validation.texts)}
    assert not learned & {text.casefold() for text in test.texts}
    right = {text.casefold(): label for text, label in zip(texts, labels)}
    for split in (few.train, test):
        assert [right[text.casefold()] for text in split.texts] == [few.labels[label] for label in split.labels]
    assert few.transfer.labels.count(UNLABELLED) == len(few.unlabelled)
