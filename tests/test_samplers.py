"""Samplers against problems whose answer is known in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, NoiseSchedule, noise_schedule
from nca_lib.editing import KnownPixels, LowResolution
from nca_lib.errors import UsageError
from nca_lib.noise import CounterNoise, Firing, Purpose, TorchNoise
from nca_lib.samplers import (
    SAMPLERS,
    Constraint,
    ddim,
    ddpm,
    dpm_solver,
    heun,
    log_snr_array,
    sample,
    timestep_array,
    trajectory,
)

MEAN, DEVIATION = 0.4, 0.3


class GaussianNoise(nn.Module):
    """The best possible prediction, E[eps | x], if every pixel of the data is N(mean, deviation^2)."""

    def __init__(self, schedule: NoiseSchedule, mean: float = MEAN, deviation: float = DEVIATION):
        super().__init__()
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[self.schedule.timestep(time)].view(-1, 1, 1, 1)
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (noisy - alpha_bar.sqrt() * self.mean) / variance


def gaussian_denoiser(schedule: NoiseSchedule, mean: float = MEAN, deviation: float = DEVIATION) -> Denoiser:
    return Denoiser(GaussianNoise(schedule, mean, deviation), schedule)


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


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 60, 150, 299, 300])
def test_timesteps_even_in_log_snr_descend_too(name: str, steps: int) -> None:
    visited = log_snr_array(noise_schedule(name, 300), steps)
    assert len(visited) == steps + 1
    assert all(a > b for a, b in itertools.pairwise(visited))
    assert (visited[0], visited[-1]) == (299, -1)
    if steps == 300:
        assert visited == timestep_array(300)


def test_timesteps_even_in_log_snr_are_even_in_log_snr() -> None:
    schedule = noise_schedule("cosine", 30_000)  # so fine that rounding plays no part
    lambdas = torch.logit(schedule.alpha_bar) / 2
    strides = lambdas[log_snr_array(schedule, 12)[1:-1]].diff()
    torch.testing.assert_close(strides, strides.mean().expand(10), atol=0, rtol=3e-3)


def test_timesteps_even_in_log_snr_leave_out_both_ends() -> None:
    # Of 300 timesteps, T/4n at the noisy end and T/2n at the clean one.
    for steps, second, last in ((5, 284, 30), (10, 292, 15), (50, 298, 3)):
        visited = log_snr_array(noise_schedule("cosine", 300), steps)
        assert (visited[1], visited[-2]) == (second, last)


@pytest.mark.parametrize("steps", [0, -1, 301])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}.*1 to 300"):
        timestep_array(300, steps)


class Visiting(Constraint):
    """Nothing asked but the timesteps."""

    def __init__(self, *timesteps: int):
        self.timesteps = list(timesteps)

    def path(self, visited: list[int]) -> list[int]:
        return self.timesteps


def flow(schedule: NoiseSchedule, start: Tensor, t: int) -> Tensor:
    """The exact probability flow from the last timestep to t (-1: clean) for [`gaussian_denoiser`][].

    It is affine: along it z = (x - sqrt(ab) m) / sqrt(ab s^2 + 1 - ab) is constant.
    """

    def moments(t: int) -> tuple[Tensor, Tensor]:
        signal, sigma = schedule.signal_and_noise(torch.tensor([t]), start)
        return signal * MEAN, (signal**2 * DEVIATION**2 + sigma**2).sqrt()

    (mean, deviation), (mean_t, deviation_t) = moments(schedule.timesteps - 1), moments(t)
    return mean_t + deviation_t * (start - mean) / deviation


START = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2)])
def test_the_order_of_convergence(name: str, order: int) -> None:
    # A fine schedule, even in lambda = log(signal / sigma), in strides ever smaller. It ends at timestep 0:
    # the step from there to clean is infinitely long in lambda.
    lambdas = torch.linspace(3, -2, 961, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (2 * lambdas).sigmoid()])
    schedule = NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])
    exact, counts, errors = flow(schedule, START, 0), (20, 40, 80, 160), []
    for count in counts:
        path, calls = Visiting(*range(960, -1, -960 // count)), (2 if name == "heun" else 1) * count
        states = list(
            SAMPLERS[name](gaussian_denoiser(schedule), START, steps=321, clip=False, constraint=path)
        )
        assert len(states) == calls
        errors.append(float((states[-1].image - exact).abs().max()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "heun"])
def test_more_calls_come_nearer_to_the_exact_flow(name: str) -> None:
    schedule = noise_schedule("cosine", 300)
    denoiser, exact = gaussian_denoiser(schedule), flow(schedule, START, -1)
    errors = [
        float((last_image(SAMPLERS[name](denoiser, START, steps=n, clip=False)) - exact).abs().max())
        for n in (5, 10, 20, 40, 80)
    ]
    assert all(fine < 0.75 * coarse for coarse, fine in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid"])
def test_at_twenty_calls_the_multistep_solver_is_twice_as_near_as_ddim(name: str) -> None:
    schedule = noise_schedule(name, 300)
    denoiser, exact = gaussian_denoiser(schedule), flow(schedule, START, -1)
    first, second = (
        float((last_image(sampler(denoiser, START, steps=20, clip=False)) - exact).abs().max())
        for sampler in (ddim, dpm_solver)
    )
    assert second < first / 2


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("jumps", [False, True])
def test_going_on_after_a_state_equals_never_stopping(name: str, jumps: bool) -> None:
    denoiser = gaussian_denoiser(noise_schedule("cosine", 300))
    path = Visiting(299, 200, 120, 60, 200, 120, 60, 20, -1) if jumps else None
    options = {"noise": CounterNoise(1), "steps": 7, "constraint": path}
    states = list(SAMPLERS[name](denoiser, START, **options))
    whole_steps = states[1::2] if name == "heun" else states
    for state in whole_steps:
        rest = list(SAMPLERS[name](denoiser, START, after=state, **options))
        assert len(rest) == len(states) - state.step
        for found, expected in zip(rest, states[state.step :], strict=True):
            assert torch.equal(found.image, expected.image)
            assert (found.step, found.time) == (expected.step, expected.time)


def test_eta_leads_from_ddim_to_ddpm() -> None:
    denoiser, start = gaussian_denoiser(noise_schedule("cosine", 300)), torch.randn(2, 1, 4, 4)

    def way(sampler: Any, **settings: float) -> Tensor:
        return last_image(sampler(denoiser, start, steps=9, noise=CounterNoise(3), **settings))

    assert torch.equal(way(ddim, eta=1.0), way(ddpm))
    assert torch.equal(way(ddim, eta=0.0), way(ddim))
    between = way(ddim, eta=0.5)
    assert (between - way(ddim)).abs().mean() < (way(ddpm) - way(ddim)).abs().mean()


def test_ddpm_reproduces_mean_and_variance_of_the_data() -> None:
    torch.manual_seed(0)
    schedule, n = noise_schedule("cosine", 300), 40_000
    start = torch.randn(n, 1, 1, 1, dtype=torch.float64)
    result = last_image(ddpm(gaussian_denoiser(schedule), start, clip=False))
    assert abs(float(result.mean()) - MEAN) < 5 * DEVIATION / n**0.5
    assert float(result.std()) == pytest.approx(DEVIATION, rel=0.03)


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid"])
def test_ddpm_steps_are_the_posterior_of_ho_et_al(name: str) -> None:
    schedule, source = noise_schedule(name, 30), CounterNoise(3)
    denoiser = gaussian_denoiser(schedule)
    image = source.normal(torch.empty(2, 3, 4, 4, dtype=torch.float64), Purpose.START, 0)
    states = ddpm(denoiser, image, noise=source, clip=False)
    for t, state in zip(reversed(range(30)), states, strict=True):
        beta = schedule.betas[t]
        alpha_bar = torch.prod(1 - schedule.betas[: t + 1])
        before = torch.prod(1 - schedule.betas[:t])
        noise = denoiser.noise(image, torch.full((2,), t))
        clean = (image - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
        mean = before.sqrt() * beta / (1 - alpha_bar) * clean  # equation 7
        mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar) * image
        variance = (1 - before) / (1 - alpha_bar) * beta
        image = mean + variance.sqrt() * source.normal(image, Purpose.SAMPLER, t)
        torch.testing.assert_close(state.image, image, atol=1e-9, rtol=1e-9)
        image = state.image


def _trajectory(scheduler: object, denoiser: Denoiser, image: Tensor, **options: bool) -> list[Tensor]:
    """The images that a scheduler of diffusers visits, its noise from torch's generator."""
    torch.manual_seed(1)
    images = []
    for t in scheduler.timesteps.tolist():
        predicted = denoiser.noise(image, torch.tensor([t]))
        image = scheduler.step(predicted, t, image, **options).prev_sample
        images.append(image)
    return images


