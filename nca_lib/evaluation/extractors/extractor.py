"""What an evaluation sees in an image: the contract of the extractors of features (chapter 5)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Extractor(nn.Module, ABC):
    """Images in, features out. The features of an image do not depend on the others of its batch.

    Attributes:
        name: what results call it.
        sha256: of its weights' file.
        num_features: d.
        resize: what it does to the images' size, in words.
        is_inception: whether its Frechet distance may be called FID.
    """

    name: str
    sha256: str
    num_features: int
    resize: str
    is_inception = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8, to (B, d), float32."""


def to_pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] to (B, 3, H, W), uint8, on the CPU; grey is repeated."""
    return ((images.cpu() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)
