"""Cellular automata: perception, update, firing mask, rollout, sample pool (chapter 1).

A state is a float tensor (B, C, H, W): C numbers in each cell of a grid. An automaton maps a state to the
next; every cell follows the same rule and sees its 3x3 neighbourhood only. [`GrowingNCA`][] is the learned
one of Mordvintsev et al., "Growing Neural Cellular Automata" (Distill, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.errors import UsageError
from nca_lib.noise import Noise, TorchNoise

ALPHA = 3  # channels 0..2 are red, green and blue (premultiplied), 3 is opacity


def life(board: Tensor) -> Tensor:
    """One step of Conway's Game of Life (Gardner 1970) on a torus.

    `board` is (B, 1, H, W) of 0 and 1; a cell lives next if it has three living neighbours, or two and lives.
    """
    ring = torch.ones(1, 1, 3, 3).to(board)
    ring[..., 1, 1] = 0
    neighbours = F.conv2d(F.pad(board, (1, 1, 1, 1), mode="circular"), ring)
    return ((neighbours == 3) | ((neighbours == 2) & (board == 1))).to(board)


def sobel_filters() -> Tensor:
    """The three fixed perception filters, (3, 3, 3): identity, d/dx, d/dy (Sobel over 8).

    Each derivative filter gives exactly the slope of a linear ramp, per cell.
    """
    identity = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    d_dx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    return torch.stack([identity, d_dx, d_dx.T])


class FixedPerception(nn.Module):
    """Perceive by fixed filters: each channel through identity, d/dx and d/dy; zeros beyond the border."""

    filters: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("filters", sobel_filters().repeat(channels, 1, 1)[:, None], persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 3C, H, W): channel c becomes 3c (itself), 3c+1 (d/dx), 3c+2 (d/dy)."""
        return F.conv2d(state, self.filters, padding=1, groups=self.channels)


class LearnedPerception(nn.Conv2d):
    """Perceive by a learned 3x3 convolution, C to 3C channels; zeros beyond the border."""

    def __init__(self, channels: int):
        super().__init__(channels, 3 * channels, 3, padding=1)


def alive(state: Tensor) -> Tensor:
    """Cells with opacity above 0.1 in themselves or a neighbour: (B, 1, H, W) of 0 and 1."""
    return (F.max_pool2d(state[:, ALPHA : ALPHA + 1], 3, stride=1, padding=1) > 0.1).to(state.dtype)


class GrowingNCA(nn.Module):
    """The growing automaton: perceive, two dense layers at each cell, random firing, life and death.

    Args:
        channels: C; red, green, blue, opacity, the rest hidden.
        hidden: width of the hidden layer.
        update_probability: chance that a cell updates in a step.
        perception: `"fixed"` Sobel filters, as published, or a `"learned"` convolution.

    Raises:
        UsageError: fewer than the four channels that are seen.
    """

    def __init__(
        self,
        channels: int = 16,
        hidden: int = 128,
        update_probability: float = 0.5,
        perception: Literal["fixed", "learned"] = "fixed",
    ):
        super().__init__()
        if channels <= ALPHA:
            raise UsageError(f"channels is {channels}; red, green, blue and opacity are {ALPHA + 1}")
        self.channels, self.update_probability = channels, update_probability
        self.firing: Noise = TorchNoise()
        # First: loading refuses a layer that is too large before it takes memory, but not fixed filters.
        self.widen = nn.Conv2d(3 * channels, hidden, 1)
        self.perceive = FixedPerception(channels) if perception == "fixed" else LearnedPerception(channels)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)
        nn.init.zeros_(self.narrow.weight)  # an untrained automaton does nothing, which is a good start

    def seed(self, size: int | tuple[int, int], batch: int = 1) -> Tensor:
        """A grid (batch, C, H, W) that is empty but for one cell in its middle: opacity and hidden at 1."""
        height, width = (size, size) if isinstance(size, int) else size
        state = torch.zeros(batch, self.channels, height, width, device=self.widen.weight.device)
        state[:, ALPHA:, height // 2, width // 2] = 1
        return state

    def forward(self, state: Tensor, step: int = 0) -> Tensor:
        """One step: (B, C, H, W) to the same shape. `step` addresses the firing mask."""
        return self._update(state, self.firing.firing_mask(state, self.update_probability, 0, step))

    def _update(self, state: Tensor, mask: Tensor) -> Tensor:
        grown = state + self.narrow(F.relu(self.widen(self.perceive(state)))) * mask
        return grown * alive(state) * alive(grown)

    def compile_step(self, mode: str | None) -> None:
        """Compile a step, its layout included; its mask, of another address each time, is drawn outside."""
        self._update = torch.compile(self._update, mode=mode)  # type: ignore[method-assign]


def states(automaton: Callable[[Tensor, int], Tensor], state: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the state after each of `steps` steps; `automaton(state, step)` makes one."""
    for step in range(steps):
        state = automaton(state, step)
        yield state


def rollout(automaton: Callable[[Tensor, int], Tensor], state: Tensor, steps: int) -> Tensor:
    """The state after `steps` steps."""
    for state in states(automaton, state, steps):  # noqa: B007, B020 - the last one is the result
        pass
    return state


def to_rgb(state: Tensor, background: float = 1.0) -> Tensor:
    """The picture that a state shows on a plain background: (B, C, H, W) to (B, 3, H, W) in [0, 1]."""
    opacity = state[:, ALPHA : ALPHA + 1].clamp(0, 1)
    return (background * (1 - opacity) + state[:, :ALPHA]).clamp(0, 1)


def damage(state: Tensor, centres: Tensor, radius: float) -> Tensor:
    """Erase a disc of cells in each state of a batch.

    Args:
        state: (B, C, H, W).
        centres: (B, 2), (y, x) of each disc in cells.
        radius: of the discs, in cells.
    """
    y = torch.arange(state.shape[2], device=state.device).view(1, -1, 1) - centres[:, 0].view(-1, 1, 1)
    x = torch.arange(state.shape[3], device=state.device).view(1, 1, -1) - centres[:, 1].view(-1, 1, 1)
    return state * (y**2 + x**2 > radius**2)[:, None]


class SamplePool:
    """States that training has reached before, to go on from: what teaches an automaton to persist.

    Args:
        seed: (1, C, H, W), the state that fills the pool at first.
        size: number of states kept.
    """

    def __init__(self, seed: Tensor, size: int):
        self.states = seed.repeat(size, 1, 1, 1)

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """`batch` different states at random: their indices (for `replace`), and the states."""
        indices = torch.randperm(len(self.states))[:batch].to(self.states.device, non_blocking=True)
        return indices, self.states[indices]

    def replace(self, indices: Tensor, states: Tensor) -> None:
        """Put states back."""
        self.states[indices] = states.detach()
