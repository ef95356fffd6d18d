"""Image files in and out, of any mode: what the command line edits (chapter 6).

[`read`][] returns a tensor and an [`Original`][], which remembers what the tensor does not hold;
[`write`][] gives the result the same form. [`edit`][] does both around an edit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nca_lib.data.images import MOST_PIXELS, opened, to_float, to_pixels, whole
from nca_lib.errors import DataError
from nca_lib.files import check_writable, write_atomically

WRITTEN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm")
"""Suffixes of the formats that hold a picture as it is, or nearly so."""
LONGEST = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}
"""How many pixels a side may have, of formats with such a limit; that of JPEG is libjpeg's."""


@dataclass(frozen=True)
class Original:
    """What a file held besides its colours.

    Attributes:
        path: the file.
        mode: `"RGB"`, `"L"` (grey) or `"I;16"` (grey, 16 bits).
        width: its pixels in a row.
        alpha: its opacity, if it has any.
        about: what the file says of its pixels: `dpi`, how many there are to an inch, and `icc_profile`.
    """

    path: Path
    mode: Literal["RGB", "L", "I;16"]
    width: int
    alpha: Image.Image | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def said_of(self, picture: Image.Image) -> dict[str, Any]:
        """`about` as it holds of an edited picture: enlarged, it has more pixels to the inch."""
        factor = picture.width / self.width
        dpi = {"dpi": tuple(factor * dots for dots in self.about["dpi"])} if "dpi" in self.about else {}
        return self.about | dpi


def read(path: str | Path, max_pixels: int = MOST_PIXELS) -> tuple[Tensor, Original]:
    """Read an image of 8 or 16 bits, upright: (3, H, W) in [-1, 1], and what else the file held.

    Opacity is kept aside; pixels that are fully transparent have no colour, and count as white. Of 16 bits
    of colour Pillow reads the upper 8.

    Raises:
        DataError: the file cannot be read, or holds more than `max_pixels`, or floating-point numbers; or 16
            bits of which the upper four are never used, as cameras of 12 bits leave them.
    """
    path = Path(path)
    with opened(path, max_pixels) as file:
        deep = any(";16" in str(tile.args) for tile in getattr(file, "tile", []))
        image = whole(file)
    about = _about(image)
    if image.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip instead of scaling
        grey = torch.from_numpy(np.array(image, dtype=np.float32)).clamp(0, 65535) / 32767.5 - 1
        _check_depth(path, grey)
        return grey.expand(3, -1, -1).contiguous(), Original(path, "I;16", image.width, about=about)
    mode: Literal["RGB", "L"] = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
    alpha, picture = None, image.convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha, white = rgba.getchannel("A"), Image.new("RGB", image.size, "white")
        picture = Image.composite(rgba.convert("RGB"), white, alpha.point(lambda value: 255 if value else 0))
    colours = to_float(picture)
    if deep:
        _check_depth(path, colours)
    return colours, Original(path, mode, image.width, alpha, about)


def _about(image: Image.Image) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if all(0 < float(dots) < math.inf for dots in image.info.get("dpi", [0])):
        found["dpi"] = tuple(float(dots) for dots in image.info["dpi"])
    if image.mode in {"RGB", "RGBA", "L", "LA"} and "icc_profile" in image.info:
        found["icc_profile"] = image.info["icc_profile"]
    return found


def _check_depth(path: Path, image: Tensor) -> None:
    brightest = float(image.max()) / 2 + 0.5
    if 0 < brightest < 1 / 16:
        raise DataError(
            f"{path}: its brightest pixel has {brightest:.1%} of what 16 bits hold, as if there were 12; "
            "multiply its values by 16"
        )


def read_mask(path: str | Path, image: Tensor, original: Original, max_pixels: int = MOST_PIXELS) -> Tensor:
    """Read the mask of an image: (1, 1, H, W) bool, True where the image is known.

    In the file what is to be filled is white (brighter than half); transparent counts as black.

    Args:
        path: the mask's file.
        image: (3, H, W), the image it belongs to.
        original: that image's file.
        max_pixels: the most that the file may hold.

    Raises:
        DataError: the file cannot be read, has another size than the image, marks nothing, or is a picture.
    """
    path = Path(path)
    with opened(path, max_pixels) as file:
        mask = whole(file)
    height, width = image.shape[1:]
    if mask.size != (width, height):
        raise DataError(
            f"{path} is {mask.width}x{mask.height}, but {original.path} is {width}x{height} "
            "(width x height); a mask has its image's size"
        )
    if mask.mode.startswith("I"):
        values = torch.from_numpy(np.array(mask, dtype=np.float32)) / 65535
    else:
        black = Image.new("RGBA", mask.size, "black")
        flat = Image.alpha_composite(black, mask.convert("RGBA")).convert("L")
        values = torch.from_numpy(np.array(flat)) / 255
    hole = values > 0.5
    if not hole.any():
        raise DataError(
            f"{path} marks nothing: its brightest pixel is {float(values.max()):.1%} of white; what is to be "
            "filled must be white"
        )
    grey = float(((values > 0.125) & (values < 0.875)).double().mean())
    if grey > 0.5:
        raise DataError(f"{path} is no mask, {grey:.0%} of it are grey; black is kept and white filled")
    return ~hole[None, None]


