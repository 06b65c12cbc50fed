"""One run at a time in an output folder.

The lock is the system's own (POSIX record locks, fcntl(2)): it ends with the process that took it, however that ends,
and is not inherited by its children. Who holds it is written in OUTPUT/.lock, which is removed at the end; after a kill
it stays, and the next run takes it over.
"""

import errno
import os
import platform
from contextlib import contextmanager
from pathlib import Path

from minikd.errors import MinikdError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def only_run_in(folder: Path | None):
    """Within the block, no other run can begin to write in `folder`, which must exist; None: nothing to protect.

    Raises MinikdError that names the folder and the process that holds it where another run is writing there, in a
    folder above (distill.py, say, whose teacher's folder this is) or in one below. Where the system or the file system
    has no locks, prints a line and protects nothing.
    """
    path = folder and folder / ".lock"
    descriptor = path and _take(path)
    if descriptor is None:
        yield
        return
    try:
        below = (*folder.glob("*/.lock"), *folder.glob("*/*/.lock"))  # as deep as runs are
        for other in (*(above / ".lock" for above in folder.resolve().parents), *below):
            if holder := _holder(other):
                raise _refusal(other.parent, holder)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: nobody else removes it
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """The open, locked file; None where there are no locks."""
    if fcntl is None:
        return _no_locks(path, "this system has no fcntl")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not for child programs: Python sets O_CLOEXEC
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _refusal(path.parent, holder or "just begun") from None
            path.unlink(missing_ok=True)
            return _no_locks(path, error.strerror)
        if _is_named(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)


def _holder(path: Path) -> str | None:
    """Who holds the lock at `path`, which is not this process; None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # there is none, or it is not ours to look at
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except OSError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        return holder or "just begun" if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(descriptor)


def _refusal(folder: Path, holder: str) -> MinikdError:
    return MinikdError(
        f"{folder}: another run is writing there ({holder}); wait for its end, or give another `run_dir`"
    )


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the name of the open file. A run that ended between our open and our lock removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _no_locks(path: Path, reason: str) -> None:
    print(f"{path.parent}: cannot be locked ({reason}); do not start a second run into it while this one runs")
