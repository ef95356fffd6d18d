"""BCSS, the stained breast tissue of the full experiments; it does not ship with the library."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from nca_lib.data.images import Orientations, Split, listing_hash, open_rgb, opened, random_crop, to_float
from nca_lib.errors import DataError


class BCSS:
    """Random crops of the 151 regions of breast cancer slides of BCSS (Amgad et al. 2019, btz083).

    Haematoxylin and eosin at 0.25 micrometres per pixel, so 1 at the default downscaling. Index and random
    generator choose a region in proportion to its area and a place in it, so that large regions count
    for more. Regions are decoded once each and kept, downscaled, as bytes (all 151 at 4: 0.7 GB a process).

    Args:
        root: the downloaded folder (which holds `rgbs_colorNormalized/`), or the folder of images itself;
            PNG files named after slides, such as `TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png`.
        size: height and width of the crops, pixels.
        downscale: reduce each region by this factor first (area average, rounded to whole grey levels).
        orientations: 8 (rotations and flips), 2 (left-right flips) or 1 (as published).
        held_out: `"patients"`, about a fifth (by the hash of the patient: 32 of the 151), or
            `"institutions"`, the benchmark's six hospitals (45 patients; other stains and scanners: harder).
        split: `"train"` or `"test"`; no patient is in both.

    Raises:
        DataError: no images, or misnamed, grey, unreadable or too small ones; every bad file is named.
    """

    channels = 3

    def __init__(
        self,
        root: str,
        size: int = 64,
        downscale: int = 4,
        orientations: Orientations = 1,
        held_out: Literal["patients", "institutions"] = "patients",
        split: Split = "train",
    ):
        self.size, self.downscale, self.orientations = size, downscale, orientations
        files = _region_files(Path(root).expanduser())
        checked = {file: self._inspect(file) for file in files}
        problems = [f"{file}: {found}" for file, found in checked.items() if isinstance(found, str)]
        if problems:
            raise DataError(f"{len(problems)} of {len(files)} files cannot be used:\n" + "\n".join(problems))
        self.files = [file for file in files if _is_held_out(file.name, held_out) == (split == "test")]
        if not self.files:
            raise DataError(f"none of the {len(files)} regions in {root} falls into the {split} split")
        tiles = [checked[file] for file in self.files]
        self._last = np.cumsum(np.array(tiles, dtype=np.int64))  # region r: indices below _last[r]
        self._regions: dict[Path, np.ndarray] = {}

    def _inspect(self, file: Path) -> int | str:
        """How many crops tile the region, or what is wrong with the file (whose pixels are not read)."""
        if not _BARCODE.match(file.name):
            return "is not named after a slide, such as TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png"
        try:
            with opened(file, _MOST_PIXELS) as image:
                (width, height), mode = image.size, image.mode
        except DataError as error:
            return str(error).removeprefix(f"{file}: ")
        if not mode.startswith("RGB"):
            return f"is no colour image (mode {mode}); is this the folder of masks?"
        width, height = width // self.downscale, height // self.downscale
        if min(width, height) < self.size:
            scale = f"after downscaling by {self.downscale}"
            return f"{width}x{height} {scale} is too small: crops are {self.size}x{self.size}"
        return max(1, round(width * height / self.size**2))

    def __len__(self) -> int:
        """As many crops as would tile the split's regions."""
        return int(self._last[-1])

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """A random crop of the region to which `index` belongs: consecutive ones, in proportion to area."""
        region = self._region(self.files[int(np.searchsorted(self._last, index, side="right"))])
        top, left = (int(rng.integers(side - self.size + 1)) for side in region.shape[:2])
        crop = to_float(region[top : top + self.size, left : left + self.size])
        return random_crop(crop, self.size, rng, self.orientations)

    def _region(self, file: Path) -> np.ndarray:
        if file not in self._regions:
            image = open_rgb(file, _MOST_PIXELS)
            f, (width, height) = self.downscale, image.size
            whole = (0, 0, width // f * f, height // f * f)  # squares cut by the edge are left out
            self._regions[file] = np.asarray(image.reduce(f, whole) if f > 1 else image)
        return self._regions[file]

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return listing_hash(self.files)


_MOST_PIXELS = 200_000_000  # two of the regions exceed the usual limit
_BARCODE = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}-")  # TCGA, institution, patient


# The benchmark's own test set: https://bcsegmentation.grand-challenge.org/Baseline
_TEST_INSTITUTIONS = {"OL", "LL", "E2", "EW", "GM", "S3"}


def _region_files(root: Path) -> list[Path]:
    # The published folder says "rgbs_colorNormalized", the authors' script "images"; masks/ beside it holds
    # files of the same names, so nothing is searched recursively.
    folders = [folder for name in ("rgbs_colorNormalized", "images") if (folder := root / name).is_dir()]
    files = sorted((folders or [root])[0].glob("*.png"))
    if not files:
        raise DataError(
            f"{root} holds no BCSS regions. Download the folder rgbs_colorNormalized (151 PNG files) from "
            "the Google Drive link on https://github.com/PathologyDataScience/BCSS and put it at "
            f"{root / 'rgbs_colorNormalized'}"
        )
    return files


def _is_held_out(name: str, held_out: Literal["patients", "institutions"]) -> bool:
    patient, institution = name[:12], name[5:7]
    if held_out == "institutions":
        return institution in _TEST_INSTITUTIONS
    # The hash of the patient alone decides, so that more files move nobody to the other split.
    return hashlib.sha256(patient.encode()).digest()[0] % 5 == 0
