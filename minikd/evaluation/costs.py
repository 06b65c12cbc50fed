"""Cost of a model: parameters, size of its weights, time and memory of a forward pass, memory of training."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minikd.batching import Batch, TokenizedSplit, make_batches
from minikd.checkpoints.config_json import config_from_json, config_to_json
from minikd.config import TrainConfig
from minikd.evaluation.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from minikd.inference import forward_only
from minikd.losses import hard_loss
from minikd.model import Classifier, ClassifierOutput, Ensemble, count_parameters
from minikd.techniques.lora import LoRA, add_lora
from minikd.techniques.quantize import new_model
from minikd.training import BatchLoss, TrainState, make_optimizer, training_step
from minikd.used_rows import only_used_rows

SINGLES = 16  # examples that are timed one at a time
LARGEST = 128  # examples in the largest batch that is timed, and in the pass whose memory is measured
TURNS = 3, 30  # at least and at most; how many in between depends on the time they take
CHILD_SECONDS = 600  # a process that measures memory and takes longer only swaps


def model_size(model: Classifier) -> dict:
    """parameters: their number (before quantisation, if any); size_mb: the MiB that they take in memory and, within a
    few kB, on disk."""
    bytes_used = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if model.config.quantization:
        with torch.device("meta"):
            model = Classifier(replace(model.config, quantization=None))
    return {"parameters": count_parameters(model), "size_mb": bytes_used / 2**20}


def measure_speed(
    models: list[Classifier],
    splits: list[TokenizedSplit],
    device: torch.device,
    precision: str,
    seconds: float = 5.0,
) -> list[dict]:
    """The time that each model's forward pass takes, all models side by side. One dictionary per model:

    latency_1_ms                       ms per example, one at a time (mean of 16 examples)
    batch_100_ms, batch_128_ms         ms per batch of 100 and of 128
    latency_ms                         ms per example in the batch of 128
    throughput                         examples/s in the batch of 100
    tokens_per_example, padded_tokens  of the 128 examples: their mean length, and the longest, to which all are padded

    `splits` holds the same texts for every model, as its own tokenizer splits them. All models read the same examples,
    drawn with a fixed seed and, as they would come to a server, not sorted by length; a split of fewer than 128 is
    repeated, and a line says so. Models take turns, so that a busy moment of the machine hits all of them: as many
    turns as fit into `seconds`, but 3 to 30, of which the median counts. Models stay on `device`, in their mode.
    """
    if len(splits[0]) < LARGEST:
        print(f"speed: the split has {len(splits[0])} examples; the batches of 100 and {LARGEST} repeat them")
    work, results = [], []
    for model, split in zip(models, splits):
        chosen = _measured_examples(split)
        plan = [chosen, chosen[:100], *chosen[:SINGLES, None]]
        work.append((model.to(device), list(make_batches(split, plan, device))))

    medians = 1000 * np.median(_take_turns(work, device, precision, seconds), axis=0)  # ms (models, batches)
    for split, (batch_128, batch_100, *singles) in zip(splits, medians.tolist()):
        lengths = split.lengths[_measured_examples(split)]
        results.append({
            "latency_1_ms": statistics.mean(singles),
            "batch_100_ms": batch_100,
            "batch_128_ms": batch_128,
            "latency_ms": batch_128 / LARGEST,
            "throughput": 1000 * 100 / batch_100,
            "tokens_per_example": float(lengths.mean()),
            "padded_tokens": int(lengths.max()),
        })  # fmt: skip
    return results


def _measured_examples(split: TokenizedSplit) -> np.ndarray:
    """Positions (128,) in the split of the examples that are measured; a split of fewer is repeated."""
    return np.resize(np.random.default_rng(0).permutation(len(split)), LARGEST)


def _take_turns(work: list[tuple[Classifier, list[Batch]]], device, precision: str, seconds: float) -> list:
    """Seconds (turns, models, batches): in each turn, every model reads all its batches once."""

    def turn() -> list[list[float]]:
        return [_pass_seconds(model, batches, device, precision) for model, batches in work]

    for model, batches in work:  # warm-up: allocations, choice of kernels
        _pass_seconds(model, batches[-SINGLES:], device, precision)
    with tqdm(total=1 + TURNS[0], desc="speed", unit="turn", leave=False) as bar:
        first = turn()
        bar.update()
        took = sum(map(sum, first))
        count = min(max(int(seconds / max(took, 1e-9)), TURNS[0]), TURNS[1])
        # The first turn warms up the large batches and does not count, unless it is so long that this does not matter.
        turns = [first] if took > seconds else []
        bar.total = 1 + count - len(turns)
        while len(turns) < count:
            turns.append(turn())
            bar.update()
    return turns


def _pass_seconds(model: Classifier, batches: list[Batch], device: torch.device, precision: str) -> list[float]:
    """Seconds that the forward pass of each batch takes."""
    was_training, times = model.training, []
    model.eval()
    with forward_only(device, precision):
        for batch in [batches[-1], *batches]:  # the first pass converts the weights, once for all, and is not counted
            synchronize(device)
            started = time.perf_counter()
            model(batch.input_ids, batch.attention_mask)
            synchronize(device)
            times.append(time.perf_counter() - started)
    model.train(was_training)
    return times[1:]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def inference_memory_mb(model: Classifier, split: TokenizedSplit, device: torch.device, precision: str) -> float | None:
    """Peak memory, MiB, of a forward pass over the batch of 128 that `measure_speed` times; None where not measurable.

    CPU: the whole resident set of a fresh process that holds this model alone, as a server of it would: Python and
    torch (some 200 MiB or more, the same for every model), weights and activations. It builds the model and the batch
    anew, because memory depends on shapes alone. If it fails, a line says so. CUDA: weights and activations in torch's
    allocator, less what else is on the device. mps keeps no peak.
    """
    if device.type == "cuda":
        return _cuda_pass_mb(model, split, device, precision)
    if peak_memory_mb(device) is None:
        return None
    return _in_own_process(_request(model, split.lengths[_measured_examples(split)], precision), "a forward pass")


def training_memory_mb(
    model: Classifier,
    data: TokenizedSplit,
    batch_size: int,
    device: torch.device,
    precision: str,
    lora: LoRA | None = None,
) -> float | None:
    """Peak memory, MiB, of training a model of this shape, or adapters on it (`lora`), on a batch of the longest texts;
    None where not measurable.

    That of a fresh process that does nothing else, so that models of one shape have one figure: weights, gradients,
    AdamW's moments and activations, without a teacher that runs in each step. CPU: the whole resident set, with Python
    and torch. CUDA: what torch's allocator gave to tensors. If the process fails, a line says so. mps keeps no peak.
    """
    if peak_memory_mb(device) is None:
        return None
    training = {"device": device.type, "rows": len(np.unique(data.ids)), "lora": lora and asdict(lora)}
    longest = np.sort(data.lengths)[-batch_size:]
    return _in_own_process(_request(model, longest, precision, training), "training")


def _request(model: Classifier, lengths: np.ndarray, precision: str, training: dict | None = None) -> str:
    """What the process that measures memory must know, as JSON."""
    members = model.members if isinstance(model, Ensemble) else [model]
    threads, configs = torch.get_num_threads(), [config_to_json(one.config) for one in members]
    request = {"configs": configs, "lengths": lengths.tolist(), "precision": precision, "threads": threads}
    return json.dumps(request | {"training": training})


@cache
def _in_own_process(request: str, what: str) -> float | None:
    """The peak memory of `request`, computed in a fresh process of this module; None, and a line, where that fails."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "minikd.evaluation.costs"],
            input=request,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],  # where -m finds minikd, whatever folder the user is in
            timeout=CHILD_SECONDS,
            check=True,
        )
        return float(child.stdout)
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.strip().rpartition("\n")[2]
        reason = f"killed by signal {-error.returncode}, out of memory?" if error.returncode < 0 else last_line
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = error
    print(f"memory of {what}: not measured ({reason})")
    return None


