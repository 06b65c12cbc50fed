"""The loop against one written out in plain torch: the same batches give the same losses, rates and weights. And what
decides which epoch is kept."""

import json
import math
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import spread
from helpers import Settings, train
from independent import transformers
from test_training import CPU, make_model, tiny_data

import minikd.experiment.running
import minikd.training
from minikd.batching import make_batches, plan_batches
from minikd.checkpoints.config_json import config_to_json
from minikd.checkpoints.pretrained import to_hugging_face
from minikd.experiment.caches import model_fingerprint

data = pytest.fixture(scope="module")(tiny_data)

# Every setting differs from its default and from the others.
SETTINGS = Settings(
    epochs=3, batch_size=7, lr=3e-3, weight_decay=0.2, warmup_ratio=0.3, grad_accum=2, clip=0.8, label_smoothing=0.15,
    seed=11, alpha=0.35, T=3.0,
)  # fmt: skip


def twin_of(model):
    """transformers' model with the same weights, in train mode."""
    twin = transformers.BertForSequenceClassification(transformers.BertConfig(**config_to_json(model.config)))
    twin.to(model.classifier.weight.dtype).load_state_dict(to_hugging_face(model))
    return twin.train()


def batch_of(split, index):
    """Padded ids, mask and labels of the examples."""
    texts = [split.ids[split.offsets[i] : split.offsets[i + 1]] for i in index]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask, torch.tensor(split.labels[index])


def cross_entropy(logits, labels, smoothing):
    """Szegedy et al. 2016: the target is 1 − smoothing on the label and smoothing / C on every one."""
    target = torch.nn.functional.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1)


def distillation(logits, teacher, T):
    p = (teacher / T).softmax(dim=-1)
    return T**2 * (p * (p.log() - (logits / T).log_softmax(dim=-1))).sum(dim=-1)


def plain_loop(twin, split, validation, settings, teacher=None):
    """Trains `twin` as the documentation of the flags says. Returns the steps' (loss, rate, norm of the gradient) and
    each epoch's (validation accuracy, loss, weights)."""
    groups_per_epoch = math.ceil(math.ceil(len(split.labels) / settings.batch_size) / settings.grad_accum)
    total = settings.max_steps or settings.epochs * groups_per_epoch
    warmup = round(settings.warmup_ratio * total)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.named_parameters()}
    steps, epochs = [], []
    for epoch in range(math.ceil(total / groups_per_epoch)):
        plan = plan_batches(split.lengths, settings.batch_size, settings.seed, epoch)
        for start in range(0, len(plan), settings.grad_accum):
            if len(steps) == total:
                break
            index = np.concatenate(plan[start : start + settings.grad_accum])
            ids, mask, labels = batch_of(split, index)
            logits = twin(ids, mask).logits
            losses = cross_entropy(logits, labels, settings.label_smoothing)
            if teacher is not None:
                soft = distillation(logits, teacher[index], settings.T)
                losses = settings.alpha * losses + (1 - settings.alpha) * soft
            loss = losses.mean()
            twin.zero_grad()
            loss.backward()
            norm = sum(p.grad.square().sum() for p in twin.parameters()).sqrt()
            step = len(steps) + 1
            rate = settings.lr * (step / warmup if step <= warmup else (total - step + 1) / (total - warmup))
            steps.append((loss.item(), rate, norm.item()))
            scale = min(1.0, settings.clip / norm.item()) if settings.clip else 1.0
            with torch.no_grad():
                for name, p in twin.named_parameters():  # Loshchilov & Hutter 2019, algorithm 2
                    first, second = moments[name]
                    gradient = p.grad * scale
                    first.mul_(0.9).add_(0.1 * gradient)
                    second.mul_(0.999).add_(0.001 * gradient**2)
                    if p.ndim > 1:
                        p.mul_(1 - rate * settings.weight_decay)
                    p -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        twin.eval()
        with torch.no_grad():
            ids, mask, labels = batch_of(validation, np.arange(len(validation.labels)))
            logits = twin(ids, mask).logits
        twin.train()
        right = (logits.argmax(dim=-1) == labels).double().mean().item()
        weights = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
        epochs.append((right, cross_entropy(logits, labels, 0.0).mean().item(), weights))
    return steps, epochs


