"""The loss of knowledge distillation (Hinton, Vinyals & Dean 2015, section 2): pure functions of tensors.

    L = alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

alpha weighs the hard loss, against the labels; some published code has it the other way round. An example without a
label has the soft loss alone. Everything is computed in fp32 (or fp64, for tests), also under autocast: the short
formats have 8 to 11 significant bits.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minikd.errors import MinikdError

UNLABELLED = -1  # the label id of an example that has no label


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 0.5,
    T: float = 2.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss above, averaged over the batch: a scalar for logits (B, C) of student and teacher and label ids (B,).

    For examples whose label is `UNLABELLED` alpha is 0. No gradient reaches the teacher.

    Raises MinikdError for alpha outside [0, 1], T not above 0 (or not finite), or logits of different shapes.
    """
    if not 0 <= alpha <= 1:
        raise MinikdError(f"alpha must be in [0, 1], not {alpha}")
    hard = F.cross_entropy(
        _at_least_fp32(student_logits),
        labels,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="none",
    )  # (B,)
    weight = alpha * (labels != UNLABELLED).to(hard.dtype)  # (B,)
    return (weight * hard + (1 - weight) * soft_loss(student_logits, teacher_logits, T)).mean()


def hard_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the true labels, averaged over the batch: logits (B, C), labels (B,) -> scalar."""
    return F.cross_entropy(_at_least_fp32(logits), labels, label_smoothing=label_smoothing)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of each example: logits (B, C) each -> (B,).

    The gradient of the KL alone shrinks as 1/T², because both distributions flatten; the factor T² keeps the balance
    with the hard loss when T changes (Hinton et al. 2015, section 2). The sum runs over the classes:
    `F.kl_div(reduction="mean")` would divide by their number as well, and is not KL.

    Raises MinikdError for T not above 0 (or not finite), or logits of different shapes.
    """
    if not 0 < T < float("inf"):
        raise MinikdError(f"the temperature T must be above 0, not {T}")
    if student_logits.shape != teacher_logits.shape:
        raise MinikdError(
            f"student and teacher logits must have one shape, not {tuple(student_logits.shape)} "
            f"and {tuple(teacher_logits.shape)}"
        )
    student_log_probs = F.log_softmax(_at_least_fp32(student_logits) / T, dim=-1)
    teacher_log_probs = F.log_softmax(_at_least_fp32(teacher_logits.detach()) / T, dim=-1)
    kl = (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=-1)  # (B,)
    return T**2 * kl


def mean_teacher(logits: Tensor, T: float = 1.0) -> Tensor:
    """Logits (N, C) whose probabilities at temperature T are the mean of those of K teachers with logits (K, N, C).

    The mean of probabilities is what a mixture of the teachers predicts, and a teacher that is sure counts for no more
    than another. The mean of logits, the other usual way, is the normalised geometric mean of the probabilities: there
    one teacher can veto a label, and the teacher with the widest logits weighs most (Hinton et al. 2015, section 1,
    allows either).
    """
    log_probs = F.log_softmax(_at_least_fp32(logits) / T, dim=-1)
    return T * (log_probs.logsumexp(dim=0) - math.log(len(logits)))


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
