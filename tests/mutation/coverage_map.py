"""Which tests run which line: a mutant is tried only on those that run what it changes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The test files that matter for a module, the quick ones first; modules in the order of the rooms.
SCRIPTS = [
    "test_wiring.py",
    "test_honest_evaluation.py",
    "test_claims.py",
    "test_scripts.py",
    "test_experiments.py",
    "test_fair_start.py",
]
TESTS = {
    "minikd/batching.py": ["test_batching.py", "test_training_steps.py", "test_training.py", "test_efficiency.py"],
    "minikd/classifier.py": ["test_public.py", "test_student.py", "test_teacher.py", "test_training.py", *SCRIPTS],
    "minikd/config.py": ["test_config.py", "test_checkpoint.py", "test_student.py", "test_model.py", "test_training.py",
                         "test_flags.py"],
    "minikd/dropout.py": ["test_dropout.py", "test_model.py"],
    "minikd/files.py": ["test_files.py", "test_claims.py", "test_config.py", "test_checkpoint.py", "test_lock.py",
                        "test_scripts.py"],
    "minikd/distributed.py": ["test_distributed.py", "test_processes.py"],
    "minikd/inference.py": ["test_caches.py", "test_costs.py", "test_training.py", "test_precision.py",
                            "test_batching.py", *SCRIPTS],
    "minikd/losses.py": ["test_losses.py", "test_soft_losses.py", "test_losses_of_layers.py", "test_training_steps.py",
                         "test_training.py",
                         "test_teacher.py"],
    "minikd/metrics.py": ["test_metrics.py", "test_report.py", "test_evaluate.py"],
    "minikd/model.py": ["test_model.py", "test_checkpoint.py", "test_precision.py", "test_training_steps.py",
                        "test_lora.py", "test_layer_losses.py"],
    "minikd/student.py": ["test_student.py", "test_checkpoint.py", "test_recipes.py", *SCRIPTS],
    "minikd/tokenizer.py": ["test_tokenizer.py", "test_batching.py", "test_checkpoint.py"],
    "minikd/training.py": ["test_training_steps.py", "test_training.py", "test_precision.py", "test_used_rows.py",
                           "test_memory.py", "test_progress.py", "test_tracking.py"],
    "minikd/used_rows.py": ["test_used_rows.py", "test_training_steps.py"],
    "minikd/datasets/__init__.py": ["test_datasets.py", "test_own_data.py", "test_sample.py"],
    "minikd/datasets/archive.py": ["test_datasets.py"],
    "minikd/datasets/classes.py": ["test_own_data.py", "test_datasets.py"],
    "minikd/datasets/decoding.py": ["test_datasets.py", "test_own_data.py"],
    "minikd/datasets/folds.py": ["test_folds.py", "test_fold_runs.py"],
    "minikd/datasets/fpb.py": ["test_datasets.py", "test_splits.py"],
    "minikd/datasets/imdb.py": ["test_datasets.py"],
    "minikd/datasets/own.py": ["test_own_data.py"],
    "minikd/datasets/rows.py": ["test_own_data.py"],
    "minikd/datasets/sample.py": ["test_sample.py", "test_datasets.py"],
    "minikd/datasets/containment.py": ["test_splits.py", "test_datasets.py"],
    "minikd/datasets/splits.py": ["test_splits.py", "test_datasets.py"],
    "minikd/datasets/sst2.py": ["test_datasets.py"],
    "minikd/checkpoints/adapters.py": ["test_hub.py", "test_label_order.py", "test_lora.py"],
    "minikd/checkpoints/config_json.py": ["test_config.py", "test_checkpoint.py", "test_quantize.py"],
    "minikd/checkpoints/hub.py": ["test_hub.py", "test_checkpoint.py", *SCRIPTS],
    "minikd/checkpoints/label_order.py": ["test_label_order.py", "test_claims.py"],
    "minikd/checkpoints/load.py": ["test_label_order.py", "test_lora.py", "test_quantize.py", *SCRIPTS],
    "minikd/checkpoints/pretrained.py": ["test_checkpoint.py", "test_hub.py", "test_label_order.py", "test_lora.py"],
    "minikd/checkpoints/reading.py": ["test_checkpoint.py", "test_hub.py", "test_config.py"],
    "minikd/checkpoints/tokenizer_files.py": ["test_tokenizer.py", "test_checkpoint.py", "test_hub.py"],
    "minikd/techniques/augment.py": ["test_augment.py", "test_wiring.py", "test_unlabelled.py"],
    "minikd/techniques/layer_losses.py": ["test_layer_losses.py", "test_layers.py", "test_two_stages.py"],
    "minikd/techniques/lora.py": ["test_lora.py", "test_hub.py", "test_label_order.py"],
    "minikd/techniques/quantize.py": ["test_quantize.py", "test_claims.py"],
    "minikd/evaluation/bag_of_words.py": ["test_bag_of_words.py", "test_report.py"],
    "minikd/evaluation/calibration.py": ["test_calibration.py", "test_evaluate.py", "test_sweep.py"],
    "minikd/evaluation/comparison.py": ["test_report.py", "test_comparison.py", "test_evaluate.py", "test_costs.py",
                                        *SCRIPTS],
    "minikd/evaluation/costs.py": ["test_efficiency.py", "test_memory.py", "test_comparison.py", "test_quantize.py"],
    "minikd/evaluation/folds.py": ["test_fold_interval.py", "test_fold_report.py", "test_fold_runs.py"],
    "minikd/evaluation/memory.py": ["test_memory.py", "test_efficiency.py"],
    "minikd/evaluation/significance.py": ["test_significance.py", "test_comparison.py", "test_report.py"],
    "minikd/experiment/caches.py": ["test_caches.py", "test_teacher.py", "test_costs.py", *SCRIPTS],
    "minikd/experiment/folds.py": ["test_fold_runs.py", "test_fold_report.py"],
    "minikd/experiment/journal.py": ["test_tracking.py", "test_training.py", "test_runs.py", "test_scripts.py"],
    "minikd/experiment/labelling.py": ["test_labelling.py", "test_evaluate.py", "test_label_order.py",
                                       "test_own_data.py", *SCRIPTS],
    "minikd/experiment/lock.py": ["test_lock.py"],
    "minikd/experiment/progress.py": ["test_progress.py", "test_training.py"],
    "minikd/experiment/readme.py": ["test_report.py", "test_comparison.py"],
    "minikd/experiment/recorded.py": ["test_runs.py", "test_plots.py", "test_costs.py", "test_wiring.py"],
    "minikd/experiment/results.py": ["test_public.py", "test_report.py", "test_comparison.py", "test_evaluate.py",
                                     "test_costs.py", *SCRIPTS],
    "minikd/experiment/running.py": ["test_running.py", "test_training.py", "test_progress.py", "test_tracking.py",
                                     "test_scripts.py"],
    "minikd/experiment/runs.py": ["test_runs.py", "test_costs.py", "test_lora.py", *SCRIPTS],
    "minikd/experiment/state.py": ["test_training.py", "test_runs.py", "test_scripts.py"],
    "minikd/experiment/sweep.py": ["test_sweep.py", *SCRIPTS],
    "minikd/experiment/teacher.py": ["test_teacher.py", "test_costs.py", *SCRIPTS],
    "minikd/experiment/tracking.py": ["test_tracking.py"],
    "minikd/experiment/training.py": ["test_public.py", "test_teacher.py", "test_runs.py", "test_lora.py",
                                      "test_layers.py", *SCRIPTS],
    "minikd/report/drawing.py": ["test_report.py", "test_plots.py", "test_dark_knowledge.py"],
    "minikd/report/figures.py": ["test_plots.py"],
    "minikd/report/folds.py": ["test_fold_report.py", "test_fold_runs.py"],
    "minikd/report/page.py": ["test_dark_knowledge.py"],
    "minikd/report/panels.py": ["test_plots.py"],
    "minikd/report/plots.py": ["test_plots.py"],
    "minikd/report/sentences.py": ["test_significance.py", "test_comparison.py", "test_report.py"],
    "minikd/report/tables.py": ["test_report.py", "test_comparison.py", "test_sweep.py", "test_recipes.py"],
    "minikd/cli/defaults.py": ["test_flags.py", "test_recipes.py", "test_experiments.py"],
    "minikd/cli/finished.py": ["test_evaluate.py", "test_flags.py", "test_own_data.py", "test_quantize.py", *SCRIPTS],
    "minikd/cli/flag_types.py": ["test_flags.py", "test_evaluate.py", "test_own_data.py"],
    "minikd/cli/flags.py": ["test_flags.py", "test_evaluate.py", "test_own_data.py", "test_recipes.py"],
    "minikd/cli/folds.py": ["test_fold_runs.py", "test_flags.py"],
    "minikd/cli/models.py": ["test_student.py", "test_flags.py", "test_lora.py", "test_label_order.py", "test_costs.py",
                             "test_two_stages.py", "test_recipes.py", *SCRIPTS],
    "minikd/cli/parse.py": ["test_flags.py", "test_evaluate.py", "test_own_data.py", "test_recipes.py"],
    "minikd/cli/recipes.py": ["test_recipes.py", "test_flags.py"],
    "minikd/cli/students.py": ["test_fair_start.py", "test_two_stages.py", "test_student.py", *SCRIPTS[:-1],
                               "test_recipes.py"],
    "minikd/cli/start.py": ["test_flags.py", "test_own_data.py", "test_recipes.py", "test_lock.py", *SCRIPTS],
    "train.py": ["test_flags.py", *SCRIPTS, "test_lora.py"],
    "distill.py": ["test_flags.py", "test_costs.py", "test_sweep.py", *SCRIPTS, "test_recipes.py", "test_lora.py"],
    "evaluate.py": ["test_evaluate.py", "test_flags.py", *SCRIPTS, "test_quantize.py", "test_dark_knowledge.py",
                    "test_lora.py"],
}  # fmt: skip

# Parts of the names of tests that run a module in another process. Coverage does not see that, so they are tried last.
OTHER_PROCESS = {
    "minikd/cli/start.py": ["stopped_by_a_signal", "terminal_that_cannot_show"],
    "minikd/experiment/lock.py": ["test_"],
    "minikd/evaluation/memory.py": ["test_"],
    "minikd/experiment/runs.py": ["stopped_by_a_signal"],
    "minikd/experiment/state.py": ["stopped_by_a_signal"],
}


def find(root: Path, test_file: str) -> Path:
    """The test file of this name, in whichever folder of the tests it is."""
    return next((root / "tests").rglob(test_file))


def coverage_map(copy: Path, test_file: str, folder: Path) -> dict:
    """{"seconds": {test: s}, "lines": {module: {line: [tests]}}} of one test file, from its run under coverage.

    `copy` is a copy of the repository; maps are kept in `folder` and made anew when the code or the tests change. Tests
    that fail on the unchanged code are left out, with a warning.
    """
    path = folder / f"{Path(test_file).stem}-{_fingerprint(copy, test_file)}.json"
    if path.exists():
        return json.loads(path.read_text())
    print(f"mapping tests/{test_file}", flush=True)
    report, data = copy / "report.json", copy / ".coverage-map"
    report.unlink(missing_ok=True), data.unlink(missing_ok=True)
    output = _run_under_coverage(copy, test_file, report, data)
    if not report.exists():
        sys.exit(f"tests/{test_file} cannot be run:\n{output[-3000:]}")
    took = json.loads(report.read_text())
    for test in took["failed"]:
        print(f"  left out, because it fails on the unchanged code: {test}", flush=True)
        took["seconds"].pop(test, None)
    result = {"seconds": took["seconds"], "lines": _lines(copy, data, set(took["seconds"]))}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def chosen_tests(module: str, first: int, last: int, maps: list[dict]) -> tuple[list[str], float]:
    """(ids of the tests to try on a change of lines first … last, the quickest first; seconds that all of them take).

    Where no test is known to run the lines (they run on import), these are all tests of the maps.
    """
    seconds = {test: took for one in maps for test, took in one["seconds"].items()}
    runs = [one["lines"].get(module, {}).get(str(line), []) for one in maps for line in range(first, last + 1)]
    chosen = set().union(*runs) or set(seconds)
    late = {test for test in seconds if any(part in test for part in OTHER_PROCESS.get(module, []))} - chosen
    order = sorted(chosen, key=seconds.get) + sorted(late, key=seconds.get)
    return order, sum(seconds[test] for test in order)


def pytest_arguments(*more: str) -> list[str]:
    """Arguments of pytest that replace the project's own: one process, no coverage, our plugin."""
    return ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "mutation_plugin", "-o", "addopts=", *more]


