"""The parts without texts: matrix rate, steps, ratios, scaling and quantised models."""

import statistics
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from benchmark.corpora import epoch_sample
from benchmark.measure import (
    BATCH,
    SHAPES,
    compared,
    config_of,
    describe,
    epoch_seconds,
    flops,
    fresh,
    inference_passes,
    matrix_rate,
    race,
    random_batch,
    ratio_of,
    read_rates,
    say,
    settings_of,
    training_passes,
)

from minikd.inference import choose_precision
from minikd.techniques.layer_losses import LAYER_LOSSES, LayerDistillation, LayerLosses
from minikd.techniques.quantize import quantize
from minikd.training import BatchLoss, TrainState, distillation_loss, make_optimizer, training_step


def rate_part(args, figures: dict, save) -> None:
    """GFLOP/s of large square matrix products: what no program on this machine can exceed."""
    read_rates(args, figures)


def steps_part(args, figures: dict, save) -> None:
    """Training steps and inference passes of ours and transformers' over shapes, batches, lengths and precisions.

    On a CPU, cells of which a pass would take longer than --longest seconds are left out, but for the main one.
    """
    figures |= {"cells": [], "skipped": []}
    read_rates(args, figures)
    for shape in list(SHAPES)[::2] if args.quick else SHAPES:  # a BERT and a DistilBERT
        for precision in args.precisions:
            for training in (False, True):
                cells_of(args, figures, shape, precision, training)
            read_rates(args, figures)
            save()


def cells_of(args, figures: dict, shape: str, precision: str, training: bool) -> None:
    """The cells of one shape: appends to figures["cells"], and to figures["skipped"] what would take too long."""
    from reference import sdpa_twin

    config = config_of(args, shape)
    grid = [(size, length) for size in (1, 8, 32) for length in ((16,) if args.quick else (32, 128, 512))]
    todo, kind = [], "training" if training else "inference"
    for size, length in grid:
        main_cell = (shape, size, length) == ("student", 32, 128)
        estimate = flops(config, size, length, training) / 1e9 / (0.7 * statistics.median(figures["rates"][precision]))
        if main_cell or args.device.type != "cpu" or estimate <= args.longest:
            todo.append((size, length, main_cell))
        else:
            figures["skipped"].append(f"{kind} of {shape}, {size} x {length}, {precision}")
    if not todo:
        return
    model = fresh(config, args.device)
    twin = sdpa_twin(model).to(args.device)
    for size, length, main_cell in todo:
        batch = random_batch(config, size, length, args.device)
        if training:
            sides = {name: training_passes(m, [batch], args.device, precision) for name, m in both(model, twin)}
        else:
            sides = {name: inference_passes(m, [batch], args.device, precision) for name, m in both(model, twin)}
        rounds = args.rounds + 2 if main_cell and not args.quick else args.rounds
        cell = compared(race(sides, args.device, rounds, args.budget))
        cell |= {"shape": shape, "kind": kind, "batch": size, "length": length, "precision": precision}
        cell["gflop"] = flops(config, size, length, training) / 1e9
        figures["cells"].append(cell)
        say(f"{kind} of {shape}, {size} x {length}, {precision}: {describe(cell)}")


def ratios_part(args, figures: dict, save) -> None:
    """Ours against ours at 32 x 128: a training step in fp32 and in the short format, and BERT-base and the student."""
    length = 16 if args.quick else 128
    student = config_of(args, "student")
    batch = random_batch(student, BATCH, length, args.device)
    if args.precision != "fp32":
        sides = {
            p: training_passes(fresh(student, args.device), [batch], args.device, p) for p in ("fp32", args.precision)
        }
        times = race(sides, args.device, args.rounds, args.budget)
        figures["short_over_fp32"] = ratio_of(times["fp32"], times[args.precision])
        say(f"training step in fp32 over {args.precision}: {describe(figures['short_over_fp32'])}")
    sides = {
        shape: inference_passes(fresh(config_of(args, shape), args.device), [batch], args.device, args.precision)
        for shape in ("BERT-base", "student")
    }
    times = race(sides, args.device, args.rounds, args.budget)
    figures["student_over_bert_base"] = ratio_of(times["BERT-base"], times["student"])
    say(f"inference of BERT-base over the student: {describe(figures['student_over_bert_base'])}")


