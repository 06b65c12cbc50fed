"""Whole epochs: throughput and memory against Trainer, what of them is steps, and what a teacher costs."""

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmark.corpora import MAX_LENGTH, epoch_sample, shares_of_padding, their_tokenizer, tokens_in_use
from benchmark.measure import (
    BATCH,
    alternate,
    config_of,
    describe,
    epoch_seconds,
    fresh,
    inference_passes,
    race,
    random_split,
    ratio_of,
    say,
    seconds_of,
    settings_of,
    training_passes,
)

from minikd.batching import Batch, make_batches, plan_batches, plan_by_tokens
from minikd.checkpoints.config_json import config_from_json, config_to_json
from minikd.config import EncoderConfig
from minikd.evaluation.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from minikd.experiment.caches import cached_logits
from minikd.inference import CPU_TOKENS, GPU_TOKENS, autocast, choose_device, compute_logits
from minikd.used_rows import CompactEmbedding


def epochs_part(args, figures: dict, save) -> None:
    """Training throughput at lengths of real texts, examples/s: ours, Trainer's, and Trainer's with all texts padded
    to the maximum. Each epoch in a process of its own, ours set up as by our scripts."""
    config = config_of(args, "student")
    for name in MAX_LENGTH:
        sample = epoch_sample(args, name)
        if sample is None:
            continue
        lengths, tokens = sample[0].lengths, tokens_in_use(args, name)
        width = 32 if args.quick else MAX_LENGTH[name]
        few = lengths[: max(len(lengths) // 10, BATCH)]  # enough where every batch is alike
        sides = {
            "ours": partial(examples_per_second, args, "ours", config, lengths, tokens),
            "theirs": partial(examples_per_second, args, "theirs", config, lengths, tokens),
            "padded": partial(examples_per_second, args, "theirs", config, few, tokens, width),
        }
        speeds = alternate(sides, args.rounds)
        figures[name] = {
            **{side: statistics.median(values) for side, values in speeds.items()},
            **ratio_of(speeds["ours"], speeds["theirs"]),
            "over_padded": ratio_of(speeds["ours"], speeds["padded"])["ratio"],
            "examples": len(lengths),
            "tokens_in_use": tokens,
            "max_length": width,
            "padding": shares_of_padding(lengths, settings_of(args.precision), args.device),
        }
        say(f"epoch of {name}: {speeds['ours'][0]:.1f} examples/s, Trainer {speeds['theirs'][0]:.1f}; "
            f"{describe(figures[name])}")  # fmt: skip
        save()


def examples_per_second(
    args, side: str, config: EncoderConfig, lengths, tokens: int, pad_to: int | None = None
) -> float:
    """Training throughput of an epoch in a fresh process."""
    return len(lengths) / epoch_in_child(args, side, config, lengths, tokens, pad_to)["seconds"]


def epoch_in_child(
    args, side: str, config: EncoderConfig, lengths, tokens: int | None = None, pad_to: int | None = None
) -> dict:
    """An epoch by "ours" or "theirs" (Trainer) in a fresh process, over texts of these lengths and of so many different
    tokens: seconds, and peak_mb, the peak memory in MiB of the process from the end of the warm-up on (CPU) or of
    torch's allocator (CUDA)."""
    request = {
        "side": side,
        "config": config_to_json(config),
        "lengths": [int(length) for length in lengths],
        "tokens": tokens,
        "pad_to": pad_to,
        "precision": args.precision,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, str(Path(__file__).parent), "--child", json.dumps(request)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"epoch of {side}: {child.stderr.strip()[-500:]}")
    return json.loads(child.stdout.strip().rpartition("\n")[2])


def epoch_child(request: dict) -> dict:
    """What the process of `epoch_in_child` does: two batches to warm up, then the epoch."""
    torch.set_num_threads(request["threads"])
    config, settings = config_from_json(request["config"]), settings_of(request["precision"])
    device, lengths = choose_device(), request["lengths"]
    if request["side"] == "ours":
        keep_freed_memory()

        def epoch(data):
            return epoch_seconds(fresh(config), data, random_split(config, [8] * 32), settings, device)
    else:
        from reference import Examples, sdpa_twin, trainer_seconds

        def epoch(data):
            examples, tokenizer = Examples(data, range(len(data))), their_tokenizer()
            return trainer_seconds(sdpa_twin(fresh(config)), examples, settings, tokenizer, request["pad_to"])

    epoch(random_split(config, lengths[: 2 * BATCH]))
    reset_peak_memory(device)  # from here on, whatever was needed to get ready
    return {"seconds": epoch(random_split(config, lengths, request["tokens"])), "peak_mb": peak_memory_mb(device)}


def feeding_part(args, figures: dict, save) -> None:
    """What of an epoch of SST-2 is steps: the time of its steps alone, on batches that lie on the device already, over
    that of the epoch with all that the loop does besides (batches, schedule, log, and 32 texts of validation)."""
    sample = epoch_sample(args, "sst2")
    if sample is None:
        return
    data, validation = sample
    config, settings, device = config_of(args, "student"), settings_of(args.precision), args.device
    plan = plan_batches(data.lengths, settings.batch_size, settings.seed)
    model = fresh(config, device)
    model.encoder.embeddings.word_embeddings = CompactEmbedding(model.encoder.embeddings.word_embeddings, data.ids)
    steps = training_passes(model, list(make_batches(data, plan, device)), device, args.precision)
    sides = {
        "steps": lambda: seconds_of(steps, 1, device),
        "epoch": lambda: epoch_seconds(fresh(config), data, validation, settings, device),
    }
    times = {name: seconds[1:] for name, seconds in alternate(sides, args.rounds + 1).items()}  # the first warms up
    figures |= {name: statistics.median(seconds) for name, seconds in times.items()}
    figures |= {"examples": len(data), "share": ratio_of(times["steps"], times["epoch"])}
    say(f"steps of an epoch over the epoch: {describe(figures['share'])}")


def distillation_part(args, figures: dict, save) -> None:
    """What the teacher costs on SST-2: epochs of a plain student, with cached logits and with an online teacher, and
    the teacher's pass over all texts against its bare passes on batches that are made already. Seconds."""
    sample = epoch_sample(args, "sst2", 50)  # half of the batches of `epochs`
    if sample is None:
        return
    data, validation = sample
    config, settings, device = config_of(args, "student"), settings_of(args.precision), args.device
    settings = replace(settings, alpha=0.5, T=2.0)
    teacher = fresh(config_of(args, "BERT-base"), device).eval()

    def epoch(source=None):
        return epoch_seconds(fresh(config), data, validation, settings, device, teacher=source)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        wanted = teacher, data, device, args.precision, "teacher logits", Path(folder) / "logits"
        seconds = seconds_of(lambda _: cached_logits(*wanted), 1, device)
        logits = cached_logits(*wanted).to(device)
    teacher.to(device)

    def cached(batch: Batch):
        return logits[batch.index]

    def online(batch: Batch):
        with torch.no_grad(), autocast(device, args.precision):
            return teacher(batch.input_ids, batch.attention_mask).logits

    epoch()  # warm-up
    times = alternate({"plain": epoch, "cached": lambda: epoch(cached)}, max(args.rounds, 4) if not args.quick else 1)
    figures |= {name: statistics.median(values) for name, values in times.items()}
    figures["cached_over_plain"] = ratio_of(times["cached"], times["plain"])
    say(f"epoch with cached logits over plain epoch: {describe(figures['cached_over_plain'])}")
    figures |= {"examples": len(data), "first": seconds + figures["cached"], "online": epoch(online)}
    save()

    batches = list(
        make_batches(
            data, plan_by_tokens(data.lengths, CPU_TOKENS if device.type == "cpu" else GPU_TOKENS, device), device
        )
    )
    bare = inference_passes(teacher, batches, device, args.precision)
    sides = {"predict": lambda _: compute_logits(teacher, data, device, args.precision), "bare": bare}
    times = race(sides, device, args.rounds, 0)
    figures["teacher_pass"] = statistics.median(times["predict"])
    figures["pass_over_bare"] = ratio_of(times["predict"], times["bare"])
    say(f"teacher's pass over its bare passes: {describe(figures['pass_over_bare'])}")


def memory_part(args, figures: dict, save) -> None:
    """Peak memory, MiB, of an epoch by ours and by Trainer: at fixed lengths, and at those of SST-2.

    Each in a fresh process, since that of a CPU's process includes what it held before.
    """
    config = config_of(args, "student")
    runs = {}  # name: (lengths, different tokens)
    for n in (16,) if args.quick else (128, 512):
        batches = max(3, -(-config.vocab_size // (n * BATCH)))  # so that every row of the word embeddings is in use
        runs[f"32 x {n}"] = [n] * batches * BATCH, None
    if not args.quick and (sample := epoch_sample(args, "sst2", 50)):
        runs["SST-2"] = sample[0].lengths, tokens_in_use(args, "sst2")
    for name, (lengths, tokens) in runs.items():
        peaks = {side: epoch_in_child(args, side, config, lengths, tokens)["peak_mb"] for side in ("ours", "theirs")}
        figures[name] = peaks | {"ratio": peaks["ours"] / peaks["theirs"]}
        say(f"peak memory of training, {name}: {peaks['ours']:.0f} MiB, Trainer {peaks['theirs']:.0f} MiB")
        save()
