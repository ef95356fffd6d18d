"""Several processes that torchrun has started: which one this is, and what they tell each other (chapter 8).

    torchrun --nproc-per-node 4 -m nca_lib COMMAND

`train`, `run` and `evaluate` share their work; alone, a process is the first of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nca_lib.errors import ParallelError

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this process writes the files and speaks."""
    return rank_and_size()[0] == 0


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started, for the block; alone there is nothing to join.

    Raises:
        ParallelError: another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    rank, size = rank_and_size()
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
            raise
        raise ParallelError(
            f"process {rank} of {size}: another process ended; the same command goes on from there "
            "(train: with --resume)"
        ) from error
    finally:
        dist.destroy_process_group()


def mean(values: Tensor) -> Tensor:
    """The mean over all processes."""
    size = rank_and_size()[1]
    if size > 1:
        dist.all_reduce(values)
    return values / size


def any_process(flag: bool) -> bool:
    """Whether it is so in any process."""
    return flag if rank_and_size()[1] == 1 else float(mean(torch.tensor(float(flag)))) > 0


def agreed(value: T) -> T:
    """What process 0 has: one clock, one list of what is to be done. All wait for it."""
    if rank_and_size()[1] == 1:
        return value
    dist.broadcast_object_list(told := [value], 0)
    return told[0]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order."""
    size = rank_and_size()[1]
    if size == 1:
        return rows
    dist.all_gather(whole := [torch.empty_like(rows) for _ in range(size)], rows.contiguous())
    return torch.cat(whole)
