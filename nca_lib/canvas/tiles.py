"""Exact tiles, and windows of an endless image (chapter 7).

In a denoiser call of K automaton steps a cell hears from cells up to K away. A tile that is computed together
with a *halo*, the K cells around it, therefore holds what the whole canvas would hold there, bit for bit,
if its firing masks are addressed by coordinate, as those of [`CounterNoise`][nca_lib.noise.CounterNoise] are.

Bit for bit, because the same operations are done for each cell in the same order; that libraries choose them
by the size of what they are given is the one trap, see `SMALLEST`.

The commands that draw cut up what is large by themselves ([`in_bounded_memory`][]), for the memory: no tile
has been seen to be faster than the whole, once freed memory is kept (chapter 8).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from nca_lib.cascade import SEEDS, Cascade, Guided
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import CanvasError
from nca_lib.fourier import FourierDiffNCA, part_of_window, window_sums
from nca_lib.memory import check_memory
from nca_lib.noise import CounterNoise, Noise, Purpose, firing_from
from nca_lib.samplers import Sampler, ddim

SMALLEST = 20_480
"""Numbers in a window. On the CPU PyTorch convolves a float32 input of up to so many by another routine,
whose sums run in another order: windows that are cut from more hold more."""

ENDS_AT_BORDER = "a cascade does not wrap: what its levels are told ends at the canvas's border"

WHOLE = 1024 * 1024
"""Pixels of all images up to which `in_bounded_memory` leaves a call whole."""


class Span(NamedTuple):
    """One tile along one axis: its own cells, first <= i < last, and the window around them."""

    first: int
    last: int
    start: int  # the window's first cell; negative or beyond the canvas where that wraps
    size: int  # of the window

    @property
    def own(self) -> slice:
        """The tile's own cells on the canvas."""
        return slice(self.first, self.last)

    @property
    def inner(self) -> slice:
        """The tile's own cells in its window."""
        return slice(self.first - self.start, self.last - self.start)

    def cells(self, length: int, like: Tensor) -> Tensor:
        """The window's cells on a canvas of `length`, (size,) integers on the device of `like`."""
        return torch.arange(self.start, self.start + self.size, device=like.device) % length


def spans_of(
    size: tuple[int, int], tile: int, halo: int, *, wrap: bool = False, cells: int = 1, margin: int = 0
) -> tuple[list[Span], list[Span]]:
    """The rows and the columns of a canvas's tiles; all windows have the same shape.

    A window reaches `halo` beyond its tile, but not beyond the canvas unless that wraps. To be of the same
    shape as the others (one compilation, one choice of kernels) it may reach further on its other side.

    Args:
        size: height and width of the canvas.
        tile: side of a tile; the last ones of each axis may be smaller.
        halo: cells around it.
        wrap: whether what leaves the canvas on one side enters on the other.
        cells: how many a window holds at least, if the canvas does.
        margin: cells along the canvas's border that belong to no tile.
    """
    limits = (10**9, 10**9) if wrap else size
    height, width = (min(min(tile, side) + 2 * halo, limit) for side, limit in zip(size, limits, strict=True))
    width = min(max(width, math.ceil(cells / height)), limits[1])
    height = min(max(height, math.ceil(cells / width)), limits[0])

    def spans(length: int, window: int) -> Iterator[Span]:
        for first in range(margin, length - margin, tile):
            last = min(first + tile, length - margin)
            start = first - halo if wrap else max(0, min(first - halo, length - window))
            yield Span(first, last, start, window)

    return list(spans(size[0], height)), list(spans(size[1], width))


def local_network(model: nn.Module) -> DiffNCA:
    """The automaton of a denoiser that can be computed in tiles.

    Raises:
        CanvasError: something in it is not local; the message names the setting.
    """
    network = getattr(model, "network", model)
    if isinstance(model, Guided):
        raise CanvasError("guidance cannot be cut up: what one call gives is not its network's answer")
    if not isinstance(network, DiffNCA):
        raise CanvasError(f"a {type(network).__name__} cannot be cut up; a Diff-NCA's denoiser can")
    if not network.cell.local:
        raise CanvasError('norm = "group" averages over the whole canvas; tiles need norm = "cell"')
    if network.cell.position:
        raise CanvasError(
            "position = true tells each cell where on the canvas it is, relative to the canvas's size; "
            "tiles need position = false"
        )
    return network


