"""Where randomness comes from (chapters 2 and 3).

Everything random in a sample (the starting image, the noise that a sampler adds, the firing masks of
the cells) is asked from a *noise source*. There are two, and three made of others:

- [`TorchNoise`][] draws from torch's own generator: fast, and what training uses.
- [`CounterNoise`][] computes each number from its address (seed, sample, purpose, step, y, x) with a
  counter-based generator. The same address always holds the same number, however the image is cut
  into tiles or the samples into batches.
- [`FixedMasks`][] holds the firing masks of a sample fixed, [`ExpectedUpdates`][] does without them: for
  samplers that take few steps.
- [`BlendedNoise`][] lies between two sources.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nca_lib.errors import UsageError, check_choice

Firing = Literal["fresh", "fixed", "expected"]
_WORD = 0xFFFFFFFF
_TOGETHER = 2**20  # blocks of four words that are computed at a time: 100 MB


class Purpose(IntEnum):
    """What a random number is for; different purposes never share numbers."""

    START = 0
    SAMPLER = 1
    FIRING = 2
    CONTEXT = 3


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor | int, Tensor | int]) -> tuple[Tensor, ...]:
    """Philox4x32-10, the counter-based generator of Salmon et al. (2011), "as easy as 1, 2, 3".

    Args:
        counter: four int64 tensors that broadcast together, each holding 32-bit words.
        key: two 32-bit words (integers or int64 tensors that broadcast).

    Returns:
        Four int64 tensors of independent uniform 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps; the low 64 bits are exact
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


