"""Drawn portraits: a data set with global rules.

A face is more than its parts: both eyes have one colour, the hair is the same on both sides, the light falls
from one side on everything. A model that only sees neighbourhoods can draw each part well and still break
these rules, so they measure global communication (`coherence.py` reads them back from pixels). A
[`Portrait`][] is drawn by signed distance functions: a shape covers a pixel by clamp(1/2 - distance / pixel),
which gives smooth edges at any size, and shapes are painted over one another.

Coordinates: x to the right and y downwards, both in [-1, 1]; the eyes lie at (±EYE_X, EYE_Y) in every face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import astuple, dataclass, fields
from itertools import accumulate
from math import dist
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nca_lib.data.images import Split

Colour = tuple[float, float, float]

EYE_X, EYE_Y, MOUTH_Y = 0.225, -0.04, 0.31
HEAD_Y, HEAD_HEIGHT = -0.06, 0.62  # the head's centre and half its height

SKINS: dict[str, Colour] = {
    "porcelain": (0.98, 0.85, 0.77),
    "fair": (0.96, 0.78, 0.67),
    "peach": (0.92, 0.71, 0.57),
    "tan": (0.83, 0.61, 0.45),
    "olive": (0.74, 0.54, 0.38),
    "brown": (0.61, 0.41, 0.29),
    "dark": (0.47, 0.30, 0.21),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.13, 0.11, 0.13),
    "dark brown": (0.27, 0.16, 0.11),
    "chestnut": (0.45, 0.26, 0.15),
    "auburn": (0.58, 0.22, 0.12),
    "ginger": (0.83, 0.43, 0.16),
    "blonde": (0.91, 0.74, 0.40),
    "platinum": (0.93, 0.90, 0.82),
    "grey": (0.58, 0.59, 0.63),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (0.38, 0.19, 0.07),
    "amber": (0.78, 0.50, 0.08),
    "green": (0.18, 0.58, 0.24),
    "blue": (0.14, 0.44, 0.86),
    "grey": (0.47, 0.57, 0.66),
}
MOUTHS = {"smile": (0.085, 0.0), "neutral": (0.0, 0.0), "open": (0.06, 0.045)}  # curvature, opening
GLASSES = ("none", "round", "square")
GLASSES_RATE = (0.76, 0.12, 0.12)
BEARDS = {"none": 0.0, "stubble": 0.3, "full": 0.92}  # opacity
BEARD_RATE = (0.8, 0.1, 0.1)


class HairShape(NamedTuple):
    """The outline of a hair style, in the coordinates of the face."""

    length: float  # y at which it ends
    volume: float  # how far it stands out beyond the head, to the sides
    rise: float  # and above
    hairline: float  # y of the hairline at the parting
    drop: float  # how steeply the hairline falls from there
    face: float  # half the width of the face that it leaves free
    curl: float = 0.0  # height of the curls along the outline
    bun: float = 0.0  # radius of a bun on top
    opacity: float = 1.0


HAIR_STYLES: dict[str, HairShape] = {
    "bald": HairShape(-0.1, 0.0, 0.0, -0.5, 1.5, 0.44, opacity=0.0),
    "buzz": HairShape(-0.12, 0.015, 0.03, -0.40, 1.3, 0.43, opacity=0.8),
    "short": HairShape(-0.04, 0.06, 0.14, -0.36, 1.2, 0.42),
    "fringe": HairShape(0.02, 0.08, 0.12, -0.235, 0.25, 0.42),
    "bob": HairShape(0.40, 0.17, 0.13, -0.25, 0.35, 0.39),
    "long": HairShape(1.3, 0.15, 0.13, -0.48, 1.5, 0.39),
    "wavy": HairShape(0.72, 0.20, 0.15, -0.42, 1.4, 0.385, curl=0.022),
    "curly": HairShape(0.22, 0.27, 0.22, -0.36, 1.0, 0.40, curl=0.035),
    "bun": HairShape(-0.02, 0.04, 0.08, -0.40, 1.2, 0.42, bun=0.19),
}


@dataclass(frozen=True)
class Portrait:
    """Everything that one portrait is drawn from: names of its attributes, and numbers."""

    skin: str
    hair_style: str
    hair_colour: str
    eye_colour: str
    mouth: str
    glasses: str
    beard: str
    background: Colour
    clothing: Colour
    light: int  # -1: from the left, 1: from the right
    strength: float  # of the light
    parting: float  # x
    width: float  # half of the head's
    jaw: float  # how much the head narrows downwards
    volume: float  # factor on the hair's volume
    openness: float  # half the height of the eyes
    slant: float  # of the eyes
    gaze: float  # shift of both irises
    brow: float  # thickness
    arch: float  # of the brows
    nose: float  # half its width
    lips: float  # thickness
    mouth_width: float
    neckline: float  # depth of the neckline
    earrings: float  # 0 or 1


def portrait(rng: np.random.Generator) -> Portrait:
    """Draw one portrait's attributes.

    They are independent, but hair and background are of colours that stand out: hair from the skin (at a
    distance of 0.3 in RGB), and the background as the best of four.
    """
    u = iter(rng.random(40).tolist())

    def choose(names: Sequence[str]) -> str:
        return names[int(next(u) * len(names))]

    def weighted(names: Sequence[str], rates: Sequence[float]) -> str:
        at, edges = next(u), accumulate(rates[:-1])
        return names[sum(at >= edge for edge in edges)]

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(u)

    skin = choose(tuple(SKINS))
    hair = choose([name for name, colour in HAIR_COLOURS.items() if dist(colour, SKINS[skin]) > 0.3])

    def contrast(colour: Colour) -> float:
        return min(dist(colour, HAIR_COLOURS[hair]), dist(colour, SKINS[skin]))

    backgrounds = [hsv_to_rgb(next(u), between(0.15, 0.5), between(0.5, 0.85)) for _ in range(4)]
    return Portrait(
        skin=skin,
        hair_style=choose(tuple(HAIR_STYLES)),
        hair_colour=hair,
        eye_colour=choose(tuple(EYE_COLOURS)),
        mouth=choose(tuple(MOUTHS)),
        glasses=weighted(GLASSES, GLASSES_RATE),
        beard=weighted(tuple(BEARDS), BEARD_RATE),
        light=1 if next(u) < 0.5 else -1,
        background=max(backgrounds, key=contrast),
        clothing=hsv_to_rgb(next(u), between(0.3, 0.7), between(0.3, 0.85)),
        strength=between(0.7, 1.0),
        parting=between(-0.22, 0.22),
        width=between(0.44, 0.49),
        jaw=between(0.12, 0.30),
        volume=between(0.8, 1.15),
        openness=between(0.082, 0.102),
        slant=between(-0.12, 0.12),
        gaze=between(-0.02, 0.02),
        brow=between(0.022, 0.036),
        arch=between(0.5, 2.2),
        nose=between(0.06, 0.085),
        lips=between(0.035, 0.055),
        mouth_width=between(0.15, 0.2),
        neckline=between(0.05, 0.3),
        earrings=float(next(u) < 0.2),
    )


class Faces:
    """An endless set of drawn portraits; face `index` of a split is always the same, at every size.

    Args:
        size: height and width, pixels.
        split: `"train"` or `"test"`; the two never share a face.
    """

    channels = 3

    def __init__(self, size: int = 64, split: Split = "train"):
        self.size, self.split = size, split

    def __len__(self) -> int:
        """65,536 faces count as one pass; larger indices give further faces."""
        return 65536

    def attributes(self, index: int) -> Portrait:
        """What face `index` is drawn from."""
        return portrait(np.random.default_rng([int(self.split == "test"), index, 1968]))

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """Face `index`, (3, size, size); `rng` plays no part."""
        return draw([self.attributes(index)], self.size)[0]

    def fingerprint(self) -> str:
        """Hash of the first faces' pixels, 8 bits deep."""
        pixels = draw([self.attributes(index) for index in range(8)], self.size).add(1).mul(127.5).round()
        return hashlib.sha256(pixels.byte().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def draw(portraits: Sequence[Portrait], size: int) -> Tensor:
    """Draw a batch of portraits.

    Args:
        portraits: what to draw, B of them.
        size: height and width, pixels.

    Returns:
        (B, 3, size, size), float32 in [-1, 1].
    """
    return _Drawing(portraits, size).finish()


class _Drawing:
    """One batch being painted, back to front. Numbers are (B, 1, 1, 1), colours (B, 3, 1, 1)."""

    def __init__(self, portraits: Sequence[Portrait], size: int):
        centres = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
        self.pixel = 2 / size
        self.x, self.y = centres.view(1, 1, 1, size), centres.view(1, 1, size, 1)
        self.ax, self.side = self.x.abs(), self.x.sign()
        (
            self.light, self.strength, self.parting, self.width, self.jaw, self.volume, self.openness,
            self.slant, self.gaze, self.brow, self.arch, self.nose, self.lips, self.mouth_width,
            self.neckline, self.earrings,
        ) = _columns([astuple(p)[_FIRST_NUMBER:] for p in portraits])  # fmt: skip
        shapes = _columns([HAIR_STYLES[p.hair_style] for p in portraits])
        self.hair = SimpleNamespace(**dict(zip(HairShape._fields, shapes, strict=True)))
        self.smile, self.open = _columns([MOUTHS[p.mouth] for p in portraits])
        self.beard, self.round, self.square = _columns(
            [(BEARDS[p.beard], p.glasses == "round", p.glasses == "square") for p in portraits]
        )
        rows = [
            (SKINS[p.skin], HAIR_COLOURS[p.hair_colour], EYE_COLOURS[p.eye_colour], p.background, p.clothing)
            for p in portraits
        ]
        colours = torch.tensor(rows).view(len(rows), 5, 3, 1, 1).unbind(1)
        self.skin, self.hair_colour, self.eye, self.background, self.cloth = colours
        # Lambert's law for a head that is round from side to side: how far each column turns to the light.
        self.turn = self.light * self.strength * torch.tanh(1.6 * self.x / self.width)

    def finish(self) -> Tensor:
        self.canvas = self.background * (
            1 + 0.2 * self.strength * (0.8 * self.light * self.x - 0.45 * self.y)
        )
        self._hair_outline()
        self._behind()
        self._head()
        self._nose_and_cheeks()
        self._mouth()
        self._eyes()
        self._glasses()
        self._paint(self.hair_lit, self._cover(self.front) * self.hair.opacity)
        return self.canvas.clamp(0, 1) * 2 - 1

    def _cover(self, distance: Tensor, soft: float = 0.0) -> Tensor:
        return (0.5 - distance / max(self.pixel, soft)).clamp(0, 1)

    def _paint(self, colour: Tensor, cover: Tensor) -> None:
        self.canvas = torch.lerp(self.canvas, colour, cover)

    def _hair_outline(self) -> None:
        """Distances to the whole mass of hair and to the part of it that lies in front of the face."""
        hair, above = self.hair, self.y - HEAD_Y
        half = self.width + hair.volume * self.volume
        angle = torch.atan2(self.ax, -above)
        column = _ellipse(self.x, above.clamp(max=0), half, HEAD_HEIGHT + hair.rise)
        column = column - hair.curl * torch.cos(13 * angle)
        self.mass = _smooth_max(column, self.y - hair.length * (0.9 + 0.1 * self.volume), 0.14)
        from_parting = self.x - self.parting
        slope = 2 * hair.drop * from_parting
        line = (self.y - hair.hairline - hair.drop * from_parting**2) * (1 + slope**2).rsqrt()
        sides = hair.face * (self.width / 0.465) - self.ax
        self.front = _smooth_max(self.mass, -_smooth_max(-line, -sides, 0.1), 0.02)
        # Strands follow the outline.
        strands = 0.07 * torch.cos(30 * self.mass)
        shine = torch.exp(-(((self.x - 0.22 * self.light) / 0.2) ** 2) - ((self.y + 0.58) / 0.13) ** 2)
        lit = self.hair_colour * (0.92 + 0.26 * self.turn + strands)
        self.hair_lit = lit + 0.05 * self.turn + 0.13 * self.strength * shine

    def _behind(self) -> None:
        """Hair at the back, neck, clothing, ears."""
        hair = self.hair
        self._paint(self.hair_lit * 0.74, self._cover(self.mass) * hair.opacity)
        bun = _ellipse(self.x, self.y + 0.79, hair.bun + 1e-3, hair.bun * 0.85 + 1e-3)
        self._paint(self.hair_lit * 0.9, self._cover(bun) * (hair.bun > 0))
        throat = torch.maximum(self.ax - 0.2, self.y.sub(0.6).abs() - 0.3)
        self._paint(neck := self.skin * (0.76 + 0.1 * self.turn), self._cover(throat))
        shoulders = _ellipse(self.x, self.y - 1.24, 0.88, 0.55)
        cloth = self.cloth * (0.92 + 0.2 * self.light * self.strength * self.x)
        self._paint(cloth, cover := self._cover(shoulders))
        depth = 0.06 + 0.7 * self.neckline
        self._paint(cloth * 0.72, cover * self._cover(_ellipse(self.x, self.y - 0.66, 0.30, depth + 0.06)))
        self._paint(neck * 1.06, self._cover(_ellipse(self.x, self.y - 0.66, 0.24, depth)))
        ears = _ellipse(self.ax - self.width - 0.015, self.y - 0.03, 0.075, 0.125)
        self._paint(self.skin * (0.84 + 0.14 * self.turn), self._cover(ears))
        rings = _ellipse(self.ax - self.width - 0.04, self.y - 0.18, 0.042, 0.042)
        self._paint(_GOLD, self._cover(rings) * self.earrings)

    def _head(self) -> None:
        """Head, the shadow of the hair on it, beard."""
        down = (self.y - HEAD_Y) / HEAD_HEIGHT
        half = self.width * (1 - self.jaw * down.clamp(0, 1) ** 2)
        head = _ellipse(self.x, self.y - HEAD_Y, half, HEAD_HEIGHT)
        self.face = self.skin * (0.92 + 0.15 * self.turn - 0.05 * self.y)
        cover = self._cover(head)
        self._paint(self.face, cover)
        shadow = self._cover(self.front - 0.05, soft=0.14) * self.hair.opacity * cover
        self._paint(self.face * _SHADOW, 0.45 * shadow)
        free = _ellipse(self.x, self.y, 0.39, 0.235)
        beard = torch.maximum(_smooth_max(head, -free, 0.06), -0.02 - self.y)
        self._paint(self.hair_lit * 0.9, self._cover(beard, soft=0.04) * self.beard)

    def _nose_and_cheeks(self) -> None:
        blush = torch.exp(-(((self.ax - 0.29) / 0.11) ** 2) - ((self.y - 0.17) / 0.09) ** 2)
        self._paint(self.face * _BLUSH, 0.35 * blush)
        flank = _ellipse(self.x + 0.05 * self.light, self.y - 0.07, 0.035, 0.13)
        self._paint(self.face * _SHADOW, 0.75 * self._cover(flank, soft=0.07))
        base = _ellipse(self.x, self.y - 0.165, self.nose, 0.035)
        self._paint(self.face * _SHADOW * 0.92, 0.9 * self._cover(base))
        tip = _ellipse(self.x, self.y - 0.14, self.nose * 0.95, 0.045)
        self._paint(self.face * 1.05, self._cover(tip))

    def _mouth(self) -> None:
        arc = 1 - (self.x / self.mouth_width) ** 2
        centre = self.y - MOUTH_Y - self.smile * (arc - 0.5)
        self._paint(self.face * _LIPS, self._cover(centre.abs() - (self.lips + self.open) * arc))
        inside = centre.abs() - (0.012 + self.open) * arc
        self._paint(self.face * _LIPS * 0.4, self._cover(inside))
        teeth = torch.maximum(inside + 0.01, centre - 0.02)
        self._paint(_WHITE, self._cover(teeth) * (self.open > 0))

    def _eyes(self) -> None:
        across = self.ax - EYE_X
        down = self.y - EYE_Y - self.slant * across
        lashes = self.hair_colour * 0.35 + 0.03
        self._paint(lashes, self._cover(_ellipse(across, down + 0.02, 0.152, self.openness + 0.012)))
        self._paint(_WHITE, lids := self._cover(_ellipse(across, down, 0.142, self.openness)))
        gazing = across - self.gaze * self.side
        centre = torch.sqrt(gazing**2 + down**2)
        self._paint(self.eye * 0.7, lids * self._cover(centre - 0.092))
        self._paint(self.eye * 1.1, lids * self._cover(centre - 0.075))
        self._paint(_PUPIL, lids * self._cover(centre - 0.034))
        glint = torch.sqrt((gazing - 0.034 * self.light * self.side) ** 2 + (down + 0.034) ** 2)
        self._paint(_WHITE, self._cover(glint - 0.022))
        middle = self.y - EYE_Y + 0.16 - self.arch * across**2 - 0.5 * self.slant * across
        brow = torch.maximum(middle.abs() - self.brow, across.abs() - 0.135)
        self._paint(self.hair_colour * 0.7, self._cover(brow) * 0.9)

    def _glasses(self) -> None:
        if not (worn := self.round + self.square).any():
            return
        across, down = (self.ax - EYE_X), self.y - EYE_Y - 0.01
        disc = torch.sqrt(across**2 + down**2) - 0.175
        wide, high = (across.abs() - 0.13).clamp(min=0), (down.abs() - 0.10).clamp(min=0)
        lens = torch.where(self.square > 0, torch.sqrt(wide**2 + high**2) - 0.045, disc)
        self._paint(_WHITE, self._cover(lens) * worn * 0.1)
        bar = torch.maximum((down + 0.05).abs() - 0.02, torch.maximum(-lens, self.ax - self.width))
        self._paint(_FRAME, self._cover(torch.minimum(lens.abs() - 0.02, bar)) * worn)


def _columns(rows: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    """Each column of a table as numbers (B, 1, 1, 1)."""
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), -1, 1, 1, 1).unbind(1)


def _ellipse(x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    """About the distance to an ellipse around 0, negative inside (exact at its edge to first order)."""
    across, down = x / half_width, y / half_height
    level = torch.sqrt(across**2 + down**2 + 1e-8)
    steepness = torch.sqrt((across / half_width) ** 2 + (down / half_height) ** 2 + 1e-8)
    return level * (level - 1) / steepness


def _smooth_max(a: Tensor, b: Tensor, width: float) -> Tensor:
    """The larger of two distances: intersects two shapes and rounds the corner between them."""
    near = (1 - (a - b).abs() / width).clamp(min=0)
    return torch.maximum(a, b) + near**2 * (width / 4)


def _tint(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1)


_FIRST_NUMBER = [field.name for field in fields(Portrait)].index("light")
_SHADOW, _BLUSH, _LIPS = _tint(0.80, 0.70, 0.68), _tint(1.05, 0.72, 0.70), _tint(0.88, 0.5, 0.5)
_WHITE, _PUPIL, _FRAME, _GOLD = (
    _tint(0.97, 0.97, 0.96), _tint(0.05, 0.04, 0.06), _tint(0.13, 0.10, 0.12), _tint(0.93, 0.76, 0.3)
)  # fmt: skip