class Tiles(nn.Module):
    """An automaton's call, tile by tile: equal to the call on the whole, in the memory of a tile.

    Args:
        network: the automaton.
        tile: side of a tile, cells.
        wrap: treat the canvas as a torus.

    Attributes:
        margin: cells along the border that are left at zero.
    """

    def __init__(self, network: DiffNCA, tile: int = 256, wrap: bool = False):
        super().__init__()
        self.network, self.tile, self.wrap, self.margin = network, tile, wrap, 0

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.network.image_channels

    def given(self, context: Tensor) -> Self:
        """The same for an automaton that is told `context`."""
        return type(self)(self.network.given(context), self.tile, self.wrap)

    def compile_step(self, mode: str | None) -> None:
        """Compile the automaton's step."""
        self.network.compile_step(mode)

    def tiles(self, size: tuple[int, int]) -> Iterator[tuple[Span, Span]]:
        """The tiles of a canvas of this height and width, row by row."""
        cells = SMALLEST // self.network.channels + 1
        halo = self.network.steps
        spans = spans_of(size, self.tile, halo, wrap=self.wrap, cells=cells, margin=self.margin)
        return itertools.product(*spans)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """As the automaton's: (B, C, H, W) and times (B,) to an output shaped like `noisy`."""
        size = (noisy.shape[2], noisy.shape[3])
        self.network.check_size(*size)
        time = self.network.shared(time)
        read = self.network.reads(noisy)
        written = self._written(read, time)
        output = torch.zeros_like(noisy)
        for rows, columns in self.tiles(size):
            y, x = rows.cells(size[0], noisy), columns.cells(size[1], noisy)
            with self.firing_at(rows.start, columns.start, size):
                state = window_state(self.network, read[:, :, y][..., x], written, y, x, size)
                predicted = self.network.image_stage(state, time)
            output[:, :, rows.own, columns.own] = predicted[:, :, rows.inner, columns.inner]
        return output

    def firing_at(self, y: int, x: int, size: tuple[int, int]) -> contextlib.AbstractContextManager[None]:
        """Within the block the automaton draws the firing masks of a window that begins at (y, x)."""
        if self.network.update_probability == 1:
            return contextlib.nullcontext()
        return firing_from(self.network, self.network.firing.at(y, x, size if self.wrap else None))

    def _written(self, read: Tensor, time: Tensor) -> Tensor | None:
        network, size = self.network, (read.shape[2], read.shape[3])
        if not isinstance(network, FourierDiffNCA):
            return None
        total = torch.zeros((), dtype=torch.complex128, device=read.device)
        for rows, columns in self.tiles(size):
            y = torch.arange(rows.first, rows.last, device=read.device)
            x = torch.arange(columns.first, columns.last, device=read.device)
            part = read[:, :, rows.own, columns.own]
            total = total + window_sums(part, y, x, size, network.window, network.frequencies)
        return network.written(network.seed_of_window(total.to(torch.complex64)), time)


def window_state(
    network: DiffNCA, read: Tensor, written: Tensor | None, y: Tensor, x: Tensor, size: tuple[int, int]
) -> Tensor:
    """The state that the image stage starts from, in a window: (B, C, h, w).

    Args:
        network: the automaton.
        read: (B, image channels + G, h, w), the window of what the cells read and never write.
        written: what a FourierDiffNCA's frequency stage wrote; None for a DiffNCA.
        y: (h,), the window's rows on the canvas.
        x: (w,), its columns.
        size: height and width of the canvas.
    """
    if written is None:
        return network.placed(read)
    assert isinstance(network, FourierDiffNCA)
    return network.beside(read, part_of_window(written, y, x, size, network.window))


class TiledDenoiser(Denoiser):
    """A denoiser that computes its calls tile by tile (contract: what wraps a denoiser is a denoiser).

    On the CPU equal to the untiled one bit for bit, in float32 and bf16, on the literal, the fast and the
    compiled path, for every sampler and edit; but a [`FourierDiffNCA`][nca_lib.fourier.FourierDiffNCA], whose
    frequency stage hears the whole canvas, sums over tiles: equal up to the rounding of that sum (1e-4).
    On a GPU, where libraries choose kernels by shape, rounding may differ between window shapes.

    Args:
        model: the denoiser.
        tile: side of a tile, cells.
        wrap: treat the canvas as a torus: what it makes tiles the plane.

    Raises:
        CanvasError: something in the model is not local, see [`local_network`][]; or a cascade is to wrap.
    """

    def __init__(self, model: Denoiser, tile: int = 256, wrap: bool = False):
        if wrap and isinstance(model, Cascade):
            raise CanvasError(ENDS_AT_BORDER)
        network = Tiles(local_network(model), tile, wrap)
        super().__init__(network, model.schedule, model.target, model.weighting)
        self.model, self.is_ready = model, model.is_ready

    def ready(self, size: tuple[int, int], **settings: Any) -> Denoiser:
        """The same for what the model asks for first, see [`Cascade`][nca_lib.cascade.Cascade]."""
        assert isinstance(self.network, Tiles)
        return TiledDenoiser(self.model.ready(size, **settings), self.network.tile, self.network.wrap)


