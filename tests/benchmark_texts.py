"""The parts of tests/benchmark.py that read texts: epochs, feeding, distillation, memory, data and accuracy."""

import contextlib
import functools
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from benchmark_measure import (
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

from minikd.batching import make_batches, padding_share, plan_batches, plan_by_tokens
from minikd.checkpoints.config_json import config_from_json, config_to_json
from minikd.checkpoints.pretrained import from_pretrained, load_tensors
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.config import EncoderConfig
from minikd.datasets import Dataset, Split, load_dataset
from minikd.evaluation.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory
from minikd.experiment.caches import cached_tokens
from minikd.experiment.teacher import source_of_logits
from minikd.inference import CPU_TOKENS, GPU_TOKENS, choose_device, compute_logits
from minikd.student import evenly_spaced_layers, student_from_teacher
from minikd.used_rows import UsedRows

# transformers takes seconds to import and much memory, and `memory` measures processes of ours without it: whatever
# needs `reference` or `equality` imports it where it is used.

MAX_LENGTH = {"sst2": 128, "fpb": 128, "imdb": 512}
EPOCH_BATCHES = {"sst2": 100, "fpb": 60, "imdb": 10}  # of 32 examples: on two cores Trainer takes about a minute each


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
    command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "--child", json.dumps(request)]
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
    model.encoder.embeddings.word_embeddings = UsedRows(model.encoder.embeddings.word_embeddings, data.ids)
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
        wanted = SimpleNamespace(precision=args.precision, teacher_logits="cache", output_dir=Path(folder))
        seconds = seconds_of(lambda _: source_of_logits(teacher, data, None, wanted, device), 1, device)
        cached, _ = source_of_logits(teacher, data, None, wanted, device)
        wanted.teacher_logits = "online"
        online, _ = source_of_logits(teacher, data, None, wanted, device)
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


def data_part(args, figures: dict, save) -> None:
    """Tokenising IMDb (seconds, bytes), making an epoch's batches (examples/s), and padding of every corpus."""
    from equality import minilm_folder

    ours, theirs = load_tokenizer(minilm_folder()), their_tokenizer()
    if imdb := corpus("imdb", args.data_dir, args.quick):
        splits = [drawn(split, 100 if args.quick else len(split.texts)) for split in (imdb.train, imdb.test)]
        texts = [text for split in splits for text in split.texts]

        def tokenize(_):
            return [cached_tokens(split, ours, MAX_LENGTH["imdb"]) for split in splits]

        def tokenize_theirs(_):  # 1000 texts at a time, like datasets.map; all at once would take gigabytes
            for i in range(0, len(texts), 1000):
                theirs(texts[i : i + 1000], truncation=True, max_length=MAX_LENGTH["imdb"])["input_ids"]

        with own_cache():
            figures["tokenize"] = {
                "scratch": seconds_of(tokenize, 1, args.device),
                "cached": seconds_of(tokenize, 1, args.device),
                "theirs": seconds_of(tokenize_theirs, 1, args.device),
                "texts": len(texts),
                "bytes": sum(tokens.ids.nbytes + tokens.offsets.nbytes for tokens in tokenize(None)),
            }
        say("tokenising IMDb: {scratch:.1f} s, cached {cached:.2f} s, transformers {theirs:.1f} s"
            .format(**figures["tokenize"]))  # fmt: skip
        save()
    for name, max_length in MAX_LENGTH.items():
        data = corpus(name, args.data_dir, args.quick)
        if data is None:
            continue
        train = cached_tokens(drawn(data.train, 200) if args.quick else data.train, ours, max_length)
        shares = shares_of_padding(train.lengths, settings_of("fp32"), args.device)
        figures.setdefault("padding", {})[name] = shares
        figures.setdefault("logits_bytes", {})[name] = len(train) * len(data.labels) * 4
        say(f"padding of {name}: {shares['ours']:.1%}, in random batches {shares['theirs']:.1%}")
        if name == "sst2":
            figures["batches"] = batch_making(args, drawn(data.train, 200 if args.quick else 20_000))
        save()


def batch_making(args, split: Split) -> dict:
    """Examples/s of planning and making an epoch's batches of 32, by ours and by torch's DataLoader."""
    from equality import minilm_folder
    from reference import Examples, collator

    data = cached_tokens(split, load_tokenizer(minilm_folder()), MAX_LENGTH["sst2"])
    examples, collate = Examples(data, range(len(data))), collator(their_tokenizer())
    loader = torch.utils.data.DataLoader(examples, BATCH, shuffle=True, collate_fn=collate)
    sides = {
        "ours": lambda _: [None for _ in make_batches(data, plan_batches(data.lengths, BATCH, 42), args.device)],
        "theirs": lambda _: [None for _ in loader],
    }
    times = race(sides, args.device, args.rounds, 0)
    speeds = {side: len(data) / statistics.median(times[side]) for side in sides}
    say(f"batches of SST-2: {speeds['ours']:,.0f} examples/s, DataLoader {speeds['theirs']:,.0f}")
    return speeds | ratio_of(times["theirs"], times["ours"])


