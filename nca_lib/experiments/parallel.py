"""Training by several processes, and in several parts (chapter 8).

    torchrun --nproc-per-node 4 -m nca_lib train faces-fourier

A step's batch is cut into equal parts, a process takes its own, one after the other, and gradients are
averaged (DistributedDataParallel). All processes draw the random numbers of the whole batch and use those of
their rows: the weights are, up to rounding, those of one process, however many there are. Process 0 writes
the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nca_lib.errors import ExperimentError, ParallelError
from nca_lib.experiments.settings import Training
from nca_lib.noise import Purpose, TorchNoise


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of a batch."""

    index: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """Its rows of a tensor that holds the whole batch, (B, ...)."""
        return batch.chunk(self.count)[self.index]


@dataclass(frozen=True)
class PartNoise(TorchNoise):
    """Torch's generator, asked for the numbers of the whole batch; a part takes those of its rows."""

    part: Part

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers with the shape, device and dtype of `like`, which is the part's."""
        return self.part.of(super().normal(self._whole(like), purpose, step))

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers in [0, 1), one a cell: (B, 1, H, W), float32."""
        return self.part.of(super().uniform(self._whole(like), purpose, step, substep))

    def _whole(self, like: Tensor) -> Tensor:
        whole = self.part.count * len(like)
        return like if self.part.count == 1 else like[:1].expand(whole, *like.shape[1:])


def rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leads() -> bool:
    """Whether this process writes the files and speaks."""
    return rank_and_size()[0] == 0


def parts(options: Training) -> list[Part]:
    """The parts of each batch that this process computes, one after the other.

    Raises:
        ExperimentError: the batch has no such parts of equal size.
    """
    rank, size = rank_and_size()
    count = size * options.accumulate
    if options.batch % count:
        raise ExperimentError(
            f"training.batch is {options.batch}; {size} processes times training.accumulate = "
            f"{options.accumulate} need a multiple of {count}"
        )
    return [Part(rank * options.accumulate + i, count) for i in range(options.accumulate)]


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
            f"process {rank} of {size}: another process ended; --resume goes on from the checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


class Loss(nn.Module):
    """A task's loss as a module, which DistributedDataParallel asks for."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self) -> Tensor:
        """The loss, a scalar with gradient."""
        return self.loss()


def shared_loss(model: nn.Module, loss: Callable[[], Tensor]) -> Loss | DistributedDataParallel:
    """A module whose call is `loss()`; of several processes, its backward pass averages the gradients."""
    module = Loss(model, loss)
    return DistributedDataParallel(module) if rank_and_size()[1] > 1 else module


def unshared(loss: Loss | DistributedDataParallel) -> AbstractContextManager[None]:
    """Within the block, backward passes add to this process's gradients only."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()


def mean(values: Tensor) -> Tensor:
    """The mean over all processes."""
    size = rank_and_size()[1]
    if size > 1:
        dist.all_reduce(values)
    return values / size


def any_process(flag: bool) -> bool:
    """Whether it is so in any process."""
    return flag if rank_and_size()[1] == 1 else float(mean(torch.tensor(float(flag)))) > 0


def agreed(number: float) -> float:
    """The number that process 0 has: one clock for all."""
    if rank_and_size()[1] == 1:
        return number
    dist.broadcast(told := torch.tensor(number, dtype=torch.float64), 0)
    return float(told)


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order."""
    size = rank_and_size()[1]
    if size == 1:
        return rows
    dist.all_gather(whole := [torch.empty_like(rows) for _ in range(size)], rows.contiguous())
    return torch.cat(whole)
