"""Training by several processes, and in several parts (chapter 8).

    torchrun --nproc-per-node 4 -m nca_lib train faces-fourier

A step's batch is cut into equal parts, a process takes its own, one after the other, and gradients are
averaged (DistributedDataParallel). All processes draw the random numbers of the whole batch and use those of
their rows: the weights are, up to rounding, those of one process, however many there are. Process 0 writes
the files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nca_lib.errors import ExperimentError
from nca_lib.experiments.settings import Training
from nca_lib.noise import Purpose, TorchNoise
from nca_lib.processes import rank_and_size


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
