"""Edits against Gaussians, whose conditional distributions are known in closed form."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.canvas import TiledDenoiser
from nca_lib.cascade import Cascade
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.editing import (
    EditingError,
    FromImage,
    KnownPixels,
    LowResolution,
    inpaint,
    interpolate,
    shaped_canvas,
    upscale,
    vary,
)
from nca_lib.fourier import FourierDiffNCA
from nca_lib.noise import BlendedNoise, CounterNoise, Purpose
from nca_lib.samplers import SAMPLERS, Constraint, SamplerState, ddim, ddpm, sample, timestep_array

DEVIATION, CORRELATION = 0.2, 0.8


class PairNoise(nn.Module):
    """The best possible prediction, E[eps | x], if images are pairs of pixels with this covariance."""

    image_channels = 1

    def __init__(self, correlation: float = CORRELATION):
        super().__init__()
        self.schedule = noise_schedule("cosine", 300)
        self.covariance = DEVIATION**2 * torch.tensor([[1, correlation], [correlation, 1]]).double()

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[self.schedule.timestep(time[0])]
        total = alpha_bar * self.covariance + (1 - alpha_bar) * torch.eye(2)
        gain = (1 - alpha_bar).sqrt() * torch.linalg.inv(total)
        return (noisy.double() @ gain).to(noisy)


def pair_denoiser(correlation: float = CORRELATION) -> Denoiser:
    network = PairNoise(correlation)
    return Denoiser(network, network.schedule)


def distance_from_truth(known: float, **options: object) -> float:
    """Wasserstein distance of a pair's fillings to the conditional distribution, both taken as normal."""
    pairs = torch.tensor([known, 0.0]).expand(1000, 1, 1, 2)
    mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    filled = inpaint(pair_denoiser(), pairs, mask, steps=60, **options)
    assert torch.equal(filled[..., 0], pairs[..., 0])
    mean, deviation = CORRELATION * known, DEVIATION * (1 - CORRELATION**2) ** 0.5
    return math.hypot(float(filled[..., 1].mean()) - mean, float(filled[..., 1].std()) - deviation)


def test_repaint_comes_near_the_conditional_distribution_and_the_published_way_does_not() -> None:
    published = distance_from_truth(0.3, method="published")
    without = distance_from_truth(0.3, repeats=1)
    resampled = distance_from_truth(0.3, jump=3, repeats=6)
    assert published > 0.08  # the right mean is 0.24
    assert without > 0.08
    assert resampled < 0.035


def test_going_back_is_the_forward_process() -> None:
    # From the right distribution at timestep 100 back to 200: the estimates there are distributed rightly.
    class Back(Constraint):
        def path(self, visited: list[int]) -> list[int]:
            return [100, 200, -1]

    torch.manual_seed(0)
    oracle = pair_denoiser()
    spread = torch.linalg.cholesky(oracle.network.covariance)
    clean = (torch.randn(40_000, 2).double() @ spread.T).view(-1, 1, 1, 2)
    start = oracle.schedule.add_noise(clean, torch.tensor([100]), torch.randn_like(clean))
    (state,) = ddpm(oracle, start, noise=CounterNoise(0), constraint=Back())
    alpha_bar = oracle.schedule.alpha_bar[200]
    total = alpha_bar * oracle.network.covariance + (1 - alpha_bar) * torch.eye(2)
    expected = alpha_bar * oracle.network.covariance @ torch.linalg.inv(total) @ oracle.network.covariance
    torch.testing.assert_close(torch.cov(state.image.view(-1, 2).T), expected, atol=0, rtol=0.03)


