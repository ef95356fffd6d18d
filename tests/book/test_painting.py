"""The brush's mask, images from painted waves, and the explorers that are made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nca_lib.book.painting import Brush, image_of_waves, log_spectrum, mask_bytes, wave_mask
from nca_lib.data.faces import Faces
from nca_lib.fourier import image_of_window, spectrum_window


@pytest.fixture
def face() -> torch.Tensor:
    return Faces(32).image(0, np.random.default_rng(0))


@pytest.mark.parametrize("low", [1, 5, 12])
def test_the_half_planes_waves_painted_make_what_the_half_plane_holds(face: torch.Tensor, low: int) -> None:
    painted = image_of_waves(face, wave_mask("half_plane", low, 12))
    window = spectrum_window(face[None], "half_plane", low)
    torch.testing.assert_close(painted, image_of_window(window, "half_plane", 32, 32)[0])


def test_without_waves_nothing_is_left_and_frequency_zero_is_the_mean(face: torch.Tensor) -> None:
    nothing = torch.zeros(15, 15, dtype=torch.bool)
    assert image_of_waves(face, nothing).abs().max() < 1e-6
    nothing[7, 7] = True
    mean = face.mean(dim=(1, 2), keepdim=True).expand_as(face)
    torch.testing.assert_close(image_of_waves(face, nothing), mean, atol=1e-5, rtol=0)


def test_kept_and_removed_waves_add_up(face: torch.Tensor) -> None:
    quadrant, everything = wave_mask("quadrant", 6, 10), wave_mask("all", 6, 10)
    assert torch.equal(quadrant, quadrant.flip(0, 1))
    total = image_of_waves(face, quadrant) + image_of_waves(face, ~quadrant)
    torch.testing.assert_close(total, image_of_waves(face, everything), atol=1e-5, rtol=0)


def test_the_spectrum_shown_is_symmetric_and_brightest_where_a_wave_is() -> None:
    x = torch.arange(32) * 2 * torch.pi / 32
    shown = log_spectrum(torch.cos(3 * x).expand(1, 32, 32), 8)[0]
    assert torch.equal(shown, shown.flip(0, 1))
    assert sorted(map(tuple, (shown > 0.9).nonzero().tolist())) == [(7, 4), (7, 10)]


def test_a_brush_tells_what_is_painted_and_refuses_another_size() -> None:
    told: list[torch.Tensor] = []
    brush = Brush(torch.zeros(3, 4, 6), on_change=told.append)
    painted = torch.zeros(4, 6, dtype=torch.bool)
    painted[1, 2:5] = True
    brush.mask = mask_bytes(painted)
    assert torch.equal(brush.value, painted)
    assert len(told) == 1
    with pytest.raises(ValueError, match="4 rows of 6 cells need 24"):
        brush.mask = bytes(23)
