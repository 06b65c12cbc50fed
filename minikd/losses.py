"""The loss of knowledge distillation (Hinton, Vinyals & Dean 2015, section 2), and losses between layers: pure
functions of tensors.

    L = alpha · CE(labels, student) + (1 − alpha) · T² · KL(softmax(teacher / T) ‖ softmax(student / T))

alpha weighs the hard loss, against the labels; some published code has it the other way round. Everything is computed
in fp32 (or fp64, for tests), also under autocast: the short formats have 8 to 11 significant bits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minikd.errors import MinikdError


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 0.5,
    T: float = 2.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss above: a scalar for logits (B, C) of student and teacher and label ids (B,). No gradient reaches the
    teacher.

    Raises MinikdError for alpha outside [0, 1], T not above 0 (or not finite), or logits of different shapes.
    """
    if not 0 <= alpha <= 1:
        raise MinikdError(f"alpha must be in [0, 1], not {alpha}")
    hard = hard_loss(student_logits, labels, label_smoothing)
    return alpha * hard + (1 - alpha) * soft_loss(student_logits, teacher_logits, T)


def hard_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the true labels, averaged over the batch: logits (B, C), labels (B,) -> scalar."""
    return F.cross_entropy(_at_least_fp32(logits), labels, label_smoothing=label_smoothing)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over the batch: logits (B, C) each -> scalar.

    The gradient of the KL alone shrinks as 1/T², because both distributions flatten; the factor T² keeps the balance
    with the hard loss when T changes (Hinton et al. 2015, section 2). The sum runs over the classes and the mean
    over the batch: `F.kl_div(reduction="mean")` would divide by the number of classes as well, and is not KL.

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
    return T**2 * kl.mean()


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
