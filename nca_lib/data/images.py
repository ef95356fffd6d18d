"""What a data set is, and the endless sequence that training reads.

A data set is a sequence of images, asked for one at a time: `data.image(index, rng)` returns a float
tensor (C, size, size) in [-1, 1], its random crop and orientation drawn from `rng`. [`Stream`][] turns
one into the endless, resumable sequence that training reads: item n depends on (seed, n) and on nothing
else. Nothing here downloads anything.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from nca_lib.errors import DataError

Split = Literal["train", "test"]
Orientations = Literal[1, 2, 8]
MOST_PIXELS = 89_478_485
"""How many an image file may hold: as Pillow has it, a quarter of a gigabyte of RGB."""


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


def random_crop(image: Tensor, size: int, rng: np.random.Generator, orientations: Orientations = 8) -> Tensor:
    """Cut a random `size` x `size` crop of (C, H, W) and turn it by a random symmetry of the square.

    `orientations` is 8 (rotations and reflections), 2 (left-right flips) or 1 (as it is).
    """
    _, height, width = image.shape
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    return turned(image[:, top : top + size, left : left + size], rng, orientations)


def turned(crop: Tensor, rng: np.random.Generator, orientations: Orientations) -> Tensor:
    """A square (C, S, S) in one of its orientations by chance, see [`random_crop`][]."""
    turn = int(rng.integers(orientations))
    if orientations == 8:
        crop = torch.rot90(crop, turn // 2, dims=(1, 2))
    return crop.flip(2) if turn % 2 else crop


def to_float(image: np.ndarray | Image.Image) -> Tensor:
    """An 8-bit image (H, W, C) as a float32 tensor (C, H, W) in [-1, 1]."""
    array = torch.from_numpy(np.array(image, dtype=np.float32))
    return array.permute(2, 0, 1).contiguous() / 127.5 - 1


def to_pixels(image: Tensor) -> Tensor:
    """Any shape in [-1, 1] as uint8 on the CPU, the nearest of 256 levels: what every picture file holds."""
    return ((image.detach().cpu().float().clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8)


def hash_of(tensor: Tensor) -> str:
    """A hash of a tensor's numbers, for fingerprints."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@contextmanager
def opened(file: Path, most: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """An image file, open during the block, its pixels not read yet.

    Whatever a decoder makes of a damaged or hostile file, here or within the block, is a DataError.

    Args:
        file: of any format that Pillow reads.
        most: pixels. A small file may claim to hold many.

    Raises:
        DataError: no file, unreadable, truncated, of more pixels, of floating-point numbers, or several
            pictures of one size (the channels of an OME-TIFF, or a stack).
    """
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: unreadable (is no file)")  # a pipe would be waited for
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which plays no part
            with Image.open(file) as image:
                if image.width * image.height > most:
                    raise DataError(
                        f"{file}: {image.width}x{image.height} is more than {most:,} pixels; "
                        "cut it into tiles, or raise max_pixels"
                    )
                if image.mode == "F":
                    raise DataError(
                        f"{file}: its pixels are floating-point numbers; save them as 8 or 16 bits"
                    )
                if (pages := _pages(image)) > 1:
                    raise DataError(
                        f"{file}: {pages} pages of {image.width}x{image.height}, as channels or a stack; "
                        "save one picture in colour"
                    )
                yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        reason = "no format or no pixels that Pillow knows" if file.stat().st_size else "it is empty"
        raise DataError(f"{file}: unreadable ({reason})") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{file}: unreadable ({reason.splitlines()[0]:.120})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pages(image: Image.Image) -> int:
    """How many pictures of one size a TIFF holds; those of a pyramid become smaller."""
    pages = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
    if pages == 1:
        return 1
    first = image.size
    image.seek(1)
    alike = image.size == first
    image.seek(0)
    return pages if alike else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ON_ITS_SIDE = {turn for orientation, turn in _TURNS.items() if orientation >= 5}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How a photograph is to be turned, by its EXIF; broken EXIF says nothing."""
    if image.format == "PNG":  # where EXIF may lie behind the pixels
        image.load()
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the parser's, of any kind
        return None


def whole(image: Image.Image) -> Image.Image:
    """The pixels of an opened image, upright.

    Raises:
        OSError: the file is truncated, be it behind its last pixel.
    """
    image.load()
    if image.format == "PNG":  # of which Pillow takes the pixels, and does not ask for the rest
        with Image.open(image.filename) as again:  # type: ignore[attr-defined]
            again.verify()
    turn = turn_of(image)
    return image.copy() if turn is None else image.transpose(turn)


def open_rgb(file: Path, most: int = MOST_PIXELS) -> Image.Image:
    """Read an image as RGB.

    Raises:
        DataError: as [`opened`][].
    """
    with opened(file, most) as image:
        return image.convert("RGB")


def listing_hash(files: list[Path]) -> str:
    """A hash of the files' names and sizes, for fingerprints."""
    listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
