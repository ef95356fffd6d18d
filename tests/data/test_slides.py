"""Whole slides in crops, tried on slides that we wrote ourselves."""

import multiprocessing
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nca_lib.canvas.formats import write_pyramid, write_tiff
from nca_lib.data import DataError, slides
from nca_lib.data.slides import Slides, _open
from nca_lib.experiments.settings import Experiment

SIZE = 1024


def slide(path, mpp=0.5, tissue=slice(None)):
    """Red grows with x and green with y where there is tissue; elsewhere it is grey."""
    y, x = np.mgrid[:SIZE, :SIZE] // 8
    picture = np.full((3, SIZE, SIZE), 230, np.uint8)
    picture[:, :, tissue] = np.stack([x, y, np.full_like(x, 200)]).astype(np.uint8)[:, :, tissue]
    path.parent.mkdir(exist_ok=True, parents=True)
    levels = write_pyramid(path.with_suffix(".levels"), picture)
    write_tiff(path, levels, mpp=mpp, compression="deflate")


@pytest.fixture(params=["openslide", "tiffslide"])
def library(request, monkeypatch):
    _open.cache_clear()
    if request.param == "tiffslide":
        monkeypatch.setitem(sys.modules, "openslide", None)
    yield request.param
    _open.cache_clear()


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.5])
def test_a_crop_shows_its_place_at_its_resolution(tmp_path, library, mpp):
    slide(tmp_path / "a.tiff")
    data = Slides(str(tmp_path), size=32, mpp=mpp, orientations=1)
    assert type(_open(tmp_path / "a.tiff")).__module__.startswith(library)
    rng, reduction = np.random.default_rng(0), mpp / 0.5
    for _ in range(4):
        crop = (data.image(0, rng) + 1) * 127.5
        assert crop.shape == (3, 32, 32)
        # 8 pixels of the slide are one grey value: colours say where a pixel lies, and how wide it is.
        assert float(crop[0, :, -1].mean() - crop[0, :, 0].mean()) * 8 == pytest.approx(31 * reduction, abs=9)
        assert torch.allclose(crop[2], torch.tensor(200.0))
        assert float(crop[0].max()) < 0.75 * SIZE / 8  # one patient: the right quarter is held out


def opened():
    return _open.cache_info().currsize


def test_a_forked_process_opens_slides_of_its_own(tmp_path, library):
    slide(tmp_path / "a.tiff")
    Slides(str(tmp_path), size=16, mpp=0.5)
    assert opened() == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(opened) == 0


def test_crops_lie_on_tissue(tmp_path):
    slide(tmp_path / "a.tiff", tissue=slice(100, 300))
    data = Slides(str(tmp_path), size=16, mpp=0.5)
    rng = np.random.default_rng(0)
    assert all(data.image(0, rng)[2].mean() < 0.79 for _ in range(10))
    with pytest.raises(DataError, match="no tissue"):
        Slides(str(tmp_path), size=16, mpp=0.5, split="test")


class Glass:
    """A slide of 400x300 pixels at 0.5 micrometres, all tissue; `read` is what was last read of it."""

    dimensions, level_downsamples, properties = (400, 300), (1.0,), {"openslide.mpp-x": "0.5"}

    def get_thumbnail(self, size):
        return Image.new("RGB", (40, 30), "red")

    def get_best_level_for_downsample(self, reduction):
        return 0

    def read_region(self, corner, level, size):
        self.read = (*corner, *size)
        return Image.new("RGB", size)


def test_crops_lie_around_centres_of_overview_pixels_and_within_their_part_of_the_slide(
    tmp_path, monkeypatch
):
    glass = Glass()
    monkeypatch.setattr(slides, "_open", lambda file: glass)
    (tmp_path / "a.tiff").touch()
    data = Slides(str(tmp_path), size=32, mpp=1.0)
    (centres,) = data.centres
    # A pixel of the overview is ten of the slide. A crop reaches 32 of these, of 300 by 300 for training.
    assert centres.min(0).tolist() == [35, 35]
    assert centres.max(0).tolist() == [265, 265]
    for x, y in centres[::31]:
        data._crop(glass, np.array([x, y]))
        assert glass.read == (x - 32, y - 32, 64, 64)


def test_no_patient_is_in_both_splits(tmp_path):
    for name in ("p1/a", "p1/b", "p2/a", "p3"):
        slide(tmp_path / f"{name}.tiff")
    train, test = (Slides(str(tmp_path), split=split, mpp=0.5) for split in ("train", "test"))
    patients = [{file.relative_to(tmp_path).parts[0] for file in data.files} for data in (train, test)]
    assert len(patients[0]) == 2 and len(patients[1]) == 1
    assert not patients[0] & patients[1]
    assert train.fingerprint() != test.fingerprint()
    assert len(train) == 256


def test_bad_slides_are_named(tmp_path):
    slide(tmp_path / "a" / "whole.tiff")
    slide(tmp_path / "a" / "coarse.tiff", mpp=4)
    slide(tmp_path / "a" / "sizeless.tiff", mpp=None)
    (tmp_path / "a" / "broken.svs").write_text("no slide")
    with pytest.raises(DataError, match="3 of 4 slides cannot be used") as error:
        Slides(str(tmp_path), mpp=1)
    for line in (r"coarse.tiff: it has 4 micro", "sizeless.tiff: it does not say", "broken.svs: unreadable"):
        assert line in str(error.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "sizeless.tiff").rename(tmp_path / "b" / "sizeless.tiff")
    told = Slides(str(tmp_path / "b"), size=16, mpp=1, slide_mpp=0.5)
    slide(tmp_path / "c" / "saying.tiff", mpp=0.5)
    same = Slides(str(tmp_path / "c"), size=16, mpp=1)
    assert torch.equal(*(data.image(0, np.random.default_rng(0)) for data in (told, same)))
    with pytest.raises(DataError, match="holds no slides"):
        (tmp_path / "empty").mkdir()
        Slides(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="not a directory"):
        Slides(str(tmp_path / "nowhere"))


def damage(path, level):
    """Overwrite the pixels of a level; what describes them stays."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for start, length in places:
            file.seek(start)
            file.write(b"\xff" * length)


def test_a_slide_that_is_damaged_within_or_has_gone_is_named(tmp_path, library):
    file = tmp_path / "a.tiff"
    slide(file)
    data, rng = Slides(str(tmp_path), mpp=0.5, size=16), np.random.default_rng(0)
    damage(file, level=0)
    _open.cache_clear()
    with pytest.raises(DataError, match=r"1 of 1 slides cannot be used:\n.*a.tiff: unreadable"):
        Slides(str(tmp_path), mpp=0.5, size=16)
    for harm in (lambda: None, file.unlink):
        harm()
        _open.cache_clear()
        with pytest.raises(DataError, match=r"a.tiff: unreadable \("):
            data.image(0, rng)


def test_an_experiment_names_them(tmp_path):
    slide(tmp_path / "a.tiff")
    experiment = Experiment.from_dict(
        {"name": "mine", "data": {"kind": "slides", "path": str(tmp_path), "mpp": 0.5, "size": 32}}
    )
    assert isinstance(experiment.build_data("train"), Slides)
