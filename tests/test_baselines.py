"""UNet behind the denoiser contract; VNCA's likelihood, automaton, and samples."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import interpolate

from nca_lib import baselines
from nca_lib.baselines import VNCA, UNet, UNetSize, discretised_logistic, kl_from_prior
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.samplers import sample

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(size: int = 8, image_channels: int = 3, updates: bool = True) -> VNCA:
    """A small model in float64; `updates` makes its automaton do something before training."""
    torch.manual_seed(0)
    model = VNCA(size, image_channels, latent=12, hidden=8).double()
    if updates:
        nn.init.normal_(model.update[-1].weight, std=0.1)
    return model


# UNet


def unet(size: UNetSize = "S", image_channels: int = 3) -> UNet:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return UNet(size, image_channels)


@pytest.mark.parametrize(
    ("size", "colour", "grey", "published"),
    [
        ("S", 989_795, 989_217, 1.0e6),
        ("M", 3_940_547, 3_939_393, 3.94e6),
        ("L", 17_282_243, 17_279_937, 17.2e6),
    ],
)
def test_three_unets_have_the_published_sizes(
    size: UNetSize, colour: int, grey: int, published: float
) -> None:
    assert parameters(unet(size)) == colour == pytest.approx(published, rel=0.03)
    assert parameters(unet(size, 1)) == grey


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (64, 64), (20, 12)])
def test_a_unet_is_told_the_time_and_answers_each_image_by_itself(height: int, width: int) -> None:
    network, noisy = unet(), torch.randn(3, 3, height, width)
    noisy[1] = noisy[0]
    time = torch.tensor([0.1, 0.6, 0.1])
    output = network(noisy, time)
    assert output.shape == noisy.shape
    assert not torch.allclose(output[0], output[1], atol=1e-3)
    torch.testing.assert_close(output[2:], network(noisy[2:], time[2:]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_unet_counts_the_time_from_0_to_1000() -> None:
    network, noisy = unet(), torch.randn(2, 3, 16, 16)
    expected = network.net(noisy, torch.tensor([125, 750])).sample
    torch.testing.assert_close(network(noisy, torch.tensor([0.125, 0.75])), expected)


@torch.no_grad()
def test_a_unet_sees_the_whole_image() -> None:
    network = unet().double()
    noisy = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    touched = noisy.clone()
    touched[..., 0, 0] += 1
    time = torch.tensor([0.5], dtype=torch.float64)
    assert ((network(touched, time) - network(noisy, time)) != 0).all()


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [("S", (30, 32), "30x32.*multiples of 4"), ("L", (32, 36), "32x36.*multiples of 8")],
)
def test_images_that_do_not_halve_are_refused(size: UNetSize, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(size)(torch.zeros(1, 3, *shape), torch.zeros(1))


@pytest.mark.parametrize(
    ("size", "parameters_of"), [("71k", 71_323), ("145k", 145_243), ("281k", 280_755), ("587k", 587_275)]
)
def test_small_sizes_are_called_by_their_parameters(size: UNetSize, parameters_of: int) -> None:
    assert parameters(unet(size)) == parameters_of
    assert round(parameters_of / 1000) == int(size.removesuffix("k"))


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'XL'.*71k, .*S, M, L"):
        UNet("XL")  # type: ignore[arg-type]


def test_without_diffusers_vnca_works_and_unet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert tiny().sample((8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(ImportError, match=r"diffusers .* pip install 'nca_lib\[baselines\]'") as caught:
        UNet()
    assert "\n" not in str(caught.value)


def test_a_unet_denoiser_learns_a_tiny_batch() -> None:
    denoiser = Denoiser(unet(), noise_schedule("cosine", 300))
    clean = torch.rand(2, 3, 1, 1).expand(2, 3, 16, 16) * 2 - 1
    noise, t = torch.randn(2, 3, 16, 16), torch.tensor([150, 280])
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = denoiser.loss(clean, t, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# VNCA: the likelihood


@pytest.mark.parametrize("location", [-3.0, -1.0, 0.013, 0.8, 1.5])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 4.0])
def test_the_256_levels_share_all_the_probability(location: float, log_scale: float) -> None:
    log_p = discretised_logistic(
        LEVELS, torch.full_like(LEVELS, location), torch.full_like(LEVELS, log_scale)
    )
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-10)
    # Level by level: differences of the logistic's distribution function, with the tails at the ends.
    edges = ((LEVELS[:-1] + 1 / 255 - location) * math.exp(-log_scale)).sigmoid()
    cdf = torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)])
    torch.testing.assert_close(log_p.exp(), cdf.diff(), atol=1e-13, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_likelihood_and_its_gradient_are_finite_however_wrong_the_model_is(dtype: torch.dtype) -> None:
    grids = torch.meshgrid(
        LEVELS[[0, 1, 128, 254, 255]].to(dtype),
        torch.tensor([-100.0, -1, 0, 1, 100], dtype=dtype),
        torch.tensor([-7.0, 0, 20, 1000], dtype=dtype),
        indexing="ij",
    )
    images, location, log_scale = (
        grids[0],
        grids[1].clone().requires_grad_(),
        grids[2].clone().requires_grad_(),
    )
    log_p = discretised_logistic(images, location, log_scale)
    log_p.sum().backward()
    assert log_p.isfinite().all() and (log_p <= 0).all()
    assert location.grad is not None and location.grad.isfinite().all()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()
    # Far off, the log-likelihood falls linearly, so the gradient still points home at full strength.
    steep = location.grad[2, 0, 0]
    assert float(steep) == pytest.approx(math.exp(7), rel=1e-3)


def test_colours_are_conditioned_on_those_before_them() -> None:
    torch.manual_seed(1)
    model, state = tiny(), torch.randn(2, 12, 4, 4, dtype=torch.float64)
    images = LEVELS[torch.randint(0, 256, (2, 3, 4, 4))]
    # Layout: weight, then (location, log-scale, coefficient) for each of red, green, blue.
    r, g, b = images.unbind(1)
    mu, s, k = state[:, 1:10:3], state[:, 2:10:3], state[:, 3:10:3].tanh()
    locations = (mu[:, 0], mu[:, 1] + k[:, 0] * r, mu[:, 2] + k[:, 1] * r + k[:, 2] * g)
    expected = torch.zeros(2, dtype=torch.float64)
    for value, location, log_scale in zip((r, g, b), locations, s.unbind(1), strict=True):
        expected += discretised_logistic(value, location, log_scale).sum((1, 2))
    torch.testing.assert_close(model.log_likelihood(images, state), expected)
    # Summed over every blue, what is left is the probability of the red and the green.
    pixel = state[:1, :, :1, :1]
    blues = torch.stack([LEVELS * 0 + 0.2, LEVELS * 0 - 0.6, LEVELS], dim=1)[:, :, None, None]
    conditional = model.log_likelihood(blues, pixel.expand(256, -1, -1, -1))
    rest = blues[0, :2].view(1, 2, 1, 1)
    red_green = discretised_logistic(rest[:, 0], pixel[:, 1], pixel[:, 2]) + discretised_logistic(
        rest[:, 1], pixel[:, 4] + pixel[:, 3].tanh() * rest[:, 0], pixel[:, 5]
    )
    assert float(conditional.logsumexp(0)) == pytest.approx(float(red_green), abs=1e-9)


def test_the_image_shown_is_the_likeliest_where_the_state_is_sure() -> None:
    torch.manual_seed(2)
    for channels in (1, 3):
        model = tiny(image_channels=channels)
        state = torch.randn(2, 12, 4, 4, dtype=torch.float64) / 4
        state[:, 2 : 3 * channels + 1 : 3] = -6
        shown = model.to_images(state)
        assert shown.shape == (2, channels, 4, 4) and shown.abs().max() < 1
        best = model.log_likelihood(shown, state)
        for _ in range(5):
            assert (model.log_likelihood(shown + 0.02 * torch.randn_like(shown), state) < best).all()


def test_the_divergence_from_the_prior_is_that_of_torch_distributions() -> None:
    mean, log_sigma = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_from_prior(mean, log_sigma), expected)


def test_the_elbo_is_below_the_log_likelihood() -> None:
    # With z ignored (no weights from z to the image) the bound is tight exactly when q is the prior.
    model, images = tiny(), LEVELS[torch.randint(0, 256, (3, 3, 8, 8))]
    for parameter in model.update.parameters():
        nn.init.zeros_(parameter)
    model.step = lambda state: torch.zeros_like(state)  # type: ignore[method-assign]
    exact = model.log_likelihood(images, torch.zeros(3, 12, 8, 8, dtype=torch.float64))
    assert (model.elbo(images) < exact).all()
    last: Any = model.encoder[-1]
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    torch.testing.assert_close(model.elbo(images), exact)


def test_the_elbo_is_the_likelihood_of_one_code_from_the_posterior_less_its_whole_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = tiny(), LEVELS[torch.randint(0, 256, (3, 3, 8, 8))]
    state, codes = torch.randn(3, 12, 8, 8, dtype=torch.float64), []
    monkeypatch.setattr(model, "decode", lambda z: codes.append(z) or state)
    mean, log_sigma = model.encode(images)
    torch.manual_seed(0)
    bound = model.elbo(images)
    torch.manual_seed(0)
    torch.testing.assert_close(codes[0], mean + log_sigma.exp() * torch.randn_like(mean))
    divergence = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(bound, model.log_likelihood(images, state) - divergence)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_logistic_is_narrower_than_a_log_scale_of_minus_7(channels: int) -> None:
    model = tiny(image_channels=channels)
    images = LEVELS[torch.randint(0, 256, (1, channels, 4, 4))]
    state = torch.randn(1, 12, 4, 4, dtype=torch.float64)
    likelihoods = []
    for log_scale in (-6.0, -7.0, -9.0):
        state[:, 2 : 3 * channels + 1 : 3] = log_scale
        likelihoods.append(model.log_likelihood(images, state))
    assert torch.equal(likelihoods[1], likelihoods[2])
    assert not torch.equal(likelihoods[0], likelihoods[1])


# VNCA: the automaton


def test_parameter_counts_are_the_published_ones() -> None:
    model = VNCA(64)
    assert parameters(model) == 9_732_416
    assert (parameters(model.encoder), parameters(model.update)) == (8_550_208, 1_182_208)
    # The linear layer sees 16 positions of 512 channels at size 64, 4 at size 32.
    assert parameters(VNCA(32)) == 9_732_416 - 12 * 512 * 512
    assert parameters(VNCA(64, image_channels=1)) == 9_732_416 - 2 * 25 * 32


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16, 32])
def test_before_training_every_cell_holds_z(size: int) -> None:
    model, z = tiny(size, updates=False), torch.randn(2, 12, dtype=torch.float64)
    state = model.decode(z)
    assert state.shape == (2, 12, size, size)
    assert torch.equal(state, z[:, :, None, None].expand_as(state))


def test_states_lie_channels_last_and_are_those_of_the_other_layout() -> None:
    torch.manual_seed(0)
    model, found = VNCA(8, latent=12, hidden=8).double(), []
    nn.init.normal_(model.update[-1].weight, std=0.1)  # type: ignore[arg-type]
    z = torch.randn(2, 12, dtype=torch.float64)
    for layout in (torch.channels_last, torch.contiguous_format):
        model.zero_grad()
        state = z[:, :, None, None].expand(-1, -1, 2, 2)
        if layout == torch.channels_last:
            for state in model.growth(z):
                assert state.is_contiguous(memory_format=layout)
        else:
            for doubling in range(model.doublings + 1):
                state = interpolate(state, scale_factor=2.0) if doubling else state
                for _ in range(model.steps):
                    state = model.step(state.contiguous())
        state.square().mean().backward()
        found.append([state.detach(), *(p.grad for p in model.update.parameters() if p.grad is not None)])
    for last, first in zip(*found, strict=True):
        torch.testing.assert_close(last, first)


@torch.no_grad()
def test_growth_is_eight_steps_between_doublings_that_copy_each_cell_to_four() -> None:
    model = tiny(16)
    states = list(model.growth(torch.randn(1, 12, dtype=torch.float64)))
    assert [state.shape[-1] for state in states] == [2] * 9 + [4] * 9 + [8] * 9 + [16] * 9
    for before, after in itertools.pairwise(states):
        if after.shape == before.shape:
            torch.testing.assert_close(after, before + model.update(before))
        else:
            assert torch.equal(after, before.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
            assert torch.equal(after, interpolate(before, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_in_a_step_a_cell_sees_its_eight_neighbours(steps: int) -> None:
    model = tiny()
    state = torch.randn(1, 12, 9, 9, dtype=torch.float64, requires_grad=True)
    after = state
    for _ in range(steps):
        after = model.step(after)
    after[0, :, 4, 4].sum().backward()
    assert state.grad is not None
    seen = torch.zeros(9, 9, dtype=torch.bool)
    seen[4 - steps : 5 + steps, 4 - steps : 5 + steps] = True
    assert torch.equal(state.grad[0].abs().sum(0) > 0, seen)


def test_recomputed_steps_have_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1

    def gradients() -> tuple[float, list[Tensor]]:
        model = tiny()
        torch.manual_seed(3)
        loss = model.loss(images)
        loss.backward()
        return loss.item(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    calls: list[int] = []

    def plain(
        step: Callable[[Tensor], Tensor], state: Tensor, use_reentrant: bool, preserve_rng_state: bool
    ) -> Tensor:
        calls.append(1)
        return step(state)

    loss, recomputed = gradients()
    monkeypatch.setattr(baselines, "checkpoint", plain)
    expected_loss, expected = gradients()
    assert len(calls) == 3 * VNCA.steps  # at 2x2, 4x4 and 8x8
    assert loss == expected_loss
    torch.testing.assert_close(recomputed, expected)


@pytest.mark.parametrize("image_channels", [1, 3])
def test_the_elbo_rises_when_a_few_images_are_learned(image_channels: int) -> None:
    model = tiny(image_channels=image_channels, updates=False).float()
    ramp = torch.linspace(-0.8, 0.8, 8)
    images = torch.stack([ramp.expand(8, 8), ramp.view(8, 1).expand(8, 8)])[:, None].repeat(
        1, image_channels, 1, 1
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(images)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
        losses.append(loss.item() / (math.log(2) * images[0].numel()))
    # Bits per value: about ten at first, worse than the eight of guessing all levels alike.
    assert sum(losses[-5:]) < sum(losses[:5]) - 5 * 0.75


# VNCA: samples


def test_it_is_drawn_from_as_a_denoiser_is() -> None:
    model, asked = tiny(), {"count": 2, "seed": 5, "first_sample": 3}
    assert torch.equal(sample(model, (8, 16), **asked), model.sample((8, 16), **asked))
    assert sample(model, (8, 16), **asked).shape[1] == model.image_channels


def test_an_image_is_the_same_alone_and_in_a_batch_and_the_seed_matters() -> None:
    model = tiny()
    batch = model.sample((8, 8), count=4, seed=5)
    assert batch.shape == (4, 3, 8, 8) and batch.abs().max() <= 1 and not batch.requires_grad
    alone = torch.cat([model.sample((8, 8), seed=5, first_sample=i) for i in range(4)])
    torch.testing.assert_close(alone, batch)
    assert not torch.allclose(batch[0], batch[1])
    assert not torch.allclose(model.sample((8, 8), seed=6)[0], batch[0])


def test_codes_are_drawn_from_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    model, codes = tiny(), []
    monkeypatch.setattr(model, "decode", lambda z, grid: codes.append(z) or z[:, :, None, None])
    model.sample((8, 8), count=5000)
    z = codes[0]
    assert z.mean(0).abs().max() < 5 / math.sqrt(5000)
    assert (torch.cov(z.T) - torch.eye(12)).abs().max() < 5 * math.sqrt(2 / 5000)


def test_other_sizes_grow_from_other_grids() -> None:
    model = tiny()
    assert model.sample((12, 8)).shape == (1, 3, 12, 8)
    assert model.sample((4, 20)).shape == (1, 3, 4, 20)


@pytest.mark.parametrize("size", [(10, 8), (8, 6), (0, 8)])
def test_sizes_that_doubling_cannot_reach_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"size is {size[0]}x{size[1]}.*2 times.*multiples of 4"):
        tiny().sample(size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 48}, "size is 48.*power of two"),
        ({"size": 4}, "size is 4.*power of two from 8"),
        ({"image_channels": 2}, "image_channels is 2.*1 and for 3"),
        ({"latent": 9}, "latent is 9.*10 channels"),
    ],
)
def test_impossible_models_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VNCA(**arguments)  # type: ignore[arg-type]
