"""Diff-NCA: a denoiser that is a neural cellular automaton (chapter 3).

Kalkhof et al., "Frequency-Time Diffusion with Neural Cellular Automata" (arXiv 2401.06291). A cell holds
C numbers: the noisy image (which it may read and never write), its prediction, and hidden channels. K
times over, every cell looks at its 3x3 neighbourhood and adds an update to what it holds.

Beyond the paper, some of the channels may be *context* (chapter 9): read-only like the image, they hold what
each cell is told of what to draw.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as weight_normalised
from torch.utils.checkpoint import checkpoint

from nca_lib.errors import UsageError, check_choice
from nca_lib.fast import CellWeights, Net, Step, fast_rollout, fast_step, replayed
from nca_lib.noise import Noise, TorchNoise

EMBEDDING = 4  # channels that tell a cell where and when it is

Encoding = Literal["reference", "sinusoidal"]
Norm = Literal["cell", "group"]
Padding = Literal["reflect", "zeros"]


def lift(scalars: Tensor, encoding: Encoding, first: int = 0) -> Tensor:
    """Turn each of n scalars per cell into four numbers: (B, n, H, W) to (B, 4n, H, W).

    - `"reference"`: `s_i * [cos(i), cos(i/100), sin(i), sin(i/100)]`, what the public code computes. It is
      linear in the scalars.
    - `"sinusoidal"`: `[cos(ws), cos(8ws), sin(ws), sin(8ws)]` with w = pi/2, so that the slow pair names
      every s in [0, 1] without ambiguity and the fast pair resolves it.

    `first` is the index i of the first scalar.
    """
    index = torch.arange(scalars.shape[1], device=scalars.device, dtype=scalars.dtype).view(1, -1, 1, 1)
    index = index + first
    if encoding == "reference":
        waves = [(index * rate).cos() for rate in (1, 0.01)] + [(index * rate).sin() for rate in (1, 0.01)]
        lifted = [scalars * wave for wave in waves]
    else:
        angles = [scalars * (math.pi / 2 * rate) for rate in (1, 8)]
        lifted = [angle.cos() for angle in angles] + [angle.sin() for angle in angles]
    return torch.stack(lifted, dim=2).flatten(1, 2)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as the matrix product over each cell's channels that it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class CellNorm(nn.Module):
    """Normalise over the channels of each cell by itself: no affine, eps 1e-5, biased variance.

    Being local, it keeps tiled sampling exact; GroupNorm, which averages over the image, does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W) at each (y, x); same shape."""
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5).permute(0, 3, 1, 2)


class Cell(nn.Module):
    """One step of the conditioned automaton: what every cell does, K times.

    Args:
        channels: C, numbers per cell.
        hidden: h, width of the hidden layer.
        image_channels: which leading channels are read-only, a count.
        encoding: how position and time become numbers, see [`lift`][].
        norm: `"cell"` (local) or `"group"` (one group over the image, affine; not local).
        weight_norm: reparametrise every convolution by direction and gain.
        modulation: multiply perception and hidden layer by small nets of the embedding.
        position: tell each cell its place on the canvas (py, px, each from 1 to 0) besides t/T and k/K.
            Without it the rule is the same everywhere, on canvases of any size.
        padding: what lies beyond the border.
        zero_init: start with updates of exactly zero.

    Raises:
        UsageError: an unknown encoding or norm; a hidden layer of which a quarter is less than 1, where
            modulation is.
    """

    writable: Tensor

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        image_channels: int = 3,
        encoding: Encoding = "reference",
        norm: Norm = "cell",
        weight_norm: bool = True,
        modulation: bool = True,
        position: bool = True,
        padding: Padding = "reflect",
        zero_init: bool = False,
    ):
        super().__init__()
        check_choice("encoding", encoding, get_args(Encoding))
        check_choice("norm", norm, get_args(Norm))
        if modulation and hidden < 4:
            raise UsageError(f"hidden is {hidden}; with modulation, whose nets have a quarter, at least 4")
        self.encoding, self.position, self.image_channels = encoding, position, image_channels
        self.padding, self.local = padding, norm == "cell"
        # One embedding for all cells, and a border that shows constants as they are: see `fast.fold`.
        self.foldable = not position and padding == "reflect"
        seen = 2 * channels + EMBEDDING

        def conv(fan_in: int, fan_out: int, size: int = 1) -> nn.Module:
            layer = (
                Pointwise(fan_in, fan_out, 1)
                if size == 1
                else nn.Conv2d(fan_in, fan_out, size, padding=size // 2, padding_mode=padding)
            )
            return weight_normalised(layer) if weight_norm else layer

        def conditioner(fan_out: int) -> nn.Module:
            return nn.Sequential(conv(EMBEDDING, hidden // 4), nn.SiLU(), conv(hidden // 4, fan_out))

        self.embedding = nn.Sequential(conv(16 if position else 8, 256), nn.SiLU(), conv(256, EMBEDDING))
        self.perception = conv(channels + EMBEDDING, channels, size=3)
        self.widen = conv(seen, hidden)
        self.norm = CellNorm() if norm == "cell" else nn.GroupNorm(1, hidden)
        self.narrow = conv(hidden, channels)
        self.modulate_seen = conditioner(seen) if modulation else None
        self.modulate_hidden = conditioner(hidden) if modulation else None
        if zero_init:
            self._start_at_zero(weight_norm)
        writable = torch.ones(1, channels, 1, 1)
        writable[:, :image_channels] = 0
        self.register_buffer("writable", writable, persistent=False)

    def _start_at_zero(self, weight_norm: bool) -> None:
        # Under weight norm the gain is zeroed: a zero direction would be 0/0.
        narrow: Any = self.narrow
        nn.init.zeros_(narrow.parametrizations.weight.original0 if weight_norm else narrow.weight)
        nn.init.zeros_(narrow.bias)

    def weights(self) -> CellWeights:
        """The weights as they are now, for [`nca_lib.fast`][]; weight norm is computed here, once."""

        def matrix(layer: Any) -> tuple[Tensor, Tensor]:
            return layer.weight.flatten(1), layer.bias

        def net(layers: Any) -> Net | None:
            return None if layers is None else (*matrix(layers[0]), *matrix(layers[2]))

        perception: Any = self.perception
        (widen, widen_bias), (narrow, narrow_bias) = matrix(self.widen), matrix(self.narrow)
        writable = self.writable.flatten()
        return CellWeights(
            perception.weight.contiguous(memory_format=torch.channels_last),
            perception.bias,
            widen,
            widen_bias,
            narrow * writable[:, None],
            narrow_bias * writable,
            net(self.modulate_seen),
            net(self.modulate_hidden),
            (*matrix(self.embedding[0]), *matrix(self.embedding[2])),
        )

    def condition(self, time: Tensor, step: float, height: int, width: int) -> Tensor:
        """The embedding of place and time at one step: (B, 4, H, W), or (B, 4, 1, 1) without position.

        `time` is (B,) in [0, 1); `step` is k/K. Eight bits cannot tell timesteps apart: no autocast here.
        """
        with torch.autocast(time.device.type, enabled=False):
            return self.embedding(self.told(time, step, height, width))

    def told(self, time: Tensor, step: float, height: int, width: int) -> Tensor:
        """What is embedded, the numbers from [`lift`][]: (B, 16, H, W), or (B, 8, 1, 1) without position."""
        clock = self.clock(time, [step])[0, :, :, None, None]
        if not self.position:
            return clock
        place = self.place(height, width, time).expand(len(time), -1, -1, -1)
        return torch.cat([place, clock.expand(-1, -1, height, width)], dim=1)

    def place(self, height: int, width: int, like: Tensor) -> Tensor:
        """What each cell is told of its place: (1, 8, H, W), of the dtype and device of `like`."""
        py, px = (torch.linspace(1, 0, n, device=like.device).to(like.dtype) for n in (height, width))
        # py before px: the public code calls its first scalar px, but exchanges height and width inside.
        return lift(torch.stack(torch.meshgrid(py, px, indexing="ij"))[None], self.encoding)

    def clock(self, time: Tensor, steps: Sequence[float]) -> Tensor:
        """What all cells are told of the times (B,), in [0, 1), and the steps, k/K: (steps, B, 8)."""
        moments = torch.tensor(steps, dtype=time.dtype).to(time.device, non_blocking=True)
        clock = torch.stack([time.expand(len(moments), -1), moments[:, None].expand(-1, len(time))], dim=-1)
        lifted = lift(clock.reshape(-1, 2, 1, 1), self.encoding, first=2 if self.position else 0)
        return lifted.view(len(moments), len(time), -1)

    def forward(self, state: Tensor, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """One step: (B, C, H, W) to the same shape. `mask` (B, 1, H, W) is 1 where a cell fires."""
        everywhere = embedding.expand(len(state), -1, *state.shape[2:])
        z = torch.cat([state, everywhere], dim=1)
        seen = torch.cat([z, self.perception(z)], dim=1)
        if self.modulate_seen is not None:
            seen = seen * self.modulate_seen(embedding)
        hidden = F.leaky_relu(self.norm(self.widen(seen)), 0.01)
        if self.modulate_hidden is not None:
            hidden = hidden * self.modulate_hidden(embedding)
        update = self.narrow(hidden) * self.writable
        return state + (update if mask is None else mask * update)


class DiffNCA(nn.Module):
    """Diff-NCA: K steps of one cell in image space.

    A [`Denoiser`][nca_lib.diffusion.Denoiser]'s network: `forward(noisy, time)` maps (B, 3, H, W) and (B,) in
    [0, 1) to an output shaped like `noisy`, for any H, W of at least 2. Times on the CPU are read
    without waiting for a GPU.

    Args:
        channels: C, numbers per cell: image, prediction, context, hidden.
        hidden: h, width of the hidden layer.
        steps: K, automaton steps per call; information travels K cells.
        update_probability: chance that a cell updates in a step, in training and in sampling.
        image_channels: channels of the images.
        context_channels: G, how many of the C are context, see [`given`][]. They change no parameter count.
        encoding: `"reference"` or `"sinusoidal"`, see [`lift`][].
        norm: `"cell"` (local, the default) or `"group"`.
        weight_norm: weight-normalise every convolution.
        modulation: condition by multiplication as well.
        position: tell cells where they are.
        zero_init: start with updates of exactly zero.
        checkpointing: keep one state per step instead of all activations, and recompute the rest in the
            backward pass; same values, same gradients.

    Attributes:
        fast: compute what images share once, and fold conditioning into weights where it is the same for all
            cells ([`nca_lib.fast`][]); equal up to rounding. False for the literal computation.
        context: (1 or B, G, H, W), what the cells are told, see [`given`][]; None before they are.

    Raises:
        UsageError: too few channels for image, prediction, context and one hidden; no step; a probability
            outside (0, 1]; an unknown encoding or norm. When called: an image of other channels; a context
            that is missing or of another size than the image.
    """

    def __init__(
        self,
        channels: int = 96,
        hidden: int = 512,
        steps: int = 20,
        *,
        update_probability: float = 0.9,
        image_channels: int = 3,
        context_channels: int = 0,
        encoding: Encoding = "reference",
        norm: Norm = "cell",
        weight_norm: bool = True,
        modulation: bool = True,
        position: bool = True,
        zero_init: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        taken = 2 * image_channels + context_channels
        if channels <= taken:
            raise UsageError(
                f"channels is {channels}; {taken} hold image, prediction and context, so "
                f"at least {taken + 1} are needed"
            )
        if steps < 1:
            raise UsageError(f"steps is {steps}; at least 1")
        if not 0 < update_probability <= 1:
            raise UsageError(f"update_probability is {update_probability}; it must lie in (0, 1]")
        self.channels, self.hidden, self.steps = channels, hidden, steps
        self.image_channels = image_channels
        self.context_channels = context_channels
        self.context: Tensor | None = None
        self.update_probability, self.checkpointing = update_probability, checkpointing
        self.firing: Noise = TorchNoise()
        self.fast = True
        self.fast_step: Step = fast_step
        self.cell = Cell(
            channels,
            hidden,
            image_channels=image_channels,
            encoding=encoding,
            norm=norm,
            weight_norm=weight_norm,
            modulation=modulation,
            position=position,
            zero_init=zero_init,
        )
        self.cell.writable[:, 2 * image_channels : taken] = 0

    def given(self, context: Tensor) -> Self:
        """The same automaton, its weights shared, with cells that are told `context`, (1 or B, G, H, W).

        Raises:
            UsageError: it is not of G channels.
        """
        if context.shape[1] != self.context_channels:
            raise UsageError(
                f"the context has {context.shape[1]} channels; this model reads {self.context_channels}"
            )
        told = copy.copy(self)
        told.context = context
        return told

    def reads(self, noisy: Tensor) -> Tensor:
        """What the cells read and never write, noisy image and context: (B, image channels + G, H, W)."""
        if noisy.shape[1] != self.image_channels:
            raise UsageError(
                f"the images have {noisy.shape[1]} channels; this model reads {self.image_channels}"
            )
        if not self.context_channels:
            return noisy
        if self.context is None:
            raise UsageError(
                f"this model reads {self.context_channels} channels of context: denoiser.given(context)"
            )
        if self.context.shape[2:] != noisy.shape[2:] or len(self.context) not in (1, len(noisy)):
            told, images = (f"{len(x)} of {x.shape[3]}x{x.shape[2]}" for x in (self.context, noisy))
            raise UsageError(f"the context is {told} (width x height) and the images are {images}; the same")
        return torch.cat([noisy, self.context.to(noisy).expand(len(noisy), -1, -1, -1)], dim=1)

    def placed(self, read: Tensor) -> Tensor:
        """The state (B, C, H, W) that holds what is read, see [`reads`][], and zeros elsewhere."""
        batch, _, height, width = read.shape
        image, context = read.tensor_split([self.image_channels], dim=1)
        hidden = self.channels - self.image_channels - read.shape[1]
        zeros = [read.new_zeros(batch, count, height, width) for count in (self.image_channels, hidden)]
        return torch.cat([image, zeros[0], context, zeros[1]], dim=1)

    def seed(self, noisy: Tensor) -> Tensor:
        """The state before the first step, (B, C, H, W): image and context, and zeros."""
        return self.placed(self.reads(noisy))

    def rollout(self, state: Tensor, time: Tensor) -> Iterator[Tensor]:
        """Yield the state after each of the K steps, from a given one."""
        told = time.to(state.device, non_blocking=True)
        for k, mask in enumerate(self.masks(state, time)):
            embedding = self.cell.condition(told, k / self.steps, *state.shape[2:])
            state = self.literal_step(self.cell, state, embedding, mask)
            yield state

    def literal_step(
        self, cell: Cell, state: Tensor, embedding: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """One step of a cell, recomputed in the backward pass if so desired."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return cell(state, embedding, mask)
        return checkpoint(cell, state, embedding, mask, use_reentrant=False, preserve_rng_state=False)

    def masks(self, state: Tensor, time: Tensor) -> Iterable[Tensor | None]:
        """For each of the K steps which cells of `state` fire, (B, 1, H, W); None where all do."""
        if self.update_probability == 1:
            return [None] * self.steps
        # The masks of a seeded noise source are addressed by time, so that equal calls agree.
        moment = round(float(time[0]) * 2**20) if self.firing.addressed else 0
        return self.firing.firing_masks(state, self.update_probability, moment, self.steps)

    def initial_state(self, noisy: Tensor, time: Tensor) -> Tensor:
        """The state that `forward` starts from."""
        return self.seed(noisy)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Run the automaton on `noisy` and read its prediction channels."""
        self.check_size(*noisy.shape[2:])
        time = self.shared(time)
        return self.image_stage(self.initial_state(noisy, time), time)

    @property
    def numbers_per_pixel(self) -> int:
        """What a call holds at a time, at least: the state, what a cell has seen of it, its hidden layer."""
        return 2 * self.channels + self.hidden

    def check_size(self, height: int, width: int) -> None:
        """Refuse ([`UsageError`][]) an image whose border has nothing to reflect."""
        if min(height, width) < 2:
            raise UsageError(
                f"the image is {width}x{height} (width x height); cells see 3x3, so at least 2x2"
            )

    def image_stage(self, state: Tensor, time: Tensor) -> Tensor:
        """The prediction after K steps in image space; `time` as [`shared`][] gives it."""
        if self.runs_fast:
            moments = [k / self.steps for k in range(self.steps)]
            state = self.fast_rollout(self.cell, state, time, moments, self.masks(state, time))
        else:
            for state in self.rollout(state, time.expand(len(state))):  # noqa: B007, B020 - the last one
                pass
        return state[:, self.image_channels : 2 * self.image_channels]

    @property
    def runs_fast(self) -> bool:
        """Whether calls are computed by [`nca_lib.fast`][]."""
        return self.fast and self.cell.local

    @staticmethod
    def shared(time: Tensor) -> Tensor:
        """Times (B,), or the one time (1,) that all images are told, as when sampling."""
        alike = not torch.is_grad_enabled() and bool((time == time[0]).all())
        return time[:1] if alike else time

    def fast_rollout(
        self, cell: Cell, state: Tensor, time: Tensor, moments: list[float], masks: Iterable[Tensor | None]
    ) -> Tensor:
        """The state after a step at each of the moments, by [`nca_lib.fast`][]."""
        recompute = self.checkpointing and torch.is_grad_enabled()
        return fast_rollout(cell, state, time, moments, masks, self.fast_step, recompute)

    def compile_step(self, mode: str | None) -> None:
        """Compile the automaton's steps (their repetition stays a Python loop).

        `"max-autotune"` makes CUDA graphs of them, for sampling.
        """
        for module in self.modules():
            if isinstance(module, Cell):
                module.compile()
        # For each shape by itself: one graph for both stages' shapes would be a fifth slower.
        step = torch.compile(fast_step, mode=mode, dynamic=False)
        self.fast_step = replayed(step) if mode == "max-autotune" else step
