"""The loss of distillation by its properties, by hand, and against an independent reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from minikd.errors import MinikdError
from minikd.losses import UNLABELLED, hard_loss, kd_loss, mean_teacher, soft_loss

PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_precision = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def logits(rows=8, classes=3, scale=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale).to(dtype)


def labels(rows=8, classes=3):
    return torch.arange(rows) % classes


def reference(student, teacher, targets, alpha, T):
    """The form of most published code: torch's kl_div of a log-softmax and a softmax, `batchmean`, times T * T."""
    soft = F.kl_div(F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1), reduction="batchmean") * T * T
    return alpha * F.cross_entropy(student, targets) + (1 - alpha) * soft


def test_value_computed_by_hand():
    # T = 2: the teacher's probabilities are (3/4, 1/4), the student's (1/2, 1/2); T = 1 gives the student's CE, log 2.
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_loss(student, teacher, T=2.0).mean().item() == pytest.approx(4 * kl, rel=1e-6)
    assert hard_loss(student, torch.tensor([1])).item() == pytest.approx(math.log(2), rel=1e-6)
    expected = 0.3 * math.log(2) + 0.7 * 4 * kl
    assert kd_loss(student, teacher, torch.tensor([1]), alpha=0.3, T=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_by_default_labels_and_teacher_weigh_the_same_at_temperature_2():
    student, teacher, targets = logits(), logits(seed=2), labels()
    assert kd_loss(student, teacher, targets) == kd_loss(student, teacher, targets, alpha=0.5, T=2.0)


def test_kl_runs_from_teacher_to_student_and_not_back():
    teacher, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = teacher.softmax(1), student.softmax(1)
    assert soft_loss(student, teacher, 1.0).mean().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    assert soft_loss(teacher, student, 1.0).item() != pytest.approx(soft_loss(student, teacher, 1.0).item(), rel=0.1)


@pytest.mark.parametrize("T", [0.5, 1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_value_and_gradient_equal_the_reference(alpha, T, classes):
    teacher, targets = logits(classes=classes, scale=3, seed=1), labels(classes=classes)
    ours, theirs = (logits(classes=classes, scale=3, seed=2).requires_grad_() for _ in range(2))
    loss, expected = kd_loss(ours, teacher, targets, alpha, T), reference(theirs, teacher, targets, alpha, T)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_gradient_equals_finite_differences(alpha):
    teacher, student = logits(seed=1), logits(seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, labels(), alpha, 3.0, label_smoothing=0.1), student)


def test_kl_is_zero_with_zero_gradient_when_logits_match():
    student = logits(scale=5).requires_grad_()
    loss = soft_loss(student, student.detach().clone(), T=3.0).mean()
    loss.backward()
    assert abs(loss.item()) < 1e-14 and student.grad.abs().max() < 1e-14


def test_kl_does_not_see_a_constant_added_to_all_logits():
    student, teacher = logits(seed=1), logits(seed=2)
    torch.testing.assert_close(soft_loss(student + 5, teacher - 3, 2.0).mean(), soft_loss(student, teacher, 2.0).mean())


def test_alpha_1_is_cross_entropy_alone():
    student = logits(seed=1).requires_grad_()
    loss, expected = kd_loss(student, logits(seed=2), labels(), alpha=1.0, T=7.0), F.cross_entropy(student, labels())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (loss, expected)))


def test_alpha_0_is_the_soft_loss_alone_whatever_the_labels():
    student, teacher = logits(seed=1), logits(seed=2)
    for targets in (labels(), labels().flip(0)):
        loss = kd_loss(student, teacher, targets, alpha=0.0, T=2.0)
        torch.testing.assert_close(loss, soft_loss(student, teacher, 2.0).mean())


def test_gradient_keeps_its_scale_when_the_temperature_changes():
    """For logits small against T the soft gradient tends to (student - teacher) / classes / batch, whatever T."""
    teacher, norms = logits(scale=0.2, seed=1), []
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    for T in (2.0, 4.0, 8.0, 20.0):
        student = torch.zeros_like(teacher).requires_grad_()
        soft_loss(student, teacher, T).mean().backward()
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.05
    assert norms[-1] == pytest.approx((teacher / 3 / 8).norm().item(), rel=0.01)


def test_loss_does_not_depend_on_the_size_of_the_batch():
    student, teacher, targets = logits(seed=1), logits(seed=2), labels()
    twice = kd_loss(student.repeat(2, 1), teacher.repeat(2, 1), targets.repeat(2), 0.4, 3.0)
    torch.testing.assert_close(twice, kd_loss(student, teacher, targets, 0.4, 3.0))