@pytest.mark.parametrize(("steps", "jump", "repeats"), [(50, 5, 4), (50, 7, 3), (10, 1, 2), (4, 10, 5)])
def test_repaints_path_goes_every_stretch_as_often_as_told(steps: int, jump: int, repeats: int) -> None:
    visited = timestep_array(300, steps)
    anything = torch.zeros(1, 1, 2, 2)
    path = KnownPixels(anything, anything > 0, jump=jump, repeats=repeats).path(visited)
    assert (path[0], path[-1]) == (299, -1)
    place = {t: i for i, t in enumerate(visited)}
    moves = [place[after] - place[now] for now, after in itertools.pairwise(path)]
    assert set(moves) <= {1, -jump}
    gone = Counter(pair for pair in itertools.pairwise(path) if pair[1] < pair[0])
    resampled = (steps - 1) // jump * jump  # whole stretches, counted from the end
    assert [gone[pair] for pair in itertools.pairwise(visited)] == (
        [1] * (steps - 1 - resampled) + [repeats] * resampled + [1]
    )


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DiffNCA(10, 16, 3, update_probability=0.7), noise_schedule("cosine", 50)).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def mask() -> Tensor:
    mask = torch.ones(1, 1, 12, 9, dtype=torch.bool)
    mask[..., 4:8, 3:7] = False
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_constraint_that_asks_for_nothing_changes_nothing(denoiser: Denoiser, sampler: object) -> None:
    size = (8, 8)
    plain = sample(denoiser, size, sampler=sampler, steps=9, seed=3)
    asked = sample(denoiser, size, sampler=sampler, steps=9, seed=3, constraint=Constraint())
    unknown = torch.zeros(1, 1, *size, dtype=torch.bool)
    empty = KnownPixels(torch.zeros(1, 3, *size), unknown, "published")
    filled = sample(denoiser, size, sampler=sampler, steps=9, seed=3, constraint=empty)
    assert torch.equal(plain, asked)
    assert torch.equal(plain, filled)


