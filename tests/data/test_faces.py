"""Drawn portraits: one face per index, smooth at any size, and each attribute where it belongs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.data.faces import (
    BEARD_RATE,
    BEARDS,
    EYE_COLOURS,
    EYE_X,
    EYE_Y,
    GLASSES,
    GLASSES_RATE,
    HAIR_COLOURS,
    HAIR_STYLES,
    MOUTH_Y,
    MOUTHS,
    SKINS,
    Faces,
    Portrait,
    draw,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def portraits() -> list[Portrait]:
    return [Faces().attributes(index) for index in range(4000)]


def bare(portrait: Portrait) -> Portrait:
    """Without what hides a face's parts."""
    return replace(portrait, hair_style="buzz", glasses="none", beard="none", earrings=0.0)


def changed(before: Portrait, after: Portrait, size: int = 64) -> Tensor:
    """Where two portraits differ, (size, size) of bool."""
    a, b = draw([before, after], size)
    return ((a - b).abs() > 1e-6).any(0)


def grid(size: int = 64) -> tuple[Tensor, Tensor]:
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    return centres.expand(size, size), centres[:, None].expand(size, size)


# One face per index


def test_a_face_depends_on_split_and_index_alone() -> None:
    image = Faces(32).image(7, rng(0))
    assert torch.equal(image, Faces(32).image(7, rng(1)))
    assert not torch.equal(image, Faces(32).image(8, rng(0)))
    assert Faces(32).attributes(7) == Faces(64).attributes(7)
    assert Faces(32).attributes(7) != Faces(32, "test").attributes(7)


def test_no_face_occurs_twice_within_or_across_the_splits(portraits: list[Portrait]) -> None:
    held_out = [Faces(split="test").attributes(index) for index in range(2000)]
    assert len(set(portraits + held_out)) == 6000


def test_indices_beyond_one_pass_give_further_faces(portraits: list[Portrait]) -> None:
    data = Faces(32)
    assert data.attributes(len(data) + 3) not in portraits
    assert data.image(10**9, rng()).shape == (3, 32, 32)


def test_the_fingerprint_tells_sizes_and_splits_apart() -> None:
    data = [Faces(32), Faces(64), Faces(32, "test")]
    assert len({faces.fingerprint() for faces in data}) == 3
    assert Faces(32).fingerprint() == data[0].fingerprint()


# Drawing


