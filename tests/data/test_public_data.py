"""CelebA and BCSS, on small made files in the published layouts. Nothing is downloaded."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CelebA as TorchvisionCelebA

from nca_lib.data.bcss import BCSS
from nca_lib.data.celeba import CelebA
from nca_lib.data.images import DataError, Stream


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def levels(image: torch.Tensor) -> torch.Tensor:
    return (image + 1) * 127.5


def ramp(width: int, height: int, slope: int = 1) -> Image.Image:
    """Red is `slope` times the column, green `slope` times the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([slope * x, slope * y, 0 * x], axis=2).astype(np.uint8))


# CelebA

PARTS = {"000001.jpg": 0, "000002.jpg": 2, "000003.jpg": 1, "000004.jpg": 0, "000005.jpg": 2, "000006.jpg": 0}


def number(image: torch.Tensor) -> int:
    """Which of the made photographs this is: photograph n has grey level 20 n."""
    return round(float(levels(image).mean()) / 20)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    for name in PARTS:
        grey = 20 * int(Path(name).stem)
        Image.new("RGB", (178, 218), (grey, grey, grey)).save(base / "img_align_celeba" / name)
    (base / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in PARTS.items()))
    return base


EXTRACTS_SLOWLY = """
import time
from nca_lib.data import celeba
extract = celeba._extract
celeba._extract = lambda base: (print("extracts", flush=True), time.sleep(1), extract(base))
print(len(celeba.CelebA({root!r}, size=8)))
"""


def test_of_several_processes_one_extracts_and_all_read(zipped: Path) -> None:
    line = [sys.executable, "-c", EXTRACTS_SLOWLY.format(root=str(zipped.parent))]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(said, key=len) == [["3"], ["extracts", "3"]]


@pytest.fixture
def zipped(celeba: Path) -> Path:
    images = celeba / "img_align_celeba"
    with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
        for file in sorted(images.iterdir()):
            archive.write(file, f"img_align_celeba/{file.name}")
            file.unlink()
    images.rmdir()
    return celeba


def contents(base: Path) -> set[str]:
    return {file.name for file in base.iterdir()}


def test_celeba_splits_are_the_official_ones(celeba: Path) -> None:
    for split, wanted in (("train", [1, 4, 6]), ("test", [2, 5])):
        data = CelebA(str(celeba.parent), size=8, split=split)
        assert [number(data.image(n, rng())) for n in range(len(data))] == wanted


def test_celeba_cuts_the_central_square_and_resizes_it_without_shift(celeba: Path) -> None:
    ramp(178, 218).save(celeba / "img_align_celeba" / "000001.jpg", quality=100, subsampling=0)
    image = levels(CelebA(str(celeba.parent), size=64).image(0, rng()))
    # Output pixel j has its centre at column (j + 1/2) 178/64 - 1/2; a symmetric filter keeps a ramp.
    # The rows start at (218 - 178) / 2. Two grey levels are for JPEG; at the border the filter is cut off.
    expected = (torch.arange(64) + 0.5) * 178 / 64 - 0.5
    inner = (slice(2, -2), slice(2, -2))
    torch.testing.assert_close(image[0][inner], expected.expand(64, 64)[inner], atol=2, rtol=0)
    torch.testing.assert_close(
        image[1][inner], (20 + expected[:, None]).expand(64, 64)[inner], atol=2, rtol=0
    )