def layers_part(args, figures: dict, save) -> None:
    """Seconds of a training step of 3 layers of MiniLM at 32 x 128 against all 6: with cached logits, and with the loss
    on the logits and each layer loss, for which the teacher computes its layers and logits in the step."""
    device, precision = args.device, args.precision
    teacher = fresh(config_of(args, "MiniLM"), device)
    config = replace(teacher.config, num_hidden_layers=1 if args.quick else 3)
    batch = random_batch(config, BATCH, 16 if args.quick else 128, device)
    settings, logits = settings_of(precision), torch.zeros(BATCH, 2, device=device)

    def steps(loss_of):
        model = fresh(config, device).train()
        batch_loss = BatchLoss(model, loss_of(model), device, precision)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        state = TrainState(model, make_optimizer(model, settings, device), scaler)

        def run(count: int) -> None:
            for _ in range(count):
                training_step(state, batch_loss, [batch], [1.0], lr=1e-4, clip=1.0)

        return run

    tokenizer = SimpleNamespace(vocab={})  # the one of both

    def layers(model, **weights):
        student, other = (SimpleNamespace(model=one, tokenizer=tokenizer, device=device, precision=precision)
                          for one in (model, teacher))  # fmt: skip
        return LayerDistillation(LayerLosses(**weights), student, other, settings, 0.5, 2.0)

    sides = {"cached logits": steps(lambda model: distillation_loss(logits, 0.5, 2.0))}
    for name in LAYER_LOSSES:
        sides[name] = steps(partial(layers, **{name: 1.0}))
    sides["all of them"] = steps(partial(layers, **dict.fromkeys(LAYER_LOSSES, 1.0)))
    times = race(sides, device, args.rounds, args.budget)
    for name, seconds in times.items():
        figures[name] = {"seconds": statistics.median(seconds)} | ratio_of(seconds, times["cached logits"])
        say(f"step with {name}: {figures[name]['seconds']:.3f} s, {describe(figures[name])}")


def scaling_part(args, figures: dict, save) -> None:
    """How our time grows with length, layers, examples and threads; each with the share of the matrix rate reached."""
    student = config_of(args, "student")
    read_rates(args, figures)

    def step(config, size, length):
        batch = random_batch(config, size, length, args.device)
        run = training_passes(fresh(config, args.device), [batch], args.device, args.precision)
        seconds = statistics.median(race({"ours": run}, args.device, args.rounds, args.budget)["ours"])
        return {"seconds": seconds, "gflop": flops(config, size, length, True) / 1e9}

    def note(kind, x, figure):
        figures.setdefault(kind, []).append({"x": x} | figure)
        say(f"{kind} {x}: {figure['seconds']:.3f} s, {figure['gflop'] / figure['seconds']:.0f} GFLOP/s")

    long = 16 if args.quick else 128
    for length in (8, 16) if args.quick else (32, 64, 128, 256, 512):
        note("length", length, step(student, 8, length))
    for layers in (1, 2, 4, 8):
        note("layers", layers, step(replace(student, num_hidden_layers=layers), BATCH, long))
    for times in (1, 2, 4):
        if sample := epoch_sample(args, "sst2", 20 * times):
            seconds = epoch_seconds(fresh(student), *sample, settings_of(args.precision), args.device)
            gflop = sum(flops(student, 1, int(length), True) for length in sample[0].lengths) / 1e9
            note("examples", len(sample[0]), {"seconds": seconds, "gflop": gflop})
    read_rates(args, figures)
    if args.device.type == "cpu":
        before = torch.get_num_threads()
        for threads in [n for n in (1, 2, 4, 8, 16, 32, 64) if n < args.cores] + [args.cores]:
            torch.set_num_threads(threads)
            rate = matrix_rate(args.device, args.precision, 256 if args.quick else 2048)
            note("threads", threads, step(student, BATCH, long) | {"rate": rate})
        torch.set_num_threads(before)


def quantised_part(args, figures: dict, save) -> None:
    """Passes of the student in fp32, the machine's short format, int8 and int4: examples/s, ratios to fp32, MiB.

    Quantised models are for the CPU; their passes run in fp32 but for what the layers themselves do in integers.
    """
    config, cpu = config_of(args, "student"), torch.device("cpu")
    model = fresh(config).eval()
    short = choose_precision("auto", cpu)[0]
    models = {"fp32": model, short: model} | {name: quantize(model, name) for name in ("int8", "int4")}
    figures["mib"] = {
        name: sum(t.numel() * t.element_size() for t in m.state_dict().values()) / 2**20 for name, m in models.items()
    }
    for size in (1, 16, 32):
        length = 16 if args.quick else 128
        batch = random_batch(config, size, length, cpu)
        sides = {
            name: inference_passes(m, [batch], cpu, short if name == short else "fp32") for name, m in models.items()
        }
        times = race(sides, cpu, args.rounds, 3 * args.budget)
        figures[f"{size} x {length}"] = {
            name: {"examples_per_second": size / statistics.median(times[name])} | ratio_of(times["fp32"], times[name])
            for name in sides
        }
        say(f"passes of {size} x {length}, fp32 over: "
            + "; ".join(f"{name} {describe(figures[f'{size} x {length}'][name])}" for name in sides))  # fmt: skip
        save()


def both(model, twin) -> tuple:
    """The two sides with their names."""
    return ("ours", model), ("theirs", twin)