@pytest.mark.parametrize("method", ["repaint", "published"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_inpainting_keeps_what_is_known_and_ignores_what_is_in_the_hole(
    denoiser: Denoiser, image: Tensor, mask: Tensor, method: str, sampler: object
) -> None:
    def fill(image: Tensor, seed: int = 0) -> Tensor:
        options = {"method": method, "sampler": sampler, "steps": 8, "jump": 2, "repeats": 3}
        return inpaint(denoiser, image, mask, seed=seed, **options)

    filled, known = fill(image), mask.expand_as(image)
    assert torch.equal(filled[known], image[known])
    assert torch.equal(filled, fill(torch.where(mask, image, 0.123)))
    assert filled.abs().max() <= 1
    another = fill(image, seed=1)
    assert torch.equal(another[known], image[known])
    assert (another != filled)[~known].float().mean() > 0.2
    batch = fill(image.expand(3, -1, -1, -1))  # several fillings of one image: the first is the same
    torch.testing.assert_close(batch[:1], filled, atol=1e-5, rtol=0)
    assert not torch.equal(batch[1], batch[0])


def test_published_pixels_are_clean_at_every_step_and_repaints_are_as_noisy_as_the_step(
    denoiser: Denoiser,
) -> None:
    flat, known = torch.full((1, 3, 64, 64), 0.5), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    start = CounterNoise(0).normal(flat, Purpose.START, 0)
    options = {"steps": 6, "noise": CounterNoise(0)}
    for state in ddpm(denoiser, start, **options, constraint=KnownPixels(flat, known, "published")):
        assert torch.equal(state.image, flat)
    visited = iter(timestep_array(50, 6)[1:])
    for state in ddpm(denoiser, start, **options, constraint=KnownPixels(flat, known, repeats=1)):
        signal, sigma = denoiser.schedule.signal_and_noise(torch.tensor([next(visited)]), flat)
        assert float(state.image.mean()) == pytest.approx(float(signal) * 0.5, abs=5 * float(sigma) / 110)
        assert float(state.image.std()) == pytest.approx(float(sigma), rel=0.05, abs=1e-6)


def test_a_timestep_visited_again_draws_new_noise(denoiser: Denoiser) -> None:
    class Recording(CounterNoise):
        def normal(self, like: Tensor, purpose: Purpose, step: int) -> Tensor:
            addresses.append((purpose, step))
            return super().normal(like, purpose, step)

    addresses: list[tuple[Purpose, int]] = []
    anything = torch.zeros(1, 3, 4, 4)
    known = KnownPixels(anything, anything[:, :1] > 0, jump=2, repeats=4)
    list(ddpm(denoiser, anything, steps=9, noise=Recording(0), constraint=known))
    assert len(addresses) == len(set(addresses)) > 40
    assert (Purpose.START, 0) not in addresses  # the noise that the sampler began with


def test_a_canvas_of_any_shape_is_constant_around_it(denoiser: Denoiser) -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(12), indexing="ij")
    disc = ((y - 8) ** 2 + (x - 6) ** 2 < 25)[None, None]
    drawn = sample(denoiser, (16, 12), count=3, steps=6, constraint=shaped_canvas(disc, fill=-0.4))
    outside = ~disc.expand_as(drawn)
    assert torch.equal(drawn[outside], torch.full_like(drawn[outside], -0.4))
    assert drawn[~outside].std() > 0.1
    white, visited = shaped_canvas(disc), timestep_array(50, 6)
    assert white.path(visited) == visited  # a constant needs no resampling
    assert torch.equal(white.image, torch.ones(1, 3, 16, 12))


def test_ddnm_draws_the_details_of_a_gaussian_and_leaves_the_means() -> None:
    # Pixels are independent: given its block's mean, a pixel deviates from it by s sqrt(1 - 1/n).
    low = torch.linspace(-0.3, 0.3, 3000).view(-1, 1, 1, 1)
    constraint, oracle = LowResolution(low, 2), pair_denoiser(correlation=0)
    drawn = sample(
        oracle,
        (2, 2),
        count=3000,
        sampler=ddpm,
        steps=150,
        constraint=constraint,
    )
    torch.testing.assert_close(F.avg_pool2d(drawn, 2), low, atol=1e-6, rtol=0)
    assert float((drawn - low).std()) == pytest.approx(DEVIATION * 0.75**0.5, rel=0.08)
    # The details know nothing of the means: without a constraint the same seed draws the same ones.
    free = sample(oracle, (2, 2), count=3000, sampler=ddpm, steps=150)
    details = free - F.interpolate(F.avg_pool2d(free, 2), scale_factor=2)
    torch.testing.assert_close(drawn - low, details, atol=1e-3, rtol=0)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_down_sampling_an_enlarged_image_returns_it(denoiser: Denoiser, factor: int, sampler: object) -> None:
    low = torch.rand(2, 3, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low[0, :, 0, 0], low[1, :, 0, 0] = 1, -1  # a block at the edge of the range has no room for details
    large = upscale(denoiser, low, factor, sampler=sampler, steps=5)
    assert large.shape == (2, 3, 3 * factor, 2 * factor)
    torch.testing.assert_close(F.avg_pool2d(large, factor), low, atol=1e-5, rtol=0)
    assert large.abs().max() <= 1
    assert (large - F.interpolate(low, scale_factor=factor)).std() > 0.05


def test_where_details_fit_the_correction_is_ddnms_projection() -> None:
    torch.manual_seed(0)
    low, clean = torch.rand(2, 3, 4, 5) * 0.4 - 0.2, torch.rand(2, 3, 12, 15) * 0.4 - 0.2
    pinv = torch.kron(torch.eye(20), torch.ones(9, 1))  # A+ of blocks listed one after another
    blocks = F.unfold(clean.flatten(0, 1)[:, None], 3, stride=3).transpose(1, 2).flatten(1)
    y = low.flatten(0, 1).flatten(1)
    expected = y @ pinv.T + blocks - blocks @ (pinv / 9) @ pinv.T
    corrected = LowResolution(low, 3).correct(clean)
    found = F.unfold(corrected.flatten(0, 1)[:, None], 3, stride=3).transpose(1, 2).flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(LowResolution(low, 3).correct(corrected), corrected, atol=1e-6, rtol=0)


def test_the_published_enlargement_stays_near_the_bilinear_one(denoiser: Denoiser) -> None:
    low = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    rough = F.interpolate(low, scale_factor=3, mode="bilinear")
    distances = [
        float((upscale(denoiser, low, 3, method="published", strength=s) - rough).abs().mean())
        for s in (0.02, 0.1, 0.4)
    ]
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_variations_go_from_the_image_to_a_new_one(
    denoiser: Denoiser, image: Tensor, sampler: object
) -> None:
    def varied(strength: float, image: Tensor = image) -> Tensor:
        return vary(denoiser, image, strength, sampler=sampler, steps=10, seed=5)

    assert torch.equal(varied(0), image)
    assert float((varied(0.02) - image).abs().max()) < 0.2
    new = sample(denoiser, (12, 9), sampler=sampler, steps=10, seed=5)
    assert torch.equal(varied(1), new)
    assert torch.equal(varied(1, -image), new)
    assert not torch.equal(varied(0.5, -image), varied(0.5))


def test_a_variation_of_a_pair_remembers_as_much_as_the_noise_left() -> None:
    # Pixels independent: x0 -> x_t -> a draw of x0 given x_t, whose mean is ab s^2 / (ab s^2 + 1 - ab) x0.
    oracle, pixel = pair_denoiser(correlation=0), 0.3
    alpha_bar = float(oracle.schedule.alpha_bar[74])
    varied = vary(oracle, torch.full((3000, 1, 1, 2), pixel), 0.25, sampler=ddpm, steps=75)
    kept = alpha_bar * DEVIATION**2 / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
    assert float(varied.mean()) == pytest.approx(kept * pixel, abs=0.01)


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 300])
def test_a_variation_takes_the_steps_it_is_given(strength: float, steps: int) -> None:
    edit = FromImage(torch.zeros(1, 1, 1, 1), strength, 300)
    path = edit.path(timestep_array(300, steps))
    assert (path[0], path[-1]) == (round(strength * 300) - 1, -1)
    assert len(path) - 1 == min(steps, round(strength * 300))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_an_interpolation_ends_at_the_samples_of_its_seeds(denoiser: Denoiser, sampler: object) -> None:
    walk = interpolate(denoiser, (3, 8), 5, (8, 6), sampler=sampler, steps=8)
    for end, seed in ((0, 3), (-1, 8)):
        alone = sample(denoiser, (8, 6), sampler=sampler, steps=8, seed=seed)
        torch.testing.assert_close(walk[end], alone[0], atol=1e-5, rtol=0)
    # The middle of a walk of 5 is that of a walk of 3: an image depends on its place alone.
    short = interpolate(denoiser, (3, 8), 3, (8, 6), sampler=sampler, steps=8)
    torch.testing.assert_close(walk[2], short[1], atol=1e-5, rtol=0)


