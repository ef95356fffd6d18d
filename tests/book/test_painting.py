"""The brush's mask, images from painted waves, and the explorers that are made of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from nca_lib.book.painting import Brush, image_of_waves, log_spectrum, mask_bytes, own_image, wave_mask
from nca_lib.data.faces import Faces
from nca_lib.errors import DataError
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


def png(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_own_picture_of_any_mode_is_cut_to_shape_and_size(mode: str, channels: int) -> None:
    stripes = np.zeros((40, 100), np.uint8)
    stripes[:, 30:50] = 255  # the left half of the middle square
    grey = Image.fromarray(stripes)
    image = Image.fromarray(stripes.astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    shown = own_image(png(image, "TIFF" if mode == "CMYK" else "PNG"), (16, 16), channels)
    assert shown.shape == (channels, 16, 16)
    assert (shown[..., :7] > 0.95).all()
    assert (shown[..., 9:] < -0.95).all()


def test_what_is_no_picture_or_too_large_is_told() -> None:
    with pytest.raises(DataError, match=r"^the picture: unreadable"):
        own_image(b"hello", (8, 8))
    with pytest.raises(DataError, match=r"5000x5000 is more than 16,000,000 pixels$"):
        own_image(png(Image.new("1", (5000, 5000))), (8, 8))


def test_a_brush_on_a_picture_of_another_size_begins_anew() -> None:
    brush = Brush(torch.zeros(3, 4, 6))
    brush.mask = bytes([1] * 24)
    brush.show(torch.zeros(3, 4, 6))
    assert brush.value.all()
    brush.show(torch.zeros(1, 5, 5))
    assert brush.value.shape == (5, 5)
    assert not brush.value.any()


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
