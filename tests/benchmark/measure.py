"""How the benchmark measures: clocks, counts of operations, and the passes of both sides.

In every comparison the sides take turns in one process, so that a busy moment of the machine hits both, and the ratio
is taken within each round.
"""

import contextlib
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers import Settings, train

from minikd.batching import Batch, TokenizedSplit
from minikd.config import BERT_BASE, BERT_SMALL, DISTILBERT, EncoderConfig
from minikd.evaluation.costs import synchronize
from minikd.inference import DTYPES, autocast, forward_only
from minikd.losses import hard_loss
from minikd.model import Classifier
from minikd.training import clip_gradients, make_optimizer

MINILM = replace(BERT_BASE, num_hidden_layers=6, hidden_size=384, intermediate_size=1536)  # all-MiniLM-L6-v2
SHAPES = {"student": BERT_SMALL, "MiniLM": MINILM, "DistilBERT": DISTILBERT, "BERT-base": BERT_BASE}
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
BATCH = 32
# Seconds that one measurement lasts at least, where there is a budget: shorter passes are repeated. What a context does
# once, such as to convert the weights, is then a small part of it.
LEAST = 0.4
MOST_ROUNDS = 15


def settings_of(precision: str, lr: float = 5e-5, seed: int = 42) -> Settings:
    """One epoch in batches of 32, everything else as by default: the settings of every training run here."""
    return Settings(epochs=1, batch_size=32, lr=lr, seed=seed, precision=precision)


def flops(config: EncoderConfig, batch: int, length: int, training: bool) -> float:
    """Floating-point operations that a pass over (batch, length) tokens needs, two for a multiply-add.

    Counted are the matrix products: linear layers, and queries by keys and weights by values in the attention. The last
    layer needs keys and values of all tokens and everything else for [CLS] alone. A training step is three passes:
    forward, and products of the same size for the gradients of inputs and of weights. Embeddings, LayerNorms, GELU,
    dropout, clipping and optimizer count as nothing, so that no program reaches the whole rate of the machine.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = 4 * hidden**2 + 2 * hidden * inner  # query, key, value, output; feed-forward network: a token and layer
    full = length * linear + 2 * length**2 * hidden
    last = length * 2 * hidden**2 + (linear - 2 * hidden**2) + 2 * length * hidden
    head = hidden**2 + hidden * len(config.labels)
    multiply_adds = (config.num_hidden_layers - 1) * full + last + head
    return 2.0 * batch * multiply_adds * (3 if training else 1)


def matrix_rate(device: torch.device, precision: str, size: int, repeats: int = 5) -> float:
    """GFLOP/s of the fastest of several products of two (size, size) matrices."""
    left, right = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    left @ right  # warm-up
    best = math.inf
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def seconds_of(run: Callable[[int], None], count: int, device: torch.device) -> float:
    """Seconds that each of `count` passes takes, on average."""
    synchronize(device)
    started = time.perf_counter()
    run(count)
    synchronize(device)
    return (time.perf_counter() - started) / count


def race(sides: dict[str, Callable[[int], None]], device, rounds: int, budget: float) -> dict[str, list[float]]:
    """Seconds per pass of each side, one figure for each round. A side is a function that makes n passes.

    Every side first warms up. There are `rounds` rounds, and more where they fit into `budget` seconds.
    """
    first = {name: seconds_of(run, 1, device) for name, run in sides.items()}
    if sum(first.values()) < 1:  # else the first pass's extra work is lost in it
        first = {name: seconds_of(run, 1, device) for name, run in sides.items()}
    count = max(1, math.ceil(LEAST / min(first.values()))) if budget else 1
    fitting = int(budget / (count * sum(first.values())))
    return alternate(
        {name: lambda run=run: seconds_of(run, count, device) for name, run in sides.items()},
        min(max(rounds, fitting), max(rounds, MOST_ROUNDS)),
    )


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The figures of each side, whose functions are called in turn: A, B, A, B, …"""
    figures = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            figures[name].append(measure())
    return figures