def test_every_blend_of_noise_is_noise() -> None:
    blend = BlendedNoise(CounterNoise(1), CounterNoise(2), torch.linspace(0, 1, 5))
    like = torch.empty(5, 4, 128, 128)
    normal = blend.normal(like, Purpose.START, 0)
    assert normal.mean((1, 2, 3)).abs().max() < 0.02
    torch.testing.assert_close(normal.std((1, 2, 3)), torch.ones(5), atol=0.02, rtol=0)
    # The angle to the first end grows evenly: that is what makes the interpolation spherical.
    cosine = F.cosine_similarity(normal.flatten(1), normal[:1].flatten(1))
    torch.testing.assert_close(
        cosine.clamp(max=1).acos(), torch.linspace(0, torch.pi / 2, 5), atol=0.02, rtol=0
    )
    cosine = F.cosine_similarity(normal.flatten(1), normal[-1:].flatten(1))
    torch.testing.assert_close(
        cosine.clamp(max=1).acos(), torch.linspace(torch.pi / 2, 0, 5), atol=0.02, rtol=0
    )
    uniform = blend.uniform(like, Purpose.FIRING, 7, 1)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    for level in (0.1, 0.5, 0.9):
        assert (uniform < level).float().mean((1, 2, 3)).sub(level).abs().max() < 0.015
    for end, seed in ((0, 1), (4, 2)):
        assert torch.equal(uniform[end], CounterNoise(seed).uniform(like[:1], Purpose.FIRING, 7, 1)[0])
        assert torch.equal(normal[end], CounterNoise(seed).normal(like[:1], Purpose.START, 0)[0])


