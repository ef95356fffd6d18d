"""Images for conditional generation: planes of 0 and 1 behind their channels say what they show (chapter 9).

A plane is the same at every cell, so that each knows what the image is to be without hearing from others.
Training hands what lies behind an image's `channels` to the model as its context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nca_lib.data.digits import Digits
from nca_lib.data.faces import GLASSES, HAIR_COLOURS, SKINS, Faces
from nca_lib.errors import DataError

WISHES = ("digits-by-class", "faces-by-attributes")
"""Kinds of data whose models can be asked in words, see [`asked_for`][]."""

ATTRIBUTES = {"hair_colour": tuple(HAIR_COLOURS), "skin": tuple(SKINS), "glasses": GLASSES}


def planes(indicators: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread indicators (B, G) over an image: (B, G, height, width)."""
    return indicators[:, :, None, None].expand(-1, -1, *size)


def class_planes(digits: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The context that asks for one digit each: (B, 10, height, width)."""
    return planes(torch.eye(10)[list(digits)], size)


def attribute_planes(size: tuple[int, int], /, **asked: str) -> Tensor:
    """The context that asks for a portrait's attributes: (1, 18, height, width).

    Args:
        size: height and width.
        asked: of `ATTRIBUTES` some or all, `hair_colour="ginger"`; what is not asked for is zeros.

    Raises:
        DataError: an attribute or its value is unknown.
    """
    for name, value in asked.items():
        if value not in ATTRIBUTES.get(name, ()):
            known = ", ".join(ATTRIBUTES.get(name, ATTRIBUTES))
            raise DataError(f"{name} = {value!r} is no attribute of a portrait; known are {known}")
    found = [asked.get(name) == value for name, values in ATTRIBUTES.items() for value in values]
    return planes(torch.tensor([found]).float(), size)


def asked_for(kind: str, wishes: Sequence[str], size: tuple[int, int]) -> Tensor:
    """The context that asks for `wishes`, (B, G, height, width); `""` asks for nothing.

    Args:
        kind: of the data, one of [`WISHES`][].
        wishes: of each image: a digit, `"7"`; or attributes, `"hair_colour=ginger,glasses=round"`.
        size: height and width.

    Raises:
        DataError: there is no such thing to be asked for.
    """
    if kind == "faces-by-attributes":
        return torch.cat([attribute_planes(size, **_attributes(wish)) for wish in wishes])
    for wish in wishes:
        if wish and wish not in tuple("0123456789"):
            raise DataError(f"{wish!r} is no digit; 0 to 9")
    # What is empty asks for nothing.
    return torch.stack([class_planes([int(w or 0)], size)[0] * bool(w) for w in wishes])


def _attributes(wish: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in wish.split(",") if part]
    for name, equals, value in pairs:
        if not equals or value == "":
            raise DataError(f"{name!r} is no attribute with a value, for example hair_colour=ginger")
    return {name.strip(): value.strip() for name, _, value in pairs}


class DigitsByClass(Digits):
    """Handwritten digits, each with its class as ten planes: an image is (1 + 10, size, size).

    Args:
        size: as for [`Digits`][nca_lib.data.digits.Digits].
        split: `"train"` or `"test"`, likewise.
    """

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """Digit `index` and its class, (11, size, size)."""
        digit = super().image(index, rng)
        return torch.cat([digit, class_planes([int(self.labels[index])], (self.size, self.size))[0]])


class FacesByAttributes(Faces):
    """Drawn portraits, each with hair colour, skin and glasses as planes: an image is (3 + 18, size, size).

    Args:
        size: height and width, pixels.
        split: `"train"` or `"test"`; the two never share a face.
    """

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """Face `index` and its attributes, (21, size, size)."""
        shown = {name: str(getattr(self.attributes(index), name)) for name in ATTRIBUTES}
        told = attribute_planes((self.size, self.size), **shown)
        return torch.cat([super().image(index, rng), told[0]])