def test_loss_does_not_depend_on_classes_that_nobody_considers():
    student, teacher = logits(seed=1), logits(seed=2)
    impossible = torch.full((8, 2), -1e4, dtype=torch.float64)
    with_more = soft_loss(torch.cat([student, impossible], 1), torch.cat([teacher, impossible], 1), 2.0).mean()
    torch.testing.assert_close(with_more, soft_loss(student, teacher, 2.0).mean())


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    kd_loss(student, teacher, labels(), 0.5, 2.0).backward()
    assert teacher.grad is None and student.grad.any()


@every_precision
@pytest.mark.parametrize("T", [1.0, 20.0])
def test_loss_and_gradient_stay_finite_at_logits_of_ten_thousand(dtype, T):
    extremes = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, 1e4]], dtype=dtype)
    for teacher in (extremes, extremes.flip(0), -extremes):
        student = extremes.clone().requires_grad_()
        loss = kd_loss(student, teacher, torch.tensor([0, 0, 1, 1]), 0.5, T)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all() and student.grad.dtype == dtype


@every_precision
def test_kl_is_zero_at_matching_extremes(dtype):
    extremes = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype)
    assert soft_loss(extremes, extremes, 1.0).mean().item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_computed_with_in_fp32_also_under_autocast(dtype):
    student, teacher = logits(seed=1, scale=4, dtype=dtype), logits(seed=2, scale=4, dtype=dtype)
    loss = kd_loss(student, teacher, labels(), 0.5, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(student.float(), teacher.float(), labels(), 0.5, 2.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kd_loss(student, teacher, labels(), 0.5, 2.0), loss)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(MinikdError, match="alpha must be in"):
        kd_loss(logits(), logits(), labels(), alpha, 2.0)


@pytest.mark.parametrize("T", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_temperature_that_is_not_above_0_is_refused(T, alpha):
    with pytest.raises(MinikdError, match="temperature T must be"):
        kd_loss(logits(), logits(), labels(), alpha, T)


@pytest.mark.parametrize("shape", [(8, 2), (4, 3), (1, 3), (8, 1)])
def test_unequal_shapes_are_refused_and_not_broadcast(shape):
    with pytest.raises(MinikdError, match="one shape"):
        kd_loss(logits(), torch.zeros(shape, dtype=torch.float64), labels(), 0.5, 2.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_cross_entropy_and_touches_the_hard_loss_alone(smoothing):
    student, teacher = logits(seed=1), logits(seed=2)
    expected = F.cross_entropy(student, labels(), label_smoothing=smoothing)
    torch.testing.assert_close(kd_loss(student, teacher, labels(), 1.0, 2.0, smoothing), expected)
    mixed = 0.5 * expected + 0.5 * soft_loss(student, teacher, 2.0).mean()
    torch.testing.assert_close(kd_loss(student, teacher, labels(), 0.5, 2.0, smoothing), mixed)


def test_an_unlabelled_example_has_the_soft_loss_alone_and_full_weight():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, UNLABELLED, 2, UNLABELLED])
    soft = soft_loss(student, teacher, 2.0)
    hard = -student.log_softmax(-1)[[0, 2], [0, 2]]
    expected = (0.7 * hard.sum() + 0.3 * soft[[0, 2]].sum() + soft[[1, 3]].sum()) / 4
    torch.testing.assert_close(kd_loss(student, teacher, labels, 0.7, 2.0), expected)
    assert kd_loss(student, teacher, torch.full((4,), UNLABELLED), 1.0, 2.0) == soft.mean()


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_the_mean_teacher_has_the_mean_of_the_teachers_probabilities_at_that_temperature(T):
    teachers = 4 * torch.randn(3, 5, 4, dtype=torch.float64)
    logits = mean_teacher(teachers, T)
    torch.testing.assert_close((logits / T).softmax(-1), (teachers / T).softmax(-1).mean(dim=0))
    assert not torch.allclose((logits / (2 * T)).softmax(-1), (teachers / (2 * T)).softmax(-1).mean(dim=0), rtol=0.01)
    assert not torch.allclose((logits / T).softmax(-1), (teachers.mean(dim=0) / T).softmax(-1), rtol=0.01)
    student = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(soft_loss(student, mean_teacher(teachers[:1], T), T), soft_loss(student, teachers[0], T))
