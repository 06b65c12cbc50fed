"""Five changes to the code, each a line, and what the sample's student becomes with it.

    python tests/exercises.py

Each change is made in a copy of the code, in which `COMMAND` then trains a student; all students have one teacher.
Writes data/results/exercises.json, of which `python -m minikd.experiment.readme` makes the README's table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minikd.experiment.readme import without_paths
from minikd.experiment.results import read_results
from minikd.files import write_json

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "distill.py --alpha 0.1 --T 4 --no-baseline"
# name: (file, the line's part that is replaced, what replaces it)
CHANGES = {
    "as it is": ("losses.py", "", ""),
    "1": ("losses.py", "return T**2 * _kl(*_scaled", "return _kl(*_scaled"),
    "2": ("losses.py", "teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)",
          "student_log_probs.exp() * (student_log_probs - teacher_log_probs)"),
    "3": ("losses.py", "(teacher_logits.detach()) / T", "(teacher_logits.detach()) / 0.01"),
    "4": ("batching.py", "[plan[i] for i in random.permutation(len(plan))]",
          "sorted(plan, key=lambda index: lengths[index].max())"),
    "5": ("batching.py", "Batch(torch.from_numpy(index),", "Batch(torch.arange(len(index)),"),
}  # fmt: skip


def changed(source: str, old: str, new: str) -> str:
    """The source with the one place `old` replaced. Raises ValueError where there is none, or several."""
    if old and source.count(old) != 1:
        raise ValueError(f"{old!r} is there {source.count(old)} times")
    return source.replace(old, new) if old else source


def main() -> None:
    rows, values = [], {}
    with tempfile.TemporaryDirectory() as copy:
        copy = Path(copy)
        for name in ("minikd", "data/sample"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "distill.py", copy)
        for name, (file, old, new) in CHANGES.items():
            source = (ROOT / "minikd" / file).read_text(encoding="utf-8")
            (copy / "minikd" / file).write_text(changed(source, old, new), encoding="utf-8")
            environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(copy / "cache")}
            subprocess.run([sys.executable, *COMMAND.split()], cwd=copy, check=True, env=environment)
            (copy / "minikd" / file).write_text(source, encoding="utf-8")
            values = without_paths(read_results(copy / "runs" / "sample" / "results.json"))
            values.pop("first_weights")  # random ones, of all students
            teacher, student = values["models"]
            rows = [*(rows or [teacher]), student | {"name": name}]
    write_json(ROOT / "data" / "results" / "exercises.json", values | {"models": rows, "curves": {}})


if __name__ == "__main__":
    main()
