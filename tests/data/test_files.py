"""Image files: every mode comes back as it went in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from tifffile import imwrite
from torchvision.utils import make_grid

from nca_lib.data.files import WRITTEN, check_output, edit, read, read_mask, sheet, sheet_size, write
from nca_lib.errors import DataError, OutputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
RGB = Image.fromarray(PIXELS[..., :3])
RGBA = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[..., 0])
DEEP = Image.fromarray(RNG.integers(0, 65536, (7, 5), dtype=np.uint16))


def stored(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def unchanged(source: Path, out: Path) -> Image.Image:
    edit(source, out, lambda image: image)
    return Image.open(out)


@pytest.mark.parametrize("picture", [RGB, GREY, DEEP], ids=["RGB", "grey", "16 bits"])
def test_an_image_that_nobody_changed_is_written_back_exactly(picture: Image.Image, tmp_path: Path) -> None:
    back = unchanged(stored(picture, tmp_path / "in.png"), tmp_path / "out.png")
    assert back.mode == Image.open(tmp_path / "in.png").mode  # Pillow 10 reads 16 bits as 32
    np.testing.assert_array_equal(np.array(back), np.array(picture))


@pytest.mark.parametrize(
    ("picture", "as_mode"),
    [
        (RGB.quantize(16), "RGB"),
        (GREY.convert("1"), "L"),
        (RGB.convert("CMYK"), "RGB"),
    ],
    ids=["palette", "black and white", "CMYK"],
)
def test_other_modes_keep_their_look(picture: Image.Image, as_mode: str, tmp_path: Path) -> None:
    source = stored(picture, tmp_path / "in.tif")
    back = unchanged(source, tmp_path / "out.png")
    assert back.mode == as_mode
    np.testing.assert_array_equal(np.array(back), np.array(Image.open(source).convert(as_mode)))


def test_floating_point_pixels_whose_range_nobody_says_are_refused(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.linspace(0, 1, 35, dtype=np.float32).reshape(7, 5))
    source = stored(ramp, tmp_path / "in.tif")
    with pytest.raises(DataError, match=r"in\.tif: its pixels are floating-point numbers"):
        read(source)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_is_kept_and_does_not_touch_the_colours(mode: str, tmp_path: Path) -> None:
    picture = RGBA.convert(mode)
    back = unchanged(stored(picture, tmp_path / "in.png"), tmp_path / "out.png")
    assert back.mode == mode
    before, after = np.array(picture), np.array(back)
    np.testing.assert_array_equal(after[..., -1], before[..., -1])
    seen = before[..., -1] > 0
    np.testing.assert_array_equal(after[seen], before[seen])


def test_transparent_pixels_count_as_white_and_a_transparent_palette_colour_is_opacity(
    tmp_path: Path,
) -> None:
    palette = GREY.point(lambda value: value // 128).convert("P")
    source = stored(palette, tmp_path / "in.png", transparency=0)
    image, original = read(source)
    hidden = torch.from_numpy(np.array(palette)) == 0
    assert 0 < hidden.sum() < hidden.numel()
    assert (image[:, hidden] == 1).all()
    np.testing.assert_array_equal(np.array(original.alpha) == 0, hidden.numpy())


def test_opacity_grows_with_the_image(tmp_path: Path) -> None:
    source = stored(RGBA, tmp_path / "in.png")
    edit(source, tmp_path / "out.png", lambda x: torch.nn.functional.interpolate(x, scale_factor=3))
    back = Image.open(tmp_path / "out.png")
    assert (back.mode, back.size) == ("RGBA", (15, 21))
    centres = np.array(back)[1::3, 1::3, 3]
    np.testing.assert_array_equal(centres, PIXELS[..., 3])


def test_a_photograph_taken_sideways_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    source = stored(RGB, tmp_path / "in.png", exif=exif)
    image, _ = read(source)
    assert image.shape == (3, 5, 7)
    back = unchanged(source, tmp_path / "out.png")
    np.testing.assert_array_equal(np.array(back), np.array(RGB.transpose(Image.Transpose.ROTATE_270)))
    np.testing.assert_array_equal(np.array(ImageOps.exif_transpose(back)), np.array(back))  # not turned twice


def test_values_lie_where_the_library_wants_them(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    assert read(stored(ramp, tmp_path / "deep.png"))[0][0].tolist() == [[-1, 1]]
    grey = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    assert read(stored(grey, tmp_path / "grey.png"))[0][2].tolist() == [[-1, 1]]


def test_a_model_of_grey_images_edits_any_image(tmp_path: Path) -> None:
    source = stored(GREY, tmp_path / "in.png")
    edit(source, tmp_path / "out.png", lambda image: -image, channels=1)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out.png")), 255 - np.array(GREY))
    coloured = edit(
        stored(RGB, tmp_path / "rgb.png"), tmp_path / "rgb_out.png", lambda image: image, channels=1
    )
    assert coloured.shape == (1, 1, 7, 5)
    back = np.array(Image.open(tmp_path / "rgb_out.png")).astype(int)
    assert (np.ptp(back, axis=2) == 0).all()


def test_a_mask_is_white_where_something_is_to_be_filled(tmp_path: Path) -> None:
    image, original = read(stored(RGB, tmp_path / "in.png"))
    hole = np.zeros((7, 5), dtype=bool)
    hole[2:4, 1:3] = True
    white = Image.fromarray(hole.astype(np.uint8) * 255)
    strokes = Image.new("RGBA", (5, 7), (255, 255, 255, 0))  # transparent white paper
    strokes.paste((255, 255, 255, 255), mask=white)
    deep = Image.fromarray(hole.astype(np.uint16) * 65535)
    for name, mask in (("grey", white), ("bits", white.convert("1")), ("strokes", strokes), ("deep", deep)):
        known = read_mask(stored(mask, tmp_path / f"{name}.png"), image, original)
        np.testing.assert_array_equal(known[0, 0].numpy(), ~hole)


def test_masks_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    image, original = read(stored(RGB, tmp_path / "photo.png"))
    with pytest.raises(DataError, match=r"mask\.png is 9x7, but .*photo\.png is 5x7 \(width x height\)"):
        read_mask(stored(Image.new("L", (9, 7), 255), tmp_path / "mask.png"), image, original)
    with pytest.raises(DataError, match=r"empty\.png marks nothing: .* white"):
        read_mask(stored(Image.new("L", (5, 7)), tmp_path / "empty.png"), image, original)
    with pytest.raises(DataError, match=r"ones\.png marks nothing: its brightest pixel is 0\.4% of white"):
        read_mask(stored(Image.new("L", (5, 7), 1), tmp_path / "ones.png"), image, original)
    tissue = np.linspace(60, 200, 35).reshape(7, 5).astype(np.uint8)
    with pytest.raises(DataError, match=r"picture\.png is no mask, 100% of it are grey"):
        read_mask(stored(Image.fromarray(tissue), tmp_path / "picture.png"), image, original)


def test_pages_that_are_channels_are_refused_and_those_of_a_pyramid_are_not(tmp_path: Path) -> None:
    channels = [Image.fromarray(PIXELS[..., c]) for c in range(3)]
    stack = stored(channels[0], tmp_path / "stack.tif", save_all=True, append_images=channels[1:])
    with pytest.raises(DataError, match=r"stack\.tif: 3 pages of 5x7, as channels or a stack"):
        read(stack)
    pyramid = stored(RGB, tmp_path / "pyramid.tif", save_all=True, append_images=[RGB.resize((3, 4))])
    assert torch.equal(read(pyramid)[0], read(stored(RGB, tmp_path / "plain.tif"))[0])


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)], ids=["grey", "colour"])
def test_twelve_bits_in_sixteen_are_refused_instead_of_drawn_black(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = RNG.integers(1, 4096, shape, dtype=np.uint16)
    imwrite(tmp_path / "camera.tif", values)
    with pytest.raises(DataError, match=r"camera\.tif: its brightest pixel .* 12; multiply its values by 16"):
        read(tmp_path / "camera.tif")
    imwrite(tmp_path / "scaled.tif", values * 16)
    seen = read(tmp_path / "scaled.tif")[0].permute(1, 2, 0) / 2 + 0.5
    deep = torch.from_numpy(values.astype(np.float32) * 16 / 65535).view(7, 5, -1).expand(-1, -1, 3)
    torch.testing.assert_close(seen, deep, atol=1 / 255, rtol=0)  # of colour, Pillow reads eight bits


def test_resolution_and_colour_profile_stay(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scan = stored(RGB, tmp_path / "scan.tif", dpi=(50_800, 25_400), icc_profile=profile)  # 0.5 and 1 um
    held = {"tif": 1e9, "png": 1e9, "jpg": 65_535}
    for suffix in ("tif", "png", "jpg"):
        edit(scan, tmp_path / f"same.{suffix}", lambda image: image)
        edit(scan, tmp_path / f"twice.{suffix}", lambda image: F.interpolate(image, scale_factor=2), factor=2)
        for name, factor in (("same", 1), ("twice", 2)):
            with Image.open(tmp_path / f"{name}.{suffix}") as found:
                if factor * 50_800 <= held[suffix]:
                    assert found.info["dpi"] == pytest.approx((factor * 50_800, factor * 25_400), rel=1e-3)
                else:
                    assert "dpi" not in found.info
                assert found.info["icc_profile"] == profile


def test_the_profile_of_printing_colours_is_not_that_of_the_result(tmp_path: Path) -> None:
    source = stored(RGB.convert("CMYK"), tmp_path / "print.tif", icc_profile=b"of four inks")
    assert "icc_profile" not in unchanged(source, tmp_path / "out.png").info


def test_nothing_is_overwritten_without_force_nor_computed_in_vain(tmp_path: Path) -> None:
    source, out = stored(RGB, tmp_path / "in.png"), stored(GREY, tmp_path / "out.png")
    before = out.read_bytes()

    def never(image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed before the output was checked")

    with pytest.raises(DataError, match=r"out\.png exists; add --force"):
        edit(source, out, never)
    with pytest.raises(OutputError, match=r"folder .*nowhere does not exist"):
        edit(source, tmp_path / "nowhere" / "out.png", never)
    with pytest.raises(DataError, match=r"\.xyz is no known image format"):
        edit(source, tmp_path / "out.xyz", never)
    assert out.read_bytes() == before
    edit(source, out, lambda image: image, force=True)
    np.testing.assert_array_equal(np.array(Image.open(out)), np.array(RGB))


def test_unreadable_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = stored(RGB.resize((200, 200)), tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="it is empty"):
        read(tmp_path / "empty.png")
    for name in ("text.png", "cut.png", "missing.png", "."):
        with pytest.raises(DataError, match=r"unreadable \(.+\)$") as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_a_format_that_cannot_hold_the_image_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    image, original = read(stored(RGBA, tmp_path / "in.png"))
    with pytest.raises(DataError, match=r"out\.jpg: cannot be written .*\.png holds every kind"):
        write(image, tmp_path / "out.jpg", original)
    assert not (tmp_path / "out.jpg").exists()


def test_odd_formats_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    for suffix in (".gif", ".ico", ".pdf", ".psd", ".fits", ".mpg", ".eps", ".txt", ""):
        with pytest.raises(DataError, match=r"is no known image format; choose one of \.png"):
            check_output(tmp_path / f"out{suffix}")
    for suffix in WRITTEN:
        source = stored(RGB, tmp_path / "in.png")
        back = np.array(unchanged(source, tmp_path / f"out{suffix}")).astype(int)
        assert np.abs(back - PIXELS[..., :3]).mean() < 60  # noise of 35 pixels, which JPEG blurs


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500), (".JPEG", 65_500)])
def test_a_picture_too_long_for_its_format_is_refused_before_it_is_computed(
    suffix: str, longest: int, tmp_path: Path
) -> None:
    out, source = tmp_path / f"out{suffix}", stored(RGB, tmp_path / "in.png")
    write(torch.zeros(1, 1, longest), out)
    assert Image.open(out).size == (longest, 1)
    message = rf"out{suffix}: {longest + 1}x1 is too large for {suffix} \(up to {longest:,} pixels a side\)"
    with pytest.raises(DataError, match=message):
        check_output(out, force=True, size=(1, longest + 1))
    with pytest.raises(DataError, match="is too large"):
        edit(source, out, lambda image: pytest.fail("computed"), factor=longest, force=True)


def test_a_bomb_is_named_and_the_limit_can_be_raised(tmp_path: Path) -> None:
    bomb = stored(Image.new("1", (20_000, 10_000)), tmp_path / "bomb.png")
    with pytest.raises(
        DataError, match=r"bomb\.png: 20000x10000 is more than 89,478,485 pixels; cut it into"
    ):
        edit(bomb, tmp_path / "out.png", lambda image: image)
    image, original = read(stored(RGB, tmp_path / "in.png"), max_pixels=35)
    assert image.shape == (3, 7, 5)
    with pytest.raises(DataError, match="5x7 is more than 34 pixels"):
        read_mask(tmp_path / "in.png", image, original, max_pixels=34)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: unreadable"):
        read(tmp_path / "pipe.png")


@pytest.mark.parametrize(("count", "columns", "padding"), [(1, 1, 2), (5, 4, 2), (8, 4, 1), (3, 3, 0)])
def test_a_sheet_is_laid_out_as_torchvisions_grid(count: int, columns: int, padding: int) -> None:
    images = torch.rand(count, 3, 5, 7) * 2 - 1
    ours = sheet(images, columns, padding)
    assert ours.shape[1:] == sheet_size(count, columns, 5, 7, padding)
    if count == 1:  # which torchvision leaves without a border
        assert torch.equal(ours[:, 2:-2, 2:-2], images[0])
        return
    theirs = make_grid(images, nrow=columns, padding=padding, pad_value=-1)
    assert torch.equal(ours, theirs)
    assert sheet(images[:, :1], columns, padding).shape == (1, *theirs.shape[1:])
