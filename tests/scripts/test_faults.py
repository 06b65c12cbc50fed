"""Faults of the machine that really happen: one line says what and what to do, and nothing is lost.

Faults of downloads are in tests/checkpoints/test_hub.py and tests/corpora/test_datasets.py, losses that are not finite
in tests/core/test_training.py.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import WORDS
from forked import ROOT, Forks

from minikd.checkpoints.hub import read_weights
from minikd.datasets import load_dataset
from minikd.datasets.archive import members
from minikd.errors import MinikdError
from minikd.experiment.journal import read_log
from minikd.files import check_writable, write_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these faults are made by Linux's means")
FLAGS = ["--epochs", 2, "--batch-size", 16, "--max-length", 16, "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def train(forks, corpus, bare, tmp_path_factory):
    """Runs train.py on the corpus, or only starts it; its `weights` are those of a run without any fault."""
    folder = tmp_path_factory.mktemp("whole")

    def run(output="out", data=corpus, *flags, folder, started=False, **options):
        command = ["train.py", "--dataset", data, "--model", bare, "--output-dir", output, *FLAGS, *flags]
        return (forks.start if started else forks.run)(*command, folder=folder, **options)

    assert run(folder=folder)[0] == 0
    run.weights = (folder / "out/model.safetensors").read_bytes()
    return run


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk as `tmp_path`/disk, with these options of tmpfs; again, to change them."""
    folder = tmp_path / "disk"

    def mount(options):
        if os.geteuid():
            pytest.skip("only root may mount a disk")
        again = "remount," if folder.is_mount() else ""
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", folder]).returncode:
            pytest.skip("no disk may be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def left_over(folder):
    """Files that were being written."""
    return [path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".writable")]


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


def test_after_a_full_disk_the_run_continues_to_the_same_end(train, corpus, disk, tmp_path):
    folder = disk("size=330k")
    status, _, err = train("disk/out", folder=tmp_path)
    assert status == 2 and err == [
        "train.py: error: disk/out/.partial/state.pt: No space left on device; make room, and run the command again (a "
        "training: with --resume)"
    ]
    assert not left_over(folder)
    disk("size=9m")
    status, out, err = train("disk/out", corpus, "--resume", folder=tmp_path)
    assert (status, err) == (0, []) and "resumed from" in out
    assert weights_of(folder / "out") == train.weights


def test_a_file_that_is_larger_than_is_allowed_leaves_what_was_there(train, tmp_path):
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    status, _, err = train(folder=tmp_path, before=limit)
    assert status == 2 and err[0].startswith("train.py: error: out/.partial/state.pt: File too large; make room")
    assert not left_over(tmp_path) and len(err) == 1
    assert train(folder=tmp_path)[0] == 0 and weights_of(tmp_path / "out") == train.weights


@pytest.mark.parametrize(("flags", "flag"), [
    (["--output-dir", "disk"], "--output-dir"), (["--input", "texts.txt", "--output", "disk/labels.csv"], "--output"),
    (["--html", "disk/page.html"], "--html"),
])  # fmt: skip
def test_a_read_only_folder_is_found_before_any_work(forks, train, fine_tuned, corpus, disk, tmp_path, flags, flag):
    disk("ro")
    (tmp_path / "texts.txt").write_text("a great film\n")
    commands = [["evaluate.py", fine_tuned, *([] if "--input" in flags else ["--dataset", corpus]), *flags]]
    commands += [["train.py", "--dataset", corpus, *flags]] if flag == "--output-dir" else []
    for command in commands:
        status, out, err = forks.run(*command, folder=tmp_path)
        assert status == 2 and "loaded" not in out
        assert err == [f"{command[0]}: error: {flag} disk: cannot be written to (Read-only file system)"]


NOBODY = """
import pwd
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown
"""


@pytest.mark.parametrize(("variables", "before"), [
    ({"HOME": None, "XDG_CACHE_HOME": None}, NOBODY), ({"XDG_CACHE_HOME": "/proc/nowhere"}, ""),
], ids=["no home", "unwritable"])  # fmt: skip
def test_without_a_cache_the_run_is_the_same(train, tmp_path, variables, before):
    status, out, err = train(folder=tmp_path, before=before, **variables)
    assert (status, err) == (0, []) and out.count("tokens not cached: ") == 3  # the splits
    assert weights_of(tmp_path / "out") == train.weights
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no folder called "~"


