"""The flags that the three scripts share, and how a user's mistake is reported."""

import argparse
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

import torch

from minikd.datasets import Dataset, load_dataset
from minikd.defaults import DEFAULT_COLUMNS, DEFAULTS, LORA_LR, corpus_name, default
from minikd.files import UserError
from minikd.flag_types import folder, integer, names, non_empty, real
from minikd.inference import choose_device, choose_precision
from minikd.lora import TARGETS
from minikd.training import TrainingSettings

DATA_DIR = Path(__file__).parents[1] / "data"


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line without the page of usage before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_data_flags(parser: argparse.ArgumentParser, default_text: str = "") -> None:
    """Which corpus, from where, cut at what length. `default_text` replaces the defaults named in the help texts."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        type=non_empty,
        default="sample",
        metavar="imdb|sst2|fpb|sample|PATH",
        help="corpus; or a CSV, TSV or JSONL file, or a folder with train, validation and test files, with columns "
        f"text (or sentence) and label (default: {default_text or 'sample'})",
    )
    group.add_argument(
        "--data-dir",
        type=folder,
        default=DATA_DIR,
        metavar="DIR",
        help="where archives are looked for and downloaded to "
        f"(default: {default_text or 'the folder data beside the scripts'})",
    )
    group.add_argument(
        "--fpb-agreement",
        choices=("50", "66", "75", "all"),
        default="50",
        help=f"Financial PhraseBank: least percentage of annotators who agree (default: {default_text or '50'})",
    )
    group.add_argument(
        "--max-length",
        type=integer(3),
        metavar="N",
        help="tokens per text, [CLS] and [SEP] counted; longer texts are cut "
        f"(default: {default_text or 'by corpus, see below'})",
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where and in which number format to compute."""
    group = parser.add_argument_group("device")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="format of the matrix products; auto: bf16 where the hardware has it (default: auto)",
    )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """How to train: the fields of TrainingSettings, and whether to go on with an interrupted run."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=integer(1), metavar="N", help="passes over the training set")
    group.add_argument("--batch-size", type=integer(1), metavar="N", help="examples per forward pass (default: 32)")
    group.add_argument("--lr", type=real(0, exclusive=True), metavar="X", help="peak learning rate")
    group.add_argument("--weight-decay", type=real(0), default=0.01, metavar="X", help="AdamW's (default: 0.01)")
    group.add_argument(
        "--warmup-ratio",
        type=real(0, 1),
        default=0.1,
        metavar="X",
        help="share of steps in which the rate rises (default: 0.1)",
    )
    group.add_argument(
        "--grad-accum", type=integer(1), default=1, metavar="N", help="forward passes per optimizer step (default: 1)"
    )
    group.add_argument(
        "--clip", type=real(0), default=1.0, metavar="X", help="largest gradient norm; 0: no clipping (default: 1)"
    )
    group.add_argument("--label-smoothing", type=real(0, 1), default=0.0, metavar="X", help="default: 0")
    group.add_argument(
        "--patience",
        type=integer(0),
        default=0,
        metavar="N",
        help="stop after N epochs without a better validation accuracy; 0: never (default: 0)",
    )
    group.add_argument(
        "--seed",
        type=integer(0),
        default=42,
        metavar="N",
        help="initial weights, order of batches, dropout; the split never changes (default: 42)",
    )
    group.add_argument("--compile", action="store_true", help="train with torch.compile (slow start, then faster)")
    group.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    group.add_argument(
        "--track",
        choices=("wandb", "tensorboard"),
        help="send losses, rates, validation metrics, speed and memory there too (log.jsonl has them always)",
    )


def add_lora_flags(parser: argparse.ArgumentParser, whose: str) -> argparse._ArgumentGroup:
    """Whether and how to train low-rank adapters instead of all weights of `whose` model. Returns the flags' group."""
    group = parser.add_argument_group("low-rank adaptation (LoRA)")
    group.add_argument(
        "--lora-rank",
        type=integer(1),
        metavar="R",
        help=f"of {whose} fine-tune adapters of rank R and the head alone (default: all weights)",
    )
    group.add_argument(
        "--lora-alpha",
        type=real(0, exclusive=True),
        default=16.0,
        metavar="X",
        help="adapters are scaled by this over R (default: 16)",
    )
    group.add_argument(
        "--lora-dropout", type=real(0, 0.99), default=0.0, metavar="X", help="on the adapters' input (default: 0)"
    )
    group.add_argument(
        "--lora-targets",
        type=names(*TARGETS),
        default=["query", "value"],
        metavar="NAME,…",
        help=f"which projections get one, of {', '.join(TARGETS)} (default: query,value)",
    )
    return group


