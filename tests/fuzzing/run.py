"""Reads mutated files for hours, in processes of their own, one after another, and counts what comes of it.

    nice python tests/fuzzing --folder /tmp/fuzz --executions 1000000

gives each reader its turn of some seconds, again and again, until all together have tried so many files or the process
is stopped; the same command continues. FOLDER/counts.json has the counts of each reader; FOLDER/findings the files that
led to what must not happen, each with the error and its traceback: an exception that is no refusal in one line, more
than 1 GiB of memory, 20 seconds of computing, a minute of waiting, words of a library or control characters on stderr,
the end of the process. Files that reach something new are kept in FOLDER/corpus and mutated further: with atheris
(`pip install atheris`) those that reach new lines of minikd, else those that are refused elsewhere.
"""

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import zlib
from pathlib import Path

import numpy as np

from fuzzing.readers import READERS, attempt

COUNTS = ("executions", "refused", "bad")
SECONDS, MOST = 20, 10_000  # of computing for one file; for a turn too, which has at most so many executions
MEMORY = 1 << 30  # bytes more than before
LONGEST = 200_000  # bytes of a file that is mutated further
NOISE = re.compile(rb"panicked|Traceback|[\0-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\x1b(?!\[A)")


class Hang(BaseException):
    """A file that takes too long: no `except Exception` sees it."""


class Noise(Exception):
    """What a library wrote to stderr."""