def _run_under_coverage(copy: Path, test_file: str, report: Path, data: Path) -> str:
    config = copy / ".coveragerc-map"
    config.write_text(f"[run]\ninclude =\n    {copy}/minikd/*\n    {copy}/*.py\ndata_file = {data}\n")
    arguments = pytest_arguments("--cov", f"--cov-config={config}", "--cov-context=test", "--cov-report=")
    command = [sys.executable, "-m", "pytest", *arguments, str(find(copy, test_file).relative_to(copy))]
    variables = {"MUTATION_REPORT": str(report), "PYTHONPATH": os.pathsep.join([str(copy), str(HERE)])}
    done = subprocess.run(
        command, cwd=copy, env=os.environ | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def _lines(copy: Path, path: Path, known: set[str]) -> dict:
    """{module: {line: [tests]}} from coverage's contexts, which are "test id|setup", "…|run" and "…|teardown"."""
    from coverage import CoverageData

    data = CoverageData(str(path))
    data.read()
    return {
        str(Path(file).relative_to(copy)): {
            str(line): sorted({context.rpartition("|")[0] for context in contexts} & known)
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }


def _fingerprint(copy: Path, test_file: str) -> str:
    """A hash of the code and of all that the test file may import."""
    tests = [path for path in copy.glob("tests/**/*.py") if not path.name.startswith("test_")]
    digest = hashlib.sha256()
    for path in sorted([*copy.glob("*.py"), *copy.rglob("minikd/**/*.py"), *tests, find(copy, test_file)]):
        digest.update(str(path.relative_to(copy)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
