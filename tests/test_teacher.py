"""The teacher's targets: of which examples they are, and what the oracle's mean."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from equality import CONFIGS, randomised

from minikd.batching import make_batches, plan_batches
from minikd.checkpoints.pretrained import from_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.datasets import Split, load_dataset
from minikd.experiment.caches import cached_tokens, model_fingerprint
from minikd.experiment.teacher import keep_copy, source_of_logits
from minikd.losses import soft_loss
from minikd.tokenizer import train_wordpiece

CPU = torch.device("cpu")


def flags(folder, **given):
    return SimpleNamespace(**dict(output_dir=folder, teacher_logits="cache", precision="fp32") | given)


@pytest.fixture(scope="module")
def sample():
    """The first 200 reviews of the sample, whose true probabilities are known, and their tokens."""
    train = load_dataset("sample").train
    split = Split(train.texts[:200], train.labels[:200], train.probabilities[:200])
    return split, cached_tokens(split, train_wordpiece(train.texts, 500), 32)


def shuffled(tokens):
    return list(make_batches(tokens, plan_batches(tokens.lengths, 16, 42, 1, True), CPU))


def test_the_oracles_targets_are_the_logarithms_of_the_true_probabilities(sample, tmp_path):
    split, tokens = sample
    logits_of, key = source_of_logits(None, tokens, SimpleNamespace(train=split), flags(tmp_path), CPU)
    batches = shuffled(tokens)
    assert key == "oracle" and not np.array_equal(np.sort(batches[0].index), batches[0].index)
    for batch in batches:
        p = torch.from_numpy(split.probabilities[batch.index.numpy()])
        torch.testing.assert_close(logits_of(batch), p.log())
        torch.testing.assert_close(logits_of(batch).softmax(dim=-1), p, rtol=0, atol=1e-5)


def test_a_certain_oracle_gives_finite_targets(tmp_path):
    split = Split(["a", "b"], [0, 1], np.array([[1, 0], [0, 1]], np.float32))
    logits_of, _ = source_of_logits(None, None, SimpleNamespace(train=split), flags(tmp_path), CPU)
    logits = logits_of(SimpleNamespace(index=torch.tensor([1, 0])))
    assert logits.isfinite().all() and torch.equal(logits.argmax(dim=-1), torch.tensor([1, 0]))


@pytest.mark.parametrize("T", [1.0, 2.0, 8.0])
def test_a_student_with_the_true_probabilities_is_the_best_fit_to_the_oracle_at_any_temperature(sample, tmp_path, T):
    split, tokens = sample
    logits_of, _ = source_of_logits(None, tokens, SimpleNamespace(train=split), flags(tmp_path), CPU)
    batch = shuffled(tokens)[0]
    p = torch.from_numpy(split.probabilities[batch.index.numpy()])
    student = (p.log() + 3.0).requires_grad_()  # logits are free up to a constant
    loss = soft_loss(student, logits_of(batch), T)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["cache", "online"])
def test_the_targets_are_the_teachers_logits_on_the_texts_of_the_batch(sample, tmp_path, mode):
    split, tokens = sample
    teacher = randomised(replace(CONFIGS["bert"], vocab_size=500, max_position_embeddings=32, labels=("a", "b")))
    wanted = torch.stack([  # one text at a time
        teacher(torch.from_numpy(tokens.ids[start:end].astype(np.int64))[None]).logits[0].detach()
        for start, end in zip(tokens.offsets, tokens.offsets[1:])
    ])  # fmt: skip
    assert wanted.std(dim=0).min() > 0.1  # a row taken from another text would show
    data, args = SimpleNamespace(train=split), flags(tmp_path, teacher_logits=mode)
    teacher.train()  # as its own training has left it; its dropout is off when it teaches
    logits_of, key = source_of_logits(teacher, tokens, data, args, CPU)
    assert key == model_fingerprint(teacher)
    passes = []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    for batch in shuffled(tokens):
        torch.testing.assert_close(logits_of(batch), wanted[batch.index], rtol=1e-4, atol=1e-4)
        assert not logits_of(batch).requires_grad
    assert len(passes) == (2 * len(shuffled(tokens)) if mode == "online" else 0)  # anew in each step, or once before
    assert (tmp_path / "teacher-logits.safetensors").exists() == (mode == "cache")


@pytest.mark.parametrize("mode", ["cache", "online"])
def test_the_teacher_runs_in_the_precision_asked_for(sample, tmp_path, mode):
    split, tokens = sample
    teacher = randomised(replace(CONFIGS["bert"], vocab_size=500, max_position_embeddings=32, labels=("a", "b")))
    batch, logits = shuffled(tokens)[0], {}
    for precision in ("fp32", "bf16"):
        args = flags(tmp_path / precision, teacher_logits=mode, precision=precision)
        logits[precision] = source_of_logits(teacher, tokens, SimpleNamespace(train=split), args, CPU)[0](batch)
    error = (logits["bf16"] - logits["fp32"]).abs().max()
    assert 1e-3 < error < 0.1 * logits["fp32"].abs().max()


def test_a_copy_of_a_teacher_has_no_log_of_the_one_before(fine_tuned, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/log.jsonl").write_text('{"step": 10, "loss": 0.5}\n')
    given = from_pretrained(fine_tuned), load_tokenizer(fine_tuned), flags(tmp_path, teacher=str(fine_tuned)), CPU
    keep_copy(*given)
    assert (tmp_path / "teacher/run.json").exists() and not (tmp_path / "teacher/log.jsonl").exists()


def test_a_copy_says_that_it_discards_an_interrupted_run(fine_tuned, tmp_path, capsys):
    given = from_pretrained(fine_tuned), load_tokenizer(fine_tuned), flags(tmp_path, teacher=str(fine_tuned)), CPU
    keep_copy(*given)
    assert "discarded" not in capsys.readouterr().out
    (tmp_path / "teacher/.partial").mkdir()
    keep_copy(*given)
    assert f"teacher: the interrupted run in {tmp_path / 'teacher'} is discarded\n" in capsys.readouterr().out
    assert not (tmp_path / "teacher/.partial").exists() and (tmp_path / "teacher/run.json").exists()


def test_a_copy_takes_the_place_of_another_teacher_and_its_log(fine_tuned, trained, tmp_path):
    for source in (fine_tuned, trained):
        teacher = from_pretrained(source)
        keep_copy(teacher, load_tokenizer(source), flags(tmp_path, teacher=str(source)), CPU)
        assert model_fingerprint(from_pretrained(tmp_path / "teacher")) == model_fingerprint(teacher)
        assert not (tmp_path / "teacher/log.jsonl").exists()
        (tmp_path / "teacher/log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
