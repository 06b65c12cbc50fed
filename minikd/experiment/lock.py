"""One run at a time in an output folder.

The lock is the system's own (POSIX record locks, fcntl(2)): it ends with the process that took it, however that ends,
and is not inherited by its children. Who holds it is written in OUTPUT/.lock, which is removed at the end; after a kill
it stays, and the next run takes it over.
"""

import errno
import os
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

from minikd.distributed import rank
from minikd.errors import MinikdError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def only_run_in(folder: Path | None):
    """Within the block, no other run can begin to write in `folder`, which must exist; None: nothing to protect. Of
    several processes of one run, the first one holds the lock.

    Raises MinikdError that names the folder and the process that holds it where another run is writing there, in a
    folder above (distill.py, say, whose teacher's folder this is) or in one below. Where the system or the file system
    has no locks, prints a line and protects nothing.
    """
    descriptor = None if folder is None or rank() > 0 else _take(folder / ".lock")
    if folder is None or descriptor is None:
        yield
        return
    try:
        above = (parent / ".lock" for parent in folder.resolve().parents)
        for other in (*above, *folder.glob("*/.lock"), *folder.glob("*/*/.lock")):  # as deep as runs are
            with suppress(OSError):  # there is none, or it is not ours to look at
                with open(other, "r+b") as file:
                    _lock(file.fileno(), other.parent)
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is locked: nobody else removes it
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """The open, locked file; None where there are no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not for child programs: Python sets O_CLOEXEC
        try:
            _lock(descriptor, path.parent)
        except MinikdError:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            reason = f"cannot be locked ({error.strerror})"
            print(f"{path.parent}: {reason}; do not start a second run into it while this one runs")
            return None
        with suppress(FileNotFoundError):  # a run that ended between our open and our lock removed it
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Locks the open file. Raises MinikdError where another process holds it, OSError where there are no locks."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no fcntl")
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "just begun"
        raise MinikdError(
            f"{folder}: another run is writing there ({holder}); wait for its end, or give another `run_dir`"
        ) from None
