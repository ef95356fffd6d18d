"""Context: what cells are told, cascades from coarse to fine, and guidance; against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.canvas import TiledDenoiser
from nca_lib.cascade import SEEDS, Cascade, Guided, cascade_of, coarse_context
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, Target, min_snr_weight, noise_schedule
from nca_lib.editing import (
    FromImage,
    KnownPixels,
    LowResolution,
    inpaint,
    interpolate,
    reduce,
    upscale,
    vary,
)
from nca_lib.errors import EditingError, UsageError
from nca_lib.fourier import FourierDiffNCA
from nca_lib.noise import CounterNoise, Purpose
from nca_lib.samplers import SAMPLERS, Constraint, sample, timestep_array

SCHEDULE = noise_schedule("cosine", 300)


def network(context: int = 4, kind: type[DiffNCA] = DiffNCA, **options: object) -> DiffNCA:
    torch.manual_seed(0)
    chosen = {"frequencies": 3} if kind is FourierDiffNCA else {}
    local = {"position": False, "encoding": "sinusoidal", **chosen, **options}
    return kind(16, 24, 3, context_channels=context, **local).eval().requires_grad_(False)  # type: ignore[arg-type]


def level(context: int) -> Denoiser:
    return Denoiser(network(context), SCHEDULE, "v")


def cascade() -> Denoiser:
    return cascade_of([(8, level(0)), (2, level(4)), (1, level(4))])


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 14, 13), torch.randn(2, 4, 14, 13), torch.tensor([0.3, 0.7])


# What cells are told


@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
@pytest.mark.parametrize("fast", [True, False])
def test_context_is_read_and_never_written(
    kind: type[DiffNCA], fast: bool, images: tuple[Tensor, ...]
) -> None:
    noisy, context, time = images
    told = network(4, kind, update_probability=1.0).given(context)
    told.fast = fast
    start = told.initial_state(noisy, time)
    assert torch.equal(start[:, 6:10], context)
    assert all(torch.equal(state[:, 6:10], context) for state in told.rollout(start, time))
    other = told.given(context + 0.5)
    assert not torch.allclose(told(noisy, time), other(noisy, time), atol=1e-3)


def test_the_spectrum_holds_the_context_beside_the_image(images: tuple[Tensor, ...]) -> None:
    noisy, _, time = images
    told = network(3, FourierDiffNCA, update_probability=1.0).given(noisy)
    assert isinstance(told, FourierDiffNCA)
    seed = told.spectrum_seed(noisy)
    halves = seed.unflatten(1, (2, 16))
    assert torch.equal(halves[:, :, 6:9], halves[:, :, :3])
    for spectrum in told.spectrum_rollout(seed, time):
        assert torch.equal(spectrum.unflatten(1, (2, 16))[:, :, 6:9], halves[:, :, 6:9])


@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_context_costs_no_parameters(kind: type[DiffNCA]) -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(network(4, kind)) == count(network(0, kind))


def test_the_fast_path_is_the_literal_one_with_context(images: tuple[Tensor, ...]) -> None:
    noisy, context, time = images
    told = network(update_probability=1.0).given(context)
    fast = told(noisy, time)
    told.fast = False
    torch.testing.assert_close(fast, told(noisy, time), atol=1e-5, rtol=1e-4)


def test_context_reaches_as_far_as_the_image_does() -> None:
    torch.manual_seed(2)
    noisy, context = torch.randn(1, 3, 20, 20), torch.randn(1, 4, 20, 20)
    plain, touched = network(update_probability=1.0), context.clone()
    touched[:, :, 10, 10] += 1
    changed = plain.given(context)(noisy, torch.tensor([0.5])) - plain.given(touched)(
        noisy, torch.tensor([0.5])
    )
    seen = changed.abs().amax((0, 1)) > 0
    assert seen[10, 10]
    assert not seen[:7].any() and not seen[14:].any() and not seen[:, :7].any() and not seen[:, 14:].any()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_tiles_are_told_their_part(kind: type[DiffNCA], wrap: bool) -> None:
    torch.manual_seed(3)
    noisy, context = torch.randn(1, 3, 45, 50), torch.randn(1, 4, 45, 50)
    model = Denoiser(network(4, kind, update_probability=1.0), SCHEDULE, "v")
    tiled = TiledDenoiser(model, 16, wrap).given(context)
    t = torch.tensor([150])
    whole, cut = model.given(context)(noisy, t), tiled(noisy, t)
    inner = slice(3, -3) if wrap else slice(None)
    torch.testing.assert_close(cut[..., inner, inner], whole[..., inner, inner], atol=2e-4, rtol=0)
    if kind is DiffNCA and not wrap:
        assert torch.equal(TiledDenoiser(model.given(context), 16)(noisy, t), whole)


def test_context_that_does_not_fit_is_refused_by_name(images: tuple[Tensor, ...]) -> None:
    noisy, context, time = images
    told = network()
    with pytest.raises(UsageError, match=r"reads 4 channels of context: denoiser.given"):
        told(noisy, time)
    with pytest.raises(UsageError, match="has 3 channels; this model reads 4"):
        told.given(context[:, :3])
    with pytest.raises(UsageError, match="has 4 channels; this model reads 0"):
        network(0).given(context)
    with pytest.raises(
        UsageError, match=r"context is 2 of 12x14 \(width x height\) and the images are 2 of 13x14"
    ):
        told.given(context[..., :12])(noisy, time)
    with pytest.raises(UsageError, match="at least 11"):
        DiffNCA(10, 8, context_channels=4)
    with pytest.raises(UsageError, match="a Linear reads no context"):
        Denoiser(nn.Linear(1, 1), SCHEDULE).given(context)


def test_a_denoiser_that_is_told_something_keeps_its_weighting() -> None:
    torch.manual_seed(0)
    cells, context = network(2, update_probability=1.0), torch.randn(2, 2, 6, 6)
    clean, noise, t = torch.rand(2, 3, 6, 6), torch.randn(2, 3, 6, 6), torch.tensor([9, 9])
    plain = Denoiser(cells, SCHEDULE, "v").given(context).loss(clean, t, noise)
    weighted = Denoiser(cells, SCHEDULE, "v", "min_snr").given(context).loss(clean, t, noise)
    ratio = float(min_snr_weight("v", SCHEDULE, t)[0])
    assert ratio < 0.5
    assert float(weighted) == pytest.approx(ratio * float(plain), rel=1e-5)


# From coarse to fine


class Repeats(nn.Module):
    """A level that knows nothing of its own: its clean image is what it is told."""

    image_channels = 3

    def __init__(self, context: Tensor | None = None):
        super().__init__()
        self.context = context

    def given(self, context: Tensor) -> Repeats:
        return Repeats(context)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        assert self.context is not None
        return self.context[:, :3].expand_as(noisy)


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_that_repeat_what_they_are_told_enlarge_the_layout(name: str) -> None:
    layout = level(0)
    repeats = [Denoiser(Repeats(), SCHEDULE, "x0") for _ in range(2)]
    told = Cascade(Cascade(layout, repeats[0], 4, noise=0), repeats[1], 2, noise=0)
    drawn = torch.rand(1, 3, 5, 6) * 2 - 1
    image = sample(told.laid_out(drawn, 0), (37, 48), count=2, steps=4, sampler=SAMPLERS[name])
    half = F.interpolate(drawn, scale_factor=4, mode="bilinear")[..., :19, :]
    wanted = F.interpolate(half, scale_factor=2, mode="bilinear")[..., :37, :]
    torch.testing.assert_close(image, wanted.expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def test_the_layout_is_a_sample_of_the_coarsest_model() -> None:
    below = level(0)
    told = Cascade(below, Denoiser(Repeats(), SCHEDULE, "x0"), 4, noise=0)
    one, two = (sample(told, (32, 24), steps=4, seed=seed) for seed in (0, 1))
    assert not torch.allclose(one, two)
    drawn = sample(below, (8, 6), steps=4, seed=0x9E3779B9)
    torch.testing.assert_close(one, F.interpolate(drawn, scale_factor=4, mode="bilinear"), atol=1e-5, rtol=0)


def test_the_model_below_fires_as_the_cascade_is_told_to() -> None:
    below = level(0)
    told = Cascade(below, Denoiser(Repeats(), SCHEDULE, "x0"), 4, noise=0)
    image = sample(told, (32, 24), steps=2, seed=3, firing="expected")
    drawn = sample(below, (8, 6), steps=2, seed=3 + SEEDS, firing="expected")
    assert not torch.allclose(drawn, sample(below, (8, 6), steps=2, seed=3 + SEEDS), atol=1e-2)
    wanted = F.interpolate(drawn, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(image, wanted, atol=1e-5, rtol=0)


def test_a_cascade_draws_an_image_the_same_alone_in_a_batch_and_in_tiles() -> None:
    model = cascade()
    both = sample(model, (41, 52), count=2, steps=3, seed=4)
    second = sample(model, (41, 52), steps=3, seed=4, first_sample=1)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    torch.testing.assert_close(sample(TiledDenoiser(model, 16), (41, 52), count=2, steps=3, seed=4), both)


def test_a_rule_that_is_told_its_scale_can_be_every_level() -> None:
    rule = Denoiser(network(5), SCHEDULE, "v")
    told = Cascade(level(0), rule, 2, scale=0.5)
    whole = Cascade(told, rule, 2, scale=1.0)
    coarse = torch.rand(1, 3, 8, 8) * 2 - 1
    image = sample(whole.laid_out(coarse, 0), (32, 32), steps=2, seed=5)
    for seed, scale in ((5 + SEEDS, 0.5), (5, 1.0)):  # by hand, from coarse to fine
        context = Cascade(level(0), level(4), 2).context_of(
            coarse, CounterNoise(seed), (2 * coarse.shape[2], 2 * coarse.shape[3])
        )
        plane = torch.full_like(context[:, :1], scale)
        size = (context.shape[2], context.shape[3])
        coarse = sample(rule.given(torch.cat([plane, context], dim=1)), size, steps=2, seed=seed)
    assert torch.equal(image, coarse)
    other = sample(Cascade(told, rule, 2, scale=0.25).laid_out(coarse, 0), (32, 32), steps=2, seed=5)
    assert not torch.allclose(image, other, atol=1e-3)
    tiled = sample(TiledDenoiser(whole, 12), (32, 32), steps=2, seed=5)
    torch.testing.assert_close(tiled, sample(whole, (32, 32), steps=2, seed=5))


def test_noise_in_the_coarse_image_has_the_variance_that_cells_are_told() -> None:
    torch.manual_seed(5)
    coarse, amount = torch.randn(400, 3, 6, 6), torch.full((400, 1, 1, 1), 0.6)
    told = coarse_context(coarse, 1, (6, 6), amount, torch.randn_like(coarse))
    assert torch.equal(told[:, 3:], torch.full((400, 1, 6, 6), 0.6))
    assert told[:, :3].var().item() == pytest.approx(1, abs=0.02)
    assert (told[:, :3] * coarse).mean().item() == pytest.approx(0.8, abs=0.02)
    assert (told[:, :3] - 0.8 * coarse).std().item() == pytest.approx(0.6, abs=0.01)


def test_noise_in_the_coarse_image_is_independent_of_the_noise_that_drawing_starts_from() -> None:
    model, source = Cascade(level(0), level(4), 1, noise=0.6), CounterNoise(5)
    told = model.context_of(torch.zeros(1, 3, 64, 64), source, (64, 64))[:, :3]
    start = source.normal(torch.empty(1, 3, 64, 64), Purpose.START, 0)
    assert float(told.std()) == pytest.approx(0.6, abs=0.03)
    assert abs(float((told * start).mean())) < 5 * 0.6 / told.numel() ** 0.5
    expected = 0.6 * source.normal(torch.empty(1, 3, 64, 64), Purpose.CONTEXT, 0)
    torch.testing.assert_close(told, expected)


class Asked(Denoiser):
    """Keeps the constraint that it is asked to obey."""

    def ready(self, size: tuple[int, int], **settings: Any) -> Denoiser:
        self.asked = settings["constraint"]
        return self


def test_edits_reach_the_coarser_levels() -> None:
    torch.manual_seed(6)
    below = Asked(network(0), SCHEDULE, "v")
    model = Cascade(below, Denoiser(Repeats(), SCHEDULE, "x0"), 4, noise=0)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    known = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    known[..., 9:15, 8:17] = False
    filled = inpaint(model, image, known, steps=5, repeats=1)
    assert torch.equal(filled[known.expand_as(image)], image[known.expand_as(image)])
    assert (~below.asked.mask[0, 0]).nonzero().tolist() == [[y, x] for y in (2, 3) for x in (2, 3, 4)]
    assert torch.equal(below.asked.image, F.avg_pool2d(image, 4))
    small = F.avg_pool2d(image, 8)
    torch.testing.assert_close(F.avg_pool2d(upscale(model, small, 8, steps=4), 8), small, atol=1e-4, rtol=0)
    assert isinstance(below.asked, LowResolution) and below.asked.factor == 2
    upscale(model, reduce(image, 2), 2, steps=4)
    assert isinstance(below.asked, KnownPixels) and below.asked.mask.all()
    torch.testing.assert_close(below.asked.image, F.avg_pool2d(image, 4))
    blocks = F.interpolate(F.avg_pool2d(image, 4), scale_factor=4, mode="bilinear")
    torch.testing.assert_close(vary(model, image, 0.01, steps=5), blocks, atol=0.3, rtol=0)
    with pytest.raises(EditingError, match="factor is 3; a level of this cascade is 4 times coarser"):
        upscale(model, small, 3, steps=4)


BLANK = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    "edit",
    [
        KnownPixels(BLANK, BLANK == 0, "repaint", jump=2, repeats=3),
        KnownPixels(BLANK, BLANK == 0, "published", jump=2, repeats=3),
        FromImage(BLANK, 0.2, 300),
    ],
    ids=["repaint", "published", "from an image"],
)
def test_an_edit_goes_the_same_way_at_a_coarser_level(edit: Constraint) -> None:
    visited = timestep_array(300, 10)
    assert edit.coarser(2).path(visited) == edit.path(visited)


def test_reducing_fills_the_last_blocks_with_the_last_pixels() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    assert reduce(ramp, 2)[0, 0].tolist() == [[0.5, 2.5, 4.0]] * 2


def test_what_is_no_cascade_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the scales are \[8, 3, 1\]"):
        cascade_of([(8, level(0)), (3, level(4)), (1, level(4))])
    with pytest.raises(UsageError, match="too small: a coarser level would be 1x1"):
        sample(cascade(), (8, 8), steps=2)


# Guidance


class Linear(nn.Module):
    """An output that is linear in noisy image and context: guidance has a closed form."""

    image_channels = 1

    def __init__(self, context: Tensor | None = None):
        super().__init__()
        self.context = context

    def given(self, context: Tensor) -> Linear:
        return Linear(context)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        assert self.context is not None
        return 0.5 * noisy + self.context.sum(1, keepdim=True)


@pytest.mark.parametrize("target", ["epsilon", "x0", "v"])
def test_guidance_extrapolates_the_clean_estimate(target: Target) -> None:
    torch.manual_seed(7)
    noisy, context, t = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([30, 200])
    model = Denoiser(Linear(), SCHEDULE, target)
    told, untold = model.given(context)(noisy, t), model.given(0 * context)(noisy, t)
    for strength in (0.0, 1.0, 3.0):
        guided = Guided(model, context, strength)
        wanted = untold + strength * (told - untold)
        torch.testing.assert_close(guided(noisy, t), wanted, atol=1e-4, rtol=1e-4)
    by_noise = model.given(0 * context).noise(noisy, t), model.given(context).noise(noisy, t)
    torch.testing.assert_close(
        Guided(model, context, 3.0).noise(noisy, t), 3 * by_noise[1] - 2 * by_noise[0], atol=1e-4, rtol=1e-4
    )


def test_guidance_of_an_automaton_samples_as_told_at_1_and_untold_at_0() -> None:
    model = Denoiser(network(2, update_probability=1.0), SCHEDULE, "v")
    context = torch.zeros(1, 2, 10, 12)
    context[:, 1] = 1
    for strength, told in ((1.0, context), (0.0, 0 * context)):
        wanted = sample(model.given(told), (10, 12), count=2, steps=4)
        torch.testing.assert_close(
            sample(Guided(model, context, strength), (10, 12), count=2, steps=4), wanted
        )


def test_each_guided_image_has_its_own_timestep() -> None:
    model = Denoiser(network(2, update_probability=1.0), SCHEDULE, "v")
    noisy, context, t = torch.randn(2, 3, 6, 6), torch.randn(2, 2, 6, 6), torch.tensor([30, 200])
    told, untold = model.given(context)(noisy, t), model.given(0 * context)(noisy, t)
    guided = Guided(model, context, 3.0)(noisy, t)
    torch.testing.assert_close(guided, untold + 3 * (told - untold), atol=1e-3, rtol=0)
    alike = Guided(model, context, 3.0)(noisy, t[:1])
    torch.testing.assert_close(alike, Guided(model, context, 3.0)(noisy, t[:1].expand(2)))


@pytest.mark.parametrize("firing", ["fresh", "fixed", "expected"])
def test_both_halves_of_guidance_fire_alike(firing: str) -> None:
    model = Denoiser(network(2, update_probability=0.5, zero_init=False), SCHEDULE, "v")
    nothing, told = torch.zeros(1, 2, 9, 8), torch.ones(1, 2, 9, 8)
    settings: dict[str, Any] = {"steps": 3, "firing": firing}
    plain = sample(model.given(nothing), (9, 8), count=2, **settings)
    torch.testing.assert_close(sample(Guided(model, nothing, 4.0), (9, 8), count=2, **settings), plain)
    guided = Guided(model, told, 2.0)
    both = sample(guided, (9, 8), count=2, **settings)
    alone = [sample(guided, (9, 8), first_sample=n, **settings) for n in (0, 1)]
    torch.testing.assert_close(torch.cat(alone), both)
    assert not torch.allclose(both, plain, atol=1e-2)


def test_what_is_guided_can_be_blended() -> None:
    guided = Guided(
        Denoiser(network(2, update_probability=0.5, zero_init=False), SCHEDULE, "v"), torch.ones(1, 2, 9, 8)
    )
    way = interpolate(guided, (0, 1), 3, (9, 8), steps=2)
    ends = [sample(guided, (9, 8), seed=seed, steps=2) for seed in (0, 1)]
    torch.testing.assert_close(way[[0, 2]], torch.cat(ends), atol=1e-4, rtol=1e-4)
