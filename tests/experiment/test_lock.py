"""One run at a time in an output folder: the second is refused, and a lock never outlives its process."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK

from minikd.errors import MinikdError
from minikd.experiment import lock

ROOT = Path(__file__).parents[2]
HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from minikd.experiment.lock import only_run_in
with only_run_in(Path(sys.argv[1])):
    {inside}
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts another process that holds a folder's lock, runs `inside` in it, and is killed in the end."""
    processes = []

    def start(folder, inside="pass"):
        program = HOLD.format(inside=inside)
        process = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def lines_of_each_script(corpus, bare, fine_tuned):
    yield "distill.py", ["--dataset", corpus, "--teacher", bare, "--student-layers", 2, *QUICK, "--output-dir", "out"]
    yield "train.py", ["--dataset", corpus, "--model", bare, *QUICK[:2], *QUICK[8:], "--output-dir", "out"]
    yield "evaluate.py", [fine_tuned, "--dataset", corpus, "--output-dir", "out"]


def test_a_second_run_into_a_folder_is_refused_and_changes_nothing(script, holder, corpus, bare, fine_tuned):
    Path("out/teacher/.partial").mkdir(parents=True)
    Path("out/teacher/.partial/state.pt").write_text("the first run's")
    process = holder(Path("out").resolve())
    for name, flags in lines_of_each_script(corpus, bare, fine_tuned):
        status, _, err = script(name, *flags)
        assert status == 2 and err.count("\n") == 1 and err.startswith(f"{name}: error: out: another run is writing")
        assert f"process {process.pid} on {platform.node()}" in err
        assert {path.name for path in Path("out").rglob("*")} == {".lock", "teacher", ".partial", "state.pt"}, name


def test_a_lock_is_released_by_the_death_of_its_process(holder, tmp_path):
    process = holder(tmp_path)
    with pytest.raises(MinikdError, match="another run is writing there"), lock.only_run_in(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()  # what a kill leaves
    with lock.only_run_in(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held, wanted", [("out", "out/teacher"), ("out/teacher", "out"), ("out/sweep/a", "out")])
def test_a_run_in_a_folder_above_or_below_is_in_the_way_and_one_beside_is_not(holder, tmp_path, held, wanted):
    for folder in (held, wanted, "beside"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    process = holder(tmp_path / held)
    with pytest.raises(MinikdError, match=f"{held}: another run is writing there .process {process.pid}"):
        with lock.only_run_in(tmp_path / wanted):
            pass
    with lock.only_run_in(tmp_path / "beside"):
        pass
    process.kill()
    process.wait()
    with lock.only_run_in(tmp_path / wanted):
        pass


@pytest.mark.parametrize("child", ["fork", "program"])
def test_a_child_process_does_not_keep_its_parents_lock(holder, tmp_path, child):
    start = {
        "fork": "pid = os.fork()\n    if not pid: os.close(1); time.sleep(60); os._exit(0)",
        "program": "pid = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL).pid",
    }[child]
    process = holder(tmp_path, start + f"\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))")
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    try:
        os.kill(pid, 0)  # it lives
        with lock.only_run_in(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)


def test_without_a_folder_there_is_nothing_to_protect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lock.only_run_in(None):
        assert not list(tmp_path.iterdir())


def test_an_end_by_an_error_releases_the_lock_and_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.only_run_in(tmp_path):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_of_many_runs_that_start_and_end_at_once_one_holds_the_folder_at_a_time(tmp_path):
    """Each adds 1 to a number in a file, by reading and writing it, as often as it gets the lock in two seconds."""
    (tmp_path / "count").write_text("0")
    (tmp_path / "locked").mkdir()
    program = """
import sys, time
from pathlib import Path
from minikd.errors import MinikdError
from minikd.experiment.lock import only_run_in
count, mine, end = Path(sys.argv[1], "count"), 0, time.time() + 2
while time.time() < end:
    try:
        with only_run_in(Path(sys.argv[1], "locked")):
            number = int(count.read_text())
            time.sleep(0)
            count.write_text(str(number + 1))
            mine += 1
    except MinikdError:
        pass
print(mine)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [int(racer.communicate()[0]) for racer in racers]
    assert sum(count > 0 for count in counts) > 1 and int((tmp_path / "count").read_text()) == sum(counts)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_gets_a_line_and_the_run(monkeypatch, tmp_path, capsys, number):
    def none_here(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", none_here)
    with lock.only_run_in(tmp_path):
        assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"{tmp_path}: cannot be locked ({os.strerror(number)})" in out


def test_a_system_without_fcntl_imports_the_lock_and_says_that_it_has_none(tmp_path):
    program = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from pathlib import Path; from minikd.experiment.lock import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])): print('ran')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "cannot be locked" in done.stdout and done.stdout.endswith("ran\n"), done.stderr


def test_two_real_runs_into_one_folder_end_as_one(corpus, bare, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", str(corpus), "--model", str(bare), "--lr", "1e-3",
               "--precision", "fp32", "--device", "cpu", "--output-dir", "out"]  # fmt: skip
    first = subprocess.Popen([*command, "--epochs", "200"], cwd=tmp_path, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)  # fmt: skip
    log, deadline = tmp_path / "out/.partial/log.jsonl", time.time() + 60
    while not (log.exists() and log.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    lines = log.read_text()
    second = subprocess.run([*command, "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert first.poll() is None, "the first run was over before the second began"
    assert second.returncode == 2 and f"process {first.pid} on" in second.stderr and second.stderr.count("\n") == 1
    assert log.read_text().startswith(lines)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert not (tmp_path / "out/.lock").exists()
    third = subprocess.run([*command, "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert third.returncode == 0 and (tmp_path / "out/results.json").exists()
