"""The losses between layers, by hand and by their properties."""

import math

import pytest
import torch

from minikd.errors import MinikdError
from minikd.losses import attention_loss, attention_scores, cls_loss, hidden_loss, relation_loss, score_loss

B, A, N, D = 3, 2, 5, 4
LENGTHS = torch.tensor([5, 1, 3])
MASK = torch.arange(N) < LENGTHS[:, None]  # (B, N)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# name: the loss of two tensors and a mask, and the shape of these
LOSSES = {
    "hidden": (hidden_loss, (B, N, A * D)),
    "cls": (lambda s, t, mask=None: cls_loss(s[:, 0], t[:, 0]), (B, N, A * D)),
    "scores": (score_loss, (B, A, N, N)),
    "attention": (attention_loss, (B, A, N, N)),
    "relations": (lambda s, t, mask=None: relation_loss(s, t, 2, mask), (B, A, N, D)),
}
every_loss = pytest.mark.parametrize(("loss", "shape"), LOSSES.values(), ids=LOSSES)
PER_TOKEN = {name: LOSSES[name] for name in ("hidden", "relations")}
PER_PAIR = {name: LOSSES[name] for name in ("scores", "attention")}


def padding_of(shape):
    """Where a tensor of this shape is of padding, (B, …)."""
    token, pair = ~MASK, ~(MASK[:, :, None] & MASK[:, None, :])
    mask = {(B, N, A * D): token[..., None], (B, A, N, N): pair[:, None], (B, A, N, D): token[:, None, :, None]}[shape]
    return mask.expand(shape)


