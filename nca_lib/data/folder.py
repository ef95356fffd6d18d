"""A directory of one's own images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from nca_lib.data.images import (
    MOST_PIXELS,
    ON_ITS_SIDE,
    Orientations,
    Split,
    listing_hash,
    opened,
    turn_of,
    turned,
    whole,
)
from nca_lib.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}

Version = tuple[int, int]  # of a file: when it was changed, nanoseconds, and its size, bytes


class Folder:
    """Any directory of images (searched recursively), of any size and mode, read as RGB on white.

    With ten files or more, every tenth (in order of the hash of its name) is held out for the test split;
    with fewer, the right quarter of each image is.

    Args:
        path: the directory.
        size: height and width of what is returned, pixels.
        downscale: reduce each image by this factor first (area average).
        fit: `"crop"` a random square (textures, slides), or `"resize"` the shorter side to `size` and cut the
            centre (portraits, objects).
        orientations: 8 (rotations and flips), 2 (left-right flips) or 1.
        max_pixels: the most that an image may have. What is larger, kind `"slides"` reads in parts.
        split: `"train"` or `"test"`.

    Raises:
        DataError: no images, or unreadable, too small or too large ones; every bad file is named.
    """

    channels = 3

    def __init__(
        self,
        path: str,
        size: int = 64,
        downscale: int = 1,
        fit: Literal["crop", "resize"] = "crop",
        orientations: Orientations = 8,
        max_pixels: int = MOST_PIXELS,
        split: Split = "train",
    ):
        self.size, self.downscale, self.fit, self.orientations = size, downscale, fit, orientations
        self.max_pixels = max_pixels
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{path} is not a directory; give one that holds images")
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no images; known kinds are {', '.join(sorted(_SUFFIXES))}")
        self.in_space = len(files) < 10
        self.crops_move = False  # where all files are as large as a crop, there is one of each
        self.split: Split = split
        problems = [f"{file}: {problem}" for file in files if (problem := self._problem(file))]
        if problems:
            raise DataError(f"{len(problems)} of {len(files)} files cannot be used:\n" + "\n".join(problems))
        if not self.in_space:
            ranked = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).hexdigest())
            files = [file for rank, file in enumerate(ranked) if (rank % 10 == 0) == (split == "test")]
        self.files = files
        # What a folder before this one has read of files that were replaced since is not theirs.
        self.versions = [(about.st_mtime_ns, about.st_size) for about in map(Path.stat, files)]

    def _problem(self, file: Path) -> str | None:
        try:
            with opened(file, self.max_pixels) as image:
                width, height = image.size
                turn = turn_of(image)
        except DataError as error:
            return str(error).removeprefix(f"{file}: ")
        if turn in ON_ITS_SIDE:
            width, height = height, width
        usable = width // self.downscale
        if self.in_space:
            usable = (
                min(usable * 3 // 4, usable - usable * 3 // 4) if self.split == "test" else usable * 3 // 4
            )
        if self.fit == "resize" and min(usable, height // self.downscale) < 2:
            return f"{width}x{height} is too small to be resized; at least 2x2 after downscaling"
        if self.fit == "crop" and min(usable, height // self.downscale) < self.size:
            part = f" ({usable} pixels wide in the {self.split} part)" if self.in_space else ""
            return (
                f"{width}x{height} is too small{part}: crops are {self.size}x{self.size} "
                f"after downscaling by {self.downscale}"
            )
        if self.fit == "crop" and max(usable, height // self.downscale) > self.size:
            self.crops_move = True
        return None

    def __len__(self) -> int:
        """Number of files in the split; where crops move at least 256: a few slides make a full pass."""
        return max(len(self.files), 256) if self.crops_move else len(self.files)

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop (or the resized centre) of file `index`."""
        place = index % len(self.files)
        picture = _PICTURES.get(self.files[place], self.versions[place], self.max_pixels)
        height, width = (side // self.downscale for side in picture.shape[:2])
        left = 0
        if self.in_space:
            edge = width * 3 // 4
            left, width = (0, edge) if self.split == "train" else (edge, width - edge)
        side = min(height, width) if self.fit == "resize" else self.size
        if self.fit == "resize":
            top, left = (height - side) // 2, left + (width - side) // 2
        else:
            top, left = int(rng.integers(height - side + 1)), left + int(rng.integers(width - side + 1))
        rows, columns = (
            slice(first * self.downscale, (first + side) * self.downscale) for first in (top, left)
        )
        crop = _to_float(picture[rows, columns])
        if self.downscale > 1:
            crop = F.avg_pool2d(crop, self.downscale)
        if self.fit == "resize":
            size = (self.size, self.size)
            crop = F.interpolate(crop[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        return turned(crop, rng, self.orientations)

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return listing_hash(self.files)


class _Pictures:
    """Files' pixels as they were read, the last ones used, in no more than `most` bytes.

    Of several processes that read images each keeps its part.
    """

    def __init__(self, most: int):
        self.most, self.held = most, 0
        self.pictures: OrderedDict[tuple[Path, Version], np.ndarray] = OrderedDict()

    def get(self, file: Path, version: Version, max_pixels: int) -> np.ndarray:
        """The pixels of a file, (H, W, 3) uint8, or (H, W, 1) uint16 of 16 bits."""
        key = (file, version)
        if key not in self.pictures:
            self.pictures[key] = _read(file, max_pixels)
            self.held += self.pictures[key].nbytes
        self.pictures.move_to_end(key)
        worker = get_worker_info()
        while self.held > self.most // (worker.num_workers if worker else 1) and len(self.pictures) > 1:
            self.held -= self.pictures.popitem(last=False)[1].nbytes
        return self.pictures[key]


_PICTURES = _Pictures(1_000_000_000)


def _read(file: Path, max_pixels: int) -> np.ndarray:
    with opened(file, max_pixels) as image:
        upright = whole(image)
        if upright.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip instead of scaling
            return np.asarray(upright).clip(0, 65535).astype(np.uint16)[:, :, None]
        if upright.has_transparency_data:  # onto white: what lies under transparent pixels is arbitrary
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return np.asarray(upright.convert("RGB"))


def _to_float(pixels: np.ndarray) -> Tensor:
    """(H, W, 1 or 3), 16 or 8 bits, to (3, H, W) in [-1, 1]."""
    half = np.iinfo(pixels.dtype).max / 2
    floats = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()
    return (floats / half - 1).expand(3, -1, -1)