# diffusers keeps alpha_bar in float32, too coarse for the noisy end of the cosine schedule: we begin at 279.
PATHS = {
    "linear": [299, 251, 222, 180, 131, 90, 45, 17, 3, 0, -1],
    "cosine": [279, 190, 133, 80, 41, 12, 0, -1],
}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in diffusers, of NumPy 2
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("sampler", "clip"),
    # DPMSolverMultistepScheduler has another way to clip.
    [("ddpm", True), ("ddpm", False), ("ddim", True), ("ddim", False), ("dpm_solver", False)],
)
def test_samplers_agree_with_the_schedulers_of_diffusers(sampler: str, name: str, clip: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule, path = noise_schedule(name, 300), PATHS[name]
    options: dict[str, object] = {"num_train_timesteps": 300, "trained_betas": schedule.betas.tolist()}
    denoiser = gaussian_denoiser(schedule, mean=0.7, deviation=1.5)  # it is clipped, and often
    torch.manual_seed(0)
    start = torch.randn(2, 3, 6, 5)
    if sampler == "dpm_solver":
        scheduler = diffusers.DPMSolverMultistepScheduler(**options)
        scheduler.set_timesteps(timesteps=path[:-1])
        expected = _trajectory(scheduler, denoiser, start)
    elif sampler == "ddpm":
        scheduler = diffusers.DDPMScheduler(**options, clip_sample=clip)
        scheduler.set_timesteps(timesteps=path[:-1])
        expected = _trajectory(scheduler, denoiser, start)
    else:  # it finds the step before by division, so only even steps can agree
        scheduler = diffusers.DDIMScheduler(**options, clip_sample=clip)
        scheduler.set_timesteps(10)
        path = [*scheduler.timesteps.tolist(), -1]
        assert path == [*range(270, -1, -30), -1]
        expected = _trajectory(scheduler, denoiser, start, use_clipped_model_output=True)
    torch.manual_seed(1)
    found = list(SAMPLERS[sampler](denoiser, start, clip=clip, constraint=Visiting(*path)))
    assert len(found) == len(expected)
    for state, image in zip(found, expected, strict=True):
        torch.testing.assert_close(state.image, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 300])
