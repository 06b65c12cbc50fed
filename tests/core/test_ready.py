"""A few texts are labelled by a model that is made ready once: it gives the same logits, and follows its weights."""

import pytest
import torch

from minikd import TextClassifier
from minikd.batching import tokenize
from minikd.inference import compute_logits, converted

TEXTS = ["a great film", "dull", "not a very fine plot", "superb and slow"]


@pytest.fixture(params=["fp32", "bf16"])
def classifier(request):
    return TextClassifier.from_scratch(TEXTS * 5, ("bad", "good"), layers=2, hidden=64, vocab_size=60, max_length=16,
                                       device="cpu", precision=request.param)  # fmt: skip


def expected(classifier):
    tokens = tokenize(TEXTS, None, classifier.tokenizer, classifier.max_length)
    return compute_logits(classifier.model, tokens, classifier.device, classifier.precision)


def test_logits_are_the_same_to_the_bit(classifier):
    assert classifier.logits(TEXTS).equal(expected(classifier))
    assert classifier.logits(TEXTS).equal(expected(classifier))


def test_a_change_of_any_weight_is_followed(classifier):
    before = classifier.logits(TEXTS)
    for parameter in classifier.model.parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
        assert classifier.logits(TEXTS).equal(expected(classifier))
    assert not classifier.logits(TEXTS).equal(before)
    classifier.model = TextClassifier.from_scratch(TEXTS * 5, ("bad", "good"), layers=1, hidden=64, vocab_size=60).model
    assert classifier.logits(TEXTS).equal(expected(classifier))


def test_a_model_that_was_training_is_used_in_eval_mode(classifier):
    classifier.model.train()
    assert classifier.logits(TEXTS).equal(classifier.logits(TEXTS))
    assert classifier.model.training


def test_another_precision_or_place_is_followed(classifier):
    classifier.logits(TEXTS)
    classifier.precision = "bf16" if classifier.precision == "fp32" else "fp32"
    assert classifier.logits(TEXTS).equal(expected(classifier))
    for parameter in classifier.model.parameters():
        parameter.data = parameter.data * 2  # as `model.to` moves it: the same object, elsewhere
    assert classifier.logits(TEXTS).equal(expected(classifier))


def test_a_model_of_inference_mode_can_be_used():
    with torch.inference_mode():
        classifier = TextClassifier.from_scratch(TEXTS, ("bad", "good"), layers=1, hidden=64, vocab_size=60)
    assert classifier.logits(TEXTS).shape == (4, 2)


def test_nothing_is_converted_in_a_pass_and_only_matrices_are_held_twice(classifier):
    twin, own = converted(classifier.model, "bf16"), classifier.model
    shared = {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert len(shared) == sum(1 for name, _ in own.named_parameters() if "embeddings" in name or "orm" in name) + 2
    assert {p.dtype for n, p in twin.named_parameters() if "feed_forward.out" in n} == {torch.bfloat16}
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    if classifier.precision == "bf16":
        classifier.logits(TEXTS[:1])
        with torch.profiler.profile(record_shapes=True) as profile:
            classifier.logits(TEXTS[:1])
        copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
        assert [256, 64] not in copied and [64, 256] not in copied
