"""Several processes that train one model together, as torchrun starts them: on one machine or on several.

All of them run the same script on the same global batches, and each computes its share of every batch.
DistributedDataParallel averages their gradients (Li et al. 2020), so that all have the same weights after each step.
The first process alone writes the files of a run, and prints. In a single process everything here does nothing.
`minikd/experiment/torchrun.py` brings them together.
"""

import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from minikd.errors import MinikdError

R = TypeVar("R")
_alone = False  # within `by_first` and the like: what a process computes there, it computes by itself


def world_size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if _are_joined() and not _alone else 1


def rank() -> int:
    """Which of them this one is, counted from 0."""
    return distributed.get_rank() if _are_joined() and not _alone else 0


def _are_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def share(items: Any) -> Any:
    """This process's part of a list or an array: every n-th item. Of a batch sorted by length, every process then gets
    texts of similar length, and of a plan batches of similar size."""
    return items[rank() :: world_size()]


def process_seed(seed: int, step: int = 0) -> int:
    """The seed of dropout: another one in each process, and where a training is continued by another number of
    processes, from `step`. For the first process and step 0 it is `seed` itself."""
    return int(np.random.SeedSequence((seed, rank(), step)).generate_state(1)[0]) if rank() or step else seed


def sum_of_all(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, all of the same shape; in place."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def any_of_all(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process: a decision that all of them take together."""
    return sum_of_all(torch.tensor(flags, dtype=torch.int32)).bool().tolist() if world_size() > 1 else list(flags)


def from_all(value: Any) -> list:
    """The values of all processes, in their order; any object that can be pickled."""
    values = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def by_first(function: Callable[..., R], *arguments: Any, **options: Any) -> R:
    """What the function returns in the first process, which alone calls it; the others receive the result.

    So files are read and written once, and all processes see the same. An exception is raised in all of them. What the
    function changes of its arguments, it changes in the first process alone.
    """
    if world_size() == 1:
        return function(*arguments, **options)
    result: R | None = None
    error: Exception | None = None
    if rank() == 0:
        try:
            with _by_itself():
                result = function(*arguments, **options)
        except Exception as raised:
            error = raised
    outcome: list = [result, error if _can_be_sent(error) else RuntimeError(repr(error))]
    distributed.broadcast_object_list(outcome)
    if error is None:
        error = outcome[1]
    if error is not None:
        raise error
    return outcome[0]


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _can_be_sent(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # of many kinds
        return False
    return True


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """The block runs in the first process of each machine, and then in the others, which find what it downloaded. Each
    computes by itself there."""
    together, first = world_size() > 1, local_rank() == 0
    if together and not first:
        distributed.barrier()
    with _by_itself():
        yield
    if together and first:
        distributed.barrier()


def synchronized(module: nn.Module, unused: bool) -> nn.Module:
    """The module, whose output is a loss; with several processes, such that `backward` averages the gradients of all.

    `unused`: whether there may be weights on which the loss does not depend. Buffers stay as they are: no training
    step changes them.
    """
    if world_size() == 1:
        return module
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a newer name, which torch 2.11 lacks
        return DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unused
        )


def local_rank() -> int:
    """Which of the processes on this machine this one is, counted from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def check_device(device: torch.device) -> None:
    """Raises MinikdError where the processes on this machine cannot have such a device each."""
    if world_size() > 1 and device.type == "mps":
        raise MinikdError("`device` mps: serves one process; start the script without torchrun, or use cpu")
    if world_size() > 1 and device.type == "cuda" and local_rank() >= torch.cuda.device_count():
        raise MinikdError(
            f"`device` cuda: torchrun starts {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on this machine, "
            f"which has {torch.cuda.device_count()} GPUs; start as many processes as GPUs"
        )