def test_a_perfect_denoiser_of_one_image_leads_to_that_image(sampler: object, steps: int) -> None:
    torch.manual_seed(0)
    schedule, picture = noise_schedule(), torch.rand(1, 3, 4, 4, dtype=torch.float64) * 2 - 1

    class Perfect(nn.Module):
        def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
            return picture.expand_as(noisy)

    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    result = last_image(sampler(Denoiser(Perfect(), schedule, "x0"), start, steps=steps))
    torch.testing.assert_close(result, picture.expand_as(result), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DiffNCA(10, 16, 3, update_probability=0.7), noise_schedule("cosine", 50)).eval()


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
class TestEverySampler:
    """What a caller may rely on, whatever the sampler."""

    @pytest.mark.parametrize("steps", [1, 2, 3, 10, 11, 100, None])
    def test_yields_one_state_a_call_and_ends_clean(self, sampler: object, steps: int | None) -> None:
        schedule, asked = noise_schedule("cosine", 100), []

        class Counting(GaussianNoise):
            def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
                asked.append(float(time[0]))
                return super().forward(noisy, time)

        start = torch.randn(1, 1, 2, 2, dtype=torch.float64)
        visited = list(sampler(Denoiser(Counting(schedule), schedule), start, steps=steps))
        assert len(asked) == (steps or 100)
        assert asked[0] == pytest.approx(0.99)
        assert [state.step for state in visited] == list(range(1, len(asked) + 1))
        times = [state.time for state in visited]
        assert times == sorted(times, reverse=True)
        assert times[:-1] == pytest.approx(asked[1:])  # the image of a state is what is asked about next
        assert times[-1] == 0
        assert [state.timestep for state in visited] == [round(100 * time) for time in asked[1:]] + [-1]
        torch.testing.assert_close(visited[-1].image, visited[-1].clean_estimate)

    def test_refuses_impossible_step_counts(self, sampler: object) -> None:
        schedule = noise_schedule("cosine", 100)
        for steps in (0, -1, 101):
            with pytest.raises(ValueError, match=f"steps is {steps}.*1 to 100"):
                next(sampler(gaussian_denoiser(schedule), START, steps=steps))

    def test_keeps_every_clean_estimate_in_range(self, sampler: object) -> None:
        torch.manual_seed(0)
        schedule = noise_schedule("cosine", 50)
        denoiser = gaussian_denoiser(schedule, mean=0.9, deviation=2.0)
        start = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        free = [s.clean_estimate.abs().max() for s in sampler(denoiser, start, steps=20, clip=False)]
        kept = [s.clean_estimate.abs().max() for s in sampler(denoiser, start, steps=20)]
        assert max(free) > 1
        assert max(kept) <= 1

    @pytest.mark.parametrize("firing", ["fresh", "fixed", "expected"])
    def test_draws_the_image_of_its_seed_alone_or_in_a_batch(
        self, denoiser: Denoiser, sampler: object, firing: Firing
    ) -> None:
        def draw(seed: int, count: int = 1, first: int = 0) -> Tensor:
            return sample(
                denoiser,
                (8, 9),
                count=count,
                sampler=sampler,
                steps=5,
                seed=seed,
                first_sample=first,
                firing=firing,
            )

        torch.manual_seed(1)
        first = draw(0)
        torch.manual_seed(2)
        assert first.shape == (1, 3, 8, 9)
        assert torch.equal(first, draw(0))
        assert not torch.allclose(first, draw(1))
        batch = draw(0, count=3)
        torch.testing.assert_close(batch[:1], first, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch[2:], draw(0, first=2), atol=1e-5, rtol=0)
        assert not torch.allclose(batch[1], batch[0])
        assert batch.abs().max() <= 1.0001

    def test_honours_constraints_exactly(self, denoiser: Denoiser, sampler: object) -> None:
        picture = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1
        known = torch.rand(1, 1, 8, 6, generator=torch.Generator().manual_seed(4)) < 0.5
        options = {"count": 2, "sampler": sampler, "steps": 7}
        filled = sample(
            denoiser,
            (8, 6),
            constraint=KnownPixels(picture, known, jump=2, repeats=2),
            **options,
        )
        given = known.expand_as(picture)
        assert torch.equal(filled[given], picture[given])
        assert not torch.isclose(filled, picture)[~given].any()
        large = sample(denoiser, (24, 18), constraint=LowResolution(picture, 3), **options)
        torch.testing.assert_close(F.avg_pool2d(large, 3), picture, atol=1e-5, rtol=0)


