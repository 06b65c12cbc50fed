"""Tokenising, batches and padding of the corpora, and accuracy after an epoch of SST-2."""

import contextlib
import io
import statistics

import torch
from benchmark.corpora import MAX_LENGTH, corpus, drawn, own_cache, shares_of_padding, their_tokenizer
from benchmark.measure import BATCH, epoch_seconds, race, ratio_of, say, seconds_of, settings_of

from minikd.batching import make_batches, plan_batches
from minikd.checkpoints.pretrained import from_pretrained, load_tensors
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.datasets import Split
from minikd.experiment.caches import cached_tokens
from minikd.inference import compute_logits
from minikd.student import evenly_spaced_layers, student_from_teacher


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
        with contextlib.redirect_stdout(io.StringIO()):
            teacher = from_pretrained(minilm_folder(), labels=data.labels)
        model = student_from_teacher(teacher, evenly_spaced_layers(6, 3), seed)
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
