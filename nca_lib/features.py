"""What the evaluation sees in an image: extractors of features (chapter 5).

[`Inception`][] is the network that FID is defined by; its weights are read where torch-fidelity keeps them
and are never downloaded. [`SmallFeatures`][] always serves: a small network that ships with the library,
trained by [`train_features`][] (`python -m nca_lib.features`, minutes on one core). Its distances are
reported under its own name and are no FID.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from nca_lib.data import Digits, Split, random_crop, to_float
from nca_lib.faces import (
    BEARDS,
    EYE_COLOURS,
    GLASSES,
    HAIR_COLOURS,
    HAIR_STYLES,
    MOUTHS,
    SKINS,
    Faces,
    draw,
)
from nca_lib.weights import WeightsError, write_atomically

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Extractor(nn.Module):
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

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8, to (B, d), float32."""
        raise NotImplementedError


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
        ImportError: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            "Inception's network comes from torch-fidelity: pip install torch-fidelity"
        ) from error
    # It unpickles whatever file it is given, so it gets one that was written here.
    written = io.BytesIO()
    torch.save(state_dict, written)
    written.seek(0)
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], written)


def to_pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] to (B, 3, H, W), uint8, on the CPU; grey is repeated."""
    return ((images.cpu() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)


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


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; `sigma` in pixels of a 64x64 image, scaled with the image's size."""
    sigma = sigma * images.shape[-1] / 64
    if sigma == 0:
        return images
    offsets = torch.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, [len(offsets) // 2] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


def noisy(images: Tensor, deviation: float) -> Tensor:
    """White noise, always the same for images of this shape."""
    generator = torch.Generator().manual_seed(len(images))
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def tinted(images: Tensor, amount: float) -> Tensor:
    """Red raised and blue lowered by `amount`."""
    return (images + amount * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)).clamp(-1, 1)


DISTORTIONS = {"blur": blurred, "noise": noisy, "colour": tinted}
_STRENGTHS = {"blur": (0.4, 2.0), "noise": (0.04, 0.4), "colour": (0.05, 0.4)}  # for training


def glued(images: Tensor) -> Tensor:
    """The left halves of the images, with the right halves of their neighbours in the batch."""
    half = images.shape[-1] // 2
    return torch.cat([images[..., :half], images.roll(1, 0)[..., half:]], -1)


# Those that are wide enough to hold out a quarter.
_PHOTOS = ("astronaut", "brick", "camera", "coffee", "grass", "gravel", "hubble_deep_field", "moon", "retina",
           "rocket")  # fmt: skip
_ATTRIBUTES: dict[str, list[Any]] = {
    "skin": sorted(SKINS),
    "hair_style": sorted(HAIR_STYLES),
    "hair_colour": sorted(HAIR_COLOURS),
    "eye_colour": sorted(EYE_COLOURS),
    "mouth": sorted(MOUTHS),
    "glasses": sorted(GLASSES),
    "beard": sorted(BEARDS),
    "light": [-1, 1],
}


