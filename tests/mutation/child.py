"""Runs tests on a changed file in a forked process, which need not import torch and transformers again."""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from coverage_map import pytest_arguments

SLOW_IMPORTS = """pytest numpy torch torch._dynamo torch.profiler tokenizers safetensors.torch tqdm scipy.optimize
scipy.stats sklearn.metrics transformers transformers.trainer transformers.models.auto.modeling_auto
transformers.models.bert.modeling_bert transformers.models.distilbert.modeling_distilbert""".split()
OTHER_ENDING, NO_TESTS = 99, 5  # exit statuses; the second is pytest's


def import_what_is_slow() -> None:
    """Imports what the tests need and mutants do not change, once for all children."""
    import matplotlib

    matplotlib.use("Agg")
    for name in ["matplotlib.pyplot", *SLOW_IMPORTS]:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # a process with threads cannot be forked safely


class Child:
    """A process that runs `tests` with `code` in place of a module of `copy`, a copy of the repository.

    It is stopped after `limit` seconds. `bytecode` allows it to write compiled files, which a mutant must not.
    """

    def __init__(self, copy: Path, module: str, code: str, tests: list[str], limit: float, bytecode: bool = False):
        self.copy, self.path, self.limit = copy, copy / module, limit
        self.original = self.path.read_text()
        self.path.write_text(code)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _run_tests(copy, tests, bytecode)

    def outcome(self) -> str | None:
        """ "killed" (a test failed, or none could run), "survived", "timed out"; None while the tests are running."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and time.monotonic() - self.started < self.limit:
            return None
        self.stop(ended=pid != 0)
        if pid == 0:
            return "timed out"
        return "survived" if os.waitstatus_to_exitcode(status) in (0, NO_TESTS) else "killed"

    def stop(self, ended: bool = False) -> None:
        """Ends the process with all that it started, and restores the module."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the child leads a process group of its own
        if not ended:
            os.waitpid(self.pid, 0)
        self.path.write_text(self.original)


def _run_tests(copy: Path, tests: list[str], bytecode: bool) -> None:
    """Never returns: the process ends with pytest's exit status."""
    status = OTHER_ENDING
    try:
        os.setsid()
        _redirect(copy / "output.txt")
        _set_environment(copy, tests, bytecode)
        import pytest

        files = dict.fromkeys(test.split("::")[0] for test in tests)
        status = int(pytest.main(pytest_arguments("-x", "--tb=line", f"--basetemp={copy}/tmp/base", *files)))
    except BaseException as error:  # whatever a mutant raises
        print(f"ended by {error!r}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(status)


def _redirect(path: Path) -> None:
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def _set_environment(copy: Path, tests: list[str], bytecode: bool) -> None:
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    (copy / "tmp").mkdir(exist_ok=True)
    os.environ |= {"MUTATION_TESTS": json.dumps(tests), "PYTHONPATH": str(copy), "TMPDIR": str(copy / "tmp")}
    tempfile.tempdir = None  # so that TMPDIR is read again
    sys.dont_write_bytecode = not bytecode
    if not bytecode:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
