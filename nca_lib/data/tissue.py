"""A photograph of stained tissue (chapter 3)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.data.images import Split, hash_of, to_float, turned
from nca_lib.errors import DataError
from nca_lib.extras import extra


class Tissue:
    """Random crops of a real photograph of stained tissue (512x512, ships with scikit-image).

    Immunohistochemistry of the human colon: nuclei in blue (haematoxylin), the protein FHL2 in brown (DAB).
    Four of its sixteen blocks of 128x128 pixels are held out. They were chosen so that they hold as much
    gland, stroma and lumen as the rest does, by the Frechet distance of `nca-features-1` between both parts'
    crops: 2 for these, 18 for a quarter at the right. Training crops keep 8 pixels away from them.

    Args:
        size: height and width of the crops, pixels.
        downscale: reduce the photograph by this factor first (area average).
        split: `"train"` or `"test"` (crops within the held-out blocks).
        offsets: take crops at any pixel of the photograph and reduce them then: downscale^2 times as many.
        test_size: height and width of held-out crops, where those of training would not fit; None for `size`.

    Attributes:
        photo: the whole photograph, (3, 512 / downscale, 512 / downscale) in [-1, 1].
        allowed: where the split's crops may have their first pixel, in the photograph or, with `offsets`, in
            the one that is not reduced.

    Raises:
        DataError: no crop fits into the split, or nothing is left of the photograph.
    """

    channels = 3
    held_out = ((0, 3), (1, 0), (2, 0), (3, 1))  # row and column of each block
    guard = 8

    def __init__(
        self,
        size: int = 64,
        downscale: int = 1,
        split: Split = "train",
        *,
        offsets: bool = False,
        test_size: int | None = None,
    ):
        with extra("data"):
            from skimage.data import immunohistochemistry

        size = test_size if test_size and split == "test" else size
        whole = to_float(immunohistochemistry())
        if downscale > whole.shape[1]:
            raise DataError(f"downscale is {downscale}; the photograph is {whole.shape[1]} pixels wide")
        self.photo, self.size = F.avg_pool2d(whole, downscale), size
        self.source, self.reduction = (whole, downscale) if offsets else (self.photo, 1)
        self.extent = size * self.reduction  # of a crop in what it is cut from
        if size <= self.photo.shape[1]:
            self.allowed = self._allowed(math.ceil(self.guard * self.reduction / downscale), split)
        if size > self.photo.shape[1] or not self.allowed.any():
            raise DataError(
                f"size is {size}, which does not fit into the {split} part of the tissue: its blocks are "
                f"{self.photo.shape[1] // 4} pixels wide"
            )
        self.corners = self.allowed.nonzero().tolist()

    def _allowed(self, guard: int, split: Split) -> Tensor:
        blocks = torch.zeros(1, 4, 4)
        blocks[0, [row for row, _ in self.held_out], [column for _, column in self.held_out]] = 1
        held = F.interpolate(blocks[None], self.source.shape[1:])[0]
        if split == "test":
            forbidden = 1 - held
        else:
            forbidden = F.max_pool2d(held, 2 * guard + 1, stride=1, padding=guard)
        return F.max_pool2d(forbidden, self.extent, stride=1)[0] == 0

    def __len__(self) -> int:
        """1,024 crops count as one pass."""
        return 1024

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop in one of the eight orientations; `index` plays no part."""
        top, left = self.corners[rng.integers(len(self.corners))]
        crop = self.source[:, top : top + self.extent, left : left + self.extent]
        return turned(F.avg_pool2d(crop, self.reduction) if self.reduction > 1 else crop, rng, 8)

    def fingerprint(self) -> str:
        """Hash of the pixels and of where crops are taken."""
        return hash_of(torch.cat([self.photo.flatten(), self.allowed.flatten()]))


class TissueScales:
    """The same photograph at several scales, each crop with its scale as a plane: (3 + 1, size, size).

    For a rule that is told its scale, and so can be each level of a cascade (chapter 9). The scales 1, 1/2,
    1/4, ... down to 1 / `coarsest` are equally likely; the plane holds that number.

    Args:
        size: height and width of the crops at each scale, pixels.
        coarsest: how many times the photograph is reduced at most, a power of two.
        split: as for [`Tissue`][].
        test_size: height and width of held-out crops, where those of training would not fit; None for `size`.

    Raises:
        DataError: `coarsest` is no power of two, or no crop fits into the split.
    """

    channels = 3

    def __init__(
        self, size: int = 40, coarsest: int = 4, split: Split = "train", *, test_size: int | None = None
    ):
        if coarsest.bit_count() != 1:
            raise DataError(f"coarsest is {coarsest}; it must be a power of two: 1, 2, 4, ...")
        self.levels = {
            2**k: Tissue(size, 2**k, split, offsets=True, test_size=test_size)
            for k in range(coarsest.bit_length())
        }
        self.size = self.levels[1].size

    def __len__(self) -> int:
        """1,024 crops count as one pass."""
        return 1024

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop at a random scale; `index` plays no part."""
        downscale = 2 ** int(rng.integers(len(self.levels)))
        plane = torch.full((1, self.size, self.size), 1 / downscale)
        return torch.cat([self.levels[downscale].image(index, rng), plane])

    def fingerprint(self) -> str:
        """Hash of the pixels and of where crops are taken, at each scale."""
        allowed = [level.allowed.flatten() for level in self.levels.values()]
        return hash_of(torch.cat([self.levels[1].photo.flatten(), *allowed]))