def test_blends_of_the_extreme_uniform_numbers_stay_below_one() -> None:
    class Extremes(CounterNoise):
        def uniform(self, like: Tensor, purpose: Purpose, step: int, substep: int) -> Tensor:
            return torch.tensor([0, 1 - 2.0**-24]).view(1, 1, 1, 2)

    blend = BlendedNoise(Extremes(0), Extremes(0), torch.tensor([0.0, 0.5, 1.0]))
    lowest, highest = blend.uniform(torch.empty(3, 3, 1, 2), Purpose.FIRING, 0, 0).unbind(3)
    assert (lowest >= 0).all() and (lowest < 2**-24).all()
    assert (highest == 1 - 2**-24).all()  # the float32 before 1


def test_impossible_edits_are_refused(denoiser: Denoiser, image: Tensor, mask: Tensor) -> None:
    with pytest.raises(EditingError, match=r"mask is 8x12 \(width x height\) and the image 9x12"):
        inpaint(denoiser, image, mask[..., :8])
    with pytest.raises(EditingError, match=r"mask is torch\.float32.*True where the image is known"):
        inpaint(denoiser, image, mask.float())
    with pytest.raises(EditingError, match="repeats 0; both are at least 1"):
        inpaint(denoiser, image, mask, repeats=0)
    with pytest.raises(EditingError, match="factor is 1"):
        upscale(denoiser, image, 1)
    with pytest.raises(EditingError, match=r"strength is 1\.5; from 0"):
        vary(denoiser, image, 1.5)
    with pytest.raises(EditingError, match="method 'x' is unknown; choose repaint or published"):
        inpaint(denoiser, image, mask, method="x")  # type: ignore[arg-type]
    with pytest.raises(EditingError, match="method 'x' is unknown; choose ddnm or published"):
        upscale(denoiser, image, 2, method="x")  # type: ignore[arg-type]
    with pytest.raises(EditingError, match=r"shape \(12, 9\); it must be \(1 or B, 1, H, W\)"):
        inpaint(denoiser, image, mask[0, 0])
    with pytest.raises(EditingError, match="2 masks for 3 images"):
        inpaint(denoiser, image.expand(3, -1, -1, -1), mask.expand(2, -1, -1, -1))
    with pytest.raises(EditingError, match="3 masks for 1 images"):
        inpaint(denoiser, image, mask.expand(3, -1, -1, -1))
    with pytest.raises(EditingError, match=r"float32 \(3, 12, 9\); images are floats of shape"):
        inpaint(denoiser, image[0], mask)
    with pytest.raises(EditingError, match=r"shape \(1, 1, 12, 9\), but the sampler makes \(1, 3, 12, 9\)"):
        inpaint(denoiser, image[:, :1], mask)
    other = FromImage(image, 0.9, denoiser.schedule.timesteps * 2)
    with pytest.raises(EditingError, match="timesteps is 100, but the denoiser's schedule has 50"):
        sample(denoiser, (12, 9), steps=5, constraint=other)
    with pytest.raises(EditingError, match="count is 1"):
        interpolate(denoiser, (0, 1), 1, (8, 8))


