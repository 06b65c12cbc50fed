"""Memory in use: now, at its peak, and what a training adds to it."""

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory in use at once since `reset_peak_memory`, in MiB; None where the system does not tell.

    CUDA: what torch's allocator gave to tensors on that device. CPU: the resident set of this process, with Python and
    torch in it, since the reset on Linux and since the process began elsewhere. mps keeps no peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _peak_resident_mb() if device.type == "cpu" else None


def keep_freed_memory() -> None:
    """Asks Linux's C library to keep the memory of freed tensors for the next ones.

    By default it returns every block above 32 MiB to the system, which then hands out zeroed pages one by one: up to
    five times the work of an operation that writes 32 MiB. The price is up to a fifth more memory at the peak of a
    training run. Does nothing on other systems.
    """
    with suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_in_use_mb(device: torch.device) -> float | None:
    """What is in use now, in MiB; None where the system does not tell.

    CUDA: what torch's allocator has given to tensors on that device. CPU, on Linux alone: the resident set of this
    process without the pages of programs and files. What torch loads in the first step of a process is loaded here, so
    that it counts as no training's.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    matrix = torch.nn.Parameter(torch.ones(1, 1, device=device))
    optimizer = torch.optim.AdamW([matrix])
    (matrix @ matrix).sum().backward()
    optimizer.step()
    del matrix, optimizer
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    _give_back_freed_memory()
    return _status_mb("RssAnon")


def added_memory_mb(device: torch.device, held: float | None) -> float | None:
    """The peak since `reset_peak_memory` beyond `held`, what `memory_in_use_mb` returned before, in MiB; None where the
    system does not tell."""
    peak, files = peak_memory_mb(device), _status_mb("RssFile") if device.type == "cpu" else 0.0
    return None if None in (held, peak, files) else peak - files - held


def reset_peak_memory(device: torch.device) -> bool:
    """Starts a new measurement of `peak_memory_mb`. Returns whether it could: only CUDA and Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    _give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes the present resident set
    except OSError:
        return False  # not Linux, or not permitted
    return True


def _give_back_freed_memory() -> None:
    """What `keep_freed_memory` has kept is not in use."""
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_mb(field: str) -> float | None:
    """A figure of /proc/self/status (proc(5)) in MiB; None off Linux."""
    with suppress(OSError):
        found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) / 2**10 if found else None
    return None


def _peak_resident_mb() -> float | None:
    """The peak of this process's resident set in MiB; None on Windows."""
    # Rather than getrusage, whose figure survives exec: a child would report its parent's peak.
    peak = _status_mb("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
