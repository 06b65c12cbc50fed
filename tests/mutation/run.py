"""Mutation testing: changes the code in small ways, one at a time, and counts how many changes some test notices.

    pip install "mutmut>=3"
    python tests/mutation/run.py minikd/metrics.py minikd/losses.py --sample 50

A change that no test notices (a survivor) shows a line whose effect is not tested, or a change without effect. The
score is the share of the changes tried that make a test fail or run far too long. Nothing is written into the
repository. Needs fork, so Linux or macOS.

Changes without effect that survive can be listed in equivalent.json beside this file, as [{"module": "minikd/x.py",
"diff": ["-before", "+after"], "why": "…"}]: they are not tried and not counted.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from child import Child, import_what_is_slow
from coverage_map import HERE, TESTS, chosen_tests, coverage_map

try:
    from mutants import Mutant, mutants_of
except ModuleNotFoundError as error:
    sys.exit(f'Mutation testing needs mutmut 3 (no module {error.name}): pip install --upgrade "mutmut>=3"')

ROOT = HERE.parents[1]
COLUMNS = ("mutants", "tried", "killed", "timed out", "survived", "equivalent")


def main() -> None:
    args = read_arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "10"}
    args.work.mkdir(parents=True, exist_ok=True)
    survivors = args.work / "survivors.txt"
    survivors.write_text("")
    with tempfile.TemporaryDirectory(prefix="copies-", dir=args.work) as folder:
        copies = [copy_repository(Path(folder) / str(i)) for i in range(args.jobs)]
        files = {file: None for module in args.modules for file in TESTS[module]}
        maps = {file: coverage_map(copies[0], file, args.work / "maps") for file in files}
        import_what_is_slow()
        rows = {}
        for module in args.modules:
            rows[module], survived = try_module(module, [maps[file] for file in TESTS[module]], copies, args.sample)
            with survivors.open("a") as file:
                file.writelines(f"{module}, line {mutant.first}\n{mutant.diff}\n\n" for mutant in survived)
    print_table(rows)
    print(f"survivors: {survivors}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", metavar="MODULE", help='minikd/losses.py, distill.py, …, or "all"')
    parser.add_argument("--sample", type=int, metavar="N", help="try N mutants of each file, always the same ones")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants tried at once (default: 2)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minikd-mutation"
    parser.add_argument("--work", type=Path, default=cache, metavar="DIR",
                        help="where copies, maps of coverage and survivors.txt go (default: %(default)s)")  # fmt: skip
    args = parser.parse_args()
    args.modules = list(TESTS) if args.modules == ["all"] else args.modules
    for module in args.modules:
        if module not in TESTS or not (ROOT / module).is_file():
            parser.error(f"no tests are listed for {module} in tests/mutation/coverage_map.py")
    if args.jobs < 1 or args.sample is not None and args.sample < 1:
        parser.error("--jobs and --sample must be at least 1")
    args.work = args.work.resolve()
    if args.work.is_relative_to(ROOT):
        parser.error(f"--work {args.work} is inside the repository, which is copied there: name another folder")
    return args


def copy_repository(target: Path) -> Path:
    """A copy of the files that git knows or would add, without runs, downloaded corpora and environments."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def try_module(module: str, maps: list[dict], copies: list[Path], sample: int | None) -> tuple[dict, list[Mutant]]:
    """(row of the table, survivors) of one file."""
    source = (copies[0] / module).read_text()
    mutants = mutants_of(source)
    chosen = random.Random(0).sample(mutants, sample) if sample and sample < len(mutants) else mutants
    known = known_equivalents(module)
    tried = sorted((mutant for mutant in chosen if mutant.diff not in known), key=lambda mutant: mutant.first)
    print(f"{module}: {len(mutants)} mutants, {len(tried)} to try", flush=True)
    check_unchanged(module, source, maps, copies)
    outcomes = try_mutants(module, tried, maps, copies)
    row = collections.Counter(outcomes.values())
    row |= {"mutants": len(mutants), "tried": len(tried), "equivalent": len(chosen) - len(tried)}
    return row, [mutant for mutant in tried if outcomes[mutant] == "survived"]


def known_equivalents(module: str) -> set[str]:
    """Diffs of the mutants of a file that a person judged to have no effect."""
    path = HERE / "equivalent.json"
    listed = json.loads(path.read_text()) if path.exists() else []
    return {"\n".join(one["diff"]) for one in listed if one["module"] == module}


def check_unchanged(module: str, source: str, maps: list[dict], copies: list[Path]) -> None:
    """Runs a quick test of each file on the unchanged code: it must pass, or every mutant would count as killed.

    This also leaves compiled files in the copies, which the mutants then read.
    """
    quick = [min(one["seconds"], key=one["seconds"].get) for one in maps if one["seconds"]]
    for copy in copies:
        child = Child(copy, module, source, quick, limit=600, bytecode=True)
        while (outcome := child.outcome()) is None:
            time.sleep(0.02)
        if outcome != "survived":
            sys.exit(f"{module}: the tests fail on the unchanged code\n{(copy / 'output.txt').read_text()[-3000:]}")


def try_mutants(module: str, mutants: list[Mutant], maps: list[dict], copies: list[Path]) -> dict[Mutant, str]:
    """{mutant: "killed", "survived" or "timed out"}; one mutant at a time in each copy of the repository."""
    waiting, free, running, outcomes = list(reversed(mutants)), list(copies), {}, {}
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                tests, seconds = chosen_tests(module, mutant.first, mutant.last, maps)
                running[mutant] = Child(free.pop(), module, mutant.code, tests, limit=30 + 10 * seconds)
            time.sleep(0.02)
            for mutant, child in list(running.items()):
                if outcome := child.outcome():
                    outcomes[mutant] = outcome
                    free.append(running.pop(mutant).copy)
                    if len(outcomes) % 20 == 0:
                        print(f"  {len(outcomes)} of {len(mutants)} tried", flush=True)
    finally:
        for child in running.values():
            child.stop()
    return outcomes


def print_table(rows: dict[str, dict]) -> None:
    """One line for each file, and their sum."""
    if len(rows) > 1:
        rows = rows | {"all": {name: sum(row.get(name, 0) for row in rows.values()) for name in COLUMNS}}
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>10}" for name in COLUMNS), "     score")
    for module, row in rows.items():
        found = row.get("killed", 0) + row.get("timed out", 0)
        score = f"{100 * found / row['tried']:.1f} %" if row["tried"] else "–"
        print(f"{module:<{width}}", *(f"{row.get(name, 0):>10}" for name in COLUMNS), f"{score:>10}")


if __name__ == "__main__":
    main()
