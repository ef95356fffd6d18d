"""Editing without retraining: inpainting, super-resolution, variations, shapes (chapter 6).

An edit is a [`Constraint`][nca_lib.samplers.Constraint] handed to a sampler, so that it works with every
sampler, every denoiser and every size that the denoiser takes. The functions below run one to its end;
to watch it, hand the constraint to a sampler yourself:

    for state in ddpm(denoiser, start, steps=50, constraint=KnownPixels(image, mask)):
        state.image

Images are (B, C, H, W) in [-1, 1]. All randomness comes from [`CounterNoise`][nca_lib.noise.CounterNoise].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.diffusion import Denoiser, NoiseSchedule, check_images
from nca_lib.errors import EditingError
from nca_lib.memory import check_call
from nca_lib.noise import BlendedNoise, CounterNoise, Noise, Purpose, firing_from
from nca_lib.samplers import Constraint, Sampler, ddim, ddpm, sample, timestep_array

Inpainting = Literal["repaint", "published"]
SuperResolution = Literal["ddnm", "published"]


class KnownPixels(Constraint):
    """Inpainting: some pixels are known, the sampler fills the others.

    - `"published"` (Diff-NCA): after each step the known pixels are overwritten with the clean image. The
      denoiser then sees pixels without noise beside noisy ones, which it never did in training.
    - `"repaint"` (Lugmayr et al. 2022, algorithm 1): they are overwritten with the image noised to the
      timestep that the step has reached. The filling was drawn before that, so the two need not agree yet:
      every `jump` steps the process goes back by `jump` steps (adding noise to all pixels) and comes again,
      until it has gone that way `repeats` times.

    Both end with the known pixels exactly as given.

    Args:
        image: (B, C, H, W), or (1, C, H, W) for all images alike; what it holds in the hole plays no part.
        mask: (1, 1, H, W), or one for each of the given images, bool, True where the image is known.
        mode: `"repaint"` or `"published"`.
        jump: how many steps to go back, RePaint's jump length.
        repeats: how often each stretch of `jump` steps is gone; 1 resamples nothing.

    Raises:
        EditingError: mask and image differ in size, the mask is not bool, the known pixels are no image's
            (not finite, or outside of [-1, 1]), the mode is unknown, or a count is below 1.
    """

    def __init__(
        self, image: Tensor, mask: Tensor, mode: Inpainting = "repaint", *, jump: int = 5, repeats: int = 5
    ):
        _check_mask(mask, image)
        known = torch.where(mask, image, 0) if image.ndim == 4 else image
        check_images(known, "the image where it is known", EditingError)
        _check_choice(mode, Inpainting)
        if min(jump, repeats) < 1:
            raise EditingError(f"jump is {jump} and repeats {repeats}; both are at least 1")
        self.image, self.mask, self.mode, self.jump, self.repeats = image, mask, mode, jump, repeats

    def path(self, visited: list[int]) -> list[int]:
        """RePaint's way down, with its jumps back."""
        if self.mode == "published" or self.repeats == 1:
            return visited
        path: list[int] = []
        last = len(visited) - 2  # where the last timestep before -1 (clean) stands
        for place, t in enumerate(visited):
            path.append(t)
            if self.jump <= place <= last and (last - place) % self.jump == 0:
                path += visited[place - self.jump : place + 1] * (self.repeats - 1)
        return path

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The noise itself. Image and mask are taken to its device, once."""
        _check_fits(self.image, start)
        self.image, self.mask = self.image.to(start), self.mask.to(start.device)
        return start

    def overwrite(self, image: Tensor, schedule: NoiseSchedule, t: int, noise: Noise, address: int) -> Tensor:
        """The image with its known pixels put back, clean or noised to timestep t."""
        known = self.image.to(image)
        if self.mode == "repaint" and t >= 0:
            signal, sigma = schedule.levels(t)
            known = signal * known + sigma * noise.normal(image, Purpose.START, 1 + address)
        return torch.where(self.mask.to(image.device), known, image)

    def coarser(self, factor: int) -> KnownPixels:
        """Known is what lies in blocks of known pixels only."""
        known = ~(reduce((~self.mask).float(), factor) > 0)
        return KnownPixels(reduce(self.image, factor), known, self.mode, jump=self.jump, repeats=self.repeats)


def shaped_canvas(shape: Tensor, fill: float = 1.0, channels: int = 3) -> KnownPixels:
    """A canvas of any shape: pixels outside of it are known, and all `fill` (1 is white).

    Args:
        shape: (1, 1, H, W) bool, True where there is to be an image.
        fill: the value around it, in [-1, 1].
        channels: channels of the images.

    Raises:
        EditingError: the shape is no mask, or `fill` is not within -1..1.
    """
    _check_mask(shape)
    background = torch.full((1, channels, *shape.shape[2:]), fill)
    return KnownPixels(background, ~shape, repeats=1)


class LowResolution(Constraint):
    """Super-resolution by DDNM (Wang et al. 2022, eq. 13): x0 <- A+ y + (I - A+ A) x0.

    A averages blocks of `factor` x `factor` pixels and A+ copies each value to its block: the blocks' means
    are given, the denoiser decides only what deviates from them. Down-sampling the result returns the input.
    Deviations that would leave [-1, 1] are shrunk, block by block, until they do not: the mean stays.

    Args:
        image: y, (B or 1, C, h, w) in [-1, 1]; the sampler's image is (B, C, factor h, factor w).
        factor: how many times larger, at least 2.

    Raises:
        EditingError: the factor is below 2, or the image is none (not finite, or outside of [-1, 1]).
    """

    def __init__(self, image: Tensor, factor: int):
        if factor < 2:
            raise EditingError(f"factor is {factor}; a whole number of at least 2 enlarges")
        check_images(image, "the image", EditingError)
        self.image, self.factor = image, factor

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The noise itself. The image is taken to its device, once."""
        _check_fits(self.image, start, self.factor)
        self.image = self.image.to(start)
        return start

    def correct(self, clean: Tensor) -> Tensor:
        """The clean estimate with its blocks' means put right."""
        detail = clean - enlarge(F.avg_pool2d(clean, self.factor), self.factor)
        low = self.image.to(clean)
        # Room from each mean to the edge of the range, as a part of what the block's details would take.
        up = (1 - low) / F.max_pool2d(detail, self.factor).clamp(min=1e-6)
        down = (1 + low) / F.max_pool2d(-detail, self.factor).clamp(min=1e-6)
        kept = torch.minimum(up, down).clamp(0, 1)
        return enlarge(low, self.factor) + enlarge(kept, self.factor) * detail

    def coarser(self, factor: int) -> Constraint:
        """The image itself and what is coarser are known, finer ones are held to it.

        Raises:
            EditingError: neither of both factors divides the other.
        """
        if self.factor > factor and self.factor % factor == 0:
            return LowResolution(self.image, self.factor // factor)
        if factor % self.factor:
            raise EditingError(
                f"factor is {self.factor}; a level of this cascade is {factor} times coarser than the next, "
                f"and one must divide the other"
            )
        known = reduce(self.image, factor // self.factor)
        return KnownPixels(known, torch.ones_like(known[:1, :1], dtype=torch.bool), repeats=1)


@dataclass(frozen=True)
class FromImage(Constraint):
    """Begin in the middle: with an image noised to `strength` T (Meng et al. 2022, SDEdit).

    The sampler's `steps` are spread over the timesteps that are left.

    Args:
        image: (B or 1, C, H, W).
        strength: in (0, 1], the fraction of the timesteps to go; with 1 the image plays no part.
        timesteps: T of the schedule.
    """

    image: Tensor
    strength: float
    timesteps: int

    @property
    def first(self) -> int:
        """The timestep to begin with."""
        return max(round(self.strength * self.timesteps) - 1, 0)

    def path(self, visited: list[int]) -> list[int]:
        """As many timesteps as asked for, evenly spaced, from the first on."""
        return timestep_array(self.first + 1, min(len(visited) - 1, self.first + 1))

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The image, noised to the first timestep.

        Raises:
            EditingError: `timesteps` are not the schedule's.
        """
        if self.timesteps != schedule.timesteps:
            raise EditingError(
                f"timesteps is {self.timesteps}, but the denoiser's schedule has {schedule.timesteps}"
            )
        _check_fits(self.image, start)
        if self.first == schedule.timesteps - 1:
            return start
        signal, sigma = schedule.levels(self.first)
        return signal * self.image.to(start) + sigma * start

    def coarser(self, factor: int) -> FromImage:
        """From the coarser image, as far back."""
        return FromImage(reduce(self.image, factor), self.strength, self.timesteps)


def inpaint(
    denoiser: Denoiser,
    image: Tensor,
    mask: Tensor,
    *,
    method: Inpainting = "repaint",
    jump: int = 5,
    repeats: int = 5,
    sampler: Sampler = ddpm,
    steps: int | None = 50,
    seed: int = 0,
) -> Tensor:
    """Fill the hole of each image: (B, C, H, W) in [-1, 1], equal to `image` where `mask` is True.

    RePaint calls the denoiser about `steps * repeats` times, the published method `steps` times. For several
    fillings of one image, repeat it: `image.expand(8, -1, -1, -1)`.

    Args:
        denoiser: a trained one.
        image: (B, C, H, W) in [-1, 1].
        mask: (1, 1, H, W) bool, True where the image is known.
        method: see [`KnownPixels`][].
        jump: likewise, for RePaint.
        repeats: likewise.
        sampler: how to sample, see [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: how many timesteps to visit; None for all.
        seed: of all noise.

    Raises:
        EditingError: as [`KnownPixels`][]. UsageError: the denoiser does not take this size.
    """
    known = KnownPixels(image, mask, method, jump=jump, repeats=repeats)
    return _edit(denoiser, image.shape, known, sampler, steps, seed)


def upscale(
    denoiser: Denoiser,
    image: Tensor,
    factor: int,
    *,
    method: SuperResolution = "ddnm",
    strength: float = 1 / 12,
    sampler: Sampler = ddpm,
    steps: int | None = 50,
    seed: int = 0,
) -> Tensor:
    """Enlarge each image, with details: (B, C, h, w) to (B, C, factor h, factor w), both in [-1, 1].

    - `"ddnm"`: from noise, held to the given image by [`LowResolution`][]: averaging blocks of the result
      returns the input.
    - `"published"` (Diff-NCA): enlarge (bilinear), noise to `strength` T (T/14 to T/10), denoise from there.
      Nothing holds the result to the input.

    Args:
        denoiser: a trained one.
        image: (B, C, h, w) in [-1, 1].
        factor: how many times larger, a whole number of at least 2.
        method: see above.
        strength: for `"published"`, see above.
        sampler: how to sample, see [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: how many timesteps to visit; None for all.
        seed: of all noise.

    Raises:
        EditingError: the factor is below 2, an unknown method, or as [`vary`][].
        UsageError: the denoiser does not take the enlarged size.
    """
    _check_choice(method, SuperResolution)
    constraint = LowResolution(image, factor)
    if method == "published":
        rough = F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
        return vary(denoiser, rough, strength, sampler=sampler, steps=steps, seed=seed)
    batch, channels, height, width = image.shape
    size = torch.Size((batch, channels, factor * height, factor * width))
    return _edit(denoiser, size, constraint, sampler, steps, seed)


def vary(
    denoiser: Denoiser,
    image: Tensor,
    strength: float = 0.5,
    *,
    sampler: Sampler = ddim,
    steps: int | None = 50,
    seed: int = 0,
) -> Tensor:
    """Variations of images: noise them to `strength` T and denoise again (Meng et al. 2022, SDEdit).

    Args:
        denoiser: a trained one.
        image: (B, C, H, W) in [-1, 1].
        strength: from 0, which returns the image, to 1, which has nothing to do with it any more.
        sampler: how to sample, see [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: how many timesteps to visit; None for all.
        seed: of all noise.

    Returns:
        (B, C, H, W) in [-1, 1].

    Raises:
        EditingError: the strength is not within 0..1, or the image is none of the denoiser's (another number
            of channels, not finite, or outside of [-1, 1]). UsageError: the denoiser does not take this size.
    """
    check_images(image, "the image", EditingError)
    if not 0 <= strength <= 1:
        raise EditingError(f"strength is {strength}; from 0 (the image itself) to 1 (a new one)")
    if strength == 0:
        return image.clone()
    begin = FromImage(image, strength, denoiser.schedule.timesteps)
    return _edit(denoiser, image.shape, begin, sampler, steps, seed)


def interpolate(
    denoiser: Denoiser,
    seeds: tuple[int, int],
    count: int,
    size: tuple[int, int],
    *,
    sampler: Sampler = ddim,
    steps: int | None = 50,
) -> Tensor:
    """A walk between two samples: (count, C, H, W) in [-1, 1].

    The first image is [`sample`][nca_lib.samplers.sample]'s for `seeds[0]`, the last its for `seeds[1]`; all
    noise in between, firing masks included, is interpolated by [`BlendedNoise`][].

    Args:
        denoiser: a trained one.
        seeds: the two seeds.
        count: how many images, both ends included; at least 2.
        size: (height, width).
        sampler: how to sample, see [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: how many timesteps to visit; None for all.

    Raises:
        EditingError: the count is below 2, or the denoiser is a cascade.
        UsageError: the denoiser does not take this size.
    """
    if count < 2:
        raise EditingError(f"count is {count}; a walk has at least its 2 ends")
    if not denoiser.is_ready:
        raise EditingError("a cascade is not interpolated; a model of one scale is")
    check_call(denoiser, count, size)
    device = next(denoiser.parameters(), torch.empty(0)).device
    noise = BlendedNoise(CounterNoise(seeds[0]), CounterNoise(seeds[1]), torch.linspace(0, 1, count))
    start = noise.normal(torch.empty(count, denoiser.image_channels, *size, device=device), Purpose.START, 0)
    with firing_from(denoiser, noise):
        for state in sampler(denoiser, start, steps=steps, noise=noise):  # noqa: B007
            pass
    return state.image


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Copy each pixel to a block of `factor` x `factor`: (B, C, h, w) to (B, C, factor h, factor w)."""
    return F.interpolate(image, scale_factor=factor, mode="nearest")


def _check_choice(method: str, choices: object) -> None:
    if method not in get_args(choices):
        raise EditingError(f"method {method!r} is unknown; choose {' or '.join(get_args(choices))}")


def _check_mask(mask: Tensor, image: Tensor | None = None) -> None:
    if mask.dtype != torch.bool:
        raise EditingError(f"the mask is {mask.dtype}; it must be bool, True where the image is known")
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise EditingError(f"the mask has the shape {tuple(mask.shape)}; it must be (1 or B, 1, H, W)")
    if image is None or image.ndim != 4:
        return
    if mask.shape[2:] != image.shape[2:]:
        sizes = [f"{x.shape[3]}x{x.shape[2]}" for x in (mask, image)]
        raise EditingError(f"the mask is {sizes[0]} (width x height) and the image {sizes[1]}; same sizes")
    if len(mask) not in (1, len(image)):
        raise EditingError(f"{len(mask)} masks for {len(image)} images; one each, or one for all")


def _check_fits(image: Tensor, start: Tensor, factor: int = 1) -> None:
    """Refuse an image that does not become, enlarged by the factor, what a sampler makes of `start`."""
    count, channels, height, width = image.shape
    if (channels, factor * height, factor * width) != start.shape[1:] or count not in (1, len(start)):
        raise EditingError(
            f"the image has the shape {tuple(image.shape)}, but the sampler makes {tuple(start.shape)}"
            + (f", {factor} times as large" if factor > 1 else "")
        )


def reduce(image: Tensor, factor: int) -> Tensor:
    """Average blocks of `factor` x `factor` pixels: (B, C, H, W) to (B, C, H / factor, W / factor).

    Sizes are rounded up; last blocks, where the image ends within them, are filled with its last pixels.
    """
    missing = [-image.shape[3] % factor, -image.shape[2] % factor]
    return F.avg_pool2d(F.pad(image, (0, missing[0], 0, missing[1]), mode="replicate"), factor)


def _edit(
    denoiser: Denoiser,
    shape: torch.Size,
    constraint: Constraint,
    sampler: Sampler,
    steps: int | None,
    seed: int,
) -> Tensor:
    count, _, height, width = shape
    return sample(
        denoiser,
        (height, width),
        count=count,
        sampler=sampler,
        steps=steps,
        seed=seed,
        constraint=constraint,
    )
