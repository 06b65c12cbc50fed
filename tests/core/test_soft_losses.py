"""The other soft losses, logit MSE, DKD and DIST, by hand and by their properties."""

import math

import numpy as np
import pytest
import torch
from test_losses import labels, logits
from torch.nn import functional as F

from minikd.errors import MinikdError
from minikd.losses import SOFT_LOSSES, dist_loss, dkd_loss, kd_loss, logit_mse_loss, soft_loss

every_soft_loss = pytest.mark.parametrize("soft", SOFT_LOSSES)


def test_logit_mse_by_hand_is_the_mean_over_the_labels():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[2.0, 5.0], [0.0, 1.0]])
    assert logit_mse_loss(student, teacher).tolist() == [(1 + 9) / 2, 0.5]
    for scale in (1, 2):  # twice the distance, four times the loss
        assert logit_mse_loss(scale * student, scale * teacher)[0] == scale**2 * 5


def test_half_the_logit_mse_is_the_limit_of_the_kl_for_logits_of_zero_mean():
    student, teacher = (logits(seed=seed) - logits(seed=seed).mean(dim=1, keepdim=True) for seed in (1, 2))
    at_infinity = SOFT_LOSSES["kl"](student, teacher, labels(), 1e4)
    torch.testing.assert_close(at_infinity, logit_mse_loss(student, teacher) / 2, rtol=1e-3, atol=1e-5)


def test_dkd_by_hand():
    # At T = 2 the teacher's probabilities are (1/2, 3/8, 1/8), the student's (1/3, 1/3, 1/3). The first label is true.
    teacher, student = 2 * torch.tensor([[4.0, 3.0, 1.0]]).log(), torch.zeros(1, 3)
    tckd = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    nckd = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert dkd_loss(student, teacher, torch.tensor([0]), T=2.0, beta=8.0).item() == pytest.approx(
        4 * (tckd + 8 * nckd), rel=1e-6
    )
    (by_default,) = dkd_loss(student, 2 * teacher, torch.tensor([0]))  # T = 4, beta = 8
    assert by_default.item() == pytest.approx(16 * (tckd + 8 * nckd), rel=1e-6)


@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize("classes", [3, 7])
def test_dkd_whose_beta_is_the_teachers_doubt_is_the_kl(classes, T):
    """KL = TCKD + (1 − p) · NCKD, for each example with its own p."""
    student, teacher, targets = (
        logits(classes=classes, seed=1),
        logits(classes=classes, seed=2),
        labels(classes=classes),
    )
    p = (teacher / T).softmax(dim=1).gather(1, targets[:, None])[:, 0]
    tckd = dkd_loss(student, teacher, targets, T, beta=0.0)
    nckd = dkd_loss(student, teacher, targets, T, beta=1.0) - tckd
    torch.testing.assert_close(tckd + (1 - p) * nckd, SOFT_LOSSES["kl"](student, teacher, targets, T))
    torch.testing.assert_close((tckd + (1 - p) * nckd).mean(), soft_loss(student, teacher, T).mean())


def test_dkd_without_a_label_takes_the_teachers_most_probable_one():
    student, teacher = logits(seed=1), logits(seed=2)
    guess = teacher.argmax(dim=1)
    some = torch.where(torch.arange(8) % 2 == 0, -1, labels())
    mixed = torch.where(some < 0, guess, labels())
    assert not torch.equal(mixed, labels())
    assert torch.equal(dkd_loss(student, teacher, some), dkd_loss(student, teacher, mixed))


def test_dist_is_one_minus_numpys_correlations_over_labels_and_over_the_batch():
    student, teacher, T = logits(seed=1), logits(seed=2), 2.0
    s, t = (each.div(T).softmax(dim=1).numpy() for each in (student, teacher))
    inter = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T)])
    assert dist_loss(student, teacher, T, beta=3.0, gamma=0.5).numpy() == pytest.approx(4 * (3 * inter + 0.5 * intra))
    assert dist_loss(student, teacher).numpy() == pytest.approx(dist_loss(student, teacher, 1.0, 1.0, 1.0).numpy())


def test_dist_by_hand():
    # The probabilities (1/6, 2/6, 3/6) and (3/6, 2/6, 1/6) are in exactly opposite order; a batch of two turns around.
    rising, falling = torch.tensor([1.0, 2.0, 3.0]).log(), torch.tensor([3.0, 2.0, 1.0]).log()
    one, other = torch.stack([rising, falling]), torch.stack([falling, rising])
    assert dist_loss(one, other, gamma=0.0).tolist() == pytest.approx([2.0, 2.0])
    # over the batch the first and last label turn around (1 − r = 2); the middle one is constant, which counts as r = 0
    assert dist_loss(one, other, beta=0.0).tolist() == pytest.approx([5 / 3, 5 / 3], abs=1e-4)


