"""What the explorers play: living automata, messages on their way, canvases of a shape (chapters 1 to 6)."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.automaton import GrowingNCA, to_rgb
from nca_lib.noise import CounterNoise, firing_from

Model = TypeVar("Model", bound=nn.Module)
Shape = Literal["rectangle", "disc", "ring", "heart"]


def sharing_weights(model: Model) -> Model:
    """A copy of a model whose parameters and buffers are the model's own tensors.

    Two threads that sample from one model each need their own: [`firing_from`][nca_lib.noise.firing_from]
    notes in the model where its firing masks come from.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


class LivingAutomaton:
    """A growing automaton that lives step by step, and can be hurt by another thread meanwhile.

    Args:
        automaton: a trained one; it is not changed.
        size: height and width of the grid.
        seed: of the firing masks.
    """

    def __init__(self, automaton: GrowingNCA, size: int, seed: int = 0):
        self._automaton, self._size, self._noise = sharing_weights(automaton), size, CounterNoise(seed)
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Back to the seed."""
        with self._lock:
            self._state, self.age = self._automaton.seed(self._size), 0

    def erase(self, cells: Tensor) -> None:
        """Set all channels of the cells where `cells`, (H, W) bool, is True to zero."""
        with self._lock:
            self._state = self._state * ~cells.to(self._state.device)

    def live(self, steps: int = 1) -> None:
        """Make some steps."""
        with self._lock, torch.no_grad(), firing_from(self._automaton, self._noise):
            for _ in range(steps):
                self._state = self._automaton(self._state, self.age)
                self.age += 1

    def picture(self) -> Tensor:
        """What it looks like, (3, H, W) in [-1, 1]."""
        return to_rgb(self._state)[0] * 2 - 1


def _blur(state: Tensor, mode: str) -> Tensor:
    """The mean of the 3x3 neighbourhood of a grid (H, W), the nearest counting most."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=state.dtype)
    padded = F.pad(state[None, None], (1, 1, 1, 1), mode)
    return F.conv2d(padded, torch.outer(row, row)[None, None])[0, 0]


def message_states(y: int, x: int, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Send a message with the same rule in image space and in frequency space.

    The rule adds to each cell the weighted mean of its 3x3 neighbourhood. In image space it begins with a 1
    in cell (y, x). In frequency space the cells are the Fourier coefficients of that 1, and each counts in
    the image as strongly as the rule has reached it, beginning with frequency 0 in the first step.

    Yields:
        After each of 0 to `steps` steps what the message is in both spaces as images, (size, size).
    """
    source = torch.zeros(size, size, dtype=torch.float64)
    source[y, x] = 1
    coefficients = torch.fft.fft2(source)
    local, told = source, torch.zeros_like(source)
    yield source, source
    for k in range(steps):
        local = local + _blur(local, "constant")
        if k == 0:
            told[0, 0] = 1
        else:
            told = told + _blur(told, "circular")
        yield local, torch.fft.ifft2(coefficients * told).real


def shape_mask(shape: Shape, height: int, width: int) -> Tensor:
    """A shape that touches the borders of a canvas: (height, width) bool, True inside.

    Args:
        shape: stretched to the canvas: `"rectangle"` (all of it), `"disc"`, `"ring"` (a disc whose hole has
            half its radius) or `"heart"` (the inside of the curve (x^2 + y^2 - 1)^3 = x^2 y^3).
        height: of the canvas.
        width: of the canvas.
    """
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y, x = torch.meshgrid(y, x, indexing="ij")
    squared = y**2 + x**2
    if shape == "disc":
        return squared <= 1
    if shape == "ring":
        return (squared <= 1) & (squared >= 0.25)
    if shape == "heart":
        up, right = 0.12 - 1.12 * y, 1.14 * x  # the curve's box is -1 to 1.24 by -1.14 to 1.14
        return (right**2 + up**2 - 1) ** 3 <= right**2 * up**3
    return torch.ones(height, width, dtype=torch.bool)


def grown_and_damaged(
    automaton: GrowingNCA, size: int, steps: int, pictures: int = 18
) -> Iterator[tuple[int, Tensor]]:
    """An automaton that loses a disc after a third of its steps.

    Yields:
        About `pictures` times the number of steps made and what it looks like, (3, size, size) in [-1, 1].
    """
    living, every = LivingAutomaton(automaton, size), max(1, steps // pictures)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (y - size // 2) ** 2 + (x - size // 3) ** 2 <= (size // 5) ** 2
    yield 0, living.picture()
    while living.age < steps:
        before = living.age
        living.live(every)
        if before < steps // 3 <= living.age:
            living.erase(disc)
        yield living.age, living.picture()
