"""The drawn faces' global rules, read back from pixels.

[`coherence`][] looks at an image alone, never at how it came about, so it judges what a model invents. Faces
are aligned: every part is looked for where `faces.py` draws it, at 32x32 (larger images are averaged down
first). Each rule needs its evidence: where there is no eye, no lit side, no gradient, it does not hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nca_lib.data.faces import EYE_X, EYE_Y, MOUTH_Y
from nca_lib.errors import UsageError

SIZE = 32

# The bounds lie outside the range of 1,000 held-out faces with noise of standard deviation 0.05 on [-1, 1]
# (that range in brackets; its outermost 0.5% where a rare combination, such as hair of the background's
# colour, reaches far), and were chosen on such data, before any model was judged. Colours are in [0, 1].
_EYE_CONTRAST = 0.18  # from pupil to the white of the eye, at least [0.30]
_IRIS_DIFFERENCE = 0.17  # between the two, at most [0.14]; different colours start at 0.24
_CHEEK_SPREAD = 0.22  # within a cheek, at most [0.16]
_WARMTH = 0.03  # of the skin, red minus blue, at least [0.04]
_COMPLEXION = 0.15  # between the hues of the two cheeks, at most [0.13]
_MOUTH_CONTRAST = 0.06  # between mouth and cheeks, at least [0.07]
_HAIR_DIFFERENCE = 0.12  # between the two sides once the light is accounted for, at most [0.09]
_OUTLINE_DIFFERENCE = (
    0.05  # share of the pixels beside the face that are hair on one side only, at most [0.03]
)
_CROWN_CONTRAST = 0.1  # between the top of the head and the background, at least [0.16]
_GRADIENT_ERROR = 0.05  # root mean square, at most [0.03]
_ACROSS = (0.08, 0.20)  # relative slope of the background from left to right [0.11, 0.16]
_DOWN = (-0.13, -0.03)  # and from top to bottom [-0.10, -0.05]
_FACE_LIGHT = (0.05, 0.50)  # logarithm of the ratio of the lit to the dark side of the face [0.12, 0.41]
_HAIR_LIGHT = 0.04  # brightness of the lit minus the dark side, red + green + blue, at least [0.06]


@torch.no_grad()
def coherence(images: Tensor) -> dict[str, Tensor]:
    """Which of the drawn faces' rules hold in each image.

    - `"face"`: eyes, mouth and two cheeks of one skin are where they belong.
    - `"eyes"`: both irises have one colour.
    - `"hair"`: outline and colour are the same on both sides, apart from the light.
    - `"light"`: face, hair and background are brighter on the same side.
    - `"background"`: left and right of the head are parts of one gradient of one colour.
    - `"all"`: all of these.

    Args:
        images: (B, 3, H, W) in [-1, 1], H and W at least 32 (from 33 to 39, the averaging blurs the eyes, and
            some are not found).

    Returns:
        For each rule, (B,) of bool, on the device of the images; they are measured on the CPU.

    Raises:
        UsageError: the images have another shape.
    """
    if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SIZE:
        shape = "x".join(map(str, images.shape))
        raise UsageError(f"images are {shape}; coherence reads (B, 3, H, W) with H and W at least {SIZE}")
    found = _measure(images.cpu())
    eyes_there = found.eye_contrast > _EYE_CONTRAST
    lit_sides = torch.stack([found.face_light, found.across, found.crown_light, found.side_light]).sign()
    rules = {
        "face": eyes_there
        & (found.cheek_spread < _CHEEK_SPREAD)
        & (found.warmth > _WARMTH)
        & (found.complexion < _COMPLEXION)
        & (found.mouth_contrast > _MOUTH_CONTRAST),
        "eyes": eyes_there & (found.iris_difference < _IRIS_DIFFERENCE),
        "hair": (found.crown_contrast > _CROWN_CONTRAST)
        & (found.hair_difference < _HAIR_DIFFERENCE)
        & (found.outline_difference < _OUTLINE_DIFFERENCE),
        "light": (lit_sides == lit_sides[0]).all(0)
        & _within(found.face_light.abs(), *_FACE_LIGHT)
        & (found.across.abs() > _ACROSS[0])
        & (torch.minimum(found.crown_light.abs(), found.side_light.abs()) > _HAIR_LIGHT),
        "background": (found.gradient_error < _GRADIENT_ERROR)
        & _within(found.across.abs(), *_ACROSS)
        & _within(found.down, *_DOWN),
    }
    rules["all"] = torch.stack(list(rules.values())).all(0)
    return {name: holds.to(images.device) for name, holds in rules.items()}


class _Measured(NamedTuple):
    """What the rules bound, each (B,); see the bounds."""

    eye_contrast: Tensor
    iris_difference: Tensor
    cheek_spread: Tensor
    warmth: Tensor
    complexion: Tensor
    mouth_contrast: Tensor
    hair_difference: Tensor
    crown_contrast: Tensor
    crown_light: Tensor
    side_light: Tensor
    outline_difference: Tensor
    gradient_error: Tensor
    across: Tensor
    down: Tensor
    face_light: Tensor


def _measure(images: Tensor) -> _Measured:
    height, width = images.shape[2:]
    pixels = (_area(height) @ images.float() @ _area(width).T) / 2 + 0.5
    left, right = sides = (pixels, pixels.flip(3))  # both with the outer side of the face to the left

    # Eyes: the brightest pixel of each eye against the darkest at its centre.
    greys = [side.mean(1)[:, _EYE_ROWS, _EYE_COLUMNS] for side in sides]
    contrast = torch.stack([grey.amax((1, 2)) - grey[:, 1:3, 3:6].amin((1, 2)) for grey in greys]).amin(0)
    irises = (_mean(left, _IRIS) - _mean(right, _IRIS)).norm(dim=1)

    cheeks = torch.stack([_mean(side, _CHEEK) for side in sides])
    spread = torch.stack([_spread(side, _CHEEK) for side in sides]).amax(0)
    hues = cheeks / cheeks.sum(2, keepdim=True).clamp(min=0.05)
    mouth = torch.stack([_mean(pixels, row) for row in _MOUTH_ROWS]) - cheeks.mean(0)
    shaded = [_mean(side, _SHADED).mean(1).clamp(min=0.02) for side in sides]

    crown, crown_light = _across(sides, _CROWN, gain=(0.4, 0.2))
    beside, side_light = _across(sides, _BESIDE, gain=(0.6, 0.15))
    background, across, down = _gradient(pixels)
    away = (pixels - background).norm(dim=1)
    # Clearly the background on one side, clearly something else on the other.
    lonely = ((away < 0.06) & (away.flip(2) > 0.2)).float().flatten(1)
    return _Measured(
        eye_contrast=contrast,
        iris_difference=irises,
        cheek_spread=spread,
        warmth=(cheeks[:, :, 0] - cheeks[:, :, 2]).amin(0),
        complexion=(hues[0] - hues[1]).norm(dim=1),
        mouth_contrast=mouth.norm(dim=2).amax(0),
        hair_difference=torch.maximum(crown, beside),
        crown_contrast=(away.flatten(1) @ _CROWN + away.flip(2).flatten(1) @ _CROWN) / (2 * _CROWN.sum()),
        crown_light=crown_light,
        side_light=side_light,
        outline_difference=lonely @ _OUTSIDE / (_OUTSIDE.sum() / 2),
        gradient_error=(((pixels - background).square().mean(1).flatten(1) @ _OPEN) / _OPEN.sum()).sqrt(),
        across=across,
        down=down,
        face_light=torch.log(shaded[1] / shaded[0]),
    )


def _across(sides: tuple[Tensor, Tensor], region: Tensor, gain: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Compare a region with its mirror image, as one material under one light.

    Light of strength s turns a colour c into c + s (gain[0] c + gain[1]), at most 1. Returns the distance
    between the lit side and what the dark side and the best s explain, and how much brighter the right is.
    """
    left, right = (_mean(side, region) for side in sides)
    brighter = (right - left).sum(1)
    lit_right = brighter[:, None] > 0
    dark, lit = torch.where(lit_right, left, right), torch.where(lit_right, right, left)
    added = gain[0] * dark + gain[1]
    strength = ((lit - dark) * added).sum(1, keepdim=True) / added.square().sum(1, keepdim=True)
    explained = (dark + strength.clamp(0.1, 1.2) * added).clamp(max=1)
    return (explained - lit).norm(dim=1), brighter