class _Lessons:
    """Labelled batches of one split: faces, textures (tissue among them), digits, whole or distorted."""

    def __init__(self, split: Split, faces: int, seed: int):
        self.rng = np.random.default_rng([seed, int(split == "test")])
        portraits = [Faces(split=split).attributes(index) for index in range(faces)]
        self.faces = torch.cat([draw(portraits[i : i + 64], 64) for i in range(0, faces, 64)]).half()
        self.labels = torch.tensor(
            [[values.index(getattr(p, name)) for name, values in _ATTRIBUTES.items()] for p in portraits]
        )
        self.textures = [_photo(name, split) for name in ("immunohistochemistry", *_PHOTOS)]
        self.digits = Digits(32, split)

    def outputs(self) -> dict[str, int]:
        """The tasks, and how many classes each has."""
        attributes = {name: len(values) for name, values in _ATTRIBUTES.items()}
        return {**attributes, "texture": len(self.textures), "digit": 10, "distortion": len(DISTORTIONS) + 2}

    def batch(self, count: int = 96) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (count, 3, S, S), S = 32 or 64, and each task's classes, -1 where they are undefined."""
        side = int(self.rng.choice([32, 64]))
        groups = [self._faces(count // 2), self._textures(count // 4), self._digits(count // 4)]
        images = torch.cat(
            [F.interpolate(x, (side, side), mode="bilinear", antialias=True) for x, _ in groups]
        )
        labels = {task: torch.full((count,), -1) for task in self.outputs()}
        start = 0
        for x, known in groups:
            for task, classes in known.items():
                labels[task][start : start + len(x)] = classes
            start += len(x)
        return self._distort(images, labels)

    def _faces(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = self.rng.integers(len(self.faces), size=count)
        return self.faces[chosen].float(), dict(zip(_ATTRIBUTES, self.labels[chosen].T, strict=True))

    def _textures(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        # Half of them tissue; at full or at half scale.
        sources = self.rng.integers(1, len(self.textures), size=count) * (self.rng.random(count) < 0.5)
        crops = []
        for source in sources:
            scale = int(self.rng.integers(1, 3))
            crop = random_crop(self.textures[source], 64 * scale, self.rng)
            crops.append(F.avg_pool2d(crop, scale))
        return torch.stack(crops), {"texture": torch.from_numpy(sources)}

    def _digits(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = self.rng.integers(len(self.digits), size=count)
        return self.digits.images[chosen].expand(-1, 3, -1, -1), {"digit": self.digits.labels[chosen]}

    def _distort(self, images: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # Half stay whole and keep their labels; of the others, only the kind of distortion is asked.
        kinds = torch.from_numpy(self.rng.integers(0, len(DISTORTIONS) + 1, size=len(images)))
        kinds[torch.from_numpy(self.rng.random(len(images)) < 0.5)] = -1
        images = images.clone()
        halves = glued(images)
        for kind, (name, distort) in enumerate(DISTORTIONS.items()):
            images[kinds == kind] = distort(images[kinds == kind], self.rng.uniform(*_STRENGTHS[name]))
        images[kinds == len(DISTORTIONS)] = halves[kinds == len(DISTORTIONS)]
        for task in labels:
            labels[task][kinds >= 0] = -1
        return images, {**labels, "distortion": kinds + 1}


def _photo(name: str, split: Split) -> Tensor:
    from skimage import data

    pixels = np.atleast_3d(getattr(data, name)())
    photo = to_float(pixels).expand(3, -1, -1)
    edge = photo.shape[2] * 3 // 4
    return photo[:, :, :edge] if split == "train" else photo[:, :, edge:]


def train_features(path: Path, *, steps: int = 1100, faces: int = 4800, seed: int = 0) -> SmallFeatures:
    """Train the small extractor and write it with its record; a few minutes on one core.

    Its lessons: the attributes of drawn faces, which photograph a crop of texture comes from (half are
    tissue), which digit, and whether and how an image was distorted, halves of two images glued together
    being one of the ways. Accuracies are of held-out images. On one thread of one kind of processor, the same
    seed gives the same file.
    """
    torch.manual_seed(seed)
    started = time.perf_counter()
    lessons, held_out = _Lessons("train", faces, seed), _Lessons("test", min(640, faces), seed)
    network = SmallFeatures("nca-features-1").to(memory_format=torch.channels_last)
    heads = nn.ModuleDict({t: nn.Linear(network.num_features, n) for t, n in lessons.outputs().items()})
    optimizer = torch.optim.AdamW([*network.parameters(), *heads.parameters()], 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        images, labels = lessons.batch()
        seen = network.describe(images.to(memory_format=torch.channels_last))
        losses = [F.cross_entropy(heads[task](seen), y, ignore_index=-1) for task, y in labels.items()]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    network.eval()
    accuracy = _accuracies(network, heads, held_out)
    with torch.no_grad():
        seen = torch.cat([network.describe(lessons.batch()[0]) for _ in range(20)])
        network.shift.copy_(seen.mean(0))
        network.scale.copy_(seen.std(0))
    _write(network, path, {
        "name": network.name,
        "trained_on": "drawn faces, textures of scikit-image (half of them tissue), digits of scikit-learn",
        "settings": {"steps": steps, "faces": faces, "seed": seed, "batch": 96},
        "held_out_accuracy": accuracy,
        "training_seconds": round(time.perf_counter() - started),
    })  # fmt: skip
    return network.requires_grad_(False)


@torch.no_grad()
def _accuracies(network: SmallFeatures, heads: nn.ModuleDict, lessons: _Lessons) -> dict[str, float]:
    right, asked = dict.fromkeys(heads, 0), dict.fromkeys(heads, 0)
    for _ in range(12):
        images, labels = lessons.batch()
        seen = network.describe(images)
        for task, y in labels.items():
            right[task] += int((heads[task](seen).argmax(1) == y).sum())
            asked[task] += int((y >= 0).sum())
    return {task: round(right[task] / asked[task], 3) for task in heads}


def _write(network: SmallFeatures, path: Path, record: dict[str, Any]) -> None:
    blob = to_safetensors({name: value.contiguous() for name, value in network.state_dict().items()})
    network.sha256 = hashlib.sha256(blob).hexdigest()
    full = {
        **record,
        "num_features": network.num_features,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sha256": network.sha256,
        "torch_version": torch.__version__,
    }
    write_atomically(path, blob)
    write_atomically(path.with_suffix(".json"), json.dumps(full, indent=2).encode() + b"\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_features(shipped_path())
