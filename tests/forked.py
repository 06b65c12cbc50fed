"""Scripts run in children that are forked from one process, which has imported torch once for all.

Each is a process of its own: what is done to its limits, files, signals and user really happens, and to it alone.
"""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Script:
    """A script under way: `pids` of its processes, and `pid` of the first; `wait()` gives its status (of several
    processes, theirs), stdout, and the lines of stderr but for progress bars."""

    def __init__(self, server, files, processes):
        self.server, self.files = server, files
        self.pids = [int(server.stdout.readline()) for _ in range(processes)]
        self.pid = self.pids[0]

    def wait(self):
        statuses = [int(self.server.stdout.readline()) for _ in self.pids]
        status = statuses if len(statuses) > 1 else statuses[0]
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self.files)
        # without progress bars, which begin with a carriage return and may have a line behind them
        lines = [line for line in re.split("[\r\n]+", err) if line.strip() and not re.search(r"\d+/\d+ \[", line)]
        return status, out, lines


class Forks:
    """The process that forks. One script at a time."""

    def __init__(self, outputs):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self.files = outputs / "stdout", outputs / "stderr"
        self.process = subprocess.Popen([sys.executable, __file__, *map(str, self.files)], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)  # fmt: skip

    def start(self, name, *arguments, folder, before="", processes=1, **environment):
        """Starts a script in `folder`, after the Python code `before` was run, with these variables set (None: not
        set), and the cache of the test. Several `processes` are started with the variables that torchrun sets."""
        for path in self.files:
            path.write_text("")
        environment = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME")} | environment
        request = [str(ROOT / name), [os.fsdecode(one) if isinstance(one, bytes) else str(one) for one in arguments],
                   str(folder), before, environment, processes]  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        return Script(self.process, self.files, processes)

    def run(self, *arguments, **options):
        """Status, stdout and the lines of stderr of a script, as by `start`."""
        return self.start(*arguments, **options).wait()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(files):
    """Forks the children of each request, tells their pids, and at their end their statuses."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    while line := sys.stdin.readline():
        *request, processes = json.loads(line)
        together, pids = variables_of_torchrun(processes), []
        for variables in together:
            pids.append(os.fork())
            if not pids[-1]:
                answers.close()
                request[-1] |= variables
                return child(files, *request)
            print(pids[-1], file=answers)
        for pid in pids:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)
    return None


def variables_of_torchrun(processes):
    """For each of several processes on this machine, the variables that torchrun would set; {} for a single one."""
    if processes == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    every = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    every["LOCAL_WORLD_SIZE"] = str(processes)
    return [every | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def child(files, script, arguments, folder, before, environment):
    """Runs the script as Python would, up to the last flush of its streams."""
    for number, path in zip((0, 1, 2), ("/dev/null", *files)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    sys.argv = [script, *arguments]
    exec(before, {})
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401  imported late by the first optimizer

    import minikd.cli.parse  # noqa: F401  all that the scripts import
    import minikd.cli.students  # noqa: F401
    import minikd.evaluation.costs
    import minikd.experiment.results
    import minikd.experiment.training

    minikd.evaluation.costs.TURNS, minikd.evaluation.costs.LARGEST = (1, 1), 2  # in a hurry, as the fixture `script`
    minikd.experiment.results.draw = lambda *_: None
    minikd.experiment.results.inference_memory_mb = lambda *_: 1.0
    minikd.experiment.training.training_memory_mb = lambda *_: 2.0
    serve(sys.argv[1:])
