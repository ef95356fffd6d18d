"""How the small extractor was trained: `python -m nca_lib.evaluation.lessons`, minutes on one core."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from nca_lib.data.digits import Digits
from nca_lib.data.faces import (
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
from nca_lib.data.images import Split, random_crop, to_float
from nca_lib.evaluation.distortions import DISTORTIONS, glued
from nca_lib.evaluation.extractors.small import SmallFeatures, shipped_path
from nca_lib.extras import extra
from nca_lib.files import write_atomically

_STRENGTHS = {"blur": (0.4, 2.0), "noise": (0.04, 0.4), "colour": (0.05, 0.4)}  # for training


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
    with extra("data"):
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
