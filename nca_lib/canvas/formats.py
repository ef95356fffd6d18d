"""The files that a finished canvas becomes, written in pieces: pyramidal TIFF, OME-Zarr, PNG (chapter 7).

A picture here is anything with a `shape` (C, H, W) that gives a part of itself as uint8,
`picture[:, rows, columns]`: an array in memory, a Zarr array, or a [`Finished`][] canvas on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from nca_lib.canvas.outofcore import Canvas
from nca_lib.data.images import to_pixels
from nca_lib.errors import CanvasError
from nca_lib.extras import extra

TILE = 256  # of the files, pixels
BLOCK = 8 * TILE  # held in memory while a level is written; whole chunks, so that none is written twice
LARGEST_PNG = 8192 * 8192

Version = Literal["0.4", "0.5"]
Compression = Literal["jpeg", "deflate"]


class Picture(Protocol):
    """See the module."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        ...

    def __getitem__(self, part: Any, /) -> np.ndarray:
        """A part, `[:, rows, columns]`, uint8."""
        ...


class Finished:
    """A finished canvas as a [`Picture`][]."""

    def __init__(self, canvas: Canvas):
        self.canvas = canvas
        self.shape = (canvas.image.shape[1], *canvas.size)

    def __getitem__(self, part: tuple[slice, slice, slice], /) -> np.ndarray:
        return to_pixels(torch.from_numpy(self.canvas.finished(part[1], part[2]))).numpy()


def write_pyramid(
    folder: str | Path,
    picture: Picture,
    *,
    name: str | None = None,
    mpp: float | None = None,
    version: Version = "0.4",
) -> list[Any]:
    """Write an OME-Zarr: the picture and its halves, down to a level that fits into a tile.

    Args:
        folder: does not exist yet.
        picture: see the module.
        name: what it calls itself; by default as its folder.
        mpp: micrometres per pixel; None if a pixel has no size.
        version: of OME-Zarr; 0.4 is the older one, which more programs know.

    Returns:
        The levels as Zarr arrays (C, H, W), the full one first.
    """
    with extra("canvas"):
        import zarr

    group = zarr.open_group(str(folder), mode="w-", zarr_format=2 if version == "0.4" else 3)
    levels: list[Any] = []
    source: Any = picture
    while True:
        separator: dict[str, Any] = {"name": "v2" if version == "0.4" else "default", "separator": "/"}
        channels, height, width = source.shape if not levels else (source.shape[0], *_half(source.shape[1:]))
        level = group.create_array(
            str(len(levels)),
            shape=(channels, height, width),
            chunks=(channels, min(TILE, height), min(TILE, width)),
            dtype="uint8",
            chunk_key_encoding=separator,
            dimension_names=None if version == "0.4" else ["c", "y", "x"],
        )
        for rows, columns in _blocks(height, width, BLOCK):
            level[:, rows, columns] = (
                source[:, rows, columns] if not levels else _halved(source, rows, columns)
            )
        levels.append(level)
        source = level
        if max(height, width) <= TILE:
            break
    group.attrs.update(_metadata(name or Path(folder).name, levels, mpp, version))
    return levels


def _half(size: tuple[int, ...]) -> tuple[int, int]:
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def _halved(source: Picture, rows: slice, columns: slice) -> np.ndarray:
    """A part of the next level: means of 2x2 pixels, the last row or column repeated where one is missing."""
    fine = source[:, 2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
    fine = np.pad(fine, [(0, 0), (0, fine.shape[1] % 2), (0, fine.shape[2] % 2)], mode="edge")
    means = fine.reshape(len(fine), fine.shape[1] // 2, 2, fine.shape[2] // 2, 2).mean((2, 4))
    return (means + 0.5).astype(np.uint8)


def _blocks(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield slice(y, min(y + side, height)), slice(x, min(x + side, width))


def _metadata(name: str, levels: list[Any], mpp: float | None, version: Version) -> dict[str, Any]:
    unit = {} if mpp is None else {"unit": "micrometer"}
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", **unit} for axis in "yx"]
    datasets = [
        {
            "path": str(k),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, 2.0**k * (mpp or 1.0), 2.0**k * (mpp or 1.0)]}
            ],
        }
        for k in range(len(levels))
    ]
    colours = ("FF0000", "00FF00", "0000FF") if levels[0].shape[0] == 3 else ("FFFFFF",)
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channels = [{"color": colour, "window": window, "active": True} for colour in colours]
    scales: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **scales}], "omero": {"channels": channels}}
    return {"ome": {"version": "0.5", "multiscales": [scales], "omero": {"channels": channels}}}


def write_tiff(
    path: str | Path, levels: list[Picture], *, mpp: float | None = None, compression: Compression = "jpeg"
) -> None:
    """Write a pyramidal BigTIFF that OpenSlide opens: all levels in the main chain, in tiles of 256.

    Args:
        path: the file.
        levels: the picture and its halves, from [`write_pyramid`][].
        mpp: micrometres per pixel of the first level; None if a pixel has no size.
        compression: `"jpeg"` (quality 90), or `"deflate"`, which loses nothing.
    """
    with extra("canvas"):
        import tifffile

    def tiles(level: Picture) -> Iterator[np.ndarray]:
        for rows, columns in _blocks(level.shape[1], level.shape[2], TILE):
            part = np.moveaxis(level[:, rows, columns], 0, -1)
            missing = [(0, TILE - part.shape[0]), (0, TILE - part.shape[1]), (0, 0)]
            full = np.ascontiguousarray(np.pad(part, missing, mode="edge"))
            yield full if full.shape[2] == 3 else full[..., 0]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k, level in enumerate(levels):
            channels, height, width = level.shape
            resolution = {} if mpp is None else {"resolution": (1e4 / (mpp * 2**k),) * 2}
            file.write(
                tiles(level),
                shape=(height, width, channels) if channels == 3 else (height, width),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb" if channels == 3 else "minisblack",
                compression=compression,
                compressionargs={"level": 90} if compression == "jpeg" else None,
                subfiletype=1 if k else 0,
                resolutionunit="CENTIMETER" if mpp else None,
                metadata=None,
                **resolution,  # type: ignore[arg-type]
            )


def write_png(path: str | Path, picture: Picture) -> None:
    """Write a PNG, which is made in memory.

    Raises:
        CanvasError: more pixels than 8192 x 8192.
    """
    from PIL import Image

    check_png(picture.shape[1], picture.shape[2])
    pixels = np.moveaxis(np.asarray(picture[:, :, :]), 0, -1)
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(path)


def check_png(height: int, width: int) -> None:
    """Refuse a PNG of more pixels than 8192 x 8192."""
    if height * width > LARGEST_PNG:
        raise CanvasError(
            f"{width}x{height} is too large for .png (up to 8192x8192 pixels); .tiff and .zarr hold it"
        )
