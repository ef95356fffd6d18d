"""CelebA, the faces of the full experiments.

It does not ship with the library. A missing file is an error that says what to download and where to put
it; only `CelebA(download=True)` downloads anything.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch import Tensor

from nca_lib.data.images import Split, listing_hash, open_rgb, to_float
from nca_lib.errors import DataError
from nca_lib.extras import extra
from nca_lib.files import locked

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
        lock = base.with_name(".celeba.lock")  # one process downloads and extracts, all others wait
        if download and _missing(base):
            with locked(lock, wait=True):
                _download(base)
        missing = _missing(base)
        if missing:
            raise DataError(f"{base} lacks {' and '.join(missing)}. {_how_to_get(base)}")
        if not (base / _FOLDER).is_dir():
            with locked(lock, wait=True):
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
        picture = open_rgb(self.files[index])
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        return to_float(square.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes."""
        return listing_hash(self.files)


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
    with extra("data"):  # here, because it takes seconds to load
        from torchvision.datasets import CelebA as TorchvisionCelebA
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