NO_SHARED_MEMORY = """
import ctypes, os
libc = ctypes.CDLL(None)
own_view = libc.unshare(0x20000) == 0 == libc.mount(None, b"/", None, 0x44000, None)  # of the disks
if not own_view or libc.mount(b"no", b"/dev/shm", b"tmpfs", 1, b""):  # empty and read-only
    os._exit(77)
assert not os.access("/dev/shm", os.W_OK)
"""


def test_no_shared_memory_is_needed(train, tmp_path):
    status, _, err = train(folder=tmp_path, before=NO_SHARED_MEMORY)
    if status == 77:
        pytest.skip("only root may hide /dev/shm")
    assert (status, err) == (0, []) and weights_of(tmp_path / "out") == train.weights


def test_a_file_that_vanishes_after_its_folder_was_listed_is_named(tmp_path):
    """A link to nothing is listed, and cannot be read."""
    for name in ("train.csv", "test.csv", "model.safetensors", "neg/0_1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to("gone")
    for read, name in ((lambda: load_dataset(str(tmp_path)), "train.csv"),
                       (lambda: read_weights(tmp_path / "model.safetensors"), "model.safetensors"),
                       (lambda: list(members(tmp_path, "neg/.*")), "neg/0_1.txt")):  # fmt: skip
        with pytest.raises(MinikdError, match=r"cannot be read.*No such file") as caught:
            read()
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


DEEP = "/".join(["d" * 200] * 20)


@pytest.mark.parametrize("name", ["a space\nand a line é 电 \u202e", "-dash", "y" * 251, DEEP[:3780]],
                         ids=["odd", "dash", "long", "deep"])  # fmt: skip
def test_files_and_folders_may_have_any_name(forks, train, corpus, tmp_path, name):
    data = tmp_path / f"{name}.csv"
    if name != DEEP[:3780]:
        data.write_bytes(corpus.read_bytes())
    else:
        data = corpus
    output = Path("./" + name)
    status, _, err = train(f"./{name}", data, folder=tmp_path)
    assert (status, err) == (0, []) and weights_of(tmp_path / output) == train.weights
    (tmp_path / "texts.txt").write_text("a great film\n")
    status, _, err = forks.run("evaluate.py", f"./{name}", "--input", "texts.txt", "--output", f"./{name}.csv",
                               "--max-length", 16, folder=tmp_path)  # fmt: skip
    assert (status, err) == (0, []) and (tmp_path / f"{name}.csv").read_text().count("\n") == 2


def test_names_that_cannot_be_are_refused_before_any_work(train, corpus, tmp_path):
    for output, reason in (("z" * 256, "File name too long"), (f"./{DEEP}/{'d' * 200}", "File name too long"),
                           (os.fsdecode(b"o\xff"), "is not UTF-8")):  # fmt: skip
        status, out, err = train(output, folder=tmp_path)
        assert status == 2 and "device cpu" not in out and len(err) == 1
        assert err[0].startswith("train.py: error: --output-dir ") and reason in err[0]
    with pytest.raises(MinikdError, match="too long"):  # room for the folder, but not for what will be in it
        check_writable(tmp_path / DEEP[: 4060 - len(str(tmp_path))])


def test_a_name_of_other_bytes_than_utf_8_is_read_and_shown(train, corpus, tmp_path):
    data = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    Path(os.fsdecode(data)).write_bytes(corpus.read_bytes())
    status, out, err = train("out", data, folder=tmp_path)
    assert (status, err) == (0, []) and weights_of(tmp_path / "out") == train.weights
    assert json.loads((tmp_path / "out/results.json").read_text())["dataset"] == "caf\ufffd"


CLOSED = """
import os, sys
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None  # as Python does that is started so
"""
READER = """
import os, sys, threading
reading, writing = os.pipe()
os.dup2(writing, 1)
os.close(writing)
sys.stdout.reconfigure(line_buffering=True)
def read():
    while b"epoch 1 of 2" not in os.read(reading, 65536):
        pass
    os.close(reading)
threading.Thread(target=read).start()
"""


def test_without_stdout_and_stderr_the_run_is_the_same(train, tmp_path):
    assert train(folder=tmp_path, before=CLOSED) == (0, "", [])
    assert weights_of(tmp_path / "out") == train.weights
    for line in (tmp_path / "out/log.jsonl").read_text().splitlines():
        json.loads(line)  # nothing was printed into the file


def test_a_training_whose_reader_goes_away_is_finished(train, tmp_path):
    status, _, err = train(folder=tmp_path, before=READER)
    assert (status, err) == (2, ["train.py: error: nobody reads stdout any more; --resume continues a training"])
    assert weights_of(tmp_path / "out") == train.weights


def test_output_that_goes_to_a_full_disk_is_named(train, tmp_path):
    status, _, err = train(folder=tmp_path, before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert status == 2 and err[0].startswith("train.py: error: stdout: No space left on device; make room")
    assert len(err) == 1


BACKWARDS = """
import itertools, time
import tqdm.std
import minikd.experiment.state as state
hours, now, save = itertools.count(), time.time, state.save_state
time.time = tqdm.std.time = lambda: now() - 3600 * next(hours)
def save_state(path, origin, training):
    save(path, origin, training)
    with open("saved", "a") as file:
        print(training.step, file=file)
state.save_state = save_state
"""


def test_a_clock_that_is_set_back_changes_nothing(train, corpus, tmp_path):
    """It is an hour earlier whenever somebody looks at it."""
    status, _, err = train("out", corpus, "--save-minutes", 1e-6, folder=tmp_path, before=BACKWARDS)
    assert (status, err) == (0, []) and weights_of(tmp_path / "out") == train.weights
    steps, log = [int(step) for step in (tmp_path / "saved").read_text().split()], read_log(tmp_path / "out")
    assert steps[0] == 1 < steps[-1] == 20  # not only at the end of an epoch, which has ten steps
    assert all(line["seconds"] > 0 if "seconds" in line else line["examples_per_second"] > 0 for line in log)
    row = json.loads((tmp_path / "out/results.json").read_text())["models"][0]
    assert all(value > 0 for key, value in row.items() if "minutes" in key or "seconds" in key or "per_second" in key)


def test_the_locale_c_changes_nothing_but_what_the_terminal_can_show(train, corpus, bare, tmp_path):
    """There ASCII is the encoding of stdout and of files that name no other."""
    shutil.copy(corpus, tmp_path / "café.csv")
    command = [sys.executable, ROOT / "train.py", "--dataset", "café.csv", "--model", bare, "--output-dir", "é", *FLAGS]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True)
    assert run.returncode == 0 and weights_of(tmp_path / "é") == train.weights, run.stderr
    assert run.stdout.isascii() and "café" in (tmp_path / "é/results.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "é/results.json").read_bytes())["dataset"] == "café"
    for path in (tmp_path / "é").glob("*.*"):
        if path.suffix not in (".safetensors", ".png"):
            path.read_bytes().decode()


def test_a_decimal_comma_changes_nothing(train, tmp_path):
    made = ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"]
    if not shutil.which("localedef") or subprocess.run(made, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no locale with a comma can be made here")
    german = "import locale; locale.setlocale(locale.LC_ALL, 'de_DE.UTF-8'); assert locale.str(1.5) == '1,5'"
    status, _, err = train(folder=tmp_path, before=german, LOCPATH=str(tmp_path))
    assert (status, err) == (0, []) and weights_of(tmp_path / "out") == train.weights
    with (tmp_path / "out/predictions-model.csv").open() as file:
        assert all(0 < float(row["prob_bad"]) < 1 for row in csv.DictReader(file))


def test_little_memory_names_the_batch_to_try(forks, tmp_path):
    words = " ".join(WORDS * 40)
    write_rows(tmp_path / "long.csv", [{"text": f"{i} {words}", "label": i % 2} for i in range(200)])
    little = """
import resource
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
    command = ["train.py", "--dataset", "long.csv", "--layers", 1, "--hidden", 256, "--max-length", 512, "--epochs", 1,
               "--precision", "fp32", "--device", "cpu", "--output-dir", "out"]  # fmt: skip
    status, _, err = forks.run(*command, "--batch-size", 128, folder=tmp_path, before=little)
    assert status == 2 and err == [
        "train.py: error: model: the memory is full; try --batch-size 64 with --grad-accum 2 (as many examples a "
        "step), or a smaller --max-length, without --resume"
    ]
    assert not left_over(tmp_path)


def test_a_run_that_is_stopped_and_continued_is_the_same(train, tmp_path):
    script, log = train(folder=tmp_path, started=True), tmp_path / "out/.partial/log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(script.pid, signal.SIGSTOP)
    while Path(f"/proc/{script.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    stopped = log.read_bytes()
    time.sleep(0.3)
    assert log.read_bytes() == stopped
    os.kill(script.pid, signal.SIGCONT)
    status, _, err = script.wait()
    assert (status, err) == (0, []) and weights_of(tmp_path / "out") == train.weights