def test_an_edit_uses_the_sampler_the_steps_and_the_seed_it_is_given(
    denoiser: Denoiser, image: Tensor, mask: Tensor
) -> None:
    def edits(**options: object) -> dict[str, Tensor]:
        return {
            "repaint": inpaint(denoiser, image, mask, jump=2, repeats=3, **options),
            "inpaint": inpaint(denoiser, image, mask, method="published", **options),
            "ddnm": upscale(denoiser, image, 2, **options),
            "upscale": upscale(denoiser, image, 2, method="published", strength=0.4, **options),
            "vary": vary(denoiser, image, **options),
        }

    def counting(*inputs: object, **options: object) -> Iterator[SamplerState]:
        states = list(ddim(*inputs, **options))
        calls.append(len(states))
        return iter(states)

    calls: list[int] = []
    first, second = edits(sampler=counting, steps=7), edits(sampler=counting, steps=7, seed=1)
    assert calls == [7 + 3 * 2 * 2, 7, 7, 7, 7] * 2  # three stretches of two steps, gone twice more
    same, ours = edits(sampler=ddim, steps=7, seed=0), edits(steps=7)
    for edit, result in first.items():
        assert torch.equal(result, same[edit])
        assert not torch.allclose(result, second[edit], atol=1e-3)
        assert torch.equal(ours[edit], result) == (edit == "vary")  # the others' usual sampler is DDPM


def test_the_shortest_walk_is_its_two_ends(denoiser: Denoiser) -> None:
    walk = interpolate(denoiser, (3, 8), 2, (8, 6), steps=3)
    alone = [sample(denoiser, (8, 6), steps=3, seed=seed) for seed in (3, 8)]
    torch.testing.assert_close(walk, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_walk_of_a_cascade_is_refused_by_name() -> None:
    layout, level = (
        Denoiser(DiffNCA(12, 8, 1, position=False, context_channels=told), noise_schedule("cosine", 10))
        for told in (0, 4)
    )
    cascade = Cascade(layout, level, 2)
    for model in (cascade, TiledDenoiser(cascade)):
        with pytest.raises(EditingError, match="a cascade is not interpolated"):
            interpolate(model, (3, 8), 2, (8, 6), steps=1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1.5, -128.0])
def test_an_image_of_other_values_is_refused(
    wrong: float, denoiser: Denoiser, image: Tensor, mask: Tensor
) -> None:
    row, column = mask[0, 0].nonzero()[0]
    spoilt = image.clone()
    spoilt[0, 1, row, column] = wrong
    for edit in (
        lambda: inpaint(denoiser, spoilt, mask),
        lambda: upscale(denoiser, spoilt, 2),
        lambda: upscale(denoiser, spoilt, 2, method="published"),
        lambda: vary(denoiser, spoilt),
        lambda: vary(denoiser, spoilt, strength=0),
    ):
        with pytest.raises(EditingError, match=r"values from .* to .*finite, and lie in \[-1, 1\]"):
            edit()


def test_what_the_hole_holds_plays_no_part(denoiser: Denoiser, image: Tensor, mask: Tensor) -> None:
    filled = inpaint(denoiser, image, mask, steps=3, jump=1, repeats=2)
    assert torch.equal(
        inpaint(denoiser, image.where(mask, math.nan), mask, steps=3, jump=1, repeats=2), filled
    )


def test_a_size_that_the_model_cannot_take_is_refused_by_the_model() -> None:
    model = Denoiser(FourierDiffNCA(8, 16, 1, frequencies=8), noise_schedule("cosine", 10)).eval()
    with pytest.raises(ValueError, match=r"9x12.*at least 16x16"):
        vary(model, torch.zeros(1, 3, 12, 9), steps=2)
    large = upscale(model, torch.zeros(1, 3, 4, 5), 4, steps=2, sampler=ddim)
    assert large.shape == (1, 3, 16, 20)
