"""From flags to a run: defaults, device, data and settings; and how a user's mistake is reported."""

import argparse
import errno
import os
import re
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path

import torch

from minikd.checkpoints.label_order import order_by_name
from minikd.cli.defaults import DEFAULT_COLUMNS, DEFAULTS, corpus_name, default
from minikd.config import TrainConfig
from minikd.datasets import Dataset, load_dataset
from minikd.datasets.classes import label_counts, rare_labels
from minikd.distributed import by_first, from_all, rank, world_size
from minikd.errors import MinikdError, is_full_memory
from minikd.evaluation.memory import keep_freed_memory
from minikd.experiment.torchrun import explains_failure, has_begun_before, is_lost_process, joined
from minikd.files import check_writable
from minikd.inference import choose_device, choose_precision
from minikd.techniques.layer_losses import LAYER_LOSSES, LayerLosses
from minikd.techniques.lora import TARGETS, LoRA

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 2000  # characters of an error: it may quote a file
FLAGS = {"run_dir": "output-dir", "agreement": "fpb-agreement"}  # settings whose flag has another name


def fill_defaults(args: argparse.Namespace, **own) -> None:
    """Replaces the flags that were not given by the script's `own` defaults, else by the corpus's.

    The length waits until the model is known: see `resolve_max_length`.
    """
    if not args.lora_rank and not getattr(args, "student_lora_rank", None):
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(args, name) is not None:
                raise MinikdError(f"--{name.replace('_', '-')}: says how to make adapters; give --lora-rank too")
    values = {name: default(name, args.dataset) for name in DEFAULT_COLUMNS if name != "max_length"}
    values["output_dir"] = Path("runs") / corpus_name(args.dataset)
    for name, value in (values | own).items():
        if name in vars(args) and getattr(args, name) is None:
            setattr(args, name, value)
    args.dataset, args.data_dir = absolute(args.dataset), args.data_dir.resolve()  # run.json names them from any folder
    by_first(check_writable, args.output_dir)


def absolute(dataset: str) -> str:
    """The name of a corpus as it is, the path of a user's own data as an absolute one."""
    return dataset if dataset in DEFAULTS or not Path(dataset).exists() else str(Path(dataset).resolve())


def resolve_max_length(args: argparse.Namespace, *positions: int) -> None:
    """Where --max-length was not given: the corpus's default, but no more than the `positions` of any model."""
    if args.max_length is None:
        args.max_length = min(default("max_length", args.dataset), *positions)
        print(f"max_length {args.max_length}")


def set_up(args: argparse.Namespace) -> torch.device:
    """The device. Prints it, the precision and the flags; a length that is not given follows (`resolve_max_length`)."""
    if has_begun_before():
        args.resume = True
    device = choose_device(args.device)
    if len(kinds := set(from_all(device.type))) > 1:
        raise MinikdError(f"--device {args.device}: some processes have {' and others '.join(sorted(kinds))}; give one")
    keep_freed_memory()
    args.precision, reason = by_first(choose_precision, args.precision, device)
    print("; ".join(f"{name} {value}" for name, value in flag_values(args).items() if value is not None))
    print(f"device {device}; precision {args.precision}: {reason}")
    return device


def load_data(args: argparse.Namespace, model_labels=None, unlabelled=None) -> Dataset:
    """The corpus that the flags name; with `model_labels`, for finished models alone; `unlabelled`: where more texts
    come from (`load_dataset`).

    Prints its sizes and how many examples each label has. Raises MinikdError where --label-order has others.
    """
    data = by_first(load_dataset, args.dataset, args.data_dir, agreement=args.fpb_agreement,
                    text_column=args.text_column, label_column=args.label_column, encoding=args.encoding,
                    model_labels=model_labels, unlabelled=unlabelled)  # fmt: skip
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


def layer_losses(args: argparse.Namespace) -> LayerLosses | None:
    """The layer losses that the flags ask for, alone where there are two stages; None where all have weight 0."""
    if not any(getattr(args, name) for name in LAYER_LOSSES):
        return None
    given = {field.name: getattr(args, field.name) for field in fields(LayerLosses) if field.name in vars(args)}
    return LayerLosses(**given, logit_loss=0.0 if args.layer_epochs else 1.0)


def flag_values(args: argparse.Namespace) -> dict:
    """The flags with their defaults, as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def run(main) -> None:
    """Calls `main`. Errors that a user can fix become a line on stderr and status 2; Ctrl-C and SIGTERM, status 130."""
    script = Path(sys.argv[0]).name

    def terminate(number, frame):
        hint = ", as torchrun does when another process has ended; `resume` continues" * (world_size() > 1)
        raise KeyboardInterrupt(f"stopped by SIGTERM{hint}")

    signal.signal(signal.SIGTERM, terminate)
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed from the start
        while os.open(os.devnull, os.O_RDWR) < 2:  # or a file that is opened later would get what is printed
            pass
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(getattr(sys, name), "reconfigure"):  # a terminal that lacks a character must not end a run
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        with joined(), quiet_but_for_first(), redirect_stdout(Printable(sys.stdout)):
            main()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        if explains_failure():
            print(f"\n{script}: {printable(_with_flags(str(stop))) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, less, tee) went away
        with suppress(OSError):
            print(f"{script}: error: nobody reads stdout any more; --resume continues a training", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):  # or Python's own last flush would fail too
            os.dup2(nowhere, number)
        sys.exit(2)
    except Exception as error:
        message = _advice(error)
        if message is None:
            raise
        line = printable(_with_flags(" ".join(message.split())))
        if len(line) > LONGEST:  # what was wrong is at the end
            line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
        if explains_failure():
            print(f"{script}: error: {line}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def quiet_but_for_first():
    """Within the block, only the first of several processes prints, and shows progress bars."""
    if rank() == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


class Printable:
    """A stream on which texts and labels cannot command the terminal, nor turn a line around: see `printable`."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def printable(text: str) -> str:
    """The text with its control characters, but for line breaks and tabs, as \\x1b and the like; with those that change
    the direction of what follows (Unicode's annex 9, section 2) as \\u202e and the like."""
    return re.sub("[\0-\b\v-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", _escaped, text)


def _escaped(match: re.Match) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _advice(error: Exception) -> str | None:
    """What was wrong and what the user can do about it; None for a mistake in the program."""
    if isinstance(error, MinikdError):
        return str(error)
    if is_lost_process(error):
        cause = str(error).strip().splitlines()[0]
        return f"another process of this run has ended; run it again with --resume to continue ({cause})"
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: try a smaller --batch-size (with --grad-accum) or --max-length"
    if is_full_memory(error):
        return "the memory is full: try a smaller model, --batch-size or --max-length"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"--compile: torch.compile failed ({reason}); a C++ compiler is needed, or leave it out"
    if isinstance(error, OSError) and error.strerror is not None:
        remedy = "; make room, and run the command again (a training: with --resume)" * (error.errno in FULL_DISK)
        where = "stdout" if error.errno in (*FULL_DISK, errno.EIO, errno.EBADF) else "file"  # others name themselves
        return f"{error.filename or where}: {error.strerror}{remedy}"
    return None


def _with_flags(message: str) -> str:
    """The message with a flag in place of each setting in backticks."""
    return re.sub(r"`(\w+)`", lambda match: "--" + FLAGS.get(match[1], match[1].replace("_", "-")), message)
