"""Handwritten digits (chapters 2 and 4)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.data.images import Split, hash_of
from nca_lib.extras import extra


class Digits:
    """The 1,797 real handwritten digits that ship with scikit-learn, greyscale, white on black.

    Args:
        size: height and width; 8 as they are, else drawn larger: with a margin of one of the old pixels, in
            which strokes can end, resampled (bicubic), and edges steepened, which leaves the ground black.
        split: `"train"` (the first 1,500) or `"test"` (the rest, from other writers; but the first 45, by the
            order of the digits in blocks of a writer each, are by the writer of the last 85 of the others).
    """

    channels = 1

    def __init__(self, size: int = 8, split: Split = "train"):
        with extra("data"):
            from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = slice(0, 1500) if split == "train" else slice(1500, None)
        images = torch.from_numpy(digits.images[chosen]).float()[:, None] / 8 - 1
        if size != 8:
            images = F.pad(images, (1, 1, 1, 1), value=-1)
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
            ink = (images / 1.8 + 0.5).clamp(0, 1)  # what is within 5% of black or white becomes just that
            images = ink * ink * (3 - 2 * ink) * 2 - 1  # the cubic from 0 to 1 that is level at both ends
        self.images, self.size = images, size
        self.labels = torch.from_numpy(digits.target[chosen])

    def __len__(self) -> int:
        """Number of digits in the split."""
        return len(self.images)

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """Digit `index`, (1, size, size)."""
        return self.images[index]

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return hash_of(self.images)
