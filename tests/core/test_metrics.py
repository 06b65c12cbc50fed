"""Quality metrics equal scikit-learn's; the distance to known probabilities is what it says."""

import math

import numpy as np
import pytest
import torch

from minikd.metrics import classification_metrics, confusion_matrix, kl_to_truth


@pytest.mark.parametrize("num_labels", range(2, 7))
def test_metrics_equal_scikit_learn(num_labels):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (tests/requirements.txt)")
    random, ids = np.random.default_rng(num_labels), range(num_labels)
    shown = {"labels": [1] if num_labels == 2 else ids, "average": "macro", "zero_division": 0}
    for case in range(70):
        labels, predicted = random.integers(0, num_labels, (2, random.integers(2, 60)))
        one, other = random.permutation(num_labels)[:2]
        match case % 7:  # 0 and 1 are left as they are
            case 2:
                predicted[predicted == one] = other  # never predicted
            case 3:
                labels[labels == one] = other  # never true
            case 4:
                labels[:], predicted[:] = one, random.choice([one, other])  # one class only; all right or all wrong
            case 5:
                (labels if random.random() < 0.5 else predicted)[:] = one
            case 6:
                labels, predicted = labels[:1], predicted[:1]  # a single example
        ours = classification_metrics(torch.from_numpy(labels), torch.from_numpy(predicted), num_labels)
        precision, recall, f1, _ = sklearn.precision_recall_fscore_support(labels, predicted, **shown)
        weighted = sklearn.f1_score(labels, predicted, labels=ids, average="weighted", zero_division=0)
        theirs = {"accuracy": sklearn.accuracy_score(labels, predicted), "f1": f1, "weighted_f1": weighted}
        assert ours == pytest.approx(theirs | {"precision": precision, "recall": recall}, abs=1e-12)
        matrix = confusion_matrix(torch.from_numpy(labels), torch.from_numpy(predicted), num_labels)
        assert matrix.tolist() == sklearn.confusion_matrix(labels, predicted, labels=ids).tolist()


def test_confusion_matrix_has_true_labels_in_rows():
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_kl_to_truth_is_zero_at_the_truth_and_by_hand_elsewhere():
    true = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert kl_to_truth(true.clamp_min(1e-30).log(), true) == pytest.approx(0, abs=1e-9)
    by_hand = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5) + math.log(2)) / 2
    assert kl_to_truth(torch.zeros(2, 2), true) == pytest.approx(by_hand)