def test_hidden_states_by_hand():
    teacher = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 1.0], [9.0, 9.0]]])
    student = torch.tensor([[[3.0, 2.0], [1.0, 1.0]], [[0.0, 1.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert hidden_loss(student, teacher, mask).item() == pytest.approx((5 / 26 + 1 / 2) / 2)
    assert hidden_loss(torch.zeros(2, 2, 2), teacher, mask).item() == pytest.approx(1)


def test_cls_vectors_by_hand():
    """At 60° the distance of unit vectors is 1; at 90° its square is 2; the other way, 4."""
    teacher = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    student = torch.tensor([[0.5, 0.5 * math.sqrt(3)], [3.0, 0.0], [-7.0, 0.0]])
    assert cls_loss(student, teacher).item() == pytest.approx((1 + 2 + 4) / 3, rel=1e-6)


def test_scores_are_scaled_by_the_root_of_the_head_size():
    q, k = torch.tensor([[[[1.0, 2.0, 0.0, 2.0]]]]), torch.tensor([[[[3.0, 1.0, 5.0, 0.0]]]])
    assert attention_scores(q, k).item() == pytest.approx((3 + 2) / 2)


def test_score_loss_by_hand():
    """Of the second text one token is real, hence one pair."""
    teacher, student = torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), 2.0)
    student[0, 0, 0, 1], student[1, 0, 0, 0], student[1, 0, 0, 1] = 5.0, 3.0, 100.0
    mask = torch.tensor([[True, True], [True, False]])
    assert score_loss(student, teacher, mask).item() == pytest.approx((9 / 16 + 1 / 4) / 2)


def test_attention_loss_by_hand():
    """Teacher (3/4, 1/4) against student (1/2, 1/2) for one of two queries of one of two heads; it runs from teacher to
    student. The third token is padding, and so are its queries."""
    teacher, student = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    teacher[0, 1, 0, 0] = math.log(3)
    teacher[..., 2], student[..., 2] = 50.0, 7.0
    teacher[:, :, 2] = torch.tensor([9.0, 0.0, 1.0])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    mask = torch.tensor([[True, True, False]])
    assert attention_loss(student, teacher, mask).item() == pytest.approx(kl / 4, rel=1e-5)
    assert attention_loss(student[:, :, :2, :2], teacher[:, :, :2, :2]).item() == pytest.approx(kl / 4, rel=1e-5)


def test_relations_by_hand():
    """Two tokens, one relation head of size 4: X Xᵀ / 2 has ln 3 where the teacher's first token meets itself."""
    x = math.sqrt(2 * math.log(3) / 2)
    teacher = torch.tensor([[[[x, 0.0], [0.0, 0.0]], [[x, 0.0], [0.0, 0.0]]]])  # (1, 2 heads, 2 tokens, 2)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert relation_loss(torch.zeros(1, 1, 2, 8), teacher, 1).item() == pytest.approx(kl / 2, rel=1e-5)


@every_loss
def test_a_loss_is_zero_with_zero_gradient_for_equal_models_and_positive_otherwise(loss, shape):
    student = random(*shape).requires_grad_()
    value = loss(student, student.detach().clone(), MASK)
    value.backward()
    assert value.abs() < 1e-14 and student.grad.abs().max() < 1e-14
    assert loss(random(*shape, seed=1), student.detach(), MASK) > 0.1


@pytest.mark.parametrize(("loss", "shape"), (PER_TOKEN | PER_PAIR).values(), ids=PER_TOKEN | PER_PAIR)
def test_padding_changes_no_loss_and_gets_no_gradient(loss, shape):
    padding, results = padding_of(shape), []
    for seed in (1, 2):
        student, teacher = (torch.where(padding, 30 * random(*shape, seed=seed + i), random(*shape, seed=9 + i))
                            for i in (0, 50))  # fmt: skip
        student.requires_grad_()
        value = loss(student, teacher, MASK)
        value.backward()
        assert not student.grad[padding].any() and student.grad[~padding].any()
        results.append((value.detach(), student.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("loss", "shape"), (PER_TOKEN | PER_PAIR).values(), ids=PER_TOKEN | PER_PAIR)
def test_the_loss_of_a_batch_is_the_mean_over_its_texts_without_their_padding(loss, shape):
    student, teacher, alone = random(*shape, seed=1), random(*shape, seed=2), []
    for i, n in enumerate(LENGTHS):
        real = tuple(slice(n) if size == N else slice(None) for size in shape[1:])
        alone.append(loss(*(x[(slice(i, i + 1), *real)] for x in (student, teacher))))
    torch.testing.assert_close(loss(student, teacher, MASK), torch.stack(alone).mean())


@every_loss
def test_a_loss_does_not_depend_on_the_size_of_the_batch(loss, shape):
    student, teacher = random(*shape, seed=1), random(*shape, seed=2)
    again = [torch.cat([x, x]) for x in (student, teacher, MASK)]
    torch.testing.assert_close(loss(*again), loss(student, teacher, MASK))


@pytest.mark.parametrize("name", ["hidden", "cls"])
def test_twice_the_width_is_the_same_loss(name):
    loss, shape = LOSSES[name]
    student, teacher = random(*shape, seed=1), random(*shape, seed=2)
    wide = [torch.cat([x, x], dim=-1) for x in (student, teacher)]
    torch.testing.assert_close(loss(*wide, MASK), loss(student, teacher, MASK))


@pytest.mark.parametrize("name", ["hidden", "scores", "attention"])
def test_twice_the_heads_or_the_tokens_are_the_same_loss(name):
    loss, shape = LOSSES[name]
    pair = random(*shape, seed=1), random(*shape, seed=2)
    if name == "hidden":
        torch.testing.assert_close(loss(*(torch.cat([x, x], dim=1) for x in pair)), loss(*pair))
    else:
        torch.testing.assert_close(loss(*(torch.cat([x, x], dim=1) for x in pair), MASK), loss(*pair, MASK))


@pytest.mark.parametrize("name", ["hidden", "scores"])
def test_relative_errors_do_not_depend_on_the_scale_of_both(name):
    loss, shape = LOSSES[name]
    student, teacher = random(*shape, seed=1), random(*shape, seed=2)
    torch.testing.assert_close(loss(50 * student, 50 * teacher, MASK), loss(student, teacher, MASK))


def test_relations_do_not_see_a_rotation_within_each_relation_head():
    student, teacher = random(B, A, N, D, seed=1), random(B, A, N, D, seed=2)
    rotation = torch.linalg.qr(random(D, D, seed=3))[0]
    torch.testing.assert_close(relation_loss(student @ rotation, teacher, A, MASK),
                               relation_loss(student, teacher, A, MASK))  # fmt: skip
    assert not torch.isclose(relation_loss(student @ rotation, teacher, 4, MASK),
                             relation_loss(student, teacher, 4, MASK))  # fmt: skip


def test_relation_heads_join_the_attention_heads_and_split_them_anew():
    """8 wide: 2 attention heads of the student and 4 of the teacher are compared in any number that divides both."""
    student, teacher = random(B, 2, N, 4, seed=1), random(B, 4, N, 4, seed=2)
    for heads in (1, 2, 4, 8):
        of_student = student.transpose(1, 2).reshape(B, N, heads, 8 // heads).transpose(1, 2)
        of_teacher = teacher.transpose(1, 2).reshape(B, N, heads, 16 // heads).transpose(1, 2)
        expected = attention_loss(attention_scores(of_student, of_student), attention_scores(of_teacher, of_teacher))
        torch.testing.assert_close(relation_loss(student, teacher, heads), expected)
    with pytest.raises(MinikdError, match="`relation_heads` 3"):
        relation_loss(student, teacher, 3)


@every_loss
def test_no_gradient_reaches_the_teacher(loss, shape):
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2).requires_grad_()
    loss(student, teacher, MASK).backward()
    assert teacher.grad is None and student.grad.any()


@every_loss
def test_gradient_equals_finite_differences(loss, shape):
    teacher, student = random(*shape, seed=1), random(*shape, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, MASK), student)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_formats_are_computed_with_in_fp32_also_under_autocast(loss, shape, dtype):
    student, teacher = random(*shape, seed=1).to(dtype), random(*shape, seed=2).to(dtype)
    value = loss(student, teacher, MASK)
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), MASK), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, MASK), value) and value.dtype == torch.float32


@every_loss
def test_losses_stay_finite_for_large_values(loss, shape):
    student, teacher = (1e3 * random(*shape, seed=1)).float().requires_grad_(), (1e3 * random(*shape, seed=2)).float()
    value = loss(student, teacher, MASK)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [hidden_loss, cls_loss, score_loss, attention_loss])
def test_unequal_shapes_are_refused_and_not_broadcast(loss):
    with pytest.raises(MinikdError, match="must have one shape"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
