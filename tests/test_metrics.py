"""Quality metrics equal scikit-learn's; the distance to known probabilities is what it says."""

import math

import numpy as np
import pytest
import torch

from minikd.metrics import classification_metrics, confusion_matrix, kl_to_truth


@pytest.mark.parametrize("num_labels", [2, 3, 5])
@pytest.mark.parametrize("seed", range(8))
def test_metrics_equal_scikit_learn(num_labels, seed):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (tests/requirements.txt)")
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, 50)
    # The odd seeds never predict the last label, seed 6 predicts one label only, seed 7 has one true label only.
    predicted = random.integers(0, num_labels - seed % 2, 50)
    if seed == 6:
        predicted[:] = 0
    if seed == 7:
        labels[:] = 0
    ours = classification_metrics(torch.from_numpy(labels), torch.from_numpy(predicted), num_labels)
    average = (
        {"labels": [1], "average": "macro"} if num_labels == 2 else {"labels": range(num_labels), "average": "macro"}
    )
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(labels, predicted, zero_division=0, **average)
    weighted = sklearn.f1_score(labels, predicted, labels=range(num_labels), average="weighted", zero_division=0)
    theirs = {"accuracy": sklearn.accuracy_score(labels, predicted), "f1": f1, "precision": precision, "recall": recall}
    assert ours == pytest.approx(theirs | {"weighted_f1": weighted}, abs=1e-12)


def test_confusion_matrix_has_true_labels_in_rows():
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_kl_to_truth_is_zero_at_the_truth_and_by_hand_elsewhere():
    true = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert kl_to_truth(true.clamp_min(1e-30).log(), true) == pytest.approx(0, abs=1e-9)
    by_hand = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5) + math.log(2)) / 2
    assert kl_to_truth(torch.zeros(2, 2), true) == pytest.approx(by_hand)
