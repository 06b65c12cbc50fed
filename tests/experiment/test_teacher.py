"""The teacher's targets: of which examples they are, and what the oracle's mean."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from equality import CONFIGS, randomised

from minikd.batching import plan_batches
from minikd.checkpoints.pretrained import from_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.classifier import TextClassifier
from minikd.config import TrainConfig
from minikd.datasets import Dataset, Split, load_dataset
from minikd.experiment.caches import cached_tokens, model_fingerprint
from minikd.experiment.running import Run
from minikd.experiment.teacher import copy_teacher, teacher_logits
from minikd.experiment.training import distill
from minikd.losses import kd_loss, soft_loss
from minikd.tokenizer import train_wordpiece

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=1e-3)


@pytest.fixture(scope="module")
def sample():
    """The first 200 reviews of the sample, whose true probabilities are known, as a corpus, and a tokenizer."""
    train = load_dataset("sample").train
    split, few = (Split(train.texts[:n], train.labels[:n], train.probabilities[:n]) for n in (200, 20))
    return Dataset("sample", ("a", "b"), split, few, few), train_wordpiece(train.texts, 500)


def classifier(tokenizer, seed=0, precision="fp32"):
    """A classifier of the sample's two labels, of random weights, for texts of 32 tokens."""
    config = replace(CONFIGS["bert"], vocab_size=500, max_position_embeddings=32, labels=("a", "b"))
    return TextClassifier(randomised(config, seed), tokenizer, device=CPU, precision=precision)


def targets(monkeypatch, knowledge, data, tokenizer, online=False, precision="fp32"):
    """Distils a student for an epoch. Returns, of each batch, the logits it was to imitate and the indices of the
    examples; and the run."""
    seen, run = [], Run()

    def spy(logits, teacher_logits, *settings, **soft):
        seen.append(teacher_logits)
        return kd_loss(logits, teacher_logits, *settings, **soft)

    monkeypatch.setattr("minikd.training.kd_loss", spy)
    student = classifier(tokenizer, 1, precision)
    distill(student, knowledge, data, CONFIG, online=online, run=run)
    lengths = cached_tokens(data.train, tokenizer, 32).lengths
    plan = plan_batches(lengths, CONFIG.batch_size, CONFIG.seed)
    assert not np.array_equal(np.sort(plan[0]), plan[0])  # shuffled
    return list(zip(seen, map(torch.from_numpy, plan), strict=True)), run


def test_the_oracles_targets_are_the_logarithms_of_the_true_probabilities(sample, tmp_path, monkeypatch):
    data, tokenizer = sample
    knowledge = teacher_logits([], data, {})
    for logits, index in targets(monkeypatch, knowledge, data, tokenizer)[0]:
        p = torch.from_numpy(data.train.probabilities[index.numpy()])
        torch.testing.assert_close(logits, p.log() - p.log().mean(dim=-1, keepdim=True))
        torch.testing.assert_close(logits.mean(dim=-1), torch.zeros(len(p)))  # as `mean_teacher`: --soft-loss mse asks
        torch.testing.assert_close(logits.softmax(dim=-1), p, rtol=0, atol=1e-5)


def test_a_certain_oracle_gives_finite_targets(tmp_path):
    split = Split(["a", "b"], [0, 1], np.array([[1, 0], [0, 1]], np.float32))
    logits = teacher_logits([], SimpleNamespace(train=split), {})
    assert logits.isfinite().all() and torch.equal(logits.argmax(dim=-1), torch.tensor([0, 1]))


@pytest.mark.parametrize("T", [1.0, 2.0, 8.0])
def test_a_student_with_the_true_probabilities_is_the_best_fit_to_the_oracle_at_any_temperature(sample, tmp_path, T):
    data, _ = sample
    p = torch.from_numpy(data.train.probabilities)
    student = (p.log() + 3.0).requires_grad_()  # logits are free up to a constant
    loss = soft_loss(student, teacher_logits([], data, {}), T).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["cache", "online", "library"])