def _gradient(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit colour * (1 + across x + down y) to the background; the fit (B, 3, 32, 32) and its slopes (B,)."""
    plane = pixels.flatten(2) @ _TO_PLANE  # (B, 3, 3): for each colour 1, x, y
    colour = plane[:, :, 0]
    slopes = (plane[:, :, 1:] * colour[:, :, None]).sum(1)
    slopes = slopes / colour.square().sum(1, keepdim=True).clamp(min=1e-3)
    across, down = slopes.unbind(1)
    brightness = 1 + across[:, None, None] * _X + down[:, None, None] * _Y
    return colour[:, :, None, None] * brightness[:, None], across, down


def _area(size: int) -> Tensor:
    """The matrix (32, size) that averages `size` pixels over 32 equal stretches, whole or in part."""
    edges = torch.arange(SIZE + 1) * (size / SIZE)
    covered = (edges[:, None] - torch.arange(size)).clamp(0, 1)
    return covered.diff(dim=0) * (SIZE / size)


def _within(value: Tensor, low: float, high: float) -> Tensor:
    return (value > low) & (value < high)


def _mean(pixels: Tensor, region: Tensor) -> Tensor:
    """Mean colour of a region, (B, 3)."""
    return (pixels.flatten(2) @ region) / region.sum()


def _spread(pixels: Tensor, region: Tensor) -> Tensor:
    """Standard deviation within a region, all colours together, (B,)."""
    variance = _mean(pixels.square(), region) - _mean(pixels, region).square()
    return variance.clamp(min=0).sum(1).sqrt()


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> Tensor:
    """The pixels whose centres lie in an ellipse, (SIZE²,) of 0 and 1."""
    return ((((_X - x) / half_width) ** 2 + ((_Y - y) / half_height) ** 2) < 1).float().flatten()


# Regions; those of one side are on the left, and the right is read from the mirrored image.
_X = ((torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1).expand(SIZE, SIZE)
_Y = _X.T
_EYE_ROWS, _EYE_COLUMNS = slice(13, 17), slice(8, 16)
_IRIS = _ellipse(-EYE_X, EYE_Y + 0.01, 0.09, 0.09)
_CHEEK = _ellipse(-0.1875, 0.156, 0.05, 0.03)  # two pixels that neither glasses nor beards reach
_MOUTH_ROWS = [_ellipse(0, MOUTH_Y + y, 0.11, 0.04) for y in (-0.03, 0.033, 0.096)]
_SHADED = _ellipse(-0.26, 0.2, 0.15, 0.13)
_CROWN = _ellipse(-0.16, -0.56, 0.11, 0.07)
_BESIDE = _ellipse(-0.53, -0.25, 0.06, 0.2)
_OUTSIDE = ((_X.abs() > 0.44) & (_X.abs() < 0.88) & (_Y < 0.7)).float().flatten()
_OPEN = ((_X.abs() > 0.88) | ((_Y < -0.75) & (_X.abs() > 0.6))).float().flatten()  # no hair is so wide
_BASIS = torch.stack([torch.ones(SIZE * SIZE), _X.flatten(), _Y.flatten()])
_TO_PLANE = torch.linalg.solve((_BASIS * _OPEN) @ _BASIS.T, _BASIS * _OPEN).T  # least squares
