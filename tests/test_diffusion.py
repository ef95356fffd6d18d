"""The forward process in closed form, conversions between targets, and the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nca_lib.diffusion import (
    MLP,
    Denoiser,
    NoiseSchedule,
    clean_of,
    min_snr_weight,
    mse_l1,
    noise_of,
    noise_schedule,
    target_of,
)
from nca_lib.errors import UsageError

NAMES = ("cosine", "linear", "sigmoid")
TARGETS = ("epsilon", "x0", "v")


@pytest.mark.parametrize(("name", "last"), [("cosine", 2.7e-9), ("linear", 0.048)])
def test_schedules_end_where_they_are_said_to(name: str, last: float) -> None:
    assert float(noise_schedule(name, 300).alpha_bar[-1]) == pytest.approx(last, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_lie_on_the_cpu_wherever_models_are_made(name: str) -> None:
    with torch.device("meta"):
        schedule = noise_schedule(name, 30)
    assert torch.equal(schedule.betas, noise_schedule(name, 30).betas)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [2, 300, 1000])
def test_less_and_less_of_the_image_is_left(name: str, timesteps: int) -> None:
    schedule = noise_schedule(name, timesteps)
    assert schedule.alpha_bar.dtype == torch.float64
    assert schedule.timesteps == timesteps == len(schedule.alpha_bar)
    assert (schedule.alpha_bar.diff() < 0).all()
    assert 0 < schedule.alpha_bar[-1] < schedule.alpha_bar[0] < 1


def test_the_cosine_schedule_follows_its_formula_where_betas_are_not_clipped() -> None:
    def f(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = noise_schedule("cosine", 300).alpha_bar
    for t in (0, 10, 150, 250, 298):
        assert float(alpha_bar[t]) == pytest.approx(f((t + 1) / 300) / f(0), rel=1e-9)


def test_the_linear_schedule_adds_the_variances_of_ho_et_al() -> None:
    betas = noise_schedule("linear", 100).betas
    assert (float(betas[0]), float(betas[-1])) == (1e-4, 0.02)
    torch.testing.assert_close(betas.diff(), torch.full((99,), 0.0199 / 99, dtype=torch.float64))


def test_variances_are_clipped_at_both_ends() -> None:
    betas = noise_schedule("cosine", 4000).betas
    assert (float(betas.min()), float(betas.max())) == (1e-4, 0.9999)


def test_the_sigmoid_schedule_is_symmetric() -> None:
    alpha_bar = noise_schedule("sigmoid", 300).alpha_bar
    # The curve at s and at 1 - s adds up to one; index t stands for s = (t + 1)/T.
    torch.testing.assert_close(alpha_bar[:-1] + alpha_bar[:-1].flip(0), torch.ones(299, dtype=torch.float64))
    assert float(alpha_bar[149]) == pytest.approx(0.5)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        noise_schedule("cosine", 1)
    with pytest.raises(ValueError, match=r"'square'.*cosine, linear or sigmoid"):
        noise_schedule("square")  # type: ignore[arg-type]
    for betas, message in (
        (torch.full((3, 2), 0.1, dtype=torch.float64), r"float64 \(3, 2\)"),
        (torch.full((3,), 0.1), r"float32 \(3,\) .* torch\.float64"),
    ):
        with pytest.raises(UsageError, match=message):
            NoiseSchedule(betas)


def test_a_denoiser_refuses_words_that_it_does_not_know() -> None:
    network, schedule = nn.Identity(), noise_schedule()
    for settings, message in (
        ({"target": "eps"}, "target is 'eps'; choose epsilon, x0 or v"),
        ({"weighting": "snr"}, "weighting is 'snr'; choose uniform or min_snr"),
    ):
        with pytest.raises(UsageError, match=message):
            Denoiser(network, schedule, **settings)
    assert Denoiser(network, schedule).schedule == schedule != noise_schedule()


@pytest.mark.parametrize(("images", "t"), [((3, 4, 4), (3,)), ((2, 3, 4, 4), ()), ((2, 3, 4, 4), (3,))])
def test_images_and_timesteps_of_other_shapes_are_refused(images: Any, t: Any) -> None:
    denoiser, x, at = Denoiser(nn.Identity(), noise_schedule()), torch.zeros(images), torch.zeros(t).long()
    for asked in (lambda: denoiser(x, at), lambda: denoiser.noise(x, at), lambda: denoiser.loss(x, at, x)):
        with pytest.raises(UsageError, match=r"\(B, C, H, W\) and \(B,\) are needed"):
            asked()


@pytest.mark.parametrize("t", [0, 50, 299])
def test_noised_images_have_the_moments_of_the_closed_form(t: int) -> None:
    torch.manual_seed(t)
    schedule, n = noise_schedule("linear", 300), 200_000
    clean = torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)
    noisy = schedule.add_noise(clean, torch.full((n,), t), torch.randn_like(clean))
    alpha_bar = float(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 300, dtype=torch.float64), 0)[t])
    variance = 1 - alpha_bar
    assert abs(float(noisy.mean()) - math.sqrt(alpha_bar) * 0.7) < 5 * math.sqrt(variance / n)
    assert float(noisy.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("name", NAMES)
def test_single_noising_steps_compose_to_the_jump(name: str) -> None:
    schedule = noise_schedule(name, 100)
    factor, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist()):
        factor, variance = factor * math.sqrt(1 - beta), (1 - beta) * variance + beta
        signal, sigma = schedule.signal_and_noise(torch.tensor([t]), torch.empty(1, dtype=torch.float64))
        assert float(signal) == pytest.approx(factor, rel=1e-10)
        assert float(sigma) ** 2 == pytest.approx(variance, rel=1e-10)


def test_timestep_minus_one_is_the_clean_image_and_each_image_has_its_own_timestep() -> None:
    schedule, clean, noise = noise_schedule(), torch.rand(3, 3, 2, 2), torch.randn(3, 3, 2, 2)
    mixed = schedule.add_noise(clean, torch.tensor([-1, 5, 299]), noise)
    assert torch.equal(mixed[0], clean[0])
    torch.testing.assert_close(mixed[1:2], schedule.add_noise(clean[1:2], torch.tensor([5]), noise[1:2]))
    torch.testing.assert_close(mixed[2], noise[2], atol=1e-3, rtol=0)


def test_time_is_t_over_the_number_of_timesteps_and_comes_back() -> None:
    schedule = noise_schedule("cosine", 300)
    t = torch.arange(300)
    assert torch.equal(schedule.timestep(schedule.time(t)), t)
    assert schedule.time(torch.tensor([150])).item() == 0.5
    assert schedule.time(t).max() < 1


def example(t: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return clean, noise, torch.tensor([t, t + 30])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_leads_back_to_the_noise_and_the_clean_image(name: str, target: str) -> None:
    clean, noise, t = example()
    schedule = noise_schedule(name, 300)
    noisy = schedule.add_noise(clean, t, noise)
    output = target_of(target, schedule, clean, noise, t)
    recovered = noise_of(target, schedule, output, noisy, t)
    torch.testing.assert_close(recovered, noise)
    torch.testing.assert_close(clean_of(target, schedule, output, noisy, t), clean)
    torch.testing.assert_close(schedule.clean_from_noise(noisy, t, recovered), clean)
    torch.testing.assert_close(schedule.noise_from_clean(noisy, t, clean), noise)


def test_image_and_velocity_are_a_rotation_of_signal_and_noise() -> None:
    clean, noise, t = example()
    schedule = noise_schedule()
    alpha_bar = schedule.alpha_bar[t].view(-1, 1, 1, 1)
    noisy = schedule.add_noise(clean, t, noise)
    velocity = target_of("v", schedule, clean, noise, t)
    torch.testing.assert_close(clean, alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * velocity)
    torch.testing.assert_close(noisy**2 + velocity**2, clean**2 + noise**2)


class Oracle(nn.Module):
    """A network that outputs a fixed answer and remembers what it was told."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        self.noisy, self.time = noisy, time
        return self.answer


