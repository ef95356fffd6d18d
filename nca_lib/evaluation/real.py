"""The real images that generated ones are compared with, and those that give the floor (chapter 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nca_lib.data.images import Images, Split


@dataclass(frozen=True)
class RealImages:
    """Real images `first` ... `first + count - 1` of a split; those of random crops go on without end."""

    data: Images
    split: Split
    first: int
    count: int
    seed: int

    def batch(self, start: int, count: int) -> Tensor:
        """Some of them, (count, C, H, W)."""
        return self.whole(start, count)[:, : self.data.channels]

    def whole(self, start: int, count: int) -> Tensor:
        """The same with what lies behind their channels, see [`nca_lib.data.conditional`][]."""
        indices = range(self.first + start, self.first + start + count)
        return torch.stack([self.data.image(i % len(self.data), _rng(self.seed, i)) for i in indices])


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index, 3])


def distinct(data: Images) -> float:
    """How many different images a data set can give: its length, or infinitely many of random crops.

    Four images are looked at, four crops of each: those of one that is blank are alike wherever they lie.
    An image that is turned at random, or reflected, is one: that leaves the set of its values as it is.
    """
    for index in {len(data) * quarter // 4 for quarter in range(4)}:
        crops = [data.image(index, _rng(0, i)).flatten().sort().values for i in range(4)]
        if not all(torch.equal(crops[0], crop) for crop in crops):
            return float("inf")
    return len(data)


def real_and_floor(
    splits: dict[Split, Images], split: Split, count: int, seed: int
) -> tuple[RealImages, RealImages]:
    """The real images to compare with, and those that play the generated ones' part for the floor.

    The floor's are the next `count` of the same split; where it has too few, the other split's first.
    """
    there = distinct(splits[split])
    real = RealImages(splits[split], split, 0, int(min(count, there)), seed)
    if there >= 2 * count:
        return real, RealImages(splits[split], split, count, count, seed)
    other: Split = "train" if split == "test" else "test"
    rest = int(min(count, distinct(splits[other])))
    return real, RealImages(splits[other], other, 0, rest, seed)
