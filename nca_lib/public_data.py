"""The two public data sets of the full experiments: CelebA (faces) and BCSS (stained breast tissue).

Neither ships with the library. A missing file is an error that says what to download and where to put it;
only `CelebA(download=True)` downloads anything.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from nca_lib.data import DataError, Split, random_crop, to_float

_FOLDER, _ARCHIVE, _PARTITION = "img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"


class CelebA:
    """202,599 aligned photographs of celebrities' faces (Liu et al. 2015, arXiv 1411.7766).

    The centre 178x178 of each 178x218 photograph, resized with antialiasing (bilinear); no flips. The files
    lie where torchvision's `CelebA` puts them, so that what it has fetched serves here:

        root/celeba/img_align_celeba/000001.jpg ...   (or img_align_celeba.zip, which is extracted once)
        root/celeba/list_eval_partition.txt

    Args:
        root: the directory that holds `celeba/`.
        size: height and width of what is returned, pixels.
        download: fetch what is missing from Google Drive first (1.4 GB, needs the package gdown).
        split: `"train"` (162,770 images) or `"test"` (19,962, of other people), the official ones; the
            official validation split belongs to neither.

    Raises:
        DataError: files are missing, damaged or incomplete.
    """

    # torchvision's class also demands identities, boxes, landmarks and attributes, each with the published
    # checksum, and extracts in place, so that an interrupted extraction looks complete. Only the images and
    # the partition matter here, so torchvision does the download and the reading is ours.

    channels = 3

    def __init__(self, root: str = "data", size: int = 64, download: bool = False, split: Split = "train"):
        self.size = size
        base = Path(root).expanduser() / "celeba"  # where torchvision keeps it
        if download:
            _download(base)
        missing = _missing(base)
        if missing:
            raise DataError(f"{base} lacks {' and '.join(missing)}. {_how_to_get(base)}")
        if not (base / _FOLDER).is_dir():
            _extract(base)
        partition = _read_partition(base / _PARTITION)
        lost = sorted(partition.keys() - {file.name for file in (base / _FOLDER).iterdir()})
        if lost:
            raise DataError(
                f"{base / _FOLDER} lacks {len(lost)} of {len(partition)} images, the first of them "
                f"{lost[0]}; delete the folder and extract {_ARCHIVE} again"
            )
        wanted = 0 if split == "train" else 2
        self.files = [base / _FOLDER / name for name, part in partition.items() if part == wanted]
        if not self.files:
            raise DataError(f"{base / _PARTITION} assigns no image to the {split} split ({wanted})")

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.files)

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        """Photograph `index`; nothing about it is random."""
        picture = _open_rgb(self.files[index])
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        return to_float(square.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return _listing_hash(self.files)


def _missing(base: Path) -> list[str]:
    has_images = (base / _FOLDER).is_dir() or (base / _ARCHIVE).is_file()
    return ([] if has_images else [_ARCHIVE]) + ([] if (base / _PARTITION).is_file() else [_PARTITION])


def _how_to_get(base: Path) -> str:
    return (
        f"Download {_ARCHIVE} ('Align&Cropped Images') and {_PARTITION} ('Train/Val/Test Partitions') from "
        f"https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into {base} (the archive is extracted there to "
        f"{_FOLDER}/), or pass download=True (1.4 GB; needs `pip install gdown`)"
    )


def _download(base: Path) -> None:
    """Fetch the missing files, checked against torchvision's checksums; a failed download leaves nothing."""
    from torchvision.datasets import CelebA as TorchvisionCelebA  # here, because it takes seconds to load
    from torchvision.datasets import utils

    base.mkdir(parents=True, exist_ok=True)
    wanted = _missing(base)
    for identifier, md5, name in TorchvisionCelebA.file_list:
        if name in wanted:
            with TemporaryDirectory(dir=base) as scratch:
                try:
                    utils.download_file_from_google_drive(identifier, scratch, name, md5)
                except Exception as error:  # gdown has its own kinds: no access, quota exceeded, no network
                    raise DataError(
                        f"{name} could not be downloaded ({error}). {_how_to_get(base)}"
                    ) from error
                (Path(scratch) / name).rename(base / name)


def _extract(base: Path) -> None:
    """Extract the archive beside itself; the folder appears only when every image in it is whole."""
    with TemporaryDirectory(dir=base) as scratch:
        try:
            with zipfile.ZipFile(base / _ARCHIVE) as archive:
                archive.extractall(scratch)  # checks every member's checksum, keeps all inside `scratch`
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{base / _ARCHIVE} is damaged or incomplete ({error}). {_how_to_get(base)}"
            ) from error
        if not (Path(scratch) / _FOLDER).is_dir():
            raise DataError(f"{base / _ARCHIVE} holds no folder {_FOLDER}. {_how_to_get(base)}")
        (Path(scratch) / _FOLDER).rename(base / _FOLDER)


def _read_partition(file: Path) -> dict[str, int]:
    """Image names and their splits (0 train, 1 validation, 2 test), in the file's order."""
    partition: dict[str, int] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        match line.split():
            case [name, "0" | "1" | "2" as part]:
                partition[name] = int(part)
            case _:
                raise DataError(
                    f"{file}, line {number}: {line!r} should be an image name and 0, 1 or 2, "
                    "such as '000001.jpg 0'"
                )
    return partition


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
        orientations: int = 1,
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
            with _quiet_open(file) as image:
                (width, height), mode = image.size, image.mode
        except OSError as error:
            return f"unreadable ({type(error).__name__})"
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
            image = _open_rgb(file)
            f, (width, height) = self.downscale, image.size
            whole = (0, 0, width // f * f, height // f * f)  # squares cut by the edge are left out
            self._regions[file] = np.asarray(image.reduce(f, whole) if f > 1 else image)
        return self._regions[file]

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return _listing_hash(self.files)


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


def _quiet_open(file: Path) -> Image.Image:
    with warnings.catch_warnings():  # two of BCSS's regions exceed the 89 million pixels that Pillow warns of
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def _open_rgb(file: Path) -> Image.Image:
    try:
        with _quiet_open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error})") from error


def _listing_hash(files: list[Path]) -> str:
    listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
