"""The rules of the drawn faces, read back from pixels: kept by the data, broken by what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.data.faces import EYE_COLOURS, Faces, Portrait, draw
from nca_lib.data.images import random_crop
from nca_lib.data.tissue import Tissue
from nca_lib.evaluation.coherence import coherence

SIZES = (32, 64)
RULES = ("face", "eyes", "hair", "light", "background", "all")


@lru_cache
def held_out(count: int) -> list[Portrait]:
    data = Faces(split="test")
    return [data.attributes(index) for index in range(count)]


@lru_cache
def faces(size: int, count: int = 1000) -> Tensor:
    portraits = held_out(count)
    return torch.cat([draw(portraits[i : i + 50], size) for i in range(0, count, 50)])


def rates(images: Tensor) -> dict[str, float]:
    return {rule: float(holds.float().mean()) for rule, holds in coherence(images).items()}


def glue(left: Tensor, right: Tensor) -> Tensor:
    half = left.shape[3] // 2
    return torch.cat([left[..., :half], right[..., half:]], dim=3)


def noise(images: Tensor, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_the_data_keeps_every_rule(size: int) -> None:
    found = rates(faces(size))
    assert tuple(found) == RULES
    assert found["all"] >= 0.99, found


def test_other_sizes_are_read_as_well() -> None:
    for size in (40, 50, 96):
        assert rates(draw(held_out(100), size))["all"] >= 0.97


@pytest.mark.parametrize("size", SIZES)
def test_noise_is_forgiven(size: int) -> None:
    assert rates(noise(faces(size), 0.05).clamp(-1, 1))["all"] >= 0.98


def test_blur_is_forgiven() -> None:
    blurred = F.avg_pool2d(F.pad(faces(64), (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    assert rates(blurred)["all"] >= 0.97


@pytest.mark.parametrize("size", SIZES)
def test_halves_of_different_faces_are_found_out(size: int) -> None:
    found = rates(glue(faces(size), faces(size).roll(1, 0)))
    assert found["face"] > 0.95  # each half is a good half: only what joins them is wrong
    assert max(found[rule] for rule in RULES[1:5]) < 0.25
    assert found["all"] < 0.01


def test_all_is_the_conjunction_of_the_rules() -> None:
    found = coherence(glue(faces(32), faces(32).roll(1, 0))[:200])
    assert torch.equal(found["all"], torch.stack([found[rule] for rule in RULES[:5]]).all(0))


def other_eyes(portrait: Portrait) -> Portrait:
    names = list(EYE_COLOURS)
    return replace(portrait, eye_colour=names[(names.index(portrait.eye_colour) + 2) % len(names)])


def other_hair_colour(portrait: Portrait) -> Portrait:
    hair = "ginger" if portrait.hair_colour in ("black", "dark brown", "grey") else "black"
    return replace(portrait, hair_colour=hair)


def longer_hair(portrait: Portrait) -> Portrait:
    return replace(portrait, hair_style="long")


def other_light(portrait: Portrait) -> Portrait:
    return replace(portrait, light=-portrait.light)


def other_background(portrait: Portrait) -> Portrait:
    red, green, blue = portrait.background
    return replace(portrait, background=(blue, red, green))


@pytest.mark.parametrize(
    ("rule", "change", "caught", "spared"),
    [
        ("eyes", other_eyes, 0.99, ("face", "hair", "light", "background")),
        ("hair", other_hair_colour, 0.95, ("face", "eyes", "background")),
        ("hair", longer_hair, 0.9, ("face", "eyes", "background")),
        ("light", other_light, 0.95, ("eyes",)),
        ("background", other_background, 0.9, ("face", "eyes")),
    ],
)
def test_each_rule_notices_its_own_attribute_and_no_other(
    rule: str, change: Callable[[Portrait], Portrait], caught: float, spared: tuple[str, ...]
) -> None:
    """The right half shows the same face with one attribute changed."""
    portraits = [replace(p, hair_style="short") for p in held_out(200)]  # which longer hair differs from
    right = draw([change(p) for p in portraits], 32)
    found = rates(glue(draw(portraits, 32), right))
    assert 1 - found[rule] >= caught, found
    assert min(found[other] for other in spared) >= 0.95, found


def test_images_without_faces_do_not_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, rng = Tissue(32), np.random.default_rng(0)
    without = {
        "uniform noise": torch.rand(500, 3, 32, 32, generator=generator) * 2 - 1,
        "grey": torch.linspace(-1, 1, 50).view(-1, 1, 1, 1).expand(-1, 3, 32, 32),
        "tissue": torch.stack([random_crop(pictures.photo, 32, rng) for _ in range(500)]),
        "shuffled blocks": faces(32)[:500].roll((8, 8), (2, 3)),
        "the background alone": _gradients(),
    }
    for name, images in without.items():
        found = rates(images)
        assert found["all"] == 0, name
        assert found["face"] < 0.1, (name, found)


def test_a_face_upside_down_does_not_pass() -> None:
    assert rates(faces(32).flip(2))["all"] == 0


def _gradients() -> Tensor:
    image = faces(32)[:500]
    return F.interpolate(image[:, :, :, [0, 31]], size=(32, 32), mode="bilinear")


def test_the_average_face_breaks_the_rules_of_light_and_background() -> None:
    """What a model that cannot coordinate tends to: every part in its place, no side lit."""
    average = faces(32).mean(0, keepdim=True)
    found = {rule: bool(holds) for rule, holds in coherence(average).items()}
    assert found["face"] and not found["light"] and not found["background"]


def test_images_of_another_shape_are_refused() -> None:
    for shape in ((3, 32, 32), (2, 1, 32, 32), (2, 3, 16, 32)):
        with pytest.raises(ValueError, match="at least 32"):
            coherence(torch.zeros(shape))
