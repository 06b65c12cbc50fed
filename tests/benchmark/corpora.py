"""The texts of the benchmark: samples of the corpora, by the tokenizer of MiniLM."""

import contextlib
import functools
import importlib
import os
import tempfile
from pathlib import Path

import numpy as np
from benchmark.measure import BATCH

from minikd.batching import padding_share, plan_batches
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.datasets import Dataset, Split, load_dataset
from minikd.experiment.caches import cached_tokens

# transformers takes seconds to import and much memory, and `memory` measures processes of ours without it: whatever
# needs `reference` or `equality` imports it where it is used.

MAX_LENGTH = {"sst2": 128, "fpb": 128, "imdb": 512}
EPOCH_BATCHES = {"sst2": 100, "fpb": 60, "imdb": 10}  # of 32 examples: on two cores Trainer takes about a minute each


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
