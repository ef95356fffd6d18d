"""Processes that torchrun has started: which one this is, and what they tell each other (troubleshooting).

    torchrun --nproc-per-node 4 -m nca_lib COMMAND

`train`, `run` and `evaluate` share their work; alone, a process is the first of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nca_lib.errors import ParallelError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # in which the others compile, or the first writes and draws


def rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this process writes the files and speaks."""
    return rank_and_size()[0] == 0


@contextmanager
def processes(device: str | None = None) -> Iterator[None]:
    """Join the processes that torchrun has started, for the block; alone there is nothing to join.

    NCCL carries what lies on GPUs, of which each process takes its own, and gloo what lies on the CPU.

    Args:
        device: that was asked for; None for the best one.

    Raises:
        ParallelError: another process ended; or there is no GPU for this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = own_gpu(device)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    backends = "gloo" if gpu is None else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backends, timeout=PATIENCE, device_id=gpu)
    rank, size = rank_and_size()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # all have agreed to stop
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
            raise
        raise ParallelError(
            f"process {rank} of {size}: another process ended; the same command goes on from there "
            "(train: with --resume)"
        ) from error
    else:
        dist.destroy_process_group()  # not after an error: NCCL would wait for those that are gone


def own_gpu(device: str | None) -> torch.device | None:
    """The GPU that is this process's own among those of its machine; None if it computes elsewhere.

    Raises:
        ParallelError: there is none for it, or all were told to take the same one.
    """
    if (device or "cuda").partition(":")[0] != "cuda" or not torch.cuda.is_available():
        return None
    if device and ":" in device:
        raise ParallelError(f"device {device!r}: of several processes each takes a GPU of its own; say cuda")
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise ParallelError(
            f"{count} GPUs here are too few for process {index} of this machine: "
            f"torchrun --nproc-per-node {count}, or --device cpu"
        )
    return torch.device("cuda", index)


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
