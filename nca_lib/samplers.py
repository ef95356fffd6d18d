"""From noise to image: the reverse process (chapter 2).

A sampler is a generator with one signature:

    for state in ddim(denoiser, start, schedule, steps=50):
        state.image, state.clean_estimate, state.time

The timesteps that it visits are an explicit array, and the step before each is read from that array,
never computed by division. [`sample`][] runs a sampler to its end.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nca_lib.diffusion import NoiseSchedule
from nca_lib.noise import CounterNoise, Noise, Purpose, TorchNoise, firing_from


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands.

    Attributes:
        time: t/T of the noise level that `image` has now; 0 for the finished image.
        image: (B, C, H, W), the partly denoised image.
        clean_estimate: (B, C, H, W), the clean image that the denoiser saw through the noise.
        step: how many denoiser calls have been made, 1..steps.
    """

    time: float
    image: Tensor
    clean_estimate: Tensor
    step: int


class Constraint:
    """What an edit asks of a sampler (chapter 6); this one asks for nothing, subclasses say what they need.

    A sampler calls `path` and `begin` once, `correct` within each step and `overwrite` after it.
    """

    def path(self, visited: list[int]) -> list[int]:
        """The timesteps to visit instead of `visited`; where one is above the one before, noise is added."""
        return visited

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The image to begin with, instead of the noise `start` (B, C, H, W)."""
        return start

    def correct(self, clean: Tensor) -> Tensor:
        """The clean estimate (B, C, H, W) as it should be."""
        return clean

    def overwrite(self, image: Tensor, schedule: NoiseSchedule, t: int, noise: Noise, address: int) -> Tensor:
        """The image after a step to timestep t (-1: clean) as it should be; `address` is this step's own."""
        return image


class Sampler(Protocol):
    """The signature that all samplers share."""

    def __call__(
        self,
        denoiser: nn.Module,
        start: Tensor,
        schedule: NoiseSchedule,
        *,
        steps: int | None = None,
        noise: Noise | None = None,
        clip: bool = True,
        constraint: Constraint | None = None,
    ) -> Iterator[SamplerState]:
        """Yield one state per denoiser call."""
        ...


def timestep_array(timesteps: int, steps: int | None = None) -> list[int]:
    """The timesteps to visit, descending from T-1 to 0, evenly spaced, followed by -1 (clean).

    Raises:
        ValueError: `steps` is not within 1..T.
    """
    steps = timesteps if steps is None else steps
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps is {steps}; the schedule has {timesteps} timesteps, so 1 to {timesteps}")
    visited = torch.linspace(timesteps - 1, 0, steps, dtype=torch.float64).round().long()
    return [*visited.tolist(), -1]


def _reverse(
    denoiser: nn.Module,
    start: Tensor,
    schedule: NoiseSchedule,
    steps: int | None,
    noise: Noise | None,
    clip: bool,
    constraint: Constraint | None,
    eta: float,
) -> Iterator[SamplerState]:
    # DDIM (Song et al. 2021, eq. 12) with eta = 1 is ancestral DDPM (their section 4.1): its standard
    # deviation (eq. 16) is the square root of the posterior variance (Ho et al. 2020, eq. 7).
    source, edit = noise or TorchNoise(), constraint or Constraint()
    path = edit.path(timestep_array(schedule.timesteps, steps))
    image, calls, visits = edit.begin(start, schedule), 0, Counter[int]()
    for now, before in itertools.pairwise(path):
        address = now + schedule.timesteps * visits[now]  # a timestep visited again draws new noise
        visits[now] += 1
        t, t_before = torch.tensor([now]), torch.tensor([before])
        if before > now:
            image = _back(image, schedule, t, t_before, source.normal(image, Purpose.START, 1 + address))
            continue
        with torch.no_grad():
            predicted = denoiser(image, schedule.time(t).to(image.device).expand(len(image)))
            clean = schedule.clean_from_noise(image, t, predicted)
            if clip:
                clean = clean.clamp(-1, 1)
            clean = edit.correct(clean)
            predicted = schedule.noise_from_clean(image, t, clean)
            signal, sigma = schedule.signal_and_noise(t, image.double())
            signal_before, sigma_before = schedule.signal_and_noise(t_before, image.double())
            ratio = (sigma_before / sigma) ** 2 * (1 - (signal / signal_before) ** 2)
            spread = eta * ratio.clamp(min=0).sqrt()
            drift = (sigma_before**2 - spread**2).clamp(min=0).sqrt()
            image = signal_before.to(clean) * clean + drift.to(clean) * predicted
            if eta > 0 and before >= 0:
                image = image + spread.to(clean) * source.normal(image, Purpose.SAMPLER, address)
            image = edit.overwrite(image, schedule, before, source, address)
        calls += 1
        yield SamplerState(max(before, 0) / schedule.timesteps, image, clean, calls)


def _back(image: Tensor, schedule: NoiseSchedule, t: Tensor, later: Tensor, noise: Tensor) -> Tensor:
    # The forward process from t to a later timestep: the alpha_bars' ratio is what is left of the image.
    signal, _ = schedule.signal_and_noise(t, image.double())
    signal_later, _ = schedule.signal_and_noise(later, image.double())
    left = signal_later / signal
    return left.to(image) * image + (1 - left**2).sqrt().to(image) * noise


def ddpm(
    denoiser: nn.Module,
    start: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
) -> Iterator[SamplerState]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), all timesteps unless `steps` says fewer.

    Args:
        denoiser: `forward(noisy, time) -> noise`.
        start: (B, C, H, W) standard normal noise.
        schedule: the one that the denoiser was trained with.
        steps: how many of the timesteps to visit, evenly spaced.
        noise: where the posterior noise comes from; torch's generator by default.
        clip: keep each clean estimate within [-1, 1]. Off for data of another range.
        constraint: what the image must obey, see [`Constraint`][]; nothing by default.
    """
    return _reverse(denoiser, start, schedule, steps, noise, clip, constraint, eta=1.0)


def ddim(
    denoiser: nn.Module,
    start: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int | None = 50,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
) -> Iterator[SamplerState]:
    """Deterministic sampling (Song et al. 2021, eq. 12 with eta = 0); arguments as for [`ddpm`][]."""
    return _reverse(denoiser, start, schedule, steps, noise, clip, constraint, eta=0.0)


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim}


def sample(
    denoiser: nn.Module,
    schedule: NoiseSchedule,
    size: tuple[int, int],
    *,
    count: int = 1,
    channels: int = 3,
    sampler: Sampler = ddim,
    steps: int | None = 50,
    seed: int = 0,
    first_sample: int = 0,
    constraint: Constraint | None = None,
) -> Tensor:
    """Draw `count` images of `size` (height, width): (count, channels, height, width) in [-1, 1].

    All randomness, firing masks included, comes from [`CounterNoise`][] with `seed`: image i is the same
    whether it is drawn alone or in a batch, and `first_sample` is the i of the first image of this batch.
    `constraint` is what they must obey, see [`Constraint`][].

    Raises:
        ValueError: `steps` is not within 1..T.
    """
    parameter = next(denoiser.parameters())
    noise = CounterNoise(seed, first_sample)
    empty = torch.empty(count, channels, *size, device=parameter.device)
    with firing_from(denoiser, noise):
        start = noise.normal(empty, Purpose.START, 0)
        for state in sampler(  # noqa: B007 - the last one is the result
            denoiser, start, schedule, steps=steps, noise=noise, constraint=constraint
        ):
            pass
    return state.image
