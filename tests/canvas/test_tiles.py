"""Tiles equal the whole, windows of the plane agree, and what is not local is refused."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_lib.canvas.tiles import CanvasError, TiledDenoiser, in_bounded_memory, sample_region, spans_of
from nca_lib.cascade import Cascade, Guided, cascade_of
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.editing import inpaint, interpolate, upscale, vary
from nca_lib.fourier import FourierDiffNCA, image_of_window, part_of_window, spectrum_window, window_sums
from nca_lib.noise import CounterNoise, firing_from
from nca_lib.samplers import SAMPLERS, sample

SCHEDULE = noise_schedule("cosine", 20)


def denoiser(kind=DiffNCA, channels=12, hidden=32, steps=3, **settings):
    torch.manual_seed(0)
    settings = {"position": False, "encoding": "sinusoidal", "update_probability": 0.7, **settings}
    network = kind(channels, hidden, steps, **settings).requires_grad_(False)
    return Denoiser(network, SCHEDULE, "v")


sizes = st.integers(2, 90)
WINDOWS = {
    "y": st.integers(-9, 9),
    "x": st.integers(-9, 9),
    "height": st.integers(1, 30),
    "width": st.integers(1, 30),
    "tile": st.integers(8, 50),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    height=sizes,
    width=sizes,
    tile=st.integers(4, 70),
    steps=st.integers(1, 4),
    channels=st.integers(7, 20),
    count=st.integers(1, 2),
    fast=st.booleans(),
    low=st.booleans(),
)
def test_a_tiled_call_equals_the_whole(height, width, tile, steps, channels, count, fast, low):
    whole = denoiser(channels=channels, steps=steps)
    whole.network.fast = fast
    noisy, t = torch.randn(count, 3, height, width), torch.full((count,), 7)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=low),
        torch.no_grad(),
        firing_from(whole, CounterNoise(3, first_sample=5)),
    ):
        assert torch.equal(TiledDenoiser(whole, tile)(noisy, t), whole(noisy, t))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    height=st.integers(20, 70),
    width=st.integers(20, 70),
    tile=st.integers(8, 40),
    calls=st.integers(1, 4),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    firing=st.sampled_from(["fresh", "fixed", "expected"]),
)
def test_a_tiled_sample_equals_the_whole(height, width, tile, calls, sampler, firing):
    whole = denoiser()
    options = {"sampler": SAMPLERS[sampler], "steps": calls, "seed": 4, "firing": firing}
    expected = sample(whole, (height, width), **options)
    assert torch.equal(sample(TiledDenoiser(whole, tile), (height, width), **options), expected)


def test_every_edit_equals_the_whole():
    whole = denoiser()
    tiled = TiledDenoiser(whole, 17)
    image = torch.rand(1, 3, 48, 61) * 2 - 1
    mask = torch.rand(1, 1, 48, 61) > 0.5
    edits = [
        lambda model: inpaint(model, image, mask, steps=4, jump=2, repeats=2),
        lambda model: upscale(model, image[..., :24, :30], 2, steps=3),
        lambda model: vary(model, image, 0.6, steps=3),
        lambda model: interpolate(model, (1, 2), 3, (48, 61), steps=3),
    ]
    for edit in edits:
        assert torch.equal(edit(tiled), edit(whole))


def test_compiled_tiles_equal_the_compiled_whole():
    whole = denoiser(channels=24, hidden=32, steps=1, update_probability=1.0)
    whole.compile_step(None)
    noisy, t = torch.randn(1, 3, 61, 83), torch.tensor([9])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TiledDenoiser(whole, 40)(noisy, t), whole(noisy, t))


@pytest.mark.parametrize("tile", [7, 31, 64])
def test_a_wrapping_canvas_is_a_torus(tile):
    # The literal computation with circular convolutions is the definition.
    torus = denoiser(channels=12, steps=3)
    wrapped = TiledDenoiser(copy.deepcopy(torus), tile, wrap=True)
    wrapped.network.network.fast = torus.network.fast = False
    torus.network.cell.perception.padding_mode = "circular"
    torus.network.cell.perception._reversed_padding_repeated_twice = [1, 1, 1, 1]
    options = {"count": 2, "steps": 2, "seed": 8}
    assert torch.equal(sample(wrapped, (42, 59), **options), sample(torus, (42, 59), **options))


def test_a_wrapping_canvas_may_be_smaller_than_the_halo():
    image = sample(TiledDenoiser(denoiser(steps=6), wrap=True), (5, 4), steps=2)
    twice = sample(TiledDenoiser(denoiser(steps=6), 2, wrap=True), (5, 4), steps=2)
    assert image.shape == (1, 3, 5, 4)
    assert torch.equal(image, twice)


def test_a_cascade_does_not_wrap():
    with pytest.raises(CanvasError, match="a cascade does not wrap"):
        TiledDenoiser(three_levels(), wrap=True)


def test_windows_of_one_canvas_share_a_shape_and_hold_the_halo():
    covered = torch.zeros(100, 70)
    shapes = set()
    for rows, columns in itertools.product(*spans_of((100, 70), 32, 4, cells=2000)):
        covered[rows.own, columns.own] += 1
        shapes.add((rows.size, columns.size))
        for span, length in ((rows, 100), (columns, 70)):
            assert span.start == 0 or span.first - span.start >= 4
            assert span.start + span.size == length or span.start + span.size - span.last >= 4
    assert (covered == 1).all()
    assert shapes == {(40, 50)}


def test_the_spectrum_is_the_sum_of_its_tiles():
    torch.manual_seed(0)
    images, size = torch.randn(2, 3, 37, 50), (37, 50)
    for window in ("quadrant", "half_plane"):
        total = 0
        for rows in torch.arange(37).split(11):
            for columns in torch.arange(50).split(20):
                part = images[:, :, rows][..., columns]
                total = total + window_sums(part, rows, columns, size, window, 8)
        expected = spectrum_window(images.double(), window, 8)
        torch.testing.assert_close(total, expected, atol=1e-7, rtol=0)
        whole = image_of_window(expected, window, *size)
        y, x = torch.arange(5, 30), torch.arange(20, 50)
        part = part_of_window(expected, y, x, size, window)
        torch.testing.assert_close(part, whole[:, :, 5:30, 20:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", ["quadrant", "half_plane"])
def test_fourier_tiles_equal_the_whole_up_to_rounding(window):
    whole = denoiser(FourierDiffNCA, steps=3, frequencies=5, window=window)
    tiled = TiledDenoiser(whole, 20)
    expected = sample(whole, (45, 38), steps=4)
    found = sample(tiled, (45, 38), steps=4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="at least 10x10"):
        sample(tiled, (45, 9), steps=1)


@pytest.mark.parametrize(
    ("settings", "message"), [({"norm": "group"}, 'norm = "group"'), ({"position": True}, "position = true")]
)
def test_what_is_not_local_is_refused(settings, message):
    with pytest.raises(CanvasError, match=message):
        TiledDenoiser(denoiser(**settings))


def test_tiles_refuse_other_networks_and_noise_without_addresses():
    with pytest.raises(CanvasError, match="Linear cannot be cut up"):
        TiledDenoiser(Denoiser(torch.nn.Linear(1, 1), SCHEDULE))
    with pytest.raises(ValueError, match="need CounterNoise"):
        TiledDenoiser(denoiser())(torch.randn(1, 3, 20, 20), torch.tensor([3]))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@settings(max_examples=4, deadline=None, derandomize=True)
@given(**WINDOWS)
def test_windows_of_the_plane_agree(sampler, y, x, height, width, tile):
    plane = denoiser()
    options = {"sampler": SAMPLERS[sampler], "steps": 3, "seed": 2}
    known = plane_around_the_origin(sampler)[:, :, y + 10 :, x + 10 :]
    window = sample_region(plane, y, x, height, width, tile=tile, **options)
    assert torch.equal(window, known[:, :, :height, :width])


@functools.cache
def plane_around_the_origin(sampler):
    return sample_region(denoiser(), -10, -10, 50, 50, 2, sampler=SAMPLERS[sampler], steps=3)


def test_far_from_its_borders_a_canvas_is_the_plane():
    plane = denoiser(steps=2)
    canvas = sample(plane, (50, 60), steps=3, seed=6)
    assert torch.equal(sample_region(plane, 6, 6, 38, 48, 6, steps=3), canvas[:, :, 6:-6, 6:-6])


def three_levels():
    levels = [denoiser(), denoiser(context_channels=4), denoiser(context_channels=4, hidden=20)]
    return cascade_of(list(zip((8, 2, 1), levels, strict=True)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(**WINDOWS)
def test_windows_of_a_cascades_plane_agree(y, x, height, width, tile):
    known = cascades_plane()[:, :, y + 10 :, x + 10 :]
    window = sample_region(three_levels(), y, x, height, width, 2, steps=2, tile=tile)
    assert torch.equal(window, known[:, :, :height, :width])


@functools.cache
def cascades_plane():
    return sample_region(three_levels(), -10, -10, 50, 50, 2, steps=2)


def test_far_from_its_borders_a_cascades_canvas_is_the_plane():
    canvas = sample(three_levels(), (160, 170), steps=2, seed=4)
    reach = 6 * (8 + 2 + 1) + 2 * (4 + 1)  # and a coarse pixel at each enlarging
    assert reach < 78
    window = sample_region(three_levels(), 78, 78, 4, 14, 4, steps=2)
    assert torch.equal(window, canvas[:, :, 78:82, 78:92])
    assert not torch.equal(sample_region(three_levels(), 0, 0, 4, 4, 4, steps=2), canvas[:, :, :4, :4])


def test_an_endless_image_needs_a_local_model_and_a_window():
    with pytest.raises(CanvasError, match="a layout has borders"):
        sample_region(three_levels().laid_out(torch.zeros(1, 3, 4, 4)), 0, 0, 8, 8, steps=2)
    with pytest.raises(CanvasError, match="FourierDiffNCA"):
        sample_region(denoiser(FourierDiffNCA, frequencies=4), 0, 0, 8, 8)
    with pytest.raises(CanvasError, match="an endless canvas has no context"):
        sample_region(denoiser(context_channels=2), 0, 0, 8, 8)
    with pytest.raises(CanvasError, match="at least 1x1"):
        sample_region(denoiser(), 0, 0, 0, 8)


def test_large_canvases_are_drawn_in_tiles_of_512():
    model = denoiser()
    cascade = Cascade(denoiser(), denoiser(context_channels=4), 2)
    for local in (model, cascade):
        cut = in_bounded_memory(local, (1024, 1025))
        assert isinstance(cut, TiledDenoiser) and cut.model is local and cut.network.tile == 512
        assert in_bounded_memory(local, (1024, 1024)) is local
        assert isinstance(in_bounded_memory(local, (600, 600), count=3), TiledDenoiser)


def test_what_is_not_local_or_draws_otherwise_is_left_as_it_is():
    guided = Guided(denoiser(context_channels=2), torch.zeros(1, 2, 1, 1))
    fourier = denoiser(FourierDiffNCA, frequencies=4)
    vnca = torch.nn.Linear(1, 1)
    for model in (denoiser(norm="group"), denoiser(position=True), fourier, guided, vnca):
        assert in_bounded_memory(model, (2000, 2000)) is model


def test_guidance_is_not_cut_up():
    guided = Guided(denoiser(context_channels=2), torch.zeros(1, 2, 1, 1))
    with pytest.raises(CanvasError, match="guidance cannot be cut up"):
        TiledDenoiser(guided)


@pytest.mark.parametrize("far", [2**32, -(2**32), 2**70, -(2**63) - 2**32])
def test_the_plane_repeats_however_far_one_goes(far: int):
    model = denoiser()
    here = sample_region(model, -3, 5, 6, 7, steps=2)
    assert torch.equal(sample_region(model, far - 3, 5 - far, 6, 7, steps=2), here)
