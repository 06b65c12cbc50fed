"""Runs scripts in forks of one process, which has imported all that they need, so that a start takes no seconds.

Reads the arguments of a command from each line of stdin, as JSON; answers with the process's number, and at its end
with its exit status, a line each. Output of the commands is appended to output.txt.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch

import minikd
import minikd.experiment.results
import minikd.experiment.training

torch.set_num_threads(1)  # a process with threads cannot be forked safely
for name in ("distill.py", "train.py"):
    runpy.run_path(str(Path(minikd.__file__).parents[1] / name))
minikd.evaluation.costs.TURNS, minikd.evaluation.costs.LARGEST = (1, 1), 2
minikd.experiment.results.inference_memory_mb = lambda *_: 1.0  # a process for each model
minikd.experiment.training.training_memory_mb = lambda *_: 2.0
minikd.experiment.results.draw = lambda *_: None

for line in sys.stdin:
    script, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = [script, *arguments]
        runpy.run_path(str(Path(minikd.__file__).parents[1] / script), run_name="__main__")
        sys.stdout.flush(), os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