def lora_settings(args: argparse.Namespace, rank: int | None) -> dict | None:
    """The arguments of `add_lora` for adapters of this rank; None for no rank."""
    if rank is None:
        return None
    return {"rank": rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout, "targets": args.lora_targets}


def add_output_flag(parser: argparse.ArgumentParser, default_text: str = "runs/<dataset>") -> None:
    """Where the results go."""
    parser.add_argument("--output-dir", type=folder, metavar="DIR", help=f"where results go (default: {default_text})")


def defaults_text(columns=DEFAULT_COLUMNS) -> str:
    """The table of per-corpus defaults, for the end of --help."""
    lines = ["defaults per corpus:", "  " + "".join(f"{name:>15}" for name in ("", *columns))]
    for dataset in DEFAULTS:
        lines.append(
            "  " + "".join(f"{value:>15}" for value in (dataset, *(default(name, dataset) for name in columns)))
        )
    return "\n".join(lines)


def fill_defaults(args: argparse.Namespace) -> None:
    """Replaces the flags that were not given by the corpus's defaults, and settles the output folder.

    The length waits until the model is known: see `settle_length`.
    """
    for rank, rate in (("lora_rank", "teacher_lr" if "teacher_lr" in args else "lr"), ("student_lora_rank", "lr")):
        if getattr(args, rank, None) and getattr(args, rate) is None:
            setattr(args, rate, LORA_LR)
    for column in DEFAULT_COLUMNS:
        if column != "max_length" and column in vars(args) and getattr(args, column) is None:
            setattr(args, column, default(column, args.dataset))
    if args.output_dir is None:
        args.output_dir = Path("runs") / corpus_name(args.dataset)
    if args.dataset not in DEFAULTS and Path(args.dataset).exists():
        args.dataset = str(Path(args.dataset).resolve())
    args.data_dir = args.data_dir.resolve()  # run.json must name both from any folder
    check_writable(args.output_dir)


def settle_length(args: argparse.Namespace, positions: int) -> None:
    """Where --max-length was not given: the corpus's default, or as many tokens as the model has positions."""
    if args.max_length is None:
        args.max_length = min(default("max_length", args.dataset), positions)
        print(f"max_length {args.max_length}")


def check_writable(output: Path) -> None:
    """Makes the folder. Raises UserError if nothing can be written to it: before hours of training, not after."""
    probe = output / f".writable-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output-dir {output}: cannot be written to ({error.strerror})") from None


def start(args: argparse.Namespace) -> torch.device:
    """Settles device and precision, and prints the flags (a length not given follows once the model is known)."""
    device = choose_device(args.device)
    args.precision, reason = choose_precision(args.precision, device)
    print("; ".join(f"{name} {value}" for name, value in printable(args).items() if value is not None))
    print(f"device {device}; precision {args.precision}: {reason}")
    return device


def load_data(args: argparse.Namespace) -> Dataset:
    """The corpus that the flags name. Prints its sizes and labels."""
    data = load_dataset(args.dataset, args.data_dir, agreement=args.fpb_agreement)
    sizes = (f"{len(getattr(data, name).texts):,} {name}" for name in ("train", "validation", "test"))
    print(f"{data.name}: {', '.join(sizes)}; labels {', '.join(data.labels)}")
    return data


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """The training flags, as the loop takes them."""
    own = {field.name for field in fields(TrainingSettings)} - {"alpha", "T"}  # these two are the distilled student's
    return TrainingSettings(**{name: getattr(args, name) for name in own})


def run(main) -> None:
    """Calls `main` and turns what a user can mend into one line on stderr and status 2; Ctrl-C and SIGTERM into 130."""
    script = Path(sys.argv[0]).name

    def terminate(number, frame):
        raise KeyboardInterrupt("stopped by SIGTERM")

    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
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
    print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def printable(args: argparse.Namespace) -> dict:
    """The resolved flags as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
