"""Whole-slide images, read in crops: the slide is never loaded (chapter 7)."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from nca_lib.data.images import Orientations, Split, listing_hash, to_float, turned
from nca_lib.errors import DataError
from nca_lib.extras import extra

_SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".vms", ".bif", ".svslide"}
_OVERVIEW = 1024  # pixels of the longer side that tissue is looked for in
_COLOURED = 0.07  # saturation above which a pixel is tissue; glass and paper are grey


class Slides:
    """A directory of whole-slide images; random crops of their tissue at a given resolution.

    Slides of one patient lie in a folder of their own, and no patient is in both splits: every tenth (in
    order of the hash of its name, at least one) is held out. Of a single patient the right quarter of each
    slide is. Read by OpenSlide where it is installed, else by tiffslide.

    Args:
        path: the directory, searched recursively.
        size: height and width of what is returned, pixels.
        mpp: micrometres per pixel of what is returned.
        orientations: 8 (rotations and flips), 2 (left-right flips) or 1.
        split: `"train"` or `"test"`.
        slide_mpp: micrometres per pixel of the slides that do not say it.

    Raises:
        DataError: no slides, or slides that cannot be opened, do not say their resolution (nor does
            `slide_mpp`), are coarser than `mpp` or hold no tissue; every bad file is named.
    """

    channels = 3

    def __init__(
        self,
        path: str,
        size: int = 64,
        mpp: Annotated[float, Field(gt=0)] = 1.0,
        orientations: Orientations = 8,
        split: Split = "train",
        slide_mpp: float | None = None,
    ):
        self.size, self.mpp, self.orientations, self.slide_mpp = size, mpp, orientations, slide_mpp
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{path} is not a directory; give one that holds slides")
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no slides; known kinds are {', '.join(sorted(_SUFFIXES))}")
        patients = {_patient(root, file) for file in files}
        if len(patients) > 1:
            ranked = sorted(patients, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
            chosen = {name for rank, name in enumerate(ranked) if (rank % 10 == 0) == (split == "test")}
            files = [file for file in files if _patient(root, file) in chosen]
        self.files = files
        part = (0.0, 1.0) if len(patients) > 1 else (0.75, 1.0) if split == "test" else (0.0, 0.75)
        self.centres: list[np.ndarray] = []
        problems = []
        for file in files:
            try:
                self.centres.append(self._centres(file, part))
            except DataError as problem:
                problems.append(f"{file}: {problem}")
            except Exception as error:  # part of it is damaged; each library raises its own kinds
                problems.append(f"{file}: {_unreadable(error)}")
        if problems:
            raise DataError(f"{len(problems)} of {len(files)} slides cannot be used:\n" + "\n".join(problems))

    def _centres(self, file: Path, part: tuple[float, float]) -> np.ndarray:
        """Where crops may have their centres: (n, 2), (x, y) in pixels of the slide at full resolution."""
        slide = _open(file)
        width, height = slide.dimensions
        reach = self.size * self._reduction(slide) / 2
        overview = np.asarray(slide.get_thumbnail((_OVERVIEW, _OVERVIEW)).convert("RGB"), dtype=np.float32)
        brightest = overview.max(2)
        tissue = brightest - overview.min(2) > _COLOURED * brightest
        scale = np.array([width / overview.shape[1], height / overview.shape[0]])
        centres = (np.argwhere(tissue)[:, ::-1] + 0.5) * scale
        low = np.array([part[0] * width, 0]) + reach
        high = np.array([part[1] * width, height]) - reach
        inside = ((centres >= low) & (centres <= high)).all(1)
        if not inside.any():
            raise DataError(f"{width}x{height}, and no tissue that a crop of {self.size} pixels fits into")
        return centres[inside]

    def _reduction(self, slide: Any) -> float:
        """Pixels of the slide to a pixel of what is returned."""
        values = [slide.properties.get(f"{library}.mpp-x") for library in ("openslide", "tiffslide")]
        own = next((float(value) for value in values if value), self.slide_mpp)
        if own is None:
            raise DataError("it does not say how many micrometres a pixel has; slide_mpp can")
        if own > 1.01 * self.mpp:
            raise DataError(f"it has {own:g} micrometres per pixel, coarser than the {self.mpp:g} asked for")
        return self.mpp / own

    def __len__(self) -> int:
        """At least 256, so that a few slides make a full pass."""
        return max(len(self.files), 256)

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop of slide `index`, its centre on tissue.

        Raises:
            DataError: the file is damaged there, or has gone.
        """
        index %= len(self.files)
        centre = self.centres[index][rng.integers(len(self.centres[index]))]
        try:
            crop = self._crop(_open(self.files[index]), centre)
        except Exception as error:
            raise DataError(f"{self.files[index]}: {_unreadable(error)}") from error
        return turned(to_float(crop), rng, self.orientations)

    def _crop(self, slide: Any, centre: np.ndarray) -> Image.Image:
        reduction = self._reduction(slide)
        level = slide.get_best_level_for_downsample(reduction * 1.01)
        side = max(1, round(self.size * reduction / slide.level_downsamples[level]))
        corner = np.maximum(centre - self.size * reduction / 2, 0).astype(int)
        crop = slide.read_region((int(corner[0]), int(corner[1])), level, (side, side)).convert("RGB")
        if side != self.size:
            crop = crop.resize((self.size, self.size), Image.Resampling.BOX)
        return crop

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return listing_hash(self.files)


def _patient(root: Path, file: Path) -> str:
    return file.relative_to(root).parts[0]


@lru_cache(maxsize=64)
def _open(file: Path) -> Any:
    try:
        import openslide

        library: Any = openslide.OpenSlide
    except ImportError:
        with extra("canvas"):
            import tiffslide

        library = tiffslide.TiffSlide
    try:
        return library(str(file))
    except Exception as error:  # each library raises its own kinds
        raise DataError(_unreadable(error)) from error


def _unreadable(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    said = next(iter(str(error).splitlines()), "")
    return f"unreadable ({type(error).__name__}{': ' if said else ''}{said:.80})"


if hasattr(os, "register_at_fork"):  # a worker that is forked would share its files' positions with others
    os.register_at_fork(after_in_child=_open.cache_clear)
