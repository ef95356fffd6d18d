"""InceptionV3, the network that FID is defined by.

Its weights are read where torch-fidelity keeps them and are never downloaded.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from nca_lib.errors import WeightsError
from nca_lib.evaluation.extractors.extractor import Extractor
from nca_lib.extras import extra

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Inception(Extractor):
    """InceptionV3 as FID was defined by (torch-fidelity's), 2,048 features of its last pooling layer.

    Args:
        path: the file of weights; by default where torch-fidelity downloads it to.

    Raises:
        WeightsError: the file is not there or not the right one; the message says where to get it.
    """

    name, num_features, is_inception = "inception-v3-compat", 2048, True
    resize = "299x299 bilinear, as TensorFlow 1 does"

    def __init__(self, path: str | Path | None = None):
        super().__init__()
        path = Path(path) if path else inception_path()
        if not path.is_file():
            raise WeightsError(f"{path} is missing; download {INCEPTION_URL} and put it there")
        blob = path.read_bytes()
        self.sha256 = hashlib.sha256(blob).hexdigest()
        wanted = INCEPTION_FILE.removesuffix(".pth")[-8:]
        if not self.sha256.startswith(wanted):
            raise WeightsError(
                f"{path}: its sha256 begins with {self.sha256[:8]} instead of {wanted}; it is damaged or "
                f"another file. Download {INCEPTION_URL} again"
            )
        self.network = inception_network(torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8, to (B, 2048), float32."""
        return self.network(images)[0]


def inception_path() -> Path:
    """Where torch-fidelity keeps Inception's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def inception_network(state_dict: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's InceptionV3 with these weights.

    Raises:
        MissingExtra: torch-fidelity is not installed.
    """
    with extra("evaluation"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    # It unpickles whatever file it is given, so it gets one that was written here.
    written = io.BytesIO()
    torch.save(state_dict, written)
    written.seek(0)
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], written)
