"""A directory of one's own images."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from nca_lib.data.images import Orientations, Split, listing_hash, random_crop, to_float
from nca_lib.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}


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
        split: `"train"` or `"test"`.

    Raises:
        DataError: no images, or unreadable or too small ones; every bad file is named.
    """

    channels = 3

    def __init__(
        self,
        path: str,
        size: int = 64,
        downscale: int = 1,
        fit: Literal["crop", "resize"] = "crop",
        orientations: Orientations = 8,
        split: Split = "train",
    ):
        self.size, self.downscale, self.fit, self.orientations = size, downscale, fit, orientations
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{path} is not a directory; give one that holds images")
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no images; known kinds are {', '.join(sorted(_SUFFIXES))}")
        self.in_space = len(files) < 10
        self.split: Split = split
        problems = [f"{file}: {problem}" for file in files if (problem := self._problem(file))]
        if problems:
            raise DataError(f"{len(problems)} of {len(files)} files cannot be used:\n" + "\n".join(problems))
        if not self.in_space:
            ranked = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).hexdigest())
            files = [file for rank, file in enumerate(ranked) if (rank % 10 == 0) == (split == "test")]
        self.files = files

    def _problem(self, file: Path) -> str | None:
        if not file.is_file():
            return "is no file"  # a pipe would be waited for
        try:
            with Image.open(file) as image:
                width, height = image.size
                if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
                    width, height = height, width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"unreadable ({type(error).__name__})"
        usable = width // self.downscale
        if self.in_space:
            usable = (
                min(usable * 3 // 4, usable - usable * 3 // 4) if self.split == "test" else usable * 3 // 4
            )
        if self.fit == "crop" and min(usable, height // self.downscale) < self.size:
            part = f" ({usable} pixels wide in the {self.split} part)" if self.in_space else ""
            return (
                f"{width}x{height} is too small{part}: crops are {self.size}x{self.size} "
                f"after downscaling by {self.downscale}"
            )
        return None

    def __len__(self) -> int:
        """Number of files in the split; at least 256, so that a few large slides make a full pass."""
        return max(len(self.files), 256)

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop (or the resized centre) of file `index`."""
        picture = _read_rgb(self.files[index % len(self.files)], self.downscale)
        if self.in_space:
            edge = picture.shape[2] * 3 // 4
            picture = picture[:, :, :edge] if self.split == "train" else picture[:, :, edge:]
        if self.fit == "resize":
            scale = self.size / min(picture.shape[1:])
            height, width = (max(self.size, round(side * scale)) for side in picture.shape[1:])
            picture = F.interpolate(
                picture[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False
            )[0]
            top, left = (height - self.size) // 2, (width - self.size) // 2
            picture = picture[:, top : top + self.size, left : left + self.size]
        return random_crop(picture, self.size, rng, self.orientations)

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return listing_hash(self.files)


@lru_cache(maxsize=64)
def _read_rgb(file: Path, downscale: int) -> Tensor:
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip instead of scaling
                grey = (np.asarray(upright, dtype=np.float32) / 257).clip(0, 255)
                picture = to_float(grey[:, :, None].repeat(3, axis=2))
            elif upright.has_transparency_data:  # onto white: what lies under transparent pixels is arbitrary
                white = Image.new("RGBA", upright.size, "white")
                picture = to_float(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"))
            else:
                picture = to_float(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error})") from error
    return F.avg_pool2d(picture, downscale) if downscale > 1 else picture