def test_the_targets_are_the_teachers_logits_on_the_texts_of_the_batch(sample, tmp_path, monkeypatch, mode):
    data, tokenizer = sample
    teacher, tokens = classifier(tokenizer), cached_tokens(data.train, tokenizer, 32)
    wanted = torch.stack([  # one text at a time
        teacher.model(torch.from_numpy(tokens.ids[start:end].astype(np.int64))[None]).logits[0].detach()
        for start, end in zip(tokens.offsets, tokens.offsets[1:])
    ])  # fmt: skip
    assert wanted.std(dim=0).min() > 0.1  # a row taken from another text would show
    teacher.model.train()  # as its own training has left it; its dropout is off when it teaches
    cache = tmp_path / "logits.safetensors"
    knowledge = teacher_logits([teacher], data, {"teacher": cache}) if mode == "cache" else teacher
    batches = []
    teacher.model.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    seen, run = targets(monkeypatch, knowledge, data, tokenizer, online=mode == "online")
    for logits, index in seen:
        torch.testing.assert_close(logits, wanted[index], rtol=1e-4, atol=1e-4)
        assert not logits.requires_grad
    # anew in each step, or once before
    assert batches == [len(index) for _, index in seen] if mode == "online" else sum(batches) == 200 * (mode != "cache")
    assert cache.exists() == (mode == "cache")
    another = targets(monkeypatch, classifier(tokenizer, 2), data, tokenizer, online=mode == "online")[1]
    assert len({run.made_from["teacher"], another.made_from["teacher"], ""}) == 3  # the key tells teachers apart


@pytest.mark.parametrize("mode", ["cache", "online"])
def test_the_teacher_runs_in_the_precision_asked_for(sample, tmp_path, monkeypatch, mode):
    data, tokenizer = sample
    logits = {}
    for precision in ("fp32", "bf16"):
        teacher = classifier(tokenizer, precision=precision)
        knowledge = teacher if mode == "online" else teacher_logits([teacher], data, {"teacher": tmp_path / precision})
        logits[precision] = targets(monkeypatch, knowledge, data, tokenizer, mode == "online", precision)[0][0][0]
    error = (logits["bf16"] - logits["fp32"]).abs().max()
    assert 1e-3 < error < 0.1 * logits["fp32"].abs().max()


def copied(folder):
    classifier = TextClassifier(from_pretrained(folder), load_tokenizer(folder), device=CPU, precision="fp32")
    classifier.source = str(folder)
    return classifier


def test_a_copy_of_a_teacher_has_no_log_of_the_one_before(fine_tuned, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/log.jsonl").write_text('{"step": 10, "loss": 0.5}\n')
    copy_teacher(copied(fine_tuned), tmp_path / "teacher", {})
    assert (tmp_path / "teacher/run.json").exists() and not (tmp_path / "teacher/log.jsonl").exists()


def test_a_copy_says_that_it_discards_an_interrupted_run(fine_tuned, tmp_path, capsys):
    copy_teacher(copied(fine_tuned), tmp_path / "teacher", {})
    assert "discarded" not in capsys.readouterr().out
    (tmp_path / "teacher/.partial").mkdir()
    copy_teacher(copied(fine_tuned), tmp_path / "teacher", {})
    assert f"teacher: the interrupted run in {tmp_path / 'teacher'} is discarded\n" in capsys.readouterr().out
    assert not (tmp_path / "teacher/.partial").exists() and (tmp_path / "teacher/run.json").exists()


def test_a_copy_takes_the_place_of_another_teacher_and_its_log(fine_tuned, trained, tmp_path):
    for source in (fine_tuned, trained):
        teacher = from_pretrained(source)
        copy_teacher(copied(source), tmp_path / "teacher", {})
        assert model_fingerprint(from_pretrained(tmp_path / "teacher")) == model_fingerprint(teacher)
        assert not (tmp_path / "teacher/log.jsonl").exists()
        (tmp_path / "teacher/log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
