"""The loss of knowledge distillation (Hinton, Vinyals & Dean 2015, section 2), and losses between layers: pure
functions of tensors.

    L = alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

alpha weighs the hard loss, against the labels; some published code has it the other way round. An example without a
label has the soft loss alone. In place of T² · KL, `soft` picks another soft loss from SOFT_LOSSES: the mean squared
error of the logits, DKD or DIST. Everything is computed in fp32 (or fp64, for tests), also under autocast: the short
formats have 8 to 11 significant bits.
"""

from collections.abc import Callable

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
    soft: str = "kl",
) -> Tensor:
    """The loss above, averaged over the batch: a scalar for logits (B, C) of student and teacher and label ids (B,).

    For examples whose label is `UNLABELLED` alpha is 0. `soft`: which of SOFT_LOSSES. No gradient reaches the teacher.

    Raises MinikdError for alpha outside [0, 1], T not above 0 (or not finite), logits of different shapes, or a soft
    loss that two labels make degenerate.
    """
    if not 0 <= alpha <= 1:
        raise MinikdError(f"alpha must be in [0, 1], not {alpha}")
    check_soft_loss(soft, student_logits.shape[-1])
    hard = F.cross_entropy(
        _at_least_fp32(student_logits),
        labels,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="none",
    )  # (B,)
    weight = alpha * (labels != UNLABELLED).to(hard.dtype)  # (B,)
    return (weight * hard + (1 - weight) * SOFT_LOSSES[soft](student_logits, teacher_logits, labels, T)).mean()


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
    return T**2 * _kl(*_scaled(student_logits, teacher_logits, T))


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The squared difference of the logits, 1/C · Σ (student − teacher)², of each example: logits (B, C) each -> (B,).

    The loss of Ba & Caruana 2014 and, for BERT, of Tang et al. 2019 (section 3.2). For logits of zero mean, half of it
    is the limit of T² · KL as T → ∞ (Kim et al. 2021, section 3); it has no temperature.
    """
    student, teacher = _scaled(student_logits, teacher_logits, 1.0)
    return (student - teacher).square().mean(dim=-1)


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float = 4.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation, T² · (TCKD + beta · NCKD), of each example: logits (B, C), labels (B,) -> (B,).

    TCKD is the KL of the true label against the rest, NCKD that among the other labels alone, and

        KL(teacher ‖ student) = TCKD + (1 − p) · NCKD

    for the teacher's probability p of the true label. A teacher that is sure of itself therefore tells plain
    distillation next to nothing of the other labels; DKD gives that part a weight of its own (Zhao et al. 2022, section
    3; beta 8 is theirs for CIFAR-100). Where the label is −1, unknown, the teacher's most probable one is in its place.
    Raises MinikdError for two labels.
    """
    check_soft_loss("dkd", student_logits.shape[-1])
    labels = torch.where(labels < 0, teacher_logits.detach().argmax(dim=-1), labels)
    true = F.one_hot(labels, student_logits.shape[-1]).bool()  # (B, C)
    (student, student_rest), (teacher, teacher_rest) = (
        _true_and_rest(scaled, true) for scaled in _scaled(student_logits, teacher_logits, T)
    )
    return T**2 * (_kl(student, teacher) + beta * _kl(student_rest, teacher_rest))


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, T: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """DIST, T² · (beta · inter + gamma · intra): logits (B, C) each -> (B,).

    inter = 1 − r of the probabilities of an example, over the labels, and intra = 1 − r of the probabilities of a
    label, over the batch, averaged over the labels, where r is Pearson's correlation of student and teacher (Huang et
    al. 2022, section 3; both weights 1 as in their code). Intra belongs to the batch: each example has the same. A
    correlation asks for the relations among probabilities, not for their values: neither scale nor offset matters.
    Raises MinikdError for two labels.
    """
    check_soft_loss("dist", student_logits.shape[-1])
    student, teacher = (scaled.softmax(dim=-1) for scaled in _scaled(student_logits, teacher_logits, T))
    inter, intra = 1 - _correlation(student, teacher, dim=1), 1 - _correlation(student, teacher, dim=0)  # (B,), (C,)
    return T**2 * (beta * inter + gamma * intra.mean())