class Noise(ABC):
    """A source of random tensors; of its kinds, each says where its numbers come from.

    Attributes:
        addressed: whether `step` and `substep` matter.
    """

    addressed = True

    @abstractmethod
    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers with the shape (B, C, H, W), device and dtype of `like`."""

    @abstractmethod
    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers in [0, 1), one a cell: (B, 1, H, W), float32, on the device of `like`."""

    @abstractmethod
    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> Noise:
        """The same source for a part of the image, whose first cell lies at (y, x) of what this one covers.

        Args:
            y: row of the part's first cell.
            x: its column.
            period: height and width after which coordinates begin again, for an image that wraps.

        Raises:
            UsageError: the source's numbers have no addresses.
        """

    def uniforms(self, like: Tensor, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
        """Yield the uniform numbers of substeps 0 ... count - 1."""
        for substep in range(count):
            yield self.uniform(like, purpose, step, substep)

    def firing_mask(self, like: Tensor, probability: float, step: int, substep: int) -> Tensor:
        """What each cell's update is multiplied by: (B, 1, H, W) of the dtype of `like`.

        1 with `probability` and 0 otherwise.
        """
        return (self.uniform(like, Purpose.FIRING, step, substep) < probability).to(like.dtype)

    def firing_masks(self, like: Tensor, probability: float, step: int, count: int) -> Iterator[Tensor]:
        """Yield the firing masks of substeps 0 ... count - 1."""
        for number in self.uniforms(like, Purpose.FIRING, step, count):
            yield (number < probability).to(like.dtype)


class TorchNoise(Noise):
    """Randomness from torch's own generator of the device; `step` and `substep` are ignored."""

    addressed = False

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers with the shape, device and dtype of `like`."""
        return torch.randn_like(like)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers in [0, 1), one a cell: (B, 1, H, W), float32."""
        batch, _, height, width = like.shape
        return torch.rand(batch, 1, height, width, device=like.device)

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> Noise:
        """Refuse: numbers drawn for a part are not those drawn for the whole."""
        raise UsageError("torch's generator draws without addresses; parts of an image need CounterNoise")


@dataclass(frozen=True)
class CounterNoise(Noise):
    """Randomness addressed by coordinate: number = f(seed, sample, purpose, step, substep, y, x).

    Args:
        seed: any integer; only its low 32 bits count.
        first_sample: index of the first image of the batch, so that samples 8..15 drawn as a second
            batch equal the second half of a batch of 16.
        origin: (y, x) of the tensor's first cell on the canvas; a tile asks with its own origin and
            receives its part of the whole image's noise.
        period: height and width after which the canvas begins again; None if it does not.
    """

    seed: int
    first_sample: int = 0
    origin: tuple[int, int] = (0, 0)
    period: tuple[int, int] | None = None

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> CounterNoise:
        """The same source for a part of the image, see [`Noise.at`][]."""
        origin = (self.origin[0] + y, self.origin[1] + x)
        return replace(self, origin=origin, period=period or self.period)

    def _words(self, like: Tensor, purpose: Purpose, step: int, blocks: range) -> tuple[Tensor, ...]:
        """The four words of each cell in each of the blocks: four (B, blocks, H, W), int64."""
        batch, _, height, width = like.shape
        device = like.device
        # Of an origin beyond 64 bits only what counts.
        first = [at % n for at, n in zip(self.origin, self.period or (_WORD + 1,) * 2, strict=True)]
        y = torch.arange(height, device=device) + first[0]
        x = torch.arange(width, device=device) + first[1]
        if self.period:
            y, x = y % self.period[0], x % self.period[1]
        y, x = y.view(1, 1, height, 1) & _WORD, x.view(1, 1, 1, width) & _WORD
        sample = (torch.arange(batch, device=device) + self.first_sample).view(batch, 1, 1, 1)
        block = torch.arange(blocks.start, blocks.stop, device=device).view(1, -1, 1, 1)
        step_word = torch.full((1, 1, 1, 1), step & _WORD, device=device)
        return philox((x, y, step_word, block + (int(purpose) << 24)), (self.seed & _WORD, sample))

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers (Box-Muller) with the shape, device and dtype of `like`."""
        words = self._words(like, purpose, step, range(math.ceil(like.shape[1] / 4)))
        # (word + 1/2) / 2^32 lies strictly inside (0, 1): the logarithm is finite.
        u = [(word.float() + 0.5) * 2.0**-32 for word in words]
        planes: list[Tensor] = []
        for radius_of, angle_of in ((u[0], u[1]), (u[2], u[3])):
            radius = torch.sqrt(-2 * torch.log(radius_of.clamp(max=1 - 2**-24)))
            planes += [
                radius * torch.cos(2 * math.pi * angle_of),
                radius * torch.sin(2 * math.pi * angle_of),
            ]
        return torch.stack(planes, dim=2).flatten(1, 2)[:, : like.shape[1]].to(like.dtype)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers in [0, 1) with 24 bits, one a cell: (B, 1, H, W), float32."""
        block = substep // 4
        return _unit(self._words(like, purpose, step, range(block, block + 1))[substep % 4])

    def uniforms(self, like: Tensor, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
        """Yield the uniform numbers of substeps 0 ... count - 1: four a block, many blocks at a time."""
        blocks = math.ceil(count / 4)
        together = max(1, _TOGETHER // (like.numel() // like.shape[1]))
        for first in range(0, blocks, together):
            part = range(first, min(first + together, blocks))
            numbers = [_unit(word) for word in self._words(like, purpose, step, part)]
            for substep in range(4 * part.start, min(4 * part.stop, count)):
                at = substep // 4 - first
                yield numbers[substep % 4][:, at : at + 1]


def _unit(words: Tensor) -> Tensor:
    return (words >> 8).float() * 2.0**-24


@dataclass(frozen=True)
class FixedMasks(Noise):
    """The numbers of another source, but the same firing masks at every denoiser call.

    A cell that fires in NCA step k of one call does so in step k of every call: what the denoiser says then
    changes from call to call with its input alone, as the solver of a differential equation expects. Another
    sample still has other masks.

    Args:
        source: one whose numbers have addresses; [`TorchNoise`][], which ignores them, cannot be held fixed.
    """

    source: Noise

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers, those of the source."""
        return self.source.normal(like, purpose, step)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers, those that the source has for step 0."""
        return self.source.uniform(like, purpose, 0, substep)

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> FixedMasks:
        """The same for a part of the image, see [`Noise.at`][]."""
        return replace(self, source=self.source.at(y, x, period))

    def uniforms(self, like: Tensor, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
        """Those of the source, likewise."""
        return self.source.uniforms(like, purpose, 0, count)


@dataclass(frozen=True)
class ExpectedUpdates(Noise):
    """The numbers of another source, but no firing masks: in each step every cell makes its expected update.

    That is `update_probability` times its own.

    Args:
        source: where all other numbers come from.
    """

    source: Noise

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers, those of the source."""
        return self.source.normal(like, purpose, step)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers, those of the source."""
        return self.source.uniform(like, purpose, step, substep)

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> ExpectedUpdates:
        """The same for a part of the image, see [`Noise.at`][]."""
        return replace(self, source=self.source.at(y, x, period))

    def firing_mask(self, like: Tensor, probability: float, step: int, substep: int) -> Tensor:
        """The probability, everywhere: (B, 1, H, W) of the dtype of `like`."""
        return like.new_full((len(like), 1, *like.shape[2:]), probability)

    def firing_masks(self, like: Tensor, probability: float, step: int, count: int) -> Iterator[Tensor]:
        """The same for each of so many substeps."""
        return iter([self.firing_mask(like, probability, step, 0)] * count)


@dataclass(frozen=True)
class BlendedNoise(Noise):
    """Noise on the way from one source to another, spherically interpolated (Shoemake 1985).

    Row i is cos(w pi/2) a + sin(w pi/2) b with w = `weight[i]`: a and b are independent, hence nearly at a
    right angle, and every number of the blend is standard normal again. (A straight line between them
    would be too small in the middle, and what is drawn from it grey.) Uniform numbers are blended as
    normal ones.

    Args:
        first: the source at weight 0; each row asks for its first sample.
        second: the source at weight 1, likewise.
        weight: (B,) in [0, 1].
    """

    first: Noise
    second: Noise
    weight: Tensor

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers with the shape, device and dtype of `like`."""
        ends = (source.normal(like[:1], purpose, step) for source in (self.first, self.second))
        return self._blend(*ends)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers in [0, 1), one a cell: (B, 1, H, W), float32."""
        a, b = (source.uniform(like[:1], purpose, step, substep) for source in (self.first, self.second))
        return self._blend_uniform(a, b)

    def uniforms(self, like: Tensor, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
        """Yield the uniform numbers of substeps 0 ... count - 1."""
        ends = (source.uniforms(like[:1], purpose, step, count) for source in (self.first, self.second))
        return map(self._blend_uniform, *ends)

    def _blend_uniform(self, a: Tensor, b: Tensor) -> Tensor:
        half = 2.0**-25  # from the middle of each of the 2^24 intervals, so that 0 has a finite quantile
        exact = [end.cpu() if end.device.type == "mps" else end for end in (a, b)]  # MPS has no float64
        blend = self._blend(*(torch.special.ndtri(end.double() + half) for end in exact))
        blended = torch.special.ndtr(blend).float().clamp(max=1 - 2**-24).to(a.device)
        first, last = _rows(self.weight == 0, a), _rows(self.weight == 1, a)
        return torch.where(first, a, torch.where(last, b, blended))

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> BlendedNoise:
        """The same for a part of the image, see [`Noise.at`][]."""
        return replace(self, first=self.first.at(y, x, period), second=self.second.at(y, x, period))

    def _blend(self, a: Tensor, b: Tensor) -> Tensor:
        angle = self.weight.double() * (math.pi / 2)
        cosine, sine = (_rows(wave.to(a.dtype), a) for wave in (angle.cos(), angle.sin()))
        return torch.where(_rows(self.weight == 1, a), b, cosine * a + sine * b)


@dataclass(frozen=True)
class Repeated(Noise):
    """The numbers of another source for the first half of a batch, and again for the second.

    Args:
        source: of the numbers of a batch of half the size.
    """

    source: Noise

    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        """Standard normal numbers, those of the source twice."""
        return self.source.normal(like.chunk(2)[0], purpose, step).repeat(2, 1, 1, 1)

    def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
        """Uniform numbers, those of the source twice."""
        return self.source.uniform(like.chunk(2)[0], purpose, step, substep).repeat(2, 1, 1, 1)

    def at(self, y: int, x: int, period: tuple[int, int] | None = None) -> Repeated:
        """The same for a part of the image, see [`Noise.at`][]."""
        return replace(self, source=self.source.at(y, x, period))

    def firing_mask(self, like: Tensor, probability: float, step: int, substep: int) -> Tensor:
        """That of the source twice."""
        return self.source.firing_mask(like.chunk(2)[0], probability, step, substep).repeat(2, 1, 1, 1)

    def firing_masks(self, like: Tensor, probability: float, step: int, count: int) -> Iterator[Tensor]:
        """Those of the source twice, for each of so many substeps."""
        masks = self.source.firing_masks(like.chunk(2)[0], probability, step, count)
        return (mask.repeat(2, 1, 1, 1) for mask in masks)


def firing_masks_of(noise: Noise, firing: Firing) -> Noise:
    """The source of a sample's firing masks.

    Args:
        noise: of the sample.
        firing: which cells of an automaton update: those of `"fresh"` masks at every denoiser call, as in
            training; those of masks that are `"fixed"` for all calls ([`FixedMasks`][]); or all, by the
            `"expected"` update ([`ExpectedUpdates`][]).

    Raises:
        UsageError: `firing` is none of these.
    """
    check_choice("firing", firing, get_args(Firing))
    return {"fresh": noise, "fixed": FixedMasks(noise), "expected": ExpectedUpdates(noise)}[firing]


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value (B,) for each image of a batch, on the device of `like`."""
    return values.view(-1, 1, 1, 1).to(like.device, non_blocking=True)


@contextmanager
def firing_from(model: nn.Module, noise: Noise | Callable[[Noise], Noise]) -> Iterator[None]:
    """Within the block, every automaton inside `model` draws its firing masks from `noise`.

    A function, such as the class [`Repeated`][], makes each automaton's source of the one that it has.

    `firing_from(model, FixedMasks(noise))` draws them once for all calls, `firing_from(model,
    ExpectedUpdates(noise))` not at all: with either, a denoiser gives the same answer to the same question.
    """
    modules: Iterator[Any] = model.modules()
    automata = [(module, module.firing) for module in modules if hasattr(module, "firing")]
    for module, before in automata:
        module.firing = noise if isinstance(noise, Noise) else noise(before)
    try:
        yield
    finally:
        for module, before in automata:
            module.firing = before
