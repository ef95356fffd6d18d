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

    Attributes:
        photo: the whole photograph, (3, 512 / downscale, 512 / downscale) in [-1, 1].
        allowed: where the split's crops may have their first pixel, (height - size + 1, width - size + 1).

    Raises:
        DataError: no crop fits into the split.
    """

    channels = 3
    held_out = ((0, 3), (1, 0), (2, 0), (3, 1))  # row and column of each block
    guard = 8

    def __init__(self, size: int = 64, downscale: int = 1, split: Split = "train"):
        with extra("data"):
            from skimage.data import immunohistochemistry

        self.photo, self.size = F.avg_pool2d(to_float(immunohistochemistry()), downscale), size
        if size <= self.photo.shape[1]:
            self.allowed = self._allowed(math.ceil(self.guard / downscale), split)
        if size > self.photo.shape[1] or not self.allowed.any():
            raise DataError(
                f"size is {size}, which does not fit into the {split} part of the tissue: its blocks are "
                f"{self.photo.shape[1] // 4} pixels wide"
            )
        self.corners = self.allowed.nonzero().tolist()

    def _allowed(self, guard: int, split: Split) -> Tensor:
        blocks = torch.zeros(1, 4, 4)
        blocks[0, [row for row, _ in self.held_out], [column for _, column in self.held_out]] = 1
        held = F.interpolate(blocks[None], self.photo.shape[1:])[0]
        if split == "test":
            forbidden = 1 - held
        else:
            forbidden = F.max_pool2d(held, 2 * guard + 1, stride=1, padding=guard)
        return F.max_pool2d(forbidden, self.size, stride=1)[0] == 0

    def __len__(self) -> int:
        """1,024 crops count as one pass."""
        return 1024

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop in one of the eight orientations; `index` plays no part."""
        top, left = self.corners[rng.integers(len(self.corners))]
        return turned(self.photo[:, top : top + self.size, left : left + self.size], rng, 8)

    def fingerprint(self) -> str:
        """Hash of the pixels and of where crops are taken."""
        return hash_of(torch.cat([self.photo.flatten(), self.allowed.flatten()]))
