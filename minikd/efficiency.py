"""Cost of a model: parameters, size of its weights, and time per example."""

import statistics
import time

import numpy as np
import torch

from minikd.batching import TokenizedSplit, make_batches, plan_batches
from minikd.inference import autocast
from minikd.model import Classifier, count_parameters


def model_size(model: Classifier) -> dict:
    """parameters (a count) and size_mb (MiB that they take in memory and, within a few kB, on disk)."""
    bytes_used = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"parameters": count_parameters(model), "size_mb": bytes_used / 2**20}


def measure_speed(
    models: list[Classifier],
    splits: list[TokenizedSplit],
    device: torch.device,
    precision: str,
    batch_size: int = 32,
    examples: int = 128,
) -> list[dict]:
    """latency_ms (milliseconds per example, in batches) and throughput (examples/s) of each model, side by side.

    `splits` holds the same texts for every model, as its own tokenizer cuts them. All models read the same `examples`
    examples, drawn with a fixed seed, in batches of similar length. After a warm-up the models take turns, so that a
    busy moment of the machine hits all of them; the median over the turns counts. Only the forward pass is timed; the
    device is synchronised before each reading of the clock.
    """
    chosen = np.random.default_rng(0).permutation(len(splits[0]))[:examples]
    work = []
    for model, split in zip(models, splits):
        plan = [chosen[index] for index in plan_batches(split.lengths[chosen], batch_size)]
        work.append((model.to(device).eval(), list(make_batches(split, plan, device))))

    def one_pass(model: Classifier, batches: list) -> float:
        synchronize(device)
        started = time.perf_counter()
        with torch.inference_mode(), autocast(device, precision):
            for batch in batches:
                model(batch.input_ids, batch.attention_mask)
        synchronize(device)
        return time.perf_counter() - started

    for _ in range(2):  # the first pass is a warm-up: allocations, choice of kernels
        slowest = max(one_pass(*item) for item in work)
    turns = min(max(int(3 / slowest), 3), 30)  # about three seconds for the slowest model
    seconds = [[one_pass(*item) for item in work] for _ in range(turns)]
    medians = [statistics.median(column) for column in zip(*seconds)]
    return [{"latency_ms": 1000 * median / len(chosen), "throughput": len(chosen) / median} for median in medians]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