def accuracy_part(args, figures: dict, save) -> None:
    """Accuracy after an epoch of SST-2 by ours and by Trainer from the same weights: three of MiniLM's six layers.

    One line per seed, saved as it comes: [validation, test] accuracy and seconds of both.
    """
    from equality import minilm_folder
    from reference import Examples, sdpa_twin, trainer_seconds

    data = corpus("sst2", args.data_dir, args.quick)
    if data is None:
        return
    tokenizer, device, figures["seeds"] = load_tokenizer(minilm_folder()), args.device, []
    splits = (drawn(split, 64) if args.quick else split for split in (data.train, data.validation, data.test))
    train, validation, test = (cached_tokens(split, tokenizer, MAX_LENGTH["sst2"]) for split in splits)
    few = cached_tokens(drawn(data.validation, BATCH), tokenizer, MAX_LENGTH["sst2"])  # Trainer evaluates nothing

    def accuracies(model):
        logits = (compute_logits(model.to(device), split, device, args.precision) for split in (validation, test))
        return [float((rows.argmax(-1).numpy() == s.labels).mean()) for rows, s in zip(logits, (validation, test))]

    for seed in args.seeds:
        settings = settings_of(args.precision, seed=seed)
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            teacher = from_pretrained(minilm_folder(), labels=data.labels)
        model = student_from_teacher(teacher, evenly_spaced_layers(6, 3))
        twin = sdpa_twin(model)
        row = {"seed": seed, "ours_seconds": epoch_seconds(model, train, few, settings, device)}
        examples = Examples(train, range(len(train)))
        row["theirs_seconds"] = trainer_seconds(twin, examples, settings, their_tokenizer())
        row["ours"] = accuracies(model)
        load_tensors(model, {name: tensor.detach() for name, tensor in twin.state_dict().items()})
        row["theirs"] = accuracies(model)
        figures["seeds"].append(row)
        say(f"seed {seed}: accuracy {row['ours'][0]:.4f} and {row['ours'][1]:.4f} in {row['ours_seconds']:.0f} s, "
            f"Trainer {row['theirs'][0]:.4f} and {row['theirs'][1]:.4f} in {row['theirs_seconds']:.0f} s")  # fmt: skip
        save()


@functools.cache
def corpus(name: str, data_dir: Path, quick: bool) -> Dataset | None:
    """The corpus from `data_dir`; where it is not there, the embedded sample in a quick run, else None and a line."""
    source = importlib.import_module(f"minikd.datasets.{name}").SOURCE
    places = [Path(data_dir) / name, Path(data_dir)]  # those of `datasets.archive.locate`, which would download it
    if any(os.path.exists(place / file) for place in places for file in (source.archive, source.folder)):
        return load_dataset(name, data_dir)
    if quick:
        return load_dataset("sample")
    print(f"{name}: skipped, {data_dir} does not have it (--data-dir names a folder with the corpora)")
    return None


def drawn(split: Split, count: int) -> Split:
    """`count` examples of a split, or all if it has no more, drawn with a fixed seed."""
    chosen = np.random.default_rng(0).permutation(len(split.texts))[:count]
    return Split([split.texts[i] for i in chosen], [split.labels[i] for i in chosen])


def epoch_sample(args, name: str, batches: int | None = None) -> tuple | None:
    """A random sample of the corpus's training texts, as so many batches of 32, and 32 validation texts, tokenised;
    None, after a line that says so, where the corpus is not there."""
    from equality import minilm_folder

    data = corpus(name, args.data_dir, args.quick)
    if data is None:
        return None
    batches = batches or args.epoch_batches or EPOCH_BATCHES[name]
    max_length = 32 if args.quick else MAX_LENGTH[name]
    splits = drawn(data.train, batches * BATCH), drawn(data.validation, BATCH)
    return tuple(cached_tokens(split, load_tokenizer(minilm_folder()), max_length) for split in splits)


def tokens_in_use(args, name: str) -> int:
    """How many different tokens the corpus's training texts hold."""
    from equality import minilm_folder

    data = corpus(name, args.data_dir, args.quick)
    split = drawn(data.train, 64) if args.quick else data.train
    return len(np.unique(cached_tokens(split, load_tokenizer(minilm_folder()), MAX_LENGTH[name]).ids))


def shares_of_padding(lengths, settings, device) -> dict:
    """The share of padding in our batches of an epoch and in random ones, which Trainer makes."""
    plans = {
        side: plan_batches(lengths, settings.batch_size, settings.seed, 0, by_length=side == "ours")
        for side in ("ours", "theirs")
    }
    return {side: padding_share(lengths, plan, device) for side, plan in plans.items()}


def their_tokenizer():
    """transformers' fast tokenizer with the same vocabulary."""
    import transformers
    from equality import minilm_folder

    return transformers.AutoTokenizer.from_pretrained(minilm_folder())


@contextlib.contextmanager
def own_cache():
    """Within it, minikd's cache is a new, empty folder, so that nothing from earlier runs is found."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before