def ratio_of(numerator: list[float], denominator: list[float]) -> dict:
    """The median, least and largest ratio of two sides within a round, and the number of rounds."""
    ratios = [a / b for a, b in zip(numerator, denominator)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": len(ratios)}


def compared(times: dict[str, list[float]]) -> dict:
    """Median seconds of "ours" and "theirs", and how many times as long theirs takes."""
    medians = {side: statistics.median(times[side]) for side in ("ours", "theirs")}
    return medians | ratio_of(times["theirs"], times["ours"])


def random_batch(config: EncoderConfig, size: int, length: int, device: torch.device) -> Batch:
    """`size` texts of random tokens, of `length` tokens but for the last, which is one shorter and padded.

    A single text has no padding and hence no mask, as from `minikd.batching.make_batches`.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, config.vocab_size, (size, length), generator=generator)
    mask = torch.ones(size, length, dtype=torch.bool)
    mask[-1, -1] = size == 1
    labels = torch.randint(len(config.labels), (size,), generator=generator)
    tensors = torch.arange(size), ids.where(mask, config.pad_token_id), None if size == 1 else mask, labels
    return Batch(*(None if tensor is None else tensor.to(device) for tensor in tensors))


def their_mask(batch: Batch) -> torch.Tensor:
    """The mask (B, N) of zeros and ones that transformers' collator makes, also where nothing is padded."""
    return torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()


def forward_of(model, batch: Batch) -> Callable[[], torch.Tensor]:
    """A function that returns the logits (B, C) of our model or of transformers' for the batch."""
    mask = batch.attention_mask if isinstance(model, Classifier) else their_mask(batch)
    return lambda: model(batch.input_ids, attention_mask=mask).logits


def training_passes(model, batches: list[Batch], device: torch.device, precision: str) -> Callable[[int], None]:
    """A function that makes a training step on each of the batches, n times over, of our model or of transformers'.

    A step is forward, loss, backward, clipping to norm 1, fused AdamW, and dropping the gradients. Each side clips as
    its training loop does: ours within AdamW, theirs before it.
    """
    forwards = [(forward_of(model, batch), batch.labels) for batch in batches]
    optimizer = make_optimizer(model, settings_of(precision), device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(forward, labels) -> None:
        with autocast(device, precision):
            logits = forward()
        scaler.scale(hard_loss(logits, labels)).backward()
        scaler.unscale_(optimizer)
        if isinstance(model, Classifier):
            clip_gradients(optimizer, 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def run(count: int) -> None:
        model.train()
        for _ in range(count):
            for forward, labels in forwards:
                step(forward, labels)

    return run


def inference_passes(model, batches: list[Batch], device: torch.device, precision: str) -> Callable[[int], None]:
    """A function that reads the batches n times without gradients, in one context, as a loop over a split does.

    The context is the same for ours and theirs: torch.no_grad, in which autocast converts a weight once for all passes,
    and not torch.inference_mode, in which it does so in every pass and both are slower.
    """
    forwards = [forward_of(model, batch) for batch in batches]

    def run(count: int) -> None:
        model.eval()
        with forward_only(device, precision):
            for _ in range(count):
                for forward in forwards:
                    forward()

    return run


def epoch_seconds(
    model: Classifier, data: TokenizedSplit, validation: TokenizedSplit, settings, device, **more
) -> float:
    """Seconds of an epoch with log, state and validation, as distill.py trains; `model` is trained by it."""
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return train(model, data, validation, settings, Path(folder), device, **more)[0]["seconds"]


def fresh(config: EncoderConfig, device: torch.device | str = "cpu") -> Classifier:
    """A classifier with random weights, always the same ones."""
    torch.manual_seed(0)
    return Classifier(config).to(device)


def random_split(config: EncoderConfig, lengths: list[int], tokens: int | None = None) -> TokenizedSplit:
    """Examples with the given lengths, of random tokens among the first `tokens` of the vocabulary (default: all).

    All of them occur, and equally often, if there is room: what a step costs depends on how many rows of the
    word-embedding table the texts use (`minikd.used_rows`).
    """
    random, offsets = np.random.default_rng(0), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.permutation(np.resize(np.arange(1, tokens or config.vocab_size, dtype=np.int32), offsets[-1]))
    labels = random.integers(len(config.labels), size=len(lengths))
    return TokenizedSplit(ids, offsets, labels, config.pad_token_id, "random")


def config_of(args, shape: str) -> EncoderConfig:
    """The shape of that name; in a quick run a tiny one of the same family."""
    return replace(SHAPES[shape], **TINY) if args.quick else SHAPES[shape]


def read_rates(args, figures: dict) -> None:
    """Adds one reading of the matrix rate in each precision to figures["rates"], {precision: [GFLOP/s, …]}."""
    size = 256 if args.quick else 8192 if args.device.type == "cuda" else 2048
    for precision in dict.fromkeys(("fp32", *args.precisions)):
        rate = matrix_rate(args.device, precision, size)
        figures.setdefault("rates", {}).setdefault(precision, []).append(rate)
        say(f"matrix rate, {precision}: {rate:.0f} GFLOP/s")


def describe(figure: dict) -> str:
    """A ratio with its spread, in words."""
    return f"{figure['ratio']:.2f}x ({figure['low']:.2f} to {figure['high']:.2f}, {figure['rounds']} rounds)"


def say(line: str) -> None:
    """Prints a measurement as soon as it is made."""
    print(line, flush=True)
