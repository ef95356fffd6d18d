"""Schedules that end in pure noise, where nothing is left of the image (zero terminal SNR)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nca_lib.diffusion import Denoiser, NoiseSchedule, noise_schedule
from nca_lib.errors import UsageError
from nca_lib.samplers import SAMPLERS, ddim, log_snr_array

MEAN, DEVIATION = 0.4, 0.3


def without_signal_at_the_end(schedule: NoiseSchedule) -> NoiseSchedule:
    """Lin et al. (2024), algorithm 1: sqrt(alpha_bar) shifted and scaled so that it ends at 0."""
    signal = schedule.alpha_bar.sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), signal.square()])
    return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])


class GaussianImage(nn.Module):
    """The best clean estimate if every pixel is N(MEAN, DEVIATION^2): the mean where all is noise."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[self.schedule.timestep(time)].view(-1, 1, 1, 1)
        gain = alpha_bar.sqrt() * DEVIATION**2 / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
        return MEAN + gain * (noisy - alpha_bar.sqrt() * MEAN)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_begin_where_nothing_is_left_of_the_image(name: str) -> None:
    schedule = without_signal_at_the_end(noise_schedule("linear", 300))
    assert schedule.alpha_bar[-1] == 0
    denoiser = Denoiser(GaussianImage(schedule), schedule, "x0")
    start = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = 300 if name == "ddpm" else 60
    torch.manual_seed(0)
    *_, last = SAMPLERS[name](denoiser, start, steps=steps, clip=False)
    image = last.image
    assert float(image.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(image.std()) == pytest.approx(DEVIATION, rel=0.05)


@pytest.mark.parametrize(
    ("betas", "target", "message"),
    [
        ([0.0, 0.1], "v", r"from 0 to 0\.1; each lies in \(0, 1\]"),
        ([0.1, 1.5], "v", r"from 0\.1 to 1\.5"),
        ([0.5, 1.0], "epsilon", "alpha_bar ends at 0; 'v' or 'x0'"),
    ],
)
def test_schedules_that_cannot_be_gone_back_are_refused(betas: Any, target: Any, message: str) -> None:
    schedule = NoiseSchedule(torch.tensor(betas, dtype=torch.float64))
    with pytest.raises(UsageError, match=message):
        next(ddim(Denoiser(nn.Identity(), schedule, target), torch.zeros(1, 3, 4, 4), steps=2))


@pytest.mark.parametrize("steps", [1, 2, 10, 150, 299, 300])
def test_timesteps_even_in_log_snr_descend_from_pure_noise_too(steps: int) -> None:
    visited = log_snr_array(without_signal_at_the_end(noise_schedule("linear", 300)), steps)
    assert len(visited) == steps + 1 and (visited[0], visited[-1]) == (299, -1)
    assert all(a > b for a, b in itertools.pairwise(visited))