def main(atheris=None) -> None:
    parser = argparse.ArgumentParser(prog="python tests/fuzzing", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of counts.json, the corpus and the findings")
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all readers together")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="NAME")
    args = parser.parse_args()
    path = args.folder / "counts.json"
    counts = json.loads(path.read_text()) if path.exists() else {}
    while sum(one["executions"] for one in counts.values()) < args.executions:
        # the reader that has had the fewest turns
        name = min(args.readers, key=lambda name: counts.get(name, {}).get("turns", 0))
        before = counts.get(name, dict.fromkeys((*COUNTS, "turns", "ended"), 0))
        found, ended = turn(name, before["executions"], args.folder, atheris)
        counts[name] = {key: before[key] + more for key, more in zip(COUNTS, found)}
        counts[name] |= {"turns": before["turns"] + 1, "ended": before["ended"] + ended}
        path.with_suffix(".new").write_text(json.dumps(counts, indent=2))
        path.with_suffix(".new").replace(path)


def turn(name: str, first: int, folder: Path, atheris) -> tuple[tuple[int, int, int], bool]:
    """A process that reads mutated files with the reader of this name, from the seed `first` on. Returns the counts,
    which live in memory that it shares, and whether it ended before its time."""
    counts = mmap.mmap(-1, 24)
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            Worker(name, folder, work, counts).run(first, atheris)
            status = 0
        except BaseException:
            traceback.print_exc(file=open(folder / "harness.txt", "a"))
        finally:
            os._exit(status)
    status = wait(pid, counts)
    if status not in (0, 3):
        with open(work / "stderr", "rb") as file:
            words = file.read()[-3000:].decode(errors="replace")
        content = (work / "tried").read_bytes() if (work / "tried").exists() else b""
        keep(folder / "findings", name, content, f"the process ended with {status}\n{words}", f"ended {status}")
    shutil.rmtree(work)
    return struct.unpack("3Q", counts[:]), status not in (0, 3)


def wait(pid: int, counts: mmap.mmap) -> int:
    """The status of the process at its end, which is brought about if it waits for a minute without progress."""
    last, since = counts[:], time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if counts[:] != last or state != "S":
            last, since = counts[:], time.monotonic()
        elif time.monotonic() - since > 60:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def keep(folder: Path, reader: str, content: bytes, text: str, kind: str) -> None:
    """Keeps the first file of each kind of finding."""
    folder = folder / reader
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(kind.encode()).hexdigest()[:12]
    if not (folder / name).exists():
        (folder / name).write_bytes(content)
        (folder / f"{name}.txt").write_text(text, errors="backslashreplace")


class Worker:
    """Reads mutated files, one after another, in this process, whose stdout goes nowhere and stderr to a file."""

    def __init__(self, name: str, folder: Path, work: Path, counts: mmap.mmap):
        self.name, self.reader, self.folder, self.counts = name, READERS[name], folder, counts
        self.corpus = folder / "corpus" / name
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.parent, self.tried = os.getppid(), work / "tried"  # for whoever finds this process dead
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(os.open(work / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND), 2)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        (work / "files").mkdir()
        os.chdir(work / "files")
        self.path = self.reader.make(work / "files")
        self.example = self.path.read_bytes()
        assert attempt(self.reader, self.path) is None, "the file itself is refused"
        self.peak = peak()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 6 * MEMORY,) * 2)  # for the sake of the machine
        signal.signal(signal.SIGPROF, self.stop)

    def stop(self, *_):
        raise Hang(f"{SECONDS} s of computing")

    def run(self, first: int, atheris) -> None:
        if atheris:
            flags = ["-runs=1000000000", f"-max_total_time={SECONDS * 30}", "-max_len=1000000", "-rss_limit_mb=0",
                     "-timeout=100000", "-print_final_stats=0", "-verbosity=0", "-len_control=0", "-mutate_depth=1",
                     f"-seed={first + 1}", f"-artifact_prefix={self.tried.parent}/"]  # fmt: skip
            (self.corpus / "example").write_bytes(self.example)
            self.ends = time.process_time() + SECONDS
            atheris.Setup(["fuzzing", *flags, str(self.corpus)], self.one, custom_mutator=self.mutate)
            atheris.Fuzz()
            return
        sites, files = set(), [self.example, *(path.read_bytes() for path in sorted(self.corpus.iterdir()))]
        self.ends, number = time.process_time() + SECONDS, first
        while True:
            random = np.random.default_rng((zlib.crc32(self.name.encode()), number))
            content = self.reader.mutate(files[int(random.integers(len(files))) * (random.random() < 0.5)], random)
            site = self.one(content)
            if site not in sites and len(content) <= LONGEST:
                sites.add(site)
                files.append(content)
                (self.corpus / hashlib.sha256(repr(site).encode()).hexdigest()[:12]).write_bytes(content)
            number += 1

    def mutate(self, content: bytes, most: int, seed: int) -> bytes:
        """As atheris calls it: a change to a file of the corpus or, as often, to the example, of which more is read."""
        random = np.random.default_rng(seed)
        return self.reader.mutate(self.example if random.random() < 0.5 else content, random)[: min(most, LONGEST)]

    def one(self, content: bytes) -> tuple | None:
        """Reads a file of this content. Returns where it was refused; ends the process after its time."""
        over = time.process_time() > self.ends or struct.unpack("3Q", self.counts[:])[0] == MOST
        if over or os.getppid() != self.parent:  # who counts is gone
            os._exit(0)
        self.path.write_bytes(content)
        self.tried.write_bytes(content)
        os.ftruncate(2, 0)
        error, good = None, False
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            error, good = attempt(self.reader, self.path), True
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.check_stderr()
        except BaseException as caught:
            signal.setitimer(signal.ITIMER_PROF, 0)
            error = caught
            good = False
        site = error and tuple((f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__))[-4:]
        more = peak() - self.peak
        if more > MEMORY:
            good, error = False, MemoryError(f"{more:,} bytes")
        executions, refused, bad = struct.unpack("3Q", self.counts[:])
        self.counts[:] = struct.pack("3Q", executions + 1, refused + (good and error is not None), bad + (not good))
        if not good:
            text = "".join(traceback.format_exception(error))
            kind = f"{type(error).__name__} {site and site[-2:]}"
            kind += re.sub("[0-9]+", "", str(error))[:40] * isinstance(error, Noise)
            keep(self.folder / "findings", self.name, content, text, kind)
        if more > MEMORY:
            os._exit(3)  # what was once the most memory remains it
        return site

    def check_stderr(self) -> None:
        """Raises Noise for what should not be there."""
        if os.fstat(2).st_size and NOISE.search(words := os.pread(2, 100_000, 0)):
            raise Noise(words.decode(errors="replace"))


def peak() -> int:
    """The most memory that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


with contextlib.suppress(ImportError):  # that of the test's settings: so that the first turn does not import it
    import torch._dynamo  # noqa: F401
