"""How long the scripts take until their first line."""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmark.measure import TINY, alternate, fresh, say

from minikd.checkpoints.pretrained import save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.config import BERT_BASE


def startup_part(args, figures: dict, save) -> None:
    """Seconds until each script prints its first line, on the embedded sample; the process is then killed."""
    from equality import minilm_folder

    root = Path(__file__).resolve().parents[2]
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