# Each by its name: student's and teacher's logits (B, C), labels (B,), T -> (B,).
SOFT_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kl": lambda student, teacher, labels, T: soft_loss(student, teacher, T),
    "mse": lambda student, teacher, labels, T: logit_mse_loss(student, teacher),
    "dkd": dkd_loss,
    "dist": lambda student, teacher, labels, T: dist_loss(student, teacher, T),
}


def check_soft_loss(name: str, num_labels: int) -> None:
    """Raises MinikdError for an unknown soft loss, and for one that so few labels make degenerate."""
    if name not in SOFT_LOSSES:
        raise MinikdError(f"soft loss {name!r}: must be one of {', '.join(SOFT_LOSSES)}")
    if num_labels <= 2 and name == "dkd":
        raise MinikdError(
            "soft loss dkd: with two labels only one is not the true one, so that its probability among the others "
            "is 1 and DKD is plain distillation; use kl"
        )
    if num_labels <= 2 and name == "dist":
        raise MinikdError(
            "soft loss dist: two probabilities that add up to 1 have a correlation of 1 or −1 whatever their values, "
            "so that DIST has no gradient within an example; use kl"
        )


def _scaled(student_logits: Tensor, teacher_logits: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """Both logits over T, in fp32, the teacher's without gradient."""
    if not 0 < T < float("inf"):
        raise MinikdError(f"the temperature T must be above 0, not {T}")
    if student_logits.shape != teacher_logits.shape:
        raise MinikdError(
            f"student and teacher logits must have one shape, not {tuple(student_logits.shape)} "
            f"and {tuple(teacher_logits.shape)}"
        )
    return _at_least_fp32(student_logits) / T, _at_least_fp32(teacher_logits.detach()) / T


def mean_teacher(logits: Tensor, T: float = 1.0) -> Tensor:
    """Logits (N, C) whose probabilities at temperature T are the mean of those of K teachers with logits (K, N, C).
    Their own mean over the labels is 0: no probability depends on it, but the error of logits does.

    The mean of probabilities is what a mixture of the teachers predicts, and a teacher that is sure counts for no more
    than another. The mean of logits, the other usual way, is the normalised geometric mean of the probabilities: there
    one teacher can veto a label, and the teacher with the widest logits weighs most (Hinton et al. 2015, section 1,
    allows either).
    """
    log_probs = F.log_softmax(_at_least_fp32(logits) / T, dim=-1)
    mean = T * log_probs.logsumexp(dim=0)  # less T · log K, which is the same for all labels
    return mean - mean.mean(dim=-1, keepdim=True)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each example: (B, C) each -> (B,)."""
    student_log_probs, teacher_log_probs = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=-1)


def _true_and_rest(logits: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, 2) of the true label and of all others together, and (B, C − 1) of the others; `true` is (B, C)."""
    rest = logits[~true].view(len(logits), -1)
    return torch.stack([logits[true], rest.logsumexp(dim=-1)], dim=-1), rest


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension; 0 where one of them is constant."""
    one, other = (values - values.mean(dim=dim, keepdim=True) for values in (one, other))
    return F.cosine_similarity(one, other, dim=dim)


# Losses between a layer of the student and one of the teacher. Each is a relative error, an angle or a KL, so that a
# weight of 1 means the same at any width and length. A text's loss is its own, whatever it is padded to, and the batch
# has the mean over its texts, as in `soft_loss`. `mask` (B, N) is true at real tokens; None where nothing is padded. No
# gradient reaches the teacher.


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """‖S − T‖² / ‖T‖² over a text's real tokens, averaged over the texts: hidden states (B, N, H) of one layer each ->
    scalar.

    The squared error of TinyBERT (Jiao et al. 2020, equation 8), relative to the teacher's own size: 0 for its hidden
    states, 1 for zeros. A narrower student needs a projection to the teacher's width first. Raises MinikdError for
    different shapes.
    """
    _check_shapes(student, teacher, "hidden states")
    return _relative_error(student, teacher, None if mask is None else mask[:, :, None])


def cls_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖s/‖s‖ − t/‖t‖‖² = 2 − 2·cos(s, t), averaged over the texts: [CLS] vectors (B, H) of one layer each -> scalar.

    Patient knowledge distillation (Sun et al. 2019, equation 7). The authors' code averages over the dimensions, where
    the paper sums: 768 times less, hence weights of up to 500 there. Raises MinikdError for different shapes.
    """
    _check_shapes(student, teacher, "[CLS] vectors")
    student, teacher = _at_least_fp32(student), _at_least_fp32(teacher.detach())
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(dim=-1).mean()


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """q·k / √D, what attention is the softmax of: queries and keys (B, A, N, D) -> (B, A, N, N), in fp32."""
    with torch.autocast(q.device.type, enabled=False):
        q, k = _at_least_fp32(q), _at_least_fp32(k)
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


def score_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """‖S − T‖² / ‖T‖² over all heads and all pairs of a text's real tokens, averaged over the texts: attention scores
    before the softmax (B, A, N, N) of one layer each -> scalar.

    The squared error of TinyBERT (Jiao et al. 2020, equation 7), relative to the teacher's own size. Raises MinikdError
    for different shapes, hence for other numbers of heads.
    """
    _check_shapes(student, teacher, "attention scores")
    return _relative_error(student, teacher, None if mask is None else (mask[:, :, None] & mask[:, None, :])[:, None])


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(softmax(T) ‖ softmax(S)) of each query's attention to the real tokens, averaged over the heads and the real
    queries of a text and then over the texts: scores before the softmax (B, A, N, N) of one layer each -> scalar.

    MiniLM (Wang et al. 2020, equation 4) for the last layer; for several ones Wang et al. 2023. Raises MinikdError for
    different shapes, hence for other numbers of heads.
    """
    _check_shapes(student, teacher, "attention scores")
    student, teacher = _at_least_fp32(student), _at_least_fp32(teacher.detach())
    if mask is not None:  # a finite value: 0 · (−∞ + ∞) would be no number
        padding = ~mask[:, None, None, :]
        student, teacher = (x.masked_fill(padding, torch.finfo(x.dtype).min) for x in (student, teacher))
    student_log_probs, teacher_log_probs = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=-1)  # (B, A, N)
    kl = kl.mean(dim=1)  # (B, N)
    return kl.mean() if mask is None else ((kl * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """`attention_loss` of how a layer's queries, keys or values attend to one another, softmax(X Xᵀ / √D): vectors
    (B, A, N, D) of student and teacher -> scalar.

    MiniLM (Wang et al. 2020, equation 5) compares values; MiniLMv2 (Wang et al. 2021, section 3) queries, keys and
    values, and joins the attention heads and splits them anew into `heads` relation heads. So widths and attention
    heads may differ. Raises MinikdError where a width is not divisible by `heads`.
    """

    def relations(x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)  # (B, N, H)
        if x.shape[-1] % heads:
            raise MinikdError(f"`relation_heads` {heads}: must divide the widths of student and teacher, {x.shape[-1]}")
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, N, H / heads)
        return attention_scores(x, x)

    return attention_loss(relations(student), relations(teacher.detach()), mask)


def _relative_error(student: Tensor, teacher: Tensor, real: Tensor | None) -> Tensor:
    """Σ (student − teacher)² / Σ teacher² of each text, where `real`, averaged over the texts (the first dimension)."""
    student, teacher = _at_least_fp32(student), _at_least_fp32(teacher.detach())
    squares = [(student - teacher).square(), teacher.square()]
    error, size = ((x if real is None else x * real).flatten(1).sum(dim=1) for x in squares)  # (B,) each
    return (error / size).mean()


def _check_shapes(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise MinikdError(
            f"the {what} of student and teacher must have one shape, not {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
