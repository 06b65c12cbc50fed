"""The processes that torchrun has started: how they come together, start again, and end.

torchrun gives each process its place in variables of the environment (RANK, WORLD_SIZE, …) and holds a store, a
dictionary that all can write to. When one process ends with an error, it stops the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from minikd.distributed import local_rank
from minikd.errors import MinikdError

LONG = timedelta(days=1)  # that the others may wait for the first, which downloads, say; a lost one is noticed at once
_store: Any = None  # torchrun's, which stays when it starts the processes again
_failed_first: bool | None = None  # of several processes, once this one has failed


@contextmanager
def joined() -> Iterator[None]:
    """Within the block, the processes that torchrun has started work together; a script that was started otherwise
    works alone. On a machine with GPUs, each process has one of them. An error is noted, see `explains_failure`."""
    global _failed_first, _store
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield
        return
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # builds of torch may lack it
    from torch.distributed.rendezvous import rendezvous

    if _restarts() and int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:  # each machine counts its own
        raise MinikdError(
            "torchrun's max-restarts works on one machine only; on several, run the command again with `resume`"
        )
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    _store, own, size = next(rendezvous("env://"))
    store = PrefixStore(f"start-{_restarts()}", _store)
    cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=own, world_size=size, timeout=LONG)
    try:
        yield
    except BaseException:
        _failed_first = True
        with suppress(Exception):  # of a store that ended with its process
            _failed_first = store.add("failures", 1) == 1
        raise
    finally:
        distributed.destroy_process_group()  # the others cannot reach this process any more, and fail


def remember_beginning() -> None:
    """Notes that the run has begun to write its output."""
    if _store is not None:
        _store.set("begun", "yes")


def has_begun_before() -> bool:
    """Whether this run had begun to write its output when a process ended and torchrun started the script again
    (its option max-restarts)."""
    return _store is not None and _restarts() > 0 and _store.check(["begun"])


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def explains_failure() -> bool:
    """After an error: whether it tells why the run failed. Of several processes the first one's does; the others fail
    because of it."""
    return _failed_first is not False


def is_lost_process(error: BaseException) -> bool:
    """Whether the error, of a process among several, means that another one cannot be reached any more."""
    if _failed_first is None:
        return False
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
