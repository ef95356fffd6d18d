"""Data sets: real pixels, disjoint splits, a resumable stream, and folders of awkward files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.data import immunohistochemistry
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nca_lib.data.digits import Digits
from nca_lib.data.folder import Folder, _Pictures, _read, _to_float
from nca_lib.data.images import MOST_PIXELS, DataError, Stream, random_crop, turned
from nca_lib.data.tissue import Tissue, TissueScales
from nca_lib.experiments.growing import picture


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(value: int, width: int = 40, height: int = 32) -> Image.Image:
    return Image.new("L", (width, height), value)


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


# Tissue


def pixels_of(data: Tissue) -> Tensor:
    """Which pixels of the photograph a split's crops may hold, (H, W)."""
    seen = torch.zeros(data.photo.shape[1:], dtype=torch.bool)
    for top, left in data.corners:
        seen[top : top + data.size, left : left + data.size] = True
    return seen


@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_held_out_blocks_lie_between_training_crops_that_keep_away_from_them(downscale: int) -> None:
    train, test = (Tissue(64 // downscale, downscale, split) for split in ("train", "test"))
    block, held = 128 // downscale, torch.zeros(train.photo.shape[1:], dtype=torch.bool)
    for row, column in ((0, 3), (1, 0), (2, 0), (3, 1)):
        held[row * block : (row + 1) * block, column * block : (column + 1) * block] = True
    assert torch.equal(pixels_of(test), held)
    near = binary_dilation(held.numpy(), np.ones((3, 3)), iterations=8 // downscale)
    assert not (pixels_of(train).numpy() & near).any()
    assert len(train.corners) > 0.5 * train.allowed.numel()


def test_the_whole_photograph_is_there() -> None:
    photo = torch.from_numpy(immunohistochemistry()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(Tissue().photo, photo)


def test_every_tissue_crop_is_found_where_its_split_allows_it() -> None:
    for split in ("train", "test"):
        data = Tissue(size=6, split=split)
        windows = data.photo.unfold(1, 6, 1).unfold(2, 6, 1)[:, :, :, 0, 0]
        windows = torch.where(data.allowed, windows, torch.nan)
        for seed in range(5):
            crop = data.image(0, rng(seed))
            assert any(_occurs(turned, data.photo, windows) for turned in _symmetries(crop))


def test_crops_at_any_offset_are_reduced_pieces_of_the_photograph_and_keep_to_their_split() -> None:
    held, train = (Tissue(24, 8, split, offsets=True, test_size=16) for split in ("test", "train"))
    assert (held.size, train.size) == (16, 24)
    assert len(train.corners) > 50 * len(Tissue(24, 8).corners)
    assert any(top % 8 for top, _ in held.corners)
    photo = Tissue().photo
    pieces = [avg_pool2d(photo[:, y : y + 128, x : x + 128], 8) for y, x in held.corners]
    crop = held.image(0, rng())
    ways = [torch.rot90(way, turn, (1, 2)) for turn in range(4) for way in (crop, crop.flip(2))]
    assert any(torch.allclose(way, piece) for way in ways for piece in pieces)
    blocks = {
        (y // 128, x // 128)
        for top, left in held.corners
        for y in (top, top + 127)
        for x in (left, left + 127)
    }
    assert blocks == set(Tissue.held_out)
    for top, left in train.corners[::97]:
        rows, columns = (range((first - 8) // 128, (first + 199) // 128 + 1) for first in (top, left))
        assert not blocks & {(row, column) for row in rows for column in columns}


def test_both_parts_of_the_tissue_show_the_same() -> None:
    """Their stains differ little, where a quarter at the right differs by half of the range of blue."""
    means = [
        torch.stack([data.image(0, rng(seed)) for seed in range(400)]).mean((0, 2, 3))
        for data in (Tissue(32, 2), Tissue(32, 2, "test"))
    ]
    assert (means[0] - means[1]).abs().max() < 0.05
    photo = Tissue(32, 2).photo
    assert (photo[2, :, :192].mean() - photo[2, :, 192:].mean()).abs() > 0.3


def _symmetries(image: Tensor) -> list[Tensor]:
    turned = [image.rot90(k, (1, 2)) for k in range(4)]
    return turned + [t.flip(2) for t in turned]


def _occurs(crop: Tensor, photo: Tensor, corners: Tensor) -> bool:
    size = crop.shape[1]
    places = (corners == crop[:, :1, 0, None]).all(dim=0).nonzero().tolist()
    return any(torch.equal(photo[:, y : y + size, x : x + size], crop) for y, x in places)


def test_all_eight_orientations_occur_and_two_or_one_where_asked_for() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    for orientations in (8, 2, 1):
        generator = rng()
        seen = {tuple(random_crop(image, 3, generator, orientations).flatten().tolist()) for _ in range(200)}
        assert len(seen) == orientations
    assert {tuple(t.flatten().tolist()) for t in _symmetries(image)} == {
        tuple(random_crop(image, 3, rng(seed)).flatten().tolist()) for seed in range(100)
    }


def test_crops_reach_every_corner() -> None:
    image = torch.arange(20.0).view(1, 4, 5)
    seen = {float(random_crop(image, 2, rng(seed), 1)[0, 0, 0]) for seed in range(300)}
    assert seen == {float(5 * y + x) for y in range(3) for x in range(4)}


class Last:
    """A generator that always draws the largest number."""

    def integers(self, count: int) -> int:
        return count - 1


def test_crops_of_the_tissue_reach_the_last_of_its_corners() -> None:
    data = Tissue(64, downscale=2)
    last: Any = Last()
    top, left = data.corners[-1]
    crop = data.photo[:, top : top + 64, left : left + 64]
    assert torch.equal(data.image(0, last), turned(crop, last, 8))


@pytest.mark.parametrize("split", ["train", "test"])
def test_crops_at_several_scales_are_those_of_each_with_the_scale_behind_them(split: Any) -> None:
    data, seen = TissueScales(24, 4, split), {1.0: 0, 0.5: 0, 0.25: 0}
    for n in range(300):
        image = data.image(n, np.random.default_rng(n))
        scale = float(image[3, 0, 0])
        assert image.shape == (4, 24, 24) and (image[3] == scale).all()
        seen[scale] += 1
    assert min(seen.values()) > 75  # of 100; three standard deviations are 25
    for n in range(12):
        image, rng = data.image(n, np.random.default_rng(n)), np.random.default_rng(n)
        rng.integers(3)  # the scale
        alone = Tissue(24, round(1 / float(image[3, 0, 0])), split, offsets=True)
        assert torch.equal(image[:3], alone.image(n, rng))
    assert data.fingerprint() != TissueScales(24, 2, split).fingerprint()


def test_scales_are_powers_of_two() -> None:
    with pytest.raises(DataError, match="coarsest is 3; it must be a power of two"):
        TissueScales(24, 3)


def test_a_crop_larger_than_the_tissue_is_refused() -> None:
    with pytest.raises(DataError, match=r"size is 257.*test part.*blocks are 128 pixels wide"):
        Tissue(size=257, split="test")
    with pytest.raises(DataError, match=r"size is 200.*train part.*blocks are 64 pixels wide"):
        Tissue(size=200, downscale=2)


# Digits


def test_digits_are_the_real_ones_in_range_and_split_by_writer() -> None:
    from sklearn.datasets import load_digits

    train, test = Digits(), Digits(split="test")
    assert (len(train), len(test)) == (1500, 297)
    everything = torch.cat([train.images, test.images])
    assert (everything.min(), everything.max()) == (-1, 1)
    assert np.array_equal(((everything[:, 0] + 1) * 8).numpy(), load_digits().images)
    assert train.labels[:10].tolist() == list(range(10))


def test_large_digits_are_the_same_digits_with_a_margin_of_one_old_pixel() -> None:
    large = Digits(size=40).images  # 4 pixels an old one: ten by ten old ones, margin included
    small = torch.nn.functional.avg_pool2d(large, 4)[:, :, 1:-1, 1:-1]
    original = Digits().images
    pairs = torch.stack([small.flatten(1), original.flatten(1)])
    correlation = torch.nn.functional.cosine_similarity(*(pairs - pairs.mean(dim=2, keepdim=True)), dim=1)
    assert correlation.min() > 0.9
    assert correlation.mean() > 0.97
    assert abs(float(small.mean() - original.mean())) < 0.02  # as much ink


def test_large_digits_are_white_strokes_that_end_inside_a_black_ground() -> None:
    large = Digits(size=32).images
    assert (large.min(), large.max()) == (-1, 1)
    border = torch.cat([large[..., 0], large[..., -1], large[..., 0, :], large[..., -1, :]])
    assert (border == -1).all()
    # No ringing: where the old pixel and all its neighbours to two away are black, so is every new pixel.
    exact, old = Digits(size=40).images, torch.nn.functional.pad(Digits().images, (1, 1, 1, 1), value=-1)
    near = torch.nn.functional.max_pool2d(old, 5, stride=1, padding=2).repeat_interleave(4, 2)
    assert (exact[near.repeat_interleave(4, 3) == -1] == -1).all()
    # No grey haze: most of each image is as black as can be, as of the originals.
    assert ((large == -1).float().mean(dim=(1, 2, 3)) > 0.4).all()


def test_a_large_digit_falls_where_the_small_one_lies() -> None:
    ink = (Digits(size=32).images + 1).sum(dim=(0, 1))
    old = torch.nn.functional.pad((Digits().images + 1).sum(dim=(0, 1)), (1, 1, 1, 1))
    for axis in (0, 1):
        centre = (ink.sum(dim=1 - axis) * (torch.arange(32) + 0.5)).sum() / ink.sum() / 32
        expected = (old.sum(dim=1 - axis) * (torch.arange(10) + 0.5)).sum() / old.sum() / 10
        assert centre == pytest.approx(float(expected), abs=0.003)


def test_a_classifier_reads_large_digits_as_well_as_small_ones() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    def score(size: int) -> float:
        train, test = Digits(size), Digits(size, split="test")
        classifier = KNeighborsClassifier(3).fit(train.images.flatten(1).numpy(), train.labels)
        return float(classifier.score(test.images.flatten(1).numpy(), test.labels))

    assert score(32) > score(8) - 0.02 > 0.9  # of 297, with a standard error of 0.012


# Stream


def test_an_item_of_the_stream_depends_on_the_seed_and_its_number_only() -> None:
    data = Tissue(size=8)
    forwards = [Stream(data, seed=3)[n] for n in range(5)]
    late = Stream(data, seed=3)
    assert torch.equal(late[4], forwards[4])
    assert torch.equal(late[0], forwards[0])
    assert not torch.equal(Stream(data, seed=4)[0], forwards[0])
    assert not torch.equal(forwards[0], forwards[1])


class Numbers:
    """Images that are two numbers: which image it is, and one drawn for its crop."""

    channels, size = 1, 1

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        return torch.tensor([index, rng.random()], dtype=torch.float64)

    def fingerprint(self) -> str:
        return ""


def test_each_pass_of_the_stream_visits_every_image_once_in_a_new_order() -> None:
    stream = Stream(Numbers(7), seed=0)
    passes = [[int(stream[7 * epoch + n][0]) for n in range(7)] for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) > 1


def test_each_pass_of_the_stream_takes_other_crops() -> None:
    stream = Stream(Numbers(3), seed=0)
    assert len({float(stream[n][1]) for n in range(30)}) == 30


def test_the_order_of_a_pass_depends_on_the_seed() -> None:
    streams = [Stream(Numbers(20), seed) for seed in (0, 1)]
    one, other = ([int(stream[n][0]) for n in range(20)] for stream in streams)
    assert one != other


# Folder


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_images_of_every_mode_are_read_as_rgb(folder: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (40, 32), (255, 255, 255)).convert(mode).save(folder / f"white.{suffix}")
    image = Folder(str(folder), size=8).image(0, rng())
    assert image.shape == (3, 8, 8)
    torch.testing.assert_close(image, torch.ones(3, 8, 8), atol=0.02, rtol=0)


def test_palette_colours_are_looked_up(folder: Path) -> None:
    noise_image(40, 32).quantize(8).save(folder / "palette.png")
    with Image.open(folder / "palette.png") as image:
        expected = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
    torch.testing.assert_close(
        _to_float(_read(folder / "palette.png", 10**6)).permute(1, 2, 0), torch.from_numpy(expected)
    )


def test_sixteen_bits_are_scaled_and_not_clipped(folder: Path) -> None:
    ramp = np.linspace(0, 65535, 40).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (32, 1))).save(folder / "ramp.png")
    image = _to_float(_read(folder / "ramp.png", 10**6))
    expected = torch.linspace(-1, 1, 40).expand(3, 32, 40)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)


def test_a_photograph_that_was_taken_sideways_is_turned_upright(folder: Path) -> None:
    upright = noise_image(12, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored so that it must be turned a quarter clockwise for display
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "sideways.png", exif=exif)
    expected = torch.from_numpy(np.asarray(upright, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(_to_float(_read(folder / "sideways.png", 10**6)), expected)
    with pytest.raises(DataError, match="12x40 is too small"):
        Folder(str(folder), size=10)  # 9 columns are left of the held-out quarter


def test_downscaling_averages_squares(folder: Path) -> None:
    noise_image(40, 32).save(folder / "a.png")
    full = _to_float(_read(folder / "a.png", 10**6))
    halves = full.view(3, 16, 2, 20, 2).mean(dim=(2, 4)).unfold(1, 8, 1).unfold(2, 8, 1)
    for n in range(5):
        crop = Folder(str(folder), 8, downscale=2, orientations=1).image(0, rng(n))
        assert torch.isclose(halves, crop[:, None, None], atol=1e-6).all(dim=(0, 3, 4)).sum() == 1


def test_crops_of_a_file_reach_its_last_row_and_column(folder: Path) -> None:
    y, x = np.mgrid[:6, :7]
    ramps = Image.fromarray(np.stack([20 * x, 20 * y, 0 * x], axis=2).astype(np.uint8))
    for n in range(10):
        ramps.save(folder / f"{n}.png")
    data = Folder(str(folder), size=5, orientations=1)
    levels = [(data.image(0, rng(seed))[:2, 0, 0] + 1) * 127.5 for seed in range(60)]
    corners = {tuple((level / 20).round().int().tolist()) for level in levels}
    assert corners == {(left, top) for left in range(3) for top in range(2)}


def test_resizing_keeps_the_centre_and_the_aspect(folder: Path) -> None:
    for n in range(10):
        picture = Image.new("RGB", (60, 20), "black")
        picture.paste("white", (20, 0, 40, 20))
        picture.save(folder / f"{n}.png")
    image = Folder(str(folder), size=10, fit="resize", orientations=1).image(0, rng())
    torch.testing.assert_close(image[:, :, 2:8], torch.ones(3, 10, 6), atol=0.05, rtol=0)
    assert image.shape == (3, 10, 10)


def test_many_files_are_split_by_file(folder: Path) -> None:
    (folder / "deeper").mkdir()
    for n in range(24):
        grey(n).save((folder if n % 2 else folder / "deeper") / f"{n}.png")
    train, test = (set(Folder(str(folder), 8, split=split).files) for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 24
    assert len(test) == 3
    values = {int(f.stem) for f in test}
    data = Folder(str(folder), 8, split="test")
    seen = {round(float((data.image(n, rng(n))[0, 0, 0] + 1) * 127.5)) for n in range(20)}
    assert seen == values


def test_few_files_are_split_in_space(folder: Path) -> None:
    picture = Image.new("RGB", (64, 40), "black")
    picture.paste("white", (48, 0, 64, 40))
    picture.save(folder / "a.png")
    train, test = Folder(str(folder), 8), Folder(str(folder), 8, split="test")
    assert len(train) == 256
    for n in range(60):
        assert train.image(n, rng(n)).max() == -1
        assert test.image(n, rng(n)).min() == 1


def test_every_bad_file_is_named_with_its_problem(folder: Path) -> None:
    grey(0).save(folder / "good.png")
    (folder / "text.png").write_text("this is no image")
    (folder / "empty.jpg").write_bytes(b"")
    grey(0, width=10, height=5).save(folder / "small.png")
    with pytest.raises(DataError) as caught:
        Folder(str(folder), size=8)
    message = str(caught.value)
    assert "3 of 4 files" in message
    for name, problem in (
        ("text.png", "unreadable"),
        ("empty.jpg", "unreadable"),
        ("small.png", "10x5 is too small"),
    ):
        assert any(name in line and problem in line for line in message.splitlines())
    assert "good.png" not in message


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_named(folder: Path, suffix: str) -> None:
    file = folder / f"cut.{suffix}"
    noise_image(80, 60).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}.*unreadable"):
        Folder(str(folder), size=8).image(0, rng())


def test_a_png_without_its_end_is_named(folder: Path) -> None:
    noise_image(80, 60).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    for missing in (5, 13, 20):  # Pillow takes the pixels, and does not ask for the rest
        (folder / "cut.png").write_bytes(whole[:-missing])
        with pytest.raises(DataError, match=r"cut\.png.*unreadable"):
            Folder(str(folder), size=8).image(0, rng())


def test_more_pixels_than_allowed_are_named(folder: Path) -> None:
    grey(0).save(folder / "small.png")
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    with pytest.raises(DataError, match=r"1 of 2.*\n.*bomb\.png: 20000x10000 is more than 89,478,485 pixels"):
        Folder(str(folder), size=8)
    (folder / "bomb.png").unlink()
    with pytest.raises(DataError, match=r"more than 100 pixels; cut it into tiles, or raise max_pixels"):
        Folder(str(folder), size=8, max_pixels=100)


def test_the_limit_can_be_raised(folder: Path) -> None:
    Image.new("1", (9500, 9500), 1).save(folder / "large.png")
    data = Folder(str(folder), size=8, max_pixels=10**8)
    assert (data.image(0, rng()) == 1).all()
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS  # Pillow's own, for others, is as it was


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\0", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0ab\0\0"]
)
def test_broken_exif_plays_no_part(exif: bytes, folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    noise_image(40, 32).save(folder / "a.jpg", exif=exif)
    image = Folder(str(folder), size=8, orientations=1).image(0, rng())
    assert image.shape == (3, 8, 8)
    assert not recwarn


def test_pictures_are_kept_as_bytes_within_a_bound(folder: Path) -> None:
    for n in range(6):
        noise_image(40, 30).save(folder / f"{n}.png")
    kept, files = _Pictures(most=3 * 40 * 30 * 3), sorted(folder.iterdir())
    for file in [*files, files[3], *files]:
        assert np.array_equal(kept.get(file, (0, 0), 10**6), np.asarray(Image.open(file)))
        assert kept.held == sum(picture.nbytes for picture in kept.pictures.values()) <= kept.most
    assert [file for file, _ in kept.pictures] == files[3:]
    assert _Pictures(most=1).get(files[0], (0, 0), 10**6).dtype == np.uint8  # one is kept, however large


def test_a_file_that_was_replaced_is_read_anew(folder: Path) -> None:
    for second, value in enumerate((255, 0)):
        grey(value).save(folder / "a.png")
        os.utime(folder / "a.png", (second, second))
        image = Folder(str(folder), size=8).image(0, rng())
        torch.testing.assert_close(image, torch.full((3, 8, 8), value / 127.5 - 1))


def test_a_picture_of_one_column_is_refused(folder: Path) -> None:
    for n in range(10):
        Image.new("RGB", (1, 60)).save(folder / f"{n}.png")
    with pytest.raises(DataError, match=r"10 of 10.*\n.*1x60 is too small to be resized"):
        Folder(str(folder), size=8, fit="resize")


def test_empty_and_missing_folders_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"images holds no images; known kinds are .*\.png"):
        Folder(str(folder))
    with pytest.raises(DataError, match="nowhere is not a directory"):
        Folder(str(folder / "nowhere"))


@pytest.mark.parametrize("kind", ["tissue", "digits"])
def test_a_fingerprint_names_the_pixels(kind: str) -> None:
    build = {"tissue": Tissue, "digits": Digits}[kind]
    assert build(8).fingerprint() == build(8).fingerprint()
    assert build(8).fingerprint() != build(8, split="test").fingerprint()


# Targets for growing


def test_the_ladybird_is_premultiplied_and_has_a_margin() -> None:
    target = picture("ladybird", 40)
    assert target.shape == (4, 40, 40)
    assert (target[:3] <= target[3:] + 1e-6).all()
    assert 0 <= target.min() < target.max() <= 1
    opaque = target[3] > 0
    assert opaque[20, 20]
    assert 0.3 < opaque.float().mean() < 0.7
    for border in (opaque[:4], opaque[-4:], opaque[:, :4], opaque[:, -4:]):
        assert not border.any()


def test_a_half_transparent_picture_is_premultiplied_and_centred(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 51, 128)).save(tmp_path / "glass.png")
    target = picture(str(tmp_path / "glass.png"), 20)
    alpha = 128 / 255
    expected = torch.tensor([alpha, 0, alpha * 0.2, alpha]).view(4, 1, 1).expand(4, 16, 16)
    torch.testing.assert_close(target[:, 2:18, 2:18], expected)
    assert torch.count_nonzero(target[3]) == 16 * 16


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither 'ladybird' nor an image: .*none\.png: unreadable"):
        picture(str(tmp_path / "none.png"), 20)


def test_transparent_pixels_are_white_whatever_lies_under_them(tmp_path: Path) -> None:
    glass = Image.new("RGBA", (64, 16), (200, 0, 0, 255))
    glass.paste((0, 255, 0, 0), (0, 0, 24, 16))
    glass.save(tmp_path / "glass.png")
    folder = Folder(str(tmp_path), size=16, fit="crop", orientations=1)
    crops = torch.stack([folder.image(n, rng(n)) for n in range(40)])
    levels = ((crops + 1) * 127.5).round().int().permute(0, 2, 3, 1).reshape(-1, 3)
    assert {tuple(level) for level in levels.tolist()} == {(255, 255, 255), (200, 0, 0)}