@pytest.mark.parametrize("target", TARGETS)
def test_a_denoiser_sees_the_same_image_whatever_its_network_predicts(target: str) -> None:
    clean, noise, t = example()
    schedule = noise_schedule()
    network = Oracle(target_of(target, schedule, clean, noise, t))
    denoiser = Denoiser(network, schedule, target)
    noisy = schedule.add_noise(clean, t, noise)
    torch.testing.assert_close(denoiser(noisy, t), clean)
    torch.testing.assert_close(denoiser.noise(noisy, t), noise)
    assert float(denoiser.loss(clean, t, noise)) == pytest.approx(0, abs=1e-6)
    assert torch.equal(network.time, t / 300)


@pytest.mark.parametrize("target", TARGETS)
def test_a_student_is_compared_with_its_teachers_network(target: str) -> None:
    clean, noise, t = example()
    schedule, answer = noise_schedule(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    teacher, student = (Denoiser(Oracle(x), schedule, target) for x in (answer, answer + 0.5))
    assert float(student.loss(clean, t, noise, teacher)) == pytest.approx(0.25 + 0.5, rel=1e-6)
    assert torch.equal(teacher.network.noisy, student.network.noisy)
    assert torch.equal(teacher.network.time, t / 300)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_have_the_images_precision_whatever_the_networks_is(
    target: str, dtype: torch.dtype
) -> None:
    clean, noise, t = (x.to(dtype) if x.is_floating_point() else x for x in example())
    schedule = noise_schedule()
    assert target_of(target, schedule, clean, noise, t).dtype == dtype
    denoiser = Denoiser(Oracle(clean.bfloat16()), schedule, target)
    noisy = schedule.add_noise(clean, t, noise)
    assert denoiser(noisy, t).dtype == denoiser.noise(noisy, t).dtype == dtype


@pytest.mark.parametrize("target", ["x0", "v"])
def test_the_clean_estimate_is_direct_where_almost_all_is_noise(target: str) -> None:
    """By way of the noise it would be off by 2e-3: 5e-5 of signal cannot be told from rounding."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(2, 3, 8, 8, generator=generator), torch.randn(2, 3, 8, 8, generator=generator)
    t, schedule = torch.tensor([299, 299]), noise_schedule("cosine", 300)
    network = Oracle(target_of(target, schedule, clean, noise, t))
    seen = Denoiser(network, schedule, target)(schedule.add_noise(clean, t, noise), t)
    torch.testing.assert_close(seen, clean, atol=1e-6, rtol=0)


def test_levels_are_signal_and_noise_as_numbers() -> None:
    schedule = noise_schedule("cosine", 300)
    for t in (-1, 0, 150, 299):
        exact = schedule.signal_and_noise(torch.tensor([t]), torch.empty(0, dtype=torch.float64))
        assert schedule.levels(t) == pytest.approx([float(level) for level in exact], rel=1e-12)


def test_a_denoiser_predicts_noise_unless_told_otherwise() -> None:
    clean, noise, t = example()
    denoiser = Denoiser(Oracle(noise), noise_schedule())
    assert torch.equal(denoiser.noise(clean, t), noise)
    assert float(denoiser.loss(clean, t, noise)) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_squared_plus_absolute_error() -> None:
    prediction, target = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.0, 2.0, 1.0])
    assert float(mse_l1(prediction, target)) == pytest.approx((1 + 0 + 16) / 3 + (1 + 0 + 4) / 3)
    clean, noise, t = example()
    denoiser = Denoiser(Oracle(noise + 0.5), noise_schedule(), "epsilon")
    assert float(denoiser.loss(clean, t, noise)) == pytest.approx(0.25 + 0.5)


def test_the_small_network_tells_times_apart() -> None:
    torch.manual_seed(0)
    network, noisy = MLP(size=4, width=32), torch.randn(1, 1, 4, 4).expand(300, 1, 4, 4)
    output = network(noisy, torch.arange(300) / 300).flatten(1)
    assert output.shape == (300, 16)
    distance = torch.cdist(output, output, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(1)
    assert distance.min() > 1e-5


def test_the_small_network_is_three_hidden_layers_on_pixels_and_waves_of_time() -> None:
    torch.manual_seed(0)
    network, noisy, time = MLP(), torch.randn(3, 1, 8, 8), torch.tensor([0.0, 0.3, 0.9])
    waves = [f(math.pi / 2 * 2**k * time) for f in (torch.sin, torch.cos) for k in range(8)]
    x = torch.cat([noisy.flatten(1), torch.stack(waves, dim=1)], dim=1)
    *hidden, last = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in (*hidden, last)] == [256, 256, 256, 64]
    for layer in hidden:
        x = nn.functional.silu(layer(x))
    torch.testing.assert_close(network(noisy, time), last(x).view(3, 1, 8, 8))


def test_min_snr_weighs_the_same_mistake_alike_whatever_the_network_predicts() -> None:
    schedule = noise_schedule("cosine", 100)
    t = torch.arange(100)
    clean, noise, wrong = torch.randn(3, 100, 1, 2, 2, dtype=torch.float64)
    noisy = schedule.add_noise(clean, t, noise)
    implied = schedule.noise_from_clean(noisy, t, wrong)  # by a network that takes `wrong` for clean
    weighted = []
    for target in ("x0", "epsilon", "v"):
        right = target_of(target, schedule, clean, noise, t)
        mistake = target_of(target, schedule, wrong, implied, t) - right
        weighted.append(min_snr_weight(target, schedule, t).double() * mistake.square().mean((1, 2, 3)))
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    expected = snr.clamp(max=5) * (wrong - clean).square().mean((1, 2, 3))
    for found in weighted:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_the_weighting_multiplies_each_images_error() -> None:
    prediction, target = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    assert mse_l1(prediction, target, torch.ones(3)) == pytest.approx(float(mse_l1(prediction, target)))
    only_last = mse_l1(prediction, target, torch.tensor([0.0, 0.0, 3.0]))
    assert only_last == pytest.approx(float(mse_l1(prediction[2:], target[2:])))


@pytest.mark.parametrize("taught", [False, True])
def test_a_min_snr_denoiser_uses_its_weights(taught: bool) -> None:
    schedule = noise_schedule("cosine", 100)
    network = MLP(4)
    clean, noise, t = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([3, 3])
    teacher = Denoiser(MLP(4), schedule) if taught else None
    plain = Denoiser(network, schedule, "epsilon").loss(clean, t, noise, teacher)
    weighted = Denoiser(network, schedule, "epsilon", "min_snr").loss(clean, t, noise, teacher)
    ratio = float(min_snr_weight("epsilon", schedule, t)[0])
    assert ratio < 0.5 and plain > 0
    assert weighted.item() == pytest.approx(ratio * plain.item(), rel=1e-5)