@pytest.mark.parametrize(
    "changes,distilled,dtype,tolerance",
    [
        ({}, True, torch.float64, 1e-6),
        ({}, False, torch.float64, 1e-6),
        ({"clip": 0.0}, True, torch.float64, 1e-6),
        ({"clip": Settings.clip, "warmup_ratio": 0.0, "grad_accum": 1}, False, torch.float64, 1e-6),
        ({"label_smoothing": 0.0, "epochs": 5, "weight_decay": 0.0, "seed": 3}, False, torch.float64, 1e-6),
        ({"max_steps": 17}, True, torch.float64, 1e-6),
        ({}, True, torch.float32, 1e-4),
    ],
    ids=["distilled", "alone", "unclipped", "default clip", "other settings", "max_steps", "fp32"],
)
def test_training_gives_the_losses_rates_and_weights_of_a_plain_loop(
    data, tmp_path, monkeypatch, changes, distilled, dtype, tolerance
):
    """In fp64 two programs for one formula agree to many digits; the fused AdamW cannot clip in it."""
    if dtype == torch.float64:
        monkeypatch.setattr(torch.optim, "AdamW", partial(unfused, torch.optim.AdamW))
    monkeypatch.setattr(minikd.experiment.running, "LOG_EVERY", 1)
    settings = replace(SETTINGS, **changes)
    targets = 3 * torch.randn(len(data[0]), 2, generator=torch.Generator().manual_seed(0))
    model = spread(make_model(dropout=0.0)).to(dtype)
    steps, epochs = plain_loop(twin_of(model), *data, settings, targets if distilled else None)

    teacher = (lambda batch: targets[batch.index]) if distilled else None
    history = train(model, *data, settings, tmp_path, CPU, teacher=teacher)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    lines = [line for line in log if "loss" in line]
    norms = [norm for _, _, norm in steps]
    assert not settings.clip or min(norms) < settings.clip < max(norms) / 2  # some steps are clipped, and not all
    assert [line["step"] for line in lines] == list(range(1, len(steps) + 1))
    assert [line["loss"] for line in lines] == pytest.approx([loss for loss, _, _ in steps], rel=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx([rate for _, rate, _ in steps], rel=1e-9)
    per_epoch = math.ceil(math.ceil(len(data[0]) / settings.batch_size) / settings.grad_accum)
    assert not settings.max_steps or 2 * per_epoch < len(steps) == settings.max_steps < 3 * per_epoch
    assert [line["epoch"] for line in lines] == pytest.approx([line["step"] / per_epoch for line in lines])
    assert [line["validation_accuracy"] for line in history] == pytest.approx([right for right, _, _ in epochs])
    assert [line["validation_loss"] for line in history] == pytest.approx([loss for _, loss, _ in epochs], rel=1e-5)
    *_, kept = max(epochs, key=lambda epoch: (epoch[0], -epoch[1]))
    for name, tensor in to_hugging_face(model).items():
        if dtype == torch.float64 or not name.endswith("key.bias"):  # no loss depends on it: its gradient is rounding
            assert (tensor - kept[name]).abs().max() < tolerance, name


def unfused(optimizer, groups, fused, **kwargs):
    return optimizer(groups, fused=False, **kwargs)


def batches_of(split, tmp_path, **changes):
    """By epoch, the examples of each batch."""
    seen, settings = [], replace(SETTINGS, grad_accum=1, **changes)

    def teacher(batch):
        seen.append(tuple(batch.index.tolist()))
        return torch.zeros(len(batch.index), 2)

    train(make_model(layers=1), split, split, settings, tmp_path, CPU, teacher=teacher)
    count = len(seen) // settings.epochs
    return [seen[i : i + count] for i in range(0, len(seen), count)]


def shared(one, other):
    """How many of 15 batches two epochs share. The longest texts of so few are always together."""
    return len({frozenset(batch) for batch in one} & {frozenset(batch) for batch in other})


def test_every_epoch_has_other_batches_and_every_example_once(data, tmp_path):
    epochs = batches_of(data[0], tmp_path)
    assert [sorted(sum(epoch, ())) for epoch in epochs] == [list(range(len(data[0])))] * 3
    assert shared(epochs[0], epochs[1]) < 3
    assert [len(batch) for batch in epochs[0]].count(7) == len(data[0]) // 7  # full but for the last


def test_another_seed_has_other_batches_and_the_same_seed_the_same(data, tmp_path):
    one, other, again = (batches_of(data[0], tmp_path / str(i), seed=seed) for i, seed in enumerate((11, 12, 11)))
    assert one == again
    assert shared(one[0], other[0]) < 3


def test_the_logged_speed_is_that_of_the_steps_since_the_line_before(data, tmp_path, monkeypatch):
    def slow(batch):
        time.sleep(0.03)
        return torch.zeros(len(batch.index), 2)

    monkeypatch.setattr(minikd.experiment.running, "LOG_EVERY", 2)
    settings = replace(SETTINGS, epochs=1, batch_size=10, grad_accum=1)
    train(make_model(layers=1), *data, settings, tmp_path, CPU, teacher=slow)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, *others = (line["examples_per_second"] for line in log if "loss" in line)
    assert len(others) == 4 and max(first, *others) <= 20 / 0.06
    assert max(others[1:]) > 0.45 * first  # counted from the beginning of the epoch, a third and less


def test_the_batches_of_an_epoch_are_not_sorted_by_length(data, tmp_path):
    longest = [int(data[0].lengths[list(batch)].max()) for batch in batches_of(data[0], tmp_path)[0]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_dropout_depends_on_the_seed_alone(data, tmp_path):
    prints = []
    for i, (state, seed) in enumerate(((1, 5), (2, 5), (1, 6))):
        model, split = make_model(), replace(data[0], offsets=data[0].offsets[:8], labels=data[0].labels[:7])
        torch.manual_seed(state)
        train(model, split, split, replace(SETTINGS, epochs=1, seed=seed), tmp_path / str(i), CPU)  # one batch
        prints.append(model_fingerprint(model))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "scores,patience,best,epochs",
    [
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 0.1), (0.7, 0.9), (0.7, 1.1), (0.6, 0.5)], 0, 4, 6),
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 0.1), (0.7, 0.9), (0.7, 1.1), (0.6, 0.5)], 2, 4, 6),
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 0.1), (0.7, 0.9), (0.7, 1.1), (0.6, 0.5)], 1, 2, 3),
        ([(0.7, 0.5), (0.7, 0.5), (0.7, 0.5), (0.9, 0.5)], 2, 1, 3),  # no better than the first
    ],
)
def test_the_best_epoch_is_kept_and_patience_counts_from_it(
    data, tmp_path, monkeypatch, scores, patience, best, epochs
):
    """The best accuracy, at a tie the lower loss, at a tie of both the earlier epoch."""
    prints, planned = [], iter(scores)

    def validation_scores(model, *_):
        prints.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        accuracy, loss = next(planned)
        return {"validation_accuracy": accuracy, "validation_loss": loss, "confusion": []}

    monkeypatch.setattr(minikd.training, "validation_scores", validation_scores)
    model = make_model()
    settings = replace(SETTINGS, epochs=len(scores), patience=patience)
    history = train(model, *data, settings, tmp_path, CPU)
    assert [line["epoch"] for line in history] == list(range(1, epochs + 1))
    for name, tensor in model.encoder.layers.state_dict().items():
        kept = [torch.equal(tensor, weights[f"encoder.layers.{name}"]) for weights in prints]
        assert kept[best - 1] and kept.count(True) <= 1 + kept[best:].count(True), name
    assert torch.equal(model.classifier.weight, prints[best - 1]["classifier.weight"])
    assert sum(torch.equal(model.classifier.weight, weights["classifier.weight"]) for weights in prints) == 1


def test_batches_hold_the_tokens_and_labels_of_their_examples_and_the_padding_id_elsewhere(data):
    split, total = replace(data[0], pad_token_id=7), 0
    for index in plan_batches(split.lengths, 7, seed=0):
        (batch,) = make_batches(split, [index], CPU)
        ids, mask, labels = batch_of(split, index)
        real = mask.bool()
        assert torch.equal(batch.index, torch.from_numpy(index)) and torch.equal(batch.labels, labels)
        assert torch.equal(batch.input_ids, ids.masked_fill(~real, 7))
        assert batch.attention_mask is None if real.all() else torch.equal(batch.attention_mask, real)
        total += int((~real).sum())
    assert total > 0
