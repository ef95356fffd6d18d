"""From coarse to fine, and what to draw: context for cells (chapter 9). Ours, beyond the paper.

A cell hears from cells K away. It can know what lies further off only if it is told: by *context*, read-only
channels beside its noisy image ([`DiffNCA.given`][nca_lib.diff_nca.DiffNCA.given]). A [`Cascade`][] tells the
cells of one scale what a coarser model has drawn (Ho et al. 2022, "Cascaded diffusion models"), so that a
layout is drawn where it is small, and each finer rule stays local. [`Guided`][] makes a model heed its
context more than it does by itself (Ho & Salimans 2022, "Classifier-free diffusion guidance").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.diffusion import Denoiser
from nca_lib.editing import FromImage
from nca_lib.errors import UsageError
from nca_lib.noise import CounterNoise, Purpose, Repeated, firing_from
from nca_lib.samplers import Constraint, sample

SEEDS = 0x9E3779B9  # between the seeds of two levels: their noise is unrelated


def coarse_context(
    coarse: Tensor, factor: int, size: tuple[int, int], level: Tensor, noise: Tensor
) -> Tensor:
    """What cells are told of a coarser image: (B, C + 1, height, width).

    It is noised by a known amount, sqrt(1 - level^2) x + level eps, enlarged (bilinear), and the last channel
    says the amount. A level trained on coarse images with noise does not rely on their details, which a
    coarser model draws a little wrong ("conditioning augmentation", Ho et al. 2022, section 4).

    Args:
        coarse: (B, C, h, w) in [-1, 1].
        factor: how many times coarser it is.
        size: height and width of the context, at most `factor` times h and w.
        level: (B, 1, 1, 1) in [0, 1), standard deviation of the noise.
        noise: standard normal, like `coarse`.
    """
    noised = (1 - level**2).sqrt() * coarse + level * noise
    told = _enlarged(_enlarged(noised, factor, 2), factor, 3)[..., : size[0], : size[1]]
    return torch.cat([told, level.expand(-1, 1, *size)], dim=1)


def _enlarged(image: Tensor, factor: int, dim: int) -> Tensor:
    """Bilinear along one dimension, as `torch.nn.functional.interpolate` up to rounding.

    That one's rounding depends on the image's size; here a window's values are those of the whole.
    """
    length = image.shape[dim]
    place = (torch.arange(length * factor, device=image.device) + 0.5) / factor - 0.5
    first = place.floor()
    share = (place - first).view(-1, *[1] * (image.dim() - dim - 1)).to(image.dtype)
    ends = [first.long().clamp(min=0), (first.long() + 1).clamp(max=length - 1)]
    one, other = (image.index_select(dim, end) for end in ends)
    return one * (1 - share) + other * share


class Cascade(Denoiser):
    """A model of two scales or more that samplers, edits and canvases use as one denoiser.

    Before the first step of a sample, the model below draws the coarse image; cells are then told it. Edits
    ask of each scale what they ask of the finest one.

    Args:
        below: draws the coarser image; a denoiser, or again a cascade.
        level: draws this scale; its network reads [`coarse_context`][].
        factor: how many times coarser the model below draws.
        noise: how much noise is added to the coarse image when sampling; more lets the finer level change
            more of it.
        scale: this level's (the finest's is 1), where its network is told it, in a channel before the others;
            None where it is not.

    Attributes:
        layout: stands in for the coarsest model's drawing, see [`laid_out`][].
        strength: how far it is drawn anew.

    Raises:
        UsageError: when called without a context; or a size that is too small for the coarsest level.
    """

    is_ready = False

    def __init__(
        self,
        below: Denoiser,
        level: Denoiser,
        factor: int,
        noise: float = 0.1,
        scale: float | None = None,
    ):
        super().__init__(level.network, level.schedule, level.target, level.weighting)
        self.below, self.factor, self.amount, self.scale = below, factor, noise, scale
        self.layout: Tensor | None = None
        self.strength = 0.0

    def laid_out(self, layout: Tensor, strength: float = 0.5) -> Self:
        """The same cascade with a given layout instead of one that its coarsest model draws.

        Args:
            layout: (1 or B, C, h, w) in [-1, 1], of any size: it is resampled to the coarsest level's.
            strength: how far that model draws it anew ([`vary`][nca_lib.editing.vary]): 0 takes a finished
                layout as it is, 0.5 makes one of a sketch in flat colours.
        """
        deeper = isinstance(self.below, Cascade)
        below = self.below.laid_out(layout, strength) if isinstance(self.below, Cascade) else self.below
        told = type(self)(below, self, self.factor, self.amount, self.scale)
        if not deeper:
            told.layout, told.strength = layout, strength
        return told

    def ready(self, size: tuple[int, int], **settings: Any) -> Denoiser:
        """Draw the coarser scales, and tell the finest one: a plain denoiser for images of this size."""
        height, width = (-(-side // self.factor) for side in size)
        if min(height, width) < 2:
            raise UsageError(
                f"{size[1]}x{size[0]} is too small: a coarser level would be {width}x{height}, less than 2x2"
            )
        constraint: Constraint | None = settings["constraint"]
        below = settings | {
            "seed": settings["seed"] + SEEDS,
            "constraint": constraint and constraint.coarser(self.factor),
        }
        coarse = self._layout((height, width), below)
        noise = CounterNoise(settings["seed"], settings["first_sample"])
        return self.given(self.context_of(coarse, noise, size))

    def context_of(
        self, coarse: Tensor, noise: CounterNoise, size: tuple[int, int], start: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """What the cells of a window are told of the coarse image around it, see [`coarse_context`][].

        Where the factor is a power of two it does not depend, bit for bit, on how much of the coarse image is
        given; a coarse pixel around the window is needed, which enlarging mixes in.

        Args:
            coarse: (B, C, h, w) in [-1, 1].
            noise: of this scale's seed, at the first coarse pixel.
            size: height and width of the window.
            start: its first row and column, in pixels of this scale from the first coarse pixel's.
        """
        level = torch.full((len(coarse), 1, 1, 1), self.amount, device=coarse.device)
        (y, x), (height, width) = start, size
        drawn = noise.normal(coarse, Purpose.CONTEXT, 0)
        told = coarse_context(coarse, self.factor, (y + height, x + width), level, drawn)[..., y:, x:]
        if self.scale is None:
            return told
        return torch.cat([torch.full_like(told[:, :1], self.scale), told], dim=1)

    def _layout(self, size: tuple[int, int], settings: dict[str, Any]) -> Tensor:
        if self.layout is not None:
            device = next(self.parameters()).device
            layout = F.interpolate(self.layout.to(device), size, mode="bilinear", antialias=True)
            layout = layout.expand(settings["count"], -1, -1, -1)
            if self.strength == 0:
                return layout
            begin = FromImage(layout, self.strength, self.below.schedule.timesteps)
            settings = settings | {"constraint": begin}
        return sample(self.below, size, **settings)

    def compile_step(self, mode: str | None) -> None:
        """Compile the steps of all levels."""
        self.below.compile_step(mode)
        super().compile_step(mode)


def cascade_of(levels: Sequence[tuple[int, Denoiser]], noise: float = 0.1) -> Denoiser:
    """A cascade from its levels, the coarsest first: how many times coarser than the finest, and a model.

    `cascade_of([(8, layout), (4, quarter), (2, half), (1, full)])` draws layouts at an eighth of the scale.

    Raises:
        UsageError: the scales do not descend to 1 by whole factors.
    """
    scales = [scale for scale, _ in levels]
    whole = all(a > b and a % b == 0 for a, b in itertools.pairwise(scales))
    if not whole or scales[-1] != 1:
        raise UsageError(f"the scales are {scales}; each must be a multiple of the next, and the last 1")
    model = levels[0][1]
    for (coarser, _), (scale, level) in itertools.pairwise(levels):
        model = Cascade(model, level, coarser // scale, noise)
    return model


class Guided(Denoiser):
    """Classifier-free guidance: go further in the direction in which the context changes the output.

    output = untold + strength (told - untold), Ho & Salimans (2022), eq. 6, where their w is strength - 1.
    Epsilon, x0 and v are affine in each other, so that it is the same equation for each. Where both outputs
    are needed they come from one call on a batch of twice the size, with the same firing masks for both; the
    model must have been trained with `context.dropout`.

    Args:
        model: a denoiser whose network reads context.
        context: (1 or B, G, H, W), what to draw. Zeros mean that nothing is told.
        strength: 1 is the model as it is, 0 the one that is told nothing.
    """

    def __init__(self, model: Denoiser, context: Tensor, strength: float = 2.0):
        super().__init__(model.network, model.schedule, model.target, model.weighting)
        self.context, self.strength = context, strength

    def _output(self, noisy: Tensor, t: Tensor) -> Tensor:
        context = self.context.to(noisy).expand(len(noisy), -1, -1, -1)
        if self.strength in (0.0, 1.0):  # one of both says it all
            return super().given(self.strength * context)._output(noisy, t)
        both = super().given(torch.cat([context, torch.zeros_like(context)]))
        with firing_from(both, Repeated):
            twice = t.expand(len(noisy)).repeat(2)
            told, untold = both._output(noisy.repeat(2, 1, 1, 1), twice).chunk(2)
        return untold + self.strength * (told - untold)