def test_dist_sees_neither_scale_nor_offset_of_the_probabilities():
    teacher = logits(seed=2).softmax(dim=1)
    blurred = 0.3 * teacher + 0.7 / 3  # probabilities again, each a linear function of the teacher's
    assert dist_loss(blurred.log(), teacher.log()).abs().max() < 1e-9
    assert soft_loss(blurred.log(), teacher.log(), 1.0).mean() > 0.01
    assert dist_loss(logits(seed=1), teacher.log()).min() > 0.01


@every_soft_loss
def test_a_soft_loss_is_zero_with_zero_gradient_where_the_logits_match(soft):
    student = logits(scale=2).requires_grad_()
    loss = SOFT_LOSSES[soft](student, student.detach().clone(), labels(), 2.0)
    loss.sum().backward()
    assert loss.shape == (8,) and loss.abs().max() < 1e-9 and student.grad.abs().max() < 1e-9


@every_soft_loss
def test_the_gradient_of_a_soft_loss_equals_finite_differences_and_none_reaches_the_teacher(soft):
    teacher, student = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: SOFT_LOSSES[soft](s, teacher.detach(), labels(), 2.0), student)
    kd_loss(student, teacher, labels(), 0.5, 2.0, soft=soft).backward()
    assert teacher.grad is None and student.grad.any()


@every_soft_loss
def test_alpha_weighs_every_soft_loss_against_the_labels(soft):
    student, teacher = logits(seed=1), logits(seed=2)
    expected = SOFT_LOSSES[soft](student, teacher, labels(), 3.0).mean()
    hard = F.cross_entropy(student, labels())
    torch.testing.assert_close(kd_loss(student, teacher, labels(), 0.3, 3.0, soft=soft), 0.3 * hard + 0.7 * expected)
    assert kd_loss(student, teacher, labels(), soft="kl") == kd_loss(student, teacher, labels())


def test_the_soft_losses_differ_and_each_has_its_own_name():
    student, teacher = logits(seed=1), logits(seed=2)
    own = {"kl": soft_loss(student, teacher, 3.0).mean(), "mse": logit_mse_loss(student, teacher).mean()}
    own |= {"dkd": dkd_loss(student, teacher, labels(), 3.0).mean(), "dist": dist_loss(student, teacher, 3.0).mean()}
    assert len({round(value.item(), 6) for value in own.values()}) == 4 and own.keys() == SOFT_LOSSES.keys()
    for soft, value in own.items():
        torch.testing.assert_close(kd_loss(student, teacher, labels(), 0.0, 3.0, soft=soft), value)


@every_soft_loss
def test_soft_losses_are_computed_in_fp32_and_stay_finite_at_logits_of_ten_thousand(soft):
    extremes = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]], dtype=torch.bfloat16)
    student = extremes.roll(1, 0).requires_grad_()
    loss = SOFT_LOSSES[soft](student, extremes, torch.tensor([0, 2, -1]), 2.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize(("soft", "reason"), [("dkd", "is plain distillation"), ("dist", "correlation of 1 or −1")])
def test_two_labels_are_refused_with_the_reason_where_they_make_a_loss_degenerate(soft, reason):
    student, teacher = logits(classes=2, seed=1), logits(classes=2, seed=2)
    for call in (lambda: kd_loss(student, teacher, labels(classes=2), soft=soft),
                 lambda: SOFT_LOSSES[soft](student, teacher, labels(classes=2), 2.0)):  # fmt: skip
        with pytest.raises(MinikdError, match=f"soft loss {soft}: .*{reason}"):
            call()
    for other in ("kl", "mse"):
        assert kd_loss(student, teacher, labels(classes=2), soft=other) > 0


def test_an_unknown_soft_loss_is_refused():
    with pytest.raises(MinikdError, match="soft loss 'l1': must be one of kl, mse, dkd, dist"):
        kd_loss(logits(), logits(), labels(), soft="l1")


@every_soft_loss
def test_unequal_shapes_are_refused_by_every_soft_loss(soft):
    with pytest.raises(MinikdError, match="one shape"):
        SOFT_LOSSES[soft](logits(), torch.zeros(1, 3, dtype=torch.float64), labels(), 2.0)