def _peak_of(request: dict) -> float | None:
    """What that process does: a forward pass or two steps of training. Returns its peak memory in MiB."""
    torch.set_num_threads(request["threads"])
    configs, precision, training = map(config_from_json, request["configs"]), request["precision"], request["training"]
    device = torch.device(training["device"] if training else "cpu")
    lengths = torch.tensor(request["lengths"])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)  # (B, N)
    ids, labels = torch.zeros(mask.shape, dtype=torch.int64, device=device), torch.zeros_like(lengths, device=device)
    batch = Batch(torch.arange(len(lengths)), ids, None if mask.all() else mask, labels)
    if not training:
        models = [new_model(config).eval() for config in configs]  # several: those of an ensemble
        with forward_only(device, precision):
            for model in models:
                model(batch.input_ids, batch.attention_mask)
        return peak_memory_mb(device)

    keep_freed_memory()
    model = Classifier(next(configs)).to(device).train()
    if training["lora"]:
        add_lora(model, **training["lora"])
    with only_used_rows(model.encoder.embeddings, np.arange(training["rows"])):
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        state = TrainState(model, make_optimizer(model, TrainConfig(lr=1e-4), device), scaler)
        batch_loss = BatchLoss(model, _loss, device, precision)
        for _ in range(2):  # in the second step, AdamW's moments exist while the activations do
            training_step(state, batch_loss, [batch], [1.0], lr=1e-4, clip=1.0)
    return peak_memory_mb(device)


def _loss(output: ClassifierOutput, batch: Batch) -> Tensor:
    return hard_loss(output.logits, batch.labels)


def _cuda_pass_mb(model: Classifier, split: TokenizedSplit, device: torch.device, precision: str) -> float:
    """Peak MiB of weights and activations. Resets the device's peak."""
    batches = list(make_batches(split, [_measured_examples(split)], device))
    model.to(device)
    _pass_seconds(model, batches, device, precision)  # what torch allocates once for all models is now allocated
    others = torch.cuda.memory_allocated(device) / 2**20 - model_size(model)["size_mb"]
    reset_peak_memory(device)
    _pass_seconds(model, batches, device, precision)
    return peak_memory_mb(device) - others


if __name__ == "__main__":  # the process that measures memory
    print(_peak_of(json.load(sys.stdin)))
