"""The flags that the three scripts share, the defaults per corpus, and how a user's mistake is reported."""

import argparse
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from minikd.config import BERT_BASE, EncoderConfig
from minikd.datasets import Dataset
from minikd.files import UserError
from minikd.training import TrainingSettings

# What a flag that is not given means, per corpus. Teachers take the pre-trained BERT's small rates and few epochs;
# small students want larger rates and more epochs (Turc et al. 2019). The sample's models start from random weights.
DEFAULTS = {
    #          max_length  batch_size  teacher_epochs  teacher_lr  epochs    lr
    "sample":     (64,         32,           6,           3e-4,       8,    5e-4),
    "imdb":      (256,         32,           2,           2e-5,       4,    5e-5),
    "sst2":      (128,         32,           3,           2e-5,       4,    5e-5),
    "fpb":       (128,         32,           4,           3e-5,       6,    5e-5),
    "own files": (256,         32,           3,           2e-5,       4,    5e-5),
}  # fmt: skip
DATA_DIR = Path(__file__).parents[1] / "data"
DEFAULT_COLUMNS = ("max_length", "batch_size", "teacher_epochs", "teacher_lr", "epochs", "lr")

# The sample is small enough for models of its own, whose vocabulary is learned from it.
SAMPLE_VOCABULARY = 2000
SAMPLE_TEACHER = EncoderConfig(
    num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=1024, max_position_embeddings=64
)
SAMPLE_STUDENT = dict(hidden_size=128, num_attention_heads=4, intermediate_size=512)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line without the page of usage before it."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="sample",
        metavar="imdb|sst2|fpb|sample|PATH",
        help="corpus; or a CSV, TSV or JSONL file, or a folder with train, validation and test files, with "
        "columns text (or sentence) and label (default: sample)",
    )
    group.add_argument(
        "--data-dir",
        type=Path,
        default=DATA_DIR,
        metavar="DIR",
        help="where archives are looked for and downloaded to (default: data)",
    )
    group.add_argument(
        "--fpb-agreement",
        choices=("50", "66", "75", "all"),
        default="50",
        help="Financial PhraseBank: least percentage of annotators who agree (default: 50)",
    )
    group.add_argument("--max-length", type=integer(2), metavar="N", help="tokens per text; longer texts are cut")


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="format of the matrix products; auto: bf16 where the hardware has it (default: auto)",
    )
    group.add_argument("--compile", action="store_true", help="train with torch.compile (slow start, then faster)")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
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
    group.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")


def add_output_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where results go (default: runs/<dataset>)")


def defaults_text() -> str:
    """The table of per-corpus defaults, for the end of --help."""
    lines = ["defaults per corpus:", "  " + "".join(f"{name:>15}" for name in ("", *DEFAULT_COLUMNS))]
    lines += ["  " + "".join(f"{value:>15}" for value in (name, *values)) for name, values in DEFAULTS.items()]
    return "\n".join(lines)


def default(name: str, dataset: str | None):
    """The corpus's default for one of DEFAULT_COLUMNS."""
    return DEFAULTS.get(dataset, DEFAULTS["own files"])[DEFAULT_COLUMNS.index(name)]


def fill_defaults(args: argparse.Namespace) -> None:
    """Replaces every flag that was not given by the corpus's default, and settles the output folder."""
    for name in DEFAULT_COLUMNS:
        if getattr(args, name, 0) is None:  # a flag that this script has and the user did not give
            setattr(args, name, default(name, args.dataset))
    if args.output_dir is None:
        args.output_dir = Path("runs") / (
            args.dataset if args.dataset in DEFAULTS else Path(args.dataset).resolve().stem
        )
    check_writable(args.output_dir)


def check_writable(folder: Path) -> None:
    """Makes the folder. Raises UserError if nothing can be written to it: before hours of training, not after."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output-dir {folder}: cannot be written to ({error.strerror})") from None


def print_dataset(data: Dataset) -> None:
    """One line: the corpus, its sizes and its labels."""
    sizes = (f"{len(getattr(data, name).texts):,} {name}" for name in ("train", "validation", "test"))
    print(f"{data.name}: {', '.join(sizes)}; labels {', '.join(data.labels)}")


def new_config(hidden: int, layers: int, like: EncoderConfig) -> EncoderConfig:
    """A shape by BERT's proportions, heads of 64 (32 below a width of 512) and a feed-forward network four times the
    width, with the vocabulary, positions and labels of `like`. Raises UserError for a width that heads do not fill."""
    head_size = 64 if hidden % 64 == 0 and hidden >= 512 else 32
    if hidden % head_size:
        raise UserError(f"hidden size {hidden}: must be a multiple of {head_size}, the size of an attention head")
    return replace(
        BERT_BASE,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // head_size,
        intermediate_size=4 * hidden,
        vocab_size=like.vocab_size,
        max_position_embeddings=like.max_position_embeddings,
        labels=like.labels,
    )


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """The training flags, as the loop takes them."""
    names = (
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "warmup_ratio",
        "grad_accum",
        "clip",
        "label_smoothing",
        "patience",
        "seed",
        "precision",
    )
    return TrainingSettings(**{name: getattr(args, name) for name in names})


def integer(least: int):
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return parse


def real(least: float, most: float = math.inf, exclusive: bool = False):
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)) or (exclusive and value == least):
            wanted = f"above {least:g}" if exclusive else f"of at least {least:g}"
            wanted += f" and at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {wanted}")
        return value

    return parse


def run(main) -> None:
    """Calls `main` and turns what a user can mend into one line on stderr and status 2; Ctrl-C and SIGTERM into 130."""
    name = Path(sys.argv[0]).name

    def terminate(number, frame):
        raise KeyboardInterrupt("stopped by SIGTERM")

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
    except UserError as error:
        sys.exit(_fail(name, str(error)))
    except torch.OutOfMemoryError:
        sys.exit(
            _fail(name, "the GPU's memory is full: try a smaller --batch-size (with --grad-accum) or --max-length")
        )
    except BrokenPipeError:  # the reader of our output (head, less) went away
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:
            raise
        sys.exit(_fail(name, f"{error.filename or 'file'}: {error.strerror}"))
    except KeyboardInterrupt as stop:
        print(f"\n{name}: {stop or 'stopped'}; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)


def _fail(name: str, message: str) -> int:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def printable(args: argparse.Namespace) -> dict:
    """The resolved flags as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
