"""Samplers against problems whose answer is known in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, NoiseSchedule, noise_schedule
from nca_lib.noise import CounterNoise, Purpose
from nca_lib.samplers import SAMPLERS, ddim, ddpm, sample, timestep_array

MEAN, DEVIATION = 0.4, 0.3


class GaussianDenoiser(nn.Module):
    """The best possible denoiser, E[eps | x], if every pixel of the data is N(mean, deviation^2)."""

    def __init__(self, schedule: NoiseSchedule, mean: float = MEAN, deviation: float = DEVIATION):
        super().__init__()
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[self.schedule.timestep(time)].view(-1, 1, 1, 1)
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (noisy - alpha_bar.sqrt() * self.mean) / variance


def last_image(states: object) -> Tensor:
    return list(states)[-1].image


def test_the_timesteps_descend_from_the_last_to_clean() -> None:
    assert timestep_array(5) == [4, 3, 2, 1, 0, -1]
    assert timestep_array(300, 4) == [299, 199, 100, 0, -1]
    assert timestep_array(300, 2) == [299, 0, -1]
    assert timestep_array(300, 1) == [299, -1]


@pytest.mark.parametrize("steps", [2, 3, 7, 50, 99, 150, 299, 300])
def test_no_timestep_is_visited_twice(steps: int) -> None:
    visited = timestep_array(300, steps)
    assert len(visited) == steps + 1
    gaps = [a - b for a, b in itertools.pairwise(visited[:-1])]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    assert (visited[0], visited[-2], visited[-1]) == (299, 0, -1)


@pytest.mark.parametrize("steps", [0, -1, 301])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}.*1 to 300"):
        timestep_array(300, steps)


def test_ddim_converges_to_the_exact_transport_with_first_order() -> None:
    # For Gaussian data the probability flow is affine: along it
    # z = (x - sqrt(ab) m) / sqrt(ab s^2 + 1 - ab) is constant.
    schedule = noise_schedule("linear", 4000)
    denoiser = GaussianDenoiser(schedule)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    last = schedule.alpha_bar[-1]
    exact = MEAN + DEVIATION * (start - last.sqrt() * MEAN) / (last * DEVIATION**2 + 1 - last).sqrt()
    errors = [
        float((last_image(ddim(denoiser, start, schedule, steps=n, clip=False)) - exact).abs().max())
        for n in (50, 100, 200, 400)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.25 for order in orders), (errors, orders)
    assert errors[-1] < 0.02


def test_ddpm_reproduces_mean_and_variance_of_the_data() -> None:
    torch.manual_seed(0)
    schedule, n = noise_schedule("cosine", 300), 40_000
    start = torch.randn(n, 1, 1, 1, dtype=torch.float64)
    result = last_image(ddpm(GaussianDenoiser(schedule), start, schedule, clip=False))
    assert abs(float(result.mean()) - MEAN) < 5 * DEVIATION / n**0.5
    assert float(result.std()) == pytest.approx(DEVIATION, rel=0.03)


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid"])
def test_ddpm_steps_are_the_posterior_of_ho_et_al(name: str) -> None:
    schedule, source = noise_schedule(name, 30), CounterNoise(3)
    denoiser = GaussianDenoiser(schedule)
    image = source.normal(torch.empty(2, 3, 4, 4, dtype=torch.float64), Purpose.START, 0)
    states = ddpm(denoiser, image, schedule, noise=source, clip=False)
    for t, state in zip(reversed(range(30)), states, strict=True):
        beta = schedule.betas[t]
        alpha_bar = torch.prod(1 - schedule.betas[: t + 1])
        before = torch.prod(1 - schedule.betas[:t])
        noise = denoiser(image, torch.full((2,), t / 30))
        clean = (image - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
        mean = before.sqrt() * beta / (1 - alpha_bar) * clean  # equation 7
        mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar) * image
        variance = (1 - before) / (1 - alpha_bar) * beta
        image = mean + variance.sqrt() * source.normal(image, Purpose.SAMPLER, t)
        torch.testing.assert_close(state.image, image, atol=1e-9, rtol=1e-9)
        image = state.image


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 300])
def test_a_perfect_denoiser_of_one_image_leads_to_that_image(sampler: object, steps: int) -> None:
    torch.manual_seed(0)
    schedule, picture = noise_schedule(), torch.rand(1, 3, 4, 4, dtype=torch.float64) * 2 - 1

    class Perfect(nn.Module):
        def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
            return schedule.noise_from_clean(noisy, schedule.timestep(time), picture)

    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    result = last_image(sampler(Perfect(), start, schedule, steps=steps))
    torch.testing.assert_close(result, picture.expand_as(result), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_yields_one_state_a_step_and_ends_clean(sampler: object) -> None:
    schedule = noise_schedule("cosine", 100)
    start = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    visited = list(sampler(GaussianDenoiser(schedule), start, schedule, steps=10))
    assert [state.step for state in visited] == list(range(1, 11))
    assert [state.time for state in visited] == [t / 100 for t in (88, 77, 66, 55, 44, 33, 22, 11, 0, 0)]
    torch.testing.assert_close(visited[-1].image, visited[-1].clean_estimate)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_clipping_keeps_every_clean_estimate_in_range(sampler: object) -> None:
    torch.manual_seed(0)
    schedule = noise_schedule("cosine", 50)
    denoiser = GaussianDenoiser(schedule, mean=0.9, deviation=2.0)
    start = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    free = [s.clean_estimate.abs().max() for s in sampler(denoiser, start, schedule, steps=20, clip=False)]
    kept = [s.clean_estimate.abs().max() for s in sampler(denoiser, start, schedule, steps=20)]
    assert max(free) > 1
    assert max(kept) <= 1


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DiffNCA(10, 16, 3, update_probability=0.7), noise_schedule("cosine", 50)).eval()


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_the_same_seed_draws_the_same_image_and_another_seed_another(
    denoiser: Denoiser, sampler: object
) -> None:
    def draw(seed: int, count: int = 1) -> Tensor:
        return sample(denoiser, denoiser.schedule, (8, 9), count=count, sampler=sampler, steps=5, seed=seed)

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert first.shape == (1, 3, 8, 9)
    assert torch.equal(first, draw(0))
    assert not torch.allclose(first, draw(1))
    batch = draw(0, count=3)
    torch.testing.assert_close(batch[:1], first, atol=1e-5, rtol=0)
    assert not torch.allclose(batch[1], batch[0])
    assert batch.abs().max() <= 1.0001


def test_sampling_leaves_torchs_generator_alone(denoiser: Denoiser) -> None:
    before = torch.get_rng_state()
    sample(denoiser, denoiser.schedule, (8, 8), steps=3, sampler=ddpm)
    assert torch.equal(torch.get_rng_state(), before)
