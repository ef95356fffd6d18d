"""Images to learn from.

A data set is a sequence of images, asked for one at a time: `data.image(index, rng)` returns a float
tensor (C, size, size) in [-1, 1], its random crop and orientation drawn from `rng`. [`Stream`][] turns
one into the endless, resumable sequence that training reads: item n depends on (seed, n) and on nothing
else. Nothing here downloads anything.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

Split = Literal["train", "test"]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}


class DataError(ValueError):
    """The images cannot be used; the message names each file and what is wrong with it."""


class Images(Protocol):
    """What every data set offers."""

    channels: int
    size: int

    def __len__(self) -> int:
        """How many images (for crops: how many crops count as one pass)."""
        ...

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """One image, (channels, size, size), float32 in [-1, 1]."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes when the data changes."""
        ...


class Stream(Dataset[Tensor]):
    """An endless, shuffled sequence of a data set's images; item n depends on (seed, n) only.

    Each pass visits every image once, in a new order. A training that stops after n items resumes by
    asking for item n.
    """

    def __init__(self, data: Images, seed: int):
        self.data, self.seed = data, seed

    def __getitem__(self, n: int) -> Tensor:
        """Item n of the sequence, (C, size, size) in [-1, 1]."""
        epoch, position = divmod(n, len(self.data))
        index = _epoch_order(self.seed, epoch, len(self.data))[position]
        return self.data.image(int(index), np.random.default_rng([self.seed, n, 1]))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0]).permutation(length)


def random_crop(image: Tensor, size: int, rng: np.random.Generator, orientations: int = 8) -> Tensor:
    """Cut a random `size` x `size` crop of (C, H, W) and turn it by a random symmetry of the square.

    `orientations` is 8 (rotations and reflections), 2 (left-right flips) or 1 (as it is).
    """
    _, height, width = image.shape
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return _turned(image[:, top : top + size, left : left + size], rng, orientations)


def _turned(crop: Tensor, rng: np.random.Generator, orientations: int) -> Tensor:
    turn = int(rng.integers(orientations))
    if orientations == 8:
        crop = torch.rot90(crop, turn // 2, dims=(1, 2))
    return crop.flip(2) if turn % 2 else crop


def to_float(image: np.ndarray | Image.Image) -> Tensor:
    """An 8-bit image (H, W, C) as a float32 tensor (C, H, W) in [-1, 1]."""
    array = torch.from_numpy(np.array(image, dtype=np.float32))
    return array.permute(2, 0, 1).contiguous() / 127.5 - 1


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
        return _turned(self.photo[:, top : top + self.size, left : left + self.size], rng, 8)

    def fingerprint(self) -> str:
        """Hash of the pixels and of where crops are taken."""
        return _hash(torch.cat([self.photo.flatten(), self.allowed.flatten()]))


class Digits:
    """The 1,797 real handwritten digits that ship with scikit-learn, greyscale, white on black.

    Args:
        size: height and width; 8 as they are, else drawn larger: with a margin of one of the old pixels, in
            which strokes can end, resampled (bicubic), and edges steepened, which leaves the ground black.
        split: `"train"` (the first 1,500) or `"test"` (the rest, from other writers).
    """

    channels = 1

    def __init__(self, size: int = 8, split: Split = "train"):
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
        return _hash(self.images)


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
        orientations: int = 8,
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
        try:
            with Image.open(file) as image:
                width, height = image.size
                if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
                    width, height = height, width
        except (UnidentifiedImageError, OSError) as error:
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
        listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()[:16]


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


def picture(source: str, size: int) -> Tensor:
    """A target for growing: (4, size, size) in [0, 1], RGB premultiplied by opacity, with a margin.

    `source` is `"ladybird"`, or the path of an image (RGBA, or its white background stays).

    Raises:
        DataError: neither a built-in picture nor a readable image.
    """
    inner = size * 4 // 5
    if source == "ladybird":
        drawing = _ladybird()
    else:
        try:
            with Image.open(source) as image:
                drawing = image.convert("RGBA")
        except OSError as error:
            raise DataError(f"{source}: neither 'ladybird' nor a readable image ({error})") from error
    drawing.thumbnail((inner, inner), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    rgba = to_float(canvas) / 2 + 0.5
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])


def _ladybird() -> Image.Image:
    image = Image.new("RGBA", (640, 640))
    draw = ImageDraw.Draw(image)
    black, red, dark, white = "#221d1d", "#e2382c", "#8f1a1c", "#f7f3ea"
    for knee, foot in (((215, 285), (95, 215)), ((185, 390), (60, 400)), ((215, 490), (100, 585))):
        for flip in (False, True):
            points = [(640 - x if flip else x, y) for x, y in ((300, knee[1] + 30), knee, foot)]
            draw.line(points, fill=black, width=34, joint="curve")
            draw.ellipse(
                [points[-1][0] - 17, points[-1][1] - 17, points[-1][0] + 17, points[-1][1] + 17], black
            )
    for x, tip in ((260, 185), (380, 455)):
        draw.line([(x, 130), (tip, 30)], fill=black, width=26)
        draw.ellipse([tip - 26, 8, tip + 26, 60], black)
    draw.ellipse([200, 80, 440, 300], black)
    draw.ellipse([222, 130, 280, 190], white)
    draw.ellipse([360, 130, 418, 190], white)
    draw.ellipse([130, 190, 510, 620], dark)
    draw.ellipse([146, 200, 494, 604], red)
    draw.rectangle([310, 200, 330, 606], black)
    draw.pieslice([180, 180, 460, 330], 180, 360, black)
    for x, y, r in ((235, 330, 42), (210, 455, 38), (265, 535, 30)):
        draw.ellipse([x - r, y - r, x + r, y + r], black)
        draw.ellipse([640 - x - r, y - r, 640 - x + r, y + r], black)
    shine = Image.new("RGBA", image.size)
    ImageDraw.Draw(shine).ellipse([175, 250, 255, 300], "#ffffff70")
    return Image.alpha_composite(image, shine.filter(ImageFilter.GaussianBlur(12)))


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