def test_a_face_is_drawn_alike_alone_and_in_a_batch(portraits: list[Portrait]) -> None:
    batch = draw(portraits[:20], 32)
    assert batch.dtype == torch.float32 and batch.min() >= -1 and batch.max() <= 1
    torch.testing.assert_close(batch, torch.cat([draw([p], 32) for p in portraits[:20]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [15, 32, 47, 64])
def test_any_size_shows_the_same_picture(portraits: list[Portrait], size: int) -> None:
    large = F.adaptive_avg_pool2d(draw(portraits[:12], 240), size)
    assert (draw(portraits[:12], size) - large).abs().mean() < 1.2 / size


@pytest.mark.parametrize("size", [32, 64])
def test_edges_are_smooth(portraits: list[Portrait], size: int) -> None:
    """Drawing is nearer to the average of 4x4 finer pixels than picking one of these by a factor of two."""
    fine = draw(portraits[:12], 4 * size)
    average = F.avg_pool2d(fine, 4)
    error = (draw(portraits[:12], size) - average).abs().mean()
    assert error < (fine[..., 2::4, 2::4] - average).abs().mean() / 2


def test_a_mirrored_face_under_mirrored_light_is_the_mirrored_picture(portraits: list[Portrait]) -> None:
    mirrored = [replace(p, light=-p.light, parting=-p.parting, gaze=-p.gaze) for p in portraits[:50]]
    torch.testing.assert_close(draw(mirrored, 48), draw(portraits[:50], 48).flip(3), rtol=0, atol=1e-5)


# Attributes and their places


def test_the_eye_colour_changes_the_irises_only(portraits: list[Portrait]) -> None:
    x, y = grid()
    inside = (x.abs() - EYE_X) ** 2 + (y - EYE_Y) ** 2 < 0.15**2
    for portrait in portraits[:30]:
        before, after = (replace(bare(portrait), eye_colour=name) for name in ("brown", "blue"))
        difference = changed(before, after)
        assert difference[:, :32].sum() > 10 and difference[:, 32:].sum() > 10
        assert not difference[~inside].any()


def test_the_mouth_changes_the_mouth_only(portraits: list[Portrait]) -> None:
    x, y = grid()
    inside = (x.abs() < 0.3) & ((y - MOUTH_Y).abs() < 0.2)
    for portrait in portraits[:30]:
        for before, after in (("smile", "neutral"), ("neutral", "open")):
            difference = changed(replace(portrait, mouth=before), replace(portrait, mouth=after))
            assert difference.sum() > 10 and not difference[~inside].any()


def test_glasses_and_beards_stay_in_their_part_of_the_face(portraits: list[Portrait]) -> None:
    _, y = grid()
    for portrait in map(bare, portraits[:30]):
        for worn in ("round", "square"):
            difference = changed(portrait, replace(portrait, glasses=worn))
            assert difference.sum() > 50 and not difference[(y - EYE_Y).abs() > 0.24].any()
        difference = changed(portrait, replace(portrait, beard="full"))
        assert difference.sum() > 100 and not difference[y < -0.1].any()


def test_the_background_is_one_plane_of_one_colour_beside_every_head(portraits: list[Portrait]) -> None:
    x, y = grid()
    beside = x.abs() > 0.88
    for portrait, image in zip(portraits[:100], draw(portraits[:100], 64), strict=True):
        brightness = (image[:, beside] + 1) / 2 / torch.tensor(portrait.background)[:, None]
        plane = 1 + 0.2 * portrait.strength * (0.8 * portrait.light * x - 0.45 * y)[beside]
        shown = image[:, beside] < 1  # the brightest corner may saturate
        assert (brightness - plane)[shown].abs().max() < 1e-4


def test_light_brightens_its_own_side_of_face_and_background(portraits: list[Portrait]) -> None:
    for image, portrait in zip(draw(portraits[:200], 64), portraits[:200], strict=True):
        towards = image if portrait.light > 0 else image.flip(2)
        face, open_air = towards[:, 34:46, 38:46], towards[:, :38, 60:]
        dark_face, dark_air = towards[:, 34:46, 18:26], towards[:, :38, :4]
        assert face.mean() > dark_face.mean() and open_air.mean() > dark_air.mean()


# Distribution


def rates(values: list[str]) -> dict[str, float]:
    return {name: count / len(values) for name, count in Counter(values).items()}


@pytest.mark.parametrize(
    ("field", "names", "expected"),
    [
        ("hair_style", HAIR_STYLES, None),
        ("eye_colour", EYE_COLOURS, None),
        ("skin", SKINS, None),
        ("mouth", MOUTHS, None),
        ("glasses", GLASSES, GLASSES_RATE),
        ("beard", BEARDS, BEARD_RATE),
        ("light", (-1, 1), None),
    ],
)
def test_every_attribute_occurs_at_its_rate(
    portraits: list[Portrait], field: str, names: list[str], expected: list[float] | None
) -> None:
    found = rates([getattr(portrait, field) for portrait in portraits])
    for name, rate in zip(names, expected or [1 / len(names)] * len(names), strict=True):
        assert abs(found[name] - rate) < 4 * (rate * (1 - rate) / len(portraits)) ** 0.5


def test_hair_stands_out_from_the_skin_and_every_colour_of_it_occurs(portraits: list[Portrait]) -> None:
    found = rates([portrait.hair_colour for portrait in portraits])
    assert min(found[name] for name in HAIR_COLOURS) > 0.05
    for portrait in portraits:
        hair, skin = HAIR_COLOURS[portrait.hair_colour], SKINS[portrait.skin]
        assert np.linalg.norm(np.subtract(hair, skin)) > 0.3
