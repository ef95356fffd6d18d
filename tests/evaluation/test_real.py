"""The real images of a comparison: how many there are, and which give the floor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nca_lib.data.digits import Digits
from nca_lib.data.folder import Folder
from nca_lib.data.tissue import Tissue
from nca_lib.evaluation.real import distinct, real_and_floor


def test_random_crops_are_endless_and_files_are_not() -> None:
    assert distinct(Tissue(32)) == math.inf
    assert distinct(Digits(8, "test")) == 297


@pytest.mark.parametrize(("size", "fit"), [(8, "resize"), (12, "crop")])
def test_few_pictures_that_are_turned_stay_few(size: int, fit: str, tmp_path: Path) -> None:
    for n in range(20):
        Image.fromarray(np.full((12, 12, 3), 10 * n, np.uint8)).save(tmp_path / f"{n}.png")
    ramp = np.arange(432, dtype=np.uint8).reshape(12, 12, 3)
    for n in range(20, 30):
        Image.fromarray(ramp + n).save(tmp_path / f"{n}.png")
    train, test = (Folder(str(tmp_path), size, fit=fit, split=split) for split in ("train", "test"))
    real, floor = real_and_floor({"train": train, "test": test}, "test", 512, 0)
    assert (distinct(test), distinct(train)) == (3, 27)
    assert (real.split, real.count, floor.split, floor.count) == ("test", 3, "train", 27)


def test_crops_that_move_are_endless(tmp_path: Path) -> None:
    ramp = np.arange(3 * 30 * 40, dtype=np.uint32).reshape(30, 40, 3) % 251
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "one.png")
    assert distinct(Folder(str(tmp_path), 8)) == math.inf


def test_a_blank_picture_first_makes_no_crops_few(tmp_path: Path) -> None:
    ramp = np.arange(3 * 30 * 40, dtype=np.uint32).reshape(30, 40, 3) % 251
    for n in range(12):
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / f"{n:02}.png")
    data = Folder(str(tmp_path), 8)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(data.files[0])
    assert distinct(Folder(str(tmp_path), 8)) == math.inf
