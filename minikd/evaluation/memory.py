"""The peak memory of this process, and what the C library does with freed memory."""

import ctypes
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
    if device.type != "cpu":
        return None
    with suppress(OSError):  # not Linux
        # Rather than getrusage, whose figure survives exec: a child would report its parent's peak.
        peak = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def keep_freed_memory() -> None:
    """Asks Linux's C library to keep the memory of freed tensors for the next ones.

    By default it returns every block above 32 MiB to the system, which then hands out zeroed pages one by one: up to
    five times the work of an operation that writes 32 MiB. The price: batches of many widths leave gaps between what
    stays in use, and the process grows; see `return_freed_memory`. Does nothing on other systems.
    """
    with suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Gives what `keep_freed_memory` has kept back to the system, which costs about as much as one training step.

    A student of 2 layers that learned from reviews of all lengths held 8 GB after a few thousand steps, of which 1 GB
    was in use. Does nothing where the C library is another.
    """
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of `peak_memory_mb`. Only CUDA and Linux can; elsewhere it does nothing."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        return_freed_memory()
        with suppress(OSError):  # not Linux, or not permitted
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes the present resident set