def test_celeba_shrinks_without_aliasing(celeba: Path) -> None:
    stripes = np.zeros((218, 178, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # as fine as can be: must come out grey
    Image.fromarray(stripes).save(celeba / "img_align_celeba" / "000001.jpg", quality=100, subsampling=0)
    image = CelebA(str(celeba.parent), size=32).image(0, rng())
    assert image[:, :, 1:-1].abs().max() < 0.1


def test_celeba_is_not_flipped_or_otherwise_random(celeba: Path) -> None:
    ramp(178, 218).save(celeba / "img_align_celeba" / "000001.jpg")
    data = CelebA(str(celeba.parent), size=16)
    assert all(torch.equal(data.image(0, rng(seed)), data.image(0, rng())) for seed in range(20))


def test_the_archive_alone_is_extracted_once_and_gives_the_same_images(zipped: Path) -> None:
    data = CelebA(str(zipped.parent), size=8)
    assert [number(data.image(n, rng())) for n in range(3)] == [1, 4, 6]
    assert contents(zipped) == {"img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"}
    assert contents(zipped / "img_align_celeba") == set(PARTS)
    (zipped / "img_align_celeba.zip").unlink()
    assert CelebA(str(zipped.parent), size=8).fingerprint() == data.fingerprint()


@pytest.mark.parametrize("cut", [0.5, 0.97])
def test_a_truncated_archive_is_named_and_leaves_nothing(zipped: Path, cut: float) -> None:
    archive = zipped / "img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * cut)])
    with pytest.raises(DataError, match=r"img_align_celeba\.zip is damaged or incomplete"):
        CelebA(str(zipped.parent))
    assert contents(zipped) == {"img_align_celeba.zip", "list_eval_partition.txt"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_image_in_the_archive_leaves_no_half_extracted_folder(
    zipped: Path, compression: int
) -> None:
    archive = zipped / "img_align_celeba.zip"
    noise = rng().integers(0, 9, 20_000, dtype=np.uint8).tobytes()
    with zipfile.ZipFile(archive, "a", compression) as more:
        more.writestr("img_align_celeba/000007.jpg", noise)
        start = more.getinfo("img_align_celeba/000007.jpg").header_offset
    damaged = bytearray(archive.read_bytes())
    damaged[start + 1000 : start + 1010] = bytes(255 - byte for byte in damaged[start + 1000 : start + 1010])
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        CelebA(str(zipped.parent))
    assert contents(zipped) == {"img_align_celeba.zip", "list_eval_partition.txt"}


def test_an_archive_of_something_else_is_named(zipped: Path) -> None:
    with zipfile.ZipFile(zipped / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba_png/000001.png", b"")
    with pytest.raises(DataError, match="holds no folder img_align_celeba"):
        CelebA(str(zipped.parent))


@pytest.mark.parametrize("lost", ["img_align_celeba.zip", "list_eval_partition.txt"])
def test_a_missing_file_is_named_with_its_source_and_destination(zipped: Path, lost: str) -> None:
    (zipped / lost).unlink()
    with pytest.raises(DataError) as caught:
        CelebA(str(zipped.parent))
    message = str(caught.value)
    assert message.startswith(f"{zipped} lacks {lost}. Download")
    assert "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html" in message
    assert f"into {zipped}" in message
    assert "\n" not in message


def test_where_nothing_is_both_files_are_named_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks img_align_celeba\.zip and list_eval_partition\.txt"):
        CelebA(str(tmp_path / "nowhere"))
    assert not contents(tmp_path)


def test_an_incomplete_folder_is_refused(celeba: Path) -> None:
    (celeba / "img_align_celeba" / "000003.jpg").unlink()  # of the validation split, and still a warning sign
    (celeba / "img_align_celeba" / "000005.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 2 of 6 images, the first of them 000003\.jpg"):
        CelebA(str(celeba.parent))


def test_a_damaged_photograph_is_named(celeba: Path) -> None:
    file = celeba / "img_align_celeba" / "000004.jpg"
    ramp(178, 218).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    data = CelebA(str(celeba.parent))
    data.image(0, rng())
    with pytest.raises(DataError, match=r"000004\.jpg: unreadable"):
        data.image(1, rng())


@pytest.mark.parametrize("line", ["000001.jpg", "000001.jpg 3", "000001.jpg,0", "image_id partition"])
def test_a_line_of_the_partition_that_makes_no_sense_is_quoted(celeba: Path, line: str) -> None:
    (celeba / "list_eval_partition.txt").write_text(f"000002.jpg 0\n{line}\n")
    with pytest.raises(DataError, match=rf"list_eval_partition\.txt, line 2: '{line}' should be"):
        CelebA(str(celeba.parent))


def test_a_split_without_images_is_refused(celeba: Path) -> None:
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match="no image to the test split"):
        CelebA(str(celeba.parent), split="test")


def test_celebas_fingerprint_changes_with_a_file(celeba: Path) -> None:
    before = CelebA(str(celeba.parent)).fingerprint()
    assert CelebA(str(celeba.parent), split="test").fingerprint() != before
    ramp(178, 218).save(celeba / "img_align_celeba" / "000001.jpg")
    assert CelebA(str(celeba.parent)).fingerprint() != before


def test_a_download_fetches_what_is_missing_checked_by_the_published_sums(
    zipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = {file.name: file.read_bytes() for file in zipped.iterdir()}
    asked: list[tuple[str, str, str]] = []

    def serve(identifier: str, folder: str, name: str, md5: str) -> None:
        asked.append((identifier, md5, name))
        (Path(folder) / name).write_bytes(served[name])

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", serve)
    elsewhere = zipped.parent / "new"
    assert len(CelebA(str(elsewhere), download=True)) == 3
    assert {name for _, _, name in asked} == set(served)
    assert set(asked) <= set(TorchvisionCelebA.file_list)
    assert TorchvisionCelebA.base_folder == "celeba"
    CelebA(str(elsewhere), download=True)
    assert len(asked) == 2  # nothing is fetched twice


def test_a_failed_download_says_how_to_do_it_by_hand_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(identifier: str, folder: str, name: str, md5: str) -> None:
        (Path(folder) / name).write_text("<html>Quota exceeded</html>")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", fail)
    with pytest.raises(DataError, match=r"img_align_celeba\.zip could not be downloaded.*Download .* into"):
        CelebA(str(tmp_path), download=True)
    assert not contents(tmp_path / "celeba")


# BCSS


def region(patient: str, x: int = 0) -> str:
    return f"{patient}-DX1_xmin{x}_ymin25055_MPP-0.2500.png"


def patients(count: int) -> list[str]:
    sites = ["A1", "A2", "BH", "E2", "GM", "OL", "S3", "LL", "EW", "D8"]
    return [f"TCGA-{sites[n % 10]}-A{n:03d}" for n in range(count)]


@pytest.fixture
def bcss(tmp_path: Path) -> Path:
    (tmp_path / "rgbs_colorNormalized").mkdir()
    return tmp_path


def save(image: Image.Image, root: Path, name: str) -> None:
    image.save(root / "rgbs_colorNormalized" / name)


TRAIN, TEST = "TCGA-A1-A0SK", "TCGA-A2-A0CM"


def test_no_patient_is_in_both_splits_and_none_is_lost(bcss: Path) -> None:
    for patient in patients(300):
        for x in (10, 20):
            save(Image.new("RGB", (8, 8)), bcss, region(patient, x))
    for held_out in ("patients", "institutions"):
        train, test = (
            [file.name for file in BCSS(str(bcss), 2, held_out=held_out, split=split).files]
            for split in ("train", "test")
        )
        assert len(train) + len(test) == 600
        seen = {name[:12] for name in train}, {name[:12] for name in test}
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == set(patients(300))
        if held_out == "institutions":
            assert {name[5:7] for name in test} == {"E2", "GM", "OL", "S3", "LL", "EW"}
            assert {name[5:7] for name in train} == {"A1", "A2", "BH", "D8"}
        else:
            assert 40 <= len(seen[1]) <= 80  # a fifth of 300, and 2.9 standard deviations to either side


def test_a_patient_stays_in_its_split_whatever_else_is_there(bcss: Path) -> None:
    placed: dict[str, str] = {}
    for count in (40, 80):
        for patient in patients(count):
            save(Image.new("RGB", (8, 8)), bcss, region(patient))
        for split in ("train", "test"):
            for file in BCSS(str(bcss), 2, split=split).files:
                assert placed.setdefault(file.name, split) == split
    assert len(placed) == 80


def test_the_split_of_known_patients_never_changes(bcss: Path) -> None:
    held_out = {"TCGA-A1-A0SK": False, "TCGA-A1-A0SP": False, "TCGA-A2-A04P": False, "TCGA-A2-A0CM": True}
    for patient in held_out:
        save(Image.new("RGB", (8, 8)), bcss, region(patient))
    test = {file.name[:12] for file in BCSS(str(bcss), 2, split="test").files}
    assert test == {patient for patient, held in held_out.items() if held}


def test_downscaling_averages_squares_and_crops_lie_inside(bcss: Path) -> None:
    save(ramp(71, 59, slope=2), bcss, region(TRAIN))  # 17 x 14 whole squares of 4 pixels
    data = BCSS(str(bcss), size=6)
    corners = set()
    for seed in range(2000):
        red, green, blue = levels(data.image(0, rng(seed)))
        left, top = (round(float(channel[0, 0] - 3) / 8) for channel in (red, green))
        corners.add((left, top))
        columns, rows = torch.arange(left, left + 6.0), torch.arange(top, top + 6.0)
        # The mean of 2x over the four columns of square X is 8X + 3.
        torch.testing.assert_close(red, (8 * columns + 3).expand(6, 6), atol=1e-3, rtol=0)
        torch.testing.assert_close(green, (8 * rows[:, None] + 3).expand(6, 6), atol=1e-3, rtol=0)
        assert blue.abs().max() < 1e-3
    assert corners == {(x, y) for x in range(17 - 6 + 1) for y in range(14 - 6 + 1)}


def test_regions_are_visited_in_proportion_to_their_area(bcss: Path) -> None:
    for x, (width, height) in enumerate([(80, 80), (160, 240), (80, 320)]):  # 1 : 6 : 4
        save(Image.new("RGB", (width, height), (50 * x, 0, 0)), bcss, region(TRAIN, x))
    data = BCSS(str(bcss), size=10)
    assert len(data) == 4 * (1 + 6 + 4)  # 20x20 after downscaling are four crops of 10x10
    one_pass = [Stream(data, seed=1)[n] for n in range(len(data))]
    assert Counter(round(float(levels(crop)[0, 0, 0])) // 50 for crop in one_pass) == {0: 4, 1: 24, 2: 16}


def test_an_item_of_bcss_depends_on_the_seed_and_its_number_only(bcss: Path) -> None:
    for x in range(3):
        save(ramp(64, 64, slope=1 + x), bcss, region(TRAIN, x))
    forwards = [Stream(BCSS(str(bcss), size=5), seed=3)[n] for n in range(8)]
    late = Stream(BCSS(str(bcss), size=5), seed=3)
    assert all(torch.equal(late[n], forwards[n]) for n in reversed(range(8)))
    assert not torch.equal(Stream(BCSS(str(bcss), size=5), seed=4)[0], forwards[0])


@pytest.mark.parametrize("orientations", [1, 2, 8])
def test_bcss_turns_crops_only_as_asked(bcss: Path, orientations: int) -> None:
    save(ramp(8, 8), bcss, region(TRAIN))
    data = BCSS(str(bcss), size=8, downscale=1, orientations=orientations)
    assert len({data.image(0, rng(seed)).numpy().tobytes() for seed in range(100)}) == orientations


def test_the_folder_of_images_itself_will_do_and_masks_are_not_read(bcss: Path) -> None:
    (bcss / "masks").mkdir()
    save(ramp(16, 16), bcss, region(TRAIN))
    Image.new("L", (16, 16)).save(bcss / "masks" / region(TRAIN))
    named, direct = BCSS(str(bcss), 2), BCSS(str(bcss / "rgbs_colorNormalized"), 2)
    assert [file.parent.name for file in named.files] == ["rgbs_colorNormalized"]
    assert named.fingerprint() == direct.fingerprint()
    with pytest.raises(DataError, match=r"is no colour image \(mode L\); is this the folder of masks"):
        BCSS(str(bcss / "masks"), 2)
    (bcss / "rgbs_colorNormalized").rename(bcss / "images")  # as the authors' script calls it
    assert len(BCSS(str(bcss), 2)) == len(named)


def test_every_bad_region_is_named_with_its_problem(bcss: Path) -> None:
    save(ramp(40, 40), bcss, region(TRAIN))
    save(ramp(40, 39), bcss, region(TRAIN, 1))
    save(ramp(40, 40), bcss, "slide_7.png")
    (bcss / "rgbs_colorNormalized" / region(TEST)).write_text("no image")
    with pytest.raises(DataError) as caught:
        BCSS(str(bcss), size=10)
    message = str(caught.value)
    assert "3 of 4 files" in message
    for name, problem in (
        (region(TRAIN, 1), "10x9 after downscaling by 4 is too small: crops are 10x10"),
        ("slide_7.png", "is not named after a slide"),
        (region(TEST), "unreadable"),
    ):
        assert any(name in line and problem in line for line in message.splitlines())
    assert region(TRAIN) not in message


def test_a_truncated_region_is_named_when_it_is_read(bcss: Path) -> None:
    noise = Image.fromarray(rng().integers(0, 256, (64, 64, 3), dtype=np.uint8))
    save(noise, bcss, region(TRAIN))
    file = bcss / "rgbs_colorNormalized" / region(TRAIN)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"TCGA-A1-A0SK.*unreadable"):
        BCSS(str(bcss), size=4).image(0, rng())


@pytest.mark.parametrize("place", ["", "nowhere"])
def test_missing_regions_are_named_with_their_source_and_destination(tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError) as caught:
        BCSS(str(tmp_path / place))
    message = str(caught.value)
    assert "rgbs_colorNormalized" in message
    assert "https://github.com/PathologyDataScience/BCSS" in message
    assert message.endswith(f"put it at {tmp_path / place / 'rgbs_colorNormalized'}")


def test_a_split_that_no_patient_falls_into_is_refused(bcss: Path) -> None:
    save(ramp(16, 16), bcss, region(TRAIN))
    with pytest.raises(DataError, match=r"none of the 1 regions .* falls into the test split"):
        BCSS(str(bcss), 2, split="test")


def test_the_largest_regions_are_read_without_a_warning(bcss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 16 - 1)  # Pillow's own is 89 million, BCSS's 126
    save(ramp(16, 16), bcss, region(TRAIN))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = BCSS(str(bcss), 2).image(0, rng())
    red, green, _ = (image + 1) * 127.5  # columns and rows, of which four at a time are averaged
    assert [float(red.max() - red.min()), float(green.max() - green.min())] == pytest.approx([4, 4])