def in_bounded_memory(model: nn.Module, size: tuple[int, int], count: int = 1) -> nn.Module:
    """The model, or what draws large canvases the same, bit for bit, a tile of 512 pixels at a time.

    The halo of such a tile adds some hundredths to the work; smaller ones cost more and were never faster
    (`benchmarks/tiles.py`). What is not local is left as it is.

    Args:
        model: of any kind.
        size: height and width of the images.
        count: how many are drawn at a time.
    """
    if type(model) not in (Denoiser, Cascade) or count * math.prod(size) <= WHOLE:
        return model
    with contextlib.suppress(CanvasError):
        if not isinstance(local_network(model), FourierDiffNCA):  # which is equal up to rounding only
            return TiledDenoiser(model, 512)  # type: ignore[arg-type]
    return model


class _Region(Tiles):
    """Tiles of a window of the plane: each call computes what is still right, less by the halo each time."""

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        self.margin += self.network.steps
        return super().forward(noisy, time)


def sample_region(
    model: Denoiser,
    y: int,
    x: int,
    height: int,
    width: int,
    seed: int = 0,
    *,
    sampler: Sampler = ddim,
    steps: int = 50,
    tile: int = 256,
) -> Tensor:
    """A window of an endless image: (1, C, height, width) in [-1, 1], without the rest.

    The image fills the plane, is drawn from `seed` and has no borders. Windows that overlap agree bit for
    bit where they do. S denoiser calls of K automaton steps hear from S K cells around: the first call from
    all of them, the last from K. A cascade's coarser levels are drawn around the window, too, each on its own
    plane. They hear from further away: for a small window they cost more than the window itself, for one of a
    megapixel about as much, and little for larger ones. Its windows agree bit for bit where its factors are
    powers of two.

    Args:
        model: a denoiser whose network is a [`DiffNCA`][nca_lib.diff_nca.DiffNCA], or a cascade of such.
        y: row of the window's first pixel; any integer, repeating after 2^32 (a cascade, after as many of its
            coarsest pixels).
        x: its column.
        height: of the window.
        width: of the window.
        seed: of the image.
        sampler: how to sample, see [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: denoiser calls.
        tile: side of a tile, cells.

    Raises:
        CanvasError: something in the model is not local, or the window is empty.
        TooLargeError: the window does not fit into memory.
    """
    network = local_network(model)
    if isinstance(network, FourierDiffNCA):
        raise CanvasError("a FourierDiffNCA hears its whole canvas; an endless one has no spectrum")
    if network.context_channels and not isinstance(model, Cascade):
        raise CanvasError("a model with context draws what it is told of; an endless canvas has no context")
    if min(height, width) < 1:
        raise CanvasError(f"the window is {width}x{height}; at least 1x1")
    reach = network.steps * steps
    area = (height + 2 * reach) * (width + 2 * reach)
    # Noise, image, clean estimate, and the next image; what the cells are told, twice while it is enlarged.
    numbers = 4 * network.image_channels + 2 * network.context_channels
    what, cure = f"a window of {width}x{height}", "ask for smaller ones; they fit together"
    check_memory(4 * numbers * area, what, cure, next(network.parameters()).device)
    # Around the last window there are cells enough for `SMALLEST`.
    border = max(reach, math.ceil(math.sqrt(SMALLEST / network.channels) / 2) + reach - network.steps)
    size = (height + 2 * border, width + 2 * border)
    if isinstance(model, Cascade):
        context = _context(model, y - border, x - border, size, seed, sampler=sampler, steps=steps, tile=tile)
        network = network.given(context)
    region = _Region(network, tile)
    region.margin = border - reach
    noise: Noise = CounterNoise(seed).at(y - border, x - border)
    device = next(network.parameters()).device
    frame = torch.empty(1, network.image_channels, *size, device=device)
    denoiser = Denoiser(region, model.schedule, model.target)
    with firing_from(network, noise):
        start = noise.normal(frame, Purpose.START, 0)
        for state in sampler(denoiser, start, steps=steps, noise=noise):  # noqa: B007 - the last one
            pass
    return state.image[:, :, border:-border, border:-border]


def _context(model: Cascade, y: int, x: int, size: tuple[int, int], seed: int, **settings: Any) -> Tensor:
    """What a cascade's cells are told in a window of its plane, whose first pixel is (y, x)."""
    if model.layout is not None:
        raise CanvasError("a layout has borders; an endless image has none")
    factor, (height, width) = model.factor, size
    top, left = y // factor - 1, x // factor - 1
    bottom, right = -(-(y + height) // factor) + 1, -(-(x + width) // factor) + 1
    coarse = sample_region(model.below, top, left, bottom - top, right - left, seed + SEEDS, **settings)
    return model.context_of(
        coarse, CounterNoise(seed).at(top, left), size, (y - factor * top, x - factor * left)
    )