def write(image: Tensor, path: str | Path, like: Original | None = None, force: bool = False) -> None:
    """Write (C, H, W) in [-1, 1], C of 1 or 3, in the mode of the file that it came from.

    The suffix says the format. Opacity is put back, enlarged if the image is; resolution and colour profile
    are the file's, where the format holds them.

    Raises:
        DataError: the file exists and `force` is off, or the format is unknown or cannot hold the image.
    """
    path = Path(path)
    check_output(path, force, like, (image.shape[1], image.shape[2]))
    mode = like.mode if like else "RGB" if len(image) == 3 else "L"
    image = image.detach().cpu().float().clamp(-1, 1)
    if mode != "RGB" and len(image) == 3:
        image = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    if mode == "I;16":
        picture = Image.fromarray(((image[0] / 2 + 0.5) * 65535).round().numpy().astype(np.uint16))
    else:
        pixels = to_pixels(image).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels.repeat(3 // len(image), axis=2))
    if like and like.alpha:
        picture.putalpha(like.alpha.resize(picture.size, Image.Resampling.BILINEAR))
    about = like.said_of(picture) if like else {}
    if path.suffix.lower() in {".jpg", ".jpeg"} and max(about.get("dpi", [0])) > 65_535:
        del about["dpi"]  # JPEG has two bytes for it
    write_atomically(path, _encoded(picture, path, **about))


def _encoded(picture: Image.Image, path: Path, **about: Any) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, Image.registered_extensions()[path.suffix.lower()], quality=95, **about)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be written ({error}); .png holds every kind of image") from error
    return file.getvalue()


def sheet(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] side by side in rows, on black: (C, H', W')."""
    rows = -(-len(images) // columns)
    cells = F.pad(images, (padding, 0, padding, 0), value=-1)
    cells = F.pad(cells, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(images)), value=-1)
    whole = cells.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
    return F.pad(whole, (0, padding, 0, padding), value=-1)


def sheet_size(count: int, columns: int, height: int, width: int, padding: int = 2) -> tuple[int, int]:
    """Height and width of the [`sheet`][] of so many images."""
    return -(-count // columns) * (height + padding) + padding, columns * (width + padding) + padding


def check_output(
    path: str | Path,
    force: bool = False,
    like: Original | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Refuse, before anything is computed, an output that could not be written.

    Args:
        path: the output's file.
        force: overwrite it if it exists.
        like: the file that the image comes from.
        size: the image's height and width, where they are known before.

    Raises:
        DataError: the file exists and `force` is off, or its format is unknown or cannot hold such an image.
        OutputError: its folder does not exist, or the file cannot be written there.
    """
    path = Path(path)
    check_writable(path)
    if path.suffix.lower() not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is no known image format; choose one of {known}"
        )
    if path.exists() and not force:
        raise DataError(f"{path} exists; add --force to overwrite it, or choose another name")
    longest = LONGEST.get(path.suffix.lower())
    if size and longest and max(size) > longest:
        raise DataError(
            f"{path}: {size[1]}x{size[0]} is too large for {path.suffix} (up to {longest:,} pixels a side); "
            ".png and .tiff hold it"
        )
    mode = like.mode if like else "RGB"
    sample = Image.new(mode, (8, 8))
    if like and like.alpha:
        sample.putalpha(255)
    _encoded(sample, path)  # formats that are read only, or without opacity, show it here


def edit(
    source: str | Path,
    out: str | Path,
    change: Callable[[Tensor], Tensor],
    *,
    channels: int = 3,
    factor: int = 1,
    force: bool = False,
    max_pixels: int = MOST_PIXELS,
) -> Tensor:
    """Read an image, change it, write the result in the same mode; returns the result, (1, C, H, W).

    Args:
        source: the image's file.
        out: the result's file.
        change: maps (1, `channels`, H, W) to (1, `channels`, H', W'), both in [-1, 1].
        channels: 3, or 1 for a model of grey images.
        factor: how many times larger the result is.
        force: overwrite `out` if it exists.
        max_pixels: the most that the image may have.

    Raises:
        DataError: a file cannot be read, or not be written.
    """
    image, original = read(source, max_pixels)
    check_output(out, force, original, (factor * image.shape[1], factor * image.shape[2]))
    result = change(image[None] if channels == 3 else image.mean(0)[None, None])
    write(result[0], out, original, force)
    return result
