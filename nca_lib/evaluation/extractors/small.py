"""A small extractor that ships with the library.

It was trained by [`train_features`][nca_lib.evaluation.lessons.train_features]. Its distances are reported
under its own name and are no FID.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from nca_lib.errors import WeightsError
from nca_lib.evaluation.extractors.extractor import Extractor


class SmallFeatures(Extractor):
    """A convolutional network with 104 features: the means of an early layer (32) and of the last (72).

    Images up to 32x32 are resized to 32x32, larger ones to 64x64 (bilinear, antialiased). The features are
    shifted and scaled to mean 0 and variance 1 over the images that it was trained on.
    """

    shift: Tensor
    scale: Tensor
    num_features = 104
    resize = "32x32 or 64x64 bilinear, antialiased"

    def __init__(self, name: str = "untrained", sha256: str = ""):
        super().__init__()
        self.name, self.sha256 = name, sha256
        self.early = nn.Sequential(*_layer(3, 24, stride=2), *_layer(24, 32))
        self.late = nn.Sequential(
            *_layer(32, 48, stride=2), *_layer(48, 64), *_layer(64, 72, stride=2), *_layer(72, 72)
        )
        self.register_buffer("shift", torch.zeros(self.num_features))
        self.register_buffer("scale", torch.ones(self.num_features))

    @classmethod
    def shipped(cls) -> SmallFeatures:
        """The trained network, `nca-features-1`.

        Raises:
            WeightsError: the file is not the one that its record describes.
        """
        path = shipped_path()
        record, blob = json.loads(path.with_suffix(".json").read_text()), path.read_bytes()
        digest = hashlib.sha256(blob).hexdigest()
        if digest != record["sha256"]:
            raise WeightsError(f"{path}: the sha256 differs from its record's; it is damaged or was replaced")
        network = cls(record["name"], digest)
        network.load_state_dict(parse_safetensors(blob))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8, to (B, 104), float32."""
        side = 32 if max(images.shape[-2:]) <= 32 else 64
        x = images.float() / 127.5 - 1
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        return self.describe(x)

    def describe(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) or (B, 3, 64, 64) in [-1, 1] to (B, 104)."""
        early = self.early(x)
        pooled = torch.cat([early.mean((2, 3)), self.late(early).mean((2, 3))], 1)
        return (pooled - self.shift) / self.scale


def _layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def shipped_path() -> Path:
    """Where the small extractor's weights ship; their record lies beside them."""
    folder = resources.files("nca_lib") / "pretrained" / "extractors"
    return Path(str(folder / "nca-features-1.safetensors"))
