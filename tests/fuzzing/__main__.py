"""`python tests/fuzzing`: see run.py."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}  # the children are forked
sys.path[:1] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

try:
    import atheris
except ImportError:  # the files are then chosen by where they are refused, not by the lines that they reach
    atheris = None

with atheris.instrument_imports(include=["minikd"]) if atheris else nullcontext():
    from fuzzing.run import main

main(atheris)