class Recording(GaussianNoise):
    """Keeps what it was asked."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__(schedule)
        self.asked: list[tuple[Tensor, int]] = []

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        self.asked.append((noisy, int(self.schedule.timestep(time)[0])))
        return super().forward(noisy, time)


class Ones(TorchNoise):
    def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
        return torch.ones_like(like)


def test_noise_is_drawn_at_addresses_that_count_the_visits() -> None:
    class Addresses(CounterNoise):
        def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
            drawn.append((purpose, step))
            return super().normal(like, purpose, step)

    drawn: list[tuple[Purpose, int]] = []
    schedule = noise_schedule("cosine", 50)
    path = Visiting(49, 30, 20, 30, 20, 30, 20, -1)
    list(ddpm(gaussian_denoiser(schedule), START, noise=Addresses(0), constraint=path))
    down, up = Purpose.SAMPLER, Purpose.START  # visit v of timestep t is 50 v + t; 0 is the start's own
    assert drawn == [(down, 49), (down, 30), (up, 21), (down, 80), (up, 71), (down, 130)]


@pytest.mark.parametrize("sampler", [ddim, dpm_solver, heun])
def test_the_probability_flow_draws_no_noise(sampler: object) -> None:
    schedule, before = noise_schedule("cosine", 50), torch.get_rng_state()
    list(sampler(gaussian_denoiser(schedule), START, steps=5, noise=TorchNoise()))
    assert torch.equal(torch.get_rng_state(), before)


def test_unless_told_otherwise_samplers_make_their_usual_number_of_calls(denoiser: Denoiser) -> None:
    schedule = noise_schedule("cosine", 100)
    oracle = gaussian_denoiser(schedule)
    calls = {name: len(list(sampler(oracle, START))) for name, sampler in SAMPLERS.items()}
    assert calls == {"ddpm": 100, "ddim": 50, "dpm_solver": 20, "heun": 20}
    drawn = sample(Denoiser(denoiser.network, schedule), (4, 4))
    told = sample(Denoiser(denoiser.network, schedule), (4, 4), sampler=ddim, steps=50, seed=0)
    assert torch.equal(drawn, told)


def test_the_multistep_solver_forgets_its_history_at_a_jump_back() -> None:
    schedule = noise_schedule("cosine", 50)
    path, recording = [49, 40, 30, 20, 40, 30, 20, -1], Recording(schedule)
    denoiser = Denoiser(recording, schedule)
    states = list(dpm_solver(denoiser, START, noise=Ones(), constraint=Visiting(*path)))
    assert [t for _, t in recording.asked] == [49, 40, 30, 40, 30, 20]
    left = schedule.alpha_bar[40] / schedule.alpha_bar[20]  # of the variance, when noise is added again
    torch.testing.assert_close(recording.asked[3][0], left.sqrt() * states[2].image + (1 - left).sqrt())
    as_ddim = []
    for (image, t), state in zip(recording.asked, states, strict=True):
        before = torch.tensor([state.timestep])
        noise = schedule.noise_from_clean(image, torch.tensor([t]), state.clean_estimate)
        step = schedule.add_noise(state.clean_estimate, before, noise)
        as_ddim.append(torch.allclose(state.image, step, atol=1e-9))
    assert as_ddim == [True, False, False, True, False, True]


def test_heun_looks_again_where_a_step_leads() -> None:
    schedule = noise_schedule("cosine", 100)
    odd, even = Recording(schedule), Recording(schedule)
    list(heun(Denoiser(odd, schedule), START, steps=7))
    list(heun(Denoiser(even, schedule), START, steps=8))
    a, b, c, d, _ = log_snr_array(schedule, 4)
    assert [t for _, t in odd.asked] == [a, b, b, c, c, d, d]
    a, b, c, d, e, _ = log_snr_array(schedule, 5)
    assert [t for _, t in even.asked] == [a, b, c, c, d, d, e, e]  # the first step is DDIM's


def test_heun_is_exact_where_the_clean_estimate_changes_evenly_over_lambda() -> None:
    schedule, slope = noise_schedule("cosine", 300), 0.1
    lambdas = torch.logit(schedule.alpha_bar) / 2

    class Even(nn.Module):
        def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
            clean = slope * lambdas[schedule.timestep(time)]
            return clean.view(-1, 1, 1, 1).expand_as(noisy)

    states = list(
        heun(
            Denoiser(Even(), schedule, "x0"),
            START,
            steps=5,
            clip=False,
            constraint=Visiting(280, 200, 90, 10),
        )
    )
    # d(x / sigma) = exp(lambda) clean d(lambda), of which exp(lambda) (clean - slope) is the integral.
    sigma, weight = (1 - schedule.alpha_bar).sqrt(), lambdas.exp() * slope * (lambdas - 1)
    exact = sigma[10] * (START / sigma[280] + weight[10] - weight[280])
    torch.testing.assert_close(states[-1].image, exact, atol=1e-9, rtol=0)


def test_fixed_masks_and_expected_updates_reach_every_call_of_a_sample(denoiser: Denoiser) -> None:
    def draw(firing: Firing, denoiser: Denoiser = denoiser) -> Tensor:
        return sample(denoiser, (8, 8), steps=6, firing=firing)

    images = [draw("fresh"), draw("fixed"), draw("expected")]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(images, 2))
    certain = Denoiser(DiffNCA(10, 16, 3, update_probability=1.0), denoiser.schedule).eval()
    assert torch.equal(draw("fresh", certain), draw("fixed", certain))
    assert torch.equal(draw("fresh", certain), draw("expected", certain))


def test_sampling_leaves_torchs_generator_alone(denoiser: Denoiser) -> None:
    before = torch.get_rng_state()
    sample(denoiser, (8, 8), steps=3, sampler=ddpm)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_trajectories_of_one_model_side_by_side_are_those_drawn_alone() -> None:
    torch.manual_seed(0)
    network = DiffNCA(12, 16, 2, update_probability=0.5, zero_init=False)
    model = Denoiser(network, noise_schedule("cosine", 50), "v")
    alone = [sample(model, (8, 8), steps=4, seed=seed) for seed in (0, 1)]
    own = network.firing
    ways = [trajectory(model, (8, 8), steps=4, seed=seed) for seed in (0, 1)]
    for _ in range(4):
        states = [next(way) for way in ways]
        assert network.firing is own
    assert all(torch.equal(state.image, image) for state, image in zip(states, alone, strict=True))


def test_what_draws_at_once_obeys_no_constraint() -> None:
    model = nn.Module()
    model.sample = lambda size, **_: torch.zeros(1, 3, *size)  # type: ignore[assignment]
    known = KnownPixels(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool))
    with pytest.raises(UsageError, match="obeys no constraint"):
        sample(model, (8, 8), constraint=known)
