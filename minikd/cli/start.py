"""From flags to a run: defaults, device, data and settings; and how a user's mistake is reported."""

import argparse
import os
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path

import torch

from minikd.checkpoints.label_order import order_by_name
from minikd.cli.defaults import DEFAULT_COLUMNS, DEFAULTS, LORA_LR, corpus_name, default
from minikd.datasets import Dataset, load_dataset
from minikd.datasets.classes import label_counts, rare_labels
from minikd.errors import MinikdError
from minikd.evaluation.memory import keep_freed_memory
from minikd.inference import choose_device, choose_precision
from minikd.techniques.lora import TARGETS, LoRA
from minikd.training import TrainConfig

FLAGS = {"run_dir": "output-dir", "agreement": "fpb-agreement"}  # settings whose flag has another name


def fill_defaults(args: argparse.Namespace) -> None:
    """Replaces the flags that were not given by the corpus's defaults, and settles the output folder.

    The length waits until the model is known: see `settle_length`.
    """
    if not args.lora_rank and not getattr(args, "student_lora_rank", None):
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(args, name) is not None:
                raise MinikdError(f"--{name.replace('_', '-')}: says how to make adapters; give --lora-rank too")
    for rank, rate in (("lora_rank", "teacher_lr"), ("student_lora_rank", "lr")):  # train.py has one rate, its own
        if getattr(args, rank, None) and getattr(args, rate, 0.0) is None:
            setattr(args, rate, LORA_LR)
    for column in DEFAULT_COLUMNS:
        if column != "max_length" and column in vars(args) and getattr(args, column) is None:
            setattr(args, column, default(column, args.dataset))
    if args.output_dir is None:
        args.output_dir = Path("runs") / corpus_name(args.dataset)
    args.dataset, args.data_dir = absolute(args.dataset), args.data_dir.resolve()  # run.json names them from any folder
    check_writable(args.output_dir)


def absolute(dataset: str) -> str:
    """The name of a corpus as it is, the path of a user's own data as an absolute one."""
    return dataset if dataset in DEFAULTS or not Path(dataset).exists() else str(Path(dataset).resolve())


def settle_length(args: argparse.Namespace, positions: int) -> None:
    """Where --max-length was not given: the corpus's default, or as many tokens as the model has positions."""
    if args.max_length is None:
        args.max_length = min(default("max_length", args.dataset), positions)
        print(f"max_length {args.max_length}")


def check_writable(output: Path, flag: str = "--output-dir") -> None:
    """Makes the folder that `flag` names. Raises MinikdError if nothing can be written to it: before hours of training,
    not after."""
    probe = output / f".writable-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise MinikdError(f"{flag} {output}: cannot be written to ({error.strerror})") from None


def start(args: argparse.Namespace) -> torch.device:
    """Settles device and precision, and prints the flags (a length not given follows once the model is known)."""
    device = choose_device(args.device)
    keep_freed_memory()
    args.precision, reason = choose_precision(args.precision, device)
    print("; ".join(f"{name} {value}" for name, value in printable(args).items() if value is not None))
    print(f"device {device}; precision {args.precision}: {reason}")
    return device


def load_data(args: argparse.Namespace, model_labels=None) -> Dataset:
    """The corpus that the flags name; with `model_labels`, for finished models alone (`load_dataset`).

    Prints its sizes and how many examples each label has. Raises MinikdError where --label-order has others.
    """
    data = load_dataset(
        args.dataset,
        args.data_dir,
        agreement=args.fpb_agreement,
        text_column=args.text_column,
        label_column=args.label_column,
        encoding=args.encoding,
        model_labels=model_labels,
    )
    if args.label_order and order_by_name(args.label_order, data.labels) is None:
        raise MinikdError(
            f"--label-order: {', '.join(args.label_order)} are not the data's labels {', '.join(data.labels)}"
        )
    sizes = (f"{len(getattr(data, name).texts):,} {name}" for name in ("train", "validation", "test"))
    print(f"{data.name}: {', '.join(sizes)}")
    print(label_counts(data))
    if warning := rare_labels(data):
        print(warning)
    return data


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The training flags, as the loop takes them."""
    return TrainConfig(**{field.name: getattr(args, field.name) for field in fields(TrainConfig)})


def lora(args: argparse.Namespace, rank: int | None) -> LoRA | None:
    """Adapters of this rank; None for no rank, or 0."""
    if not rank:
        return None
    targets = tuple(name for name in TARGETS if name in (args.lora_targets or ("query", "value")))  # in one order
    return LoRA(rank, args.lora_alpha or 16.0, args.lora_dropout or 0.0, targets)


def run(main) -> None:
    """Calls `main`. Errors that a user can fix become a line on stderr and status 2; Ctrl-C and SIGTERM, status 130."""
    script = Path(sys.argv[0]).name

    def terminate(number, frame):
        raise KeyboardInterrupt("stopped by SIGTERM")

    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except MinikdError as error:
        sys.exit(_fail(script, str(error)))
    except torch.OutOfMemoryError:
        sys.exit(
            _fail(script, "the GPU's memory is full: try a smaller --batch-size (with --grad-accum) or --max-length")
        )
    except MemoryError:
        sys.exit(_fail(script, "the memory is full: try a smaller model, --batch-size or --max-length"))
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            sys.exit(_fail(script, "the memory is full: try a smaller model, --batch-size or --max-length"))
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            sys.exit(
                _fail(script, f"--compile: torch.compile failed ({reason}); a C++ compiler is needed, or leave it out")
            )
        raise
    except BrokenPipeError:  # the reader of our output (head, less) went away
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:
            raise
        sys.exit(_fail(script, f"{error.filename or 'file'}: {error.strerror}"))
    except KeyboardInterrupt as stop:
        print(f"\n{script}: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def _fail(script: str, message: str) -> int:
    """Prints the error in a line; a setting in backticks becomes its flag."""
    message = re.sub(r"`(\w+)`", lambda match: "--" + FLAGS.get(match[1], match[1].replace("_", "-")), message)
    print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def printable(args: argparse.Namespace) -> dict:
    """The resolved flags as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
