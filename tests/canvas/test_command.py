"""The command: same seed, same picture as `sample`; what is stopped goes on; nothing is overwritten."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nca_lib.__main__ import main
from nca_lib.canvas import formats, outofcore, tiles
from nca_lib.devices import computes_bf16

HOLD = """
import sys
from nca_lib.files import locked
with locked(sys.argv[1]):
    print()
    input()
"""


def pixels(path):
    return np.array(Image.open(path))


@pytest.mark.parametrize("precision", [[], ["--bf16"]])
def test_the_picture_is_that_of_sample_in_every_format(tiny, tmp_path, capsys, precision):
    import tifffile
    import zarr

    same = ["--size", "70x50", "--steps", "3", "--seed", "4", *precision]
    assert main(["sample", tiny, *same, "--out", str(tmp_path / "sample.png")]) == 0
    expected = pixels(tmp_path / "sample.png")
    for name in ("a.png", "a.tiff", "a.zarr"):
        more = ["--tile", "32", "--compression", "deflate", "--out", str(tmp_path / name)]
        assert main(["canvas", tiny, *same, *more]) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tiff"), expected)
    assert np.array_equal(np.moveaxis(zarr.open_array(tmp_path / "a.zarr" / "0")[:], 0, -1), expected)
    assert "0.00 of 0.00 megapixels" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tiff", "a.zarr", "sample.png"]


def test_commands_that_draw_cut_up_what_is_large_and_draw_the_same(tiny, tmp_path, monkeypatch):
    drawn = []

    def commands(name):
        image, out = str(tmp_path / f"{name}.png"), str(tmp_path / f"{name}-vary.png")
        assert main(["sample", tiny, "--size", "70x50", "--steps", "3", "--out", image]) == 0
        options = ["--model", tiny, "--steps", "3", "--out", out]
        assert main(["vary", str(tmp_path / "whole.png"), *options]) == 0
        return pixels(image), pixels(out)

    whole = commands("whole")
    monkeypatch.setattr(tiles, "WHOLE", 50 * 70 - 1)
    call = tiles.Tiles.forward
    monkeypatch.setattr(tiles.Tiles, "forward", lambda *given: drawn.append(1) or call(*given))
    assert all(map(np.array_equal, commands("tiles"), whole))
    assert len(drawn) >= 5


def test_a_region_is_a_part_of_the_endless_image(tiny, tmp_path):
    for name, region in (("a", "-5,7,40x30"), ("b", "0,10,20x20")):
        out = str(tmp_path / f"{name}.png")
        assert main(["canvas", tiny, f"--region={region}", "--steps", "2", "--out", out]) == 0
    assert np.array_equal(pixels(tmp_path / "a.png")[3:23, 5:25], pixels(tmp_path / "b.png"))


def test_a_region_in_mixed_precision_differs_a_little(tiny, tmp_path):
    for name, more in (("a", []), ("b", ["--bf16"])):
        out = str(tmp_path / f"{name}.png")
        assert main(["canvas", tiny, "--region", "0,0,40x30", "--steps", "2", "--out", out, *more]) == 0
    difference = np.abs(pixels(tmp_path / "a.png").astype(int) - pixels(tmp_path / "b.png"))
    assert computes_bf16(torch.device("cpu")) == (difference.max() > 0)
    assert difference.mean() < 8


def test_a_canvas_that_is_being_made_is_left_to_the_process_that_makes_it(
    tiny, tmp_path, capsys, monkeypatch
):
    command = ["canvas", tiny, "--size", "40x40", "--steps", "2", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--sampler", "ddim"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(outofcore, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*command, "--force"]) == 130
    folder = tmp_path / "a.png.canvas"
    with subprocess.Popen(
        [sys.executable, "-uc", HOLD, str(folder / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        for choice in (["--resume", "--force"], ["--force"]):
            capsys.readouterr()
            assert main([*command, *choice]) == 2
            assert f"in use by process {process.pid}" in capsys.readouterr().err
        assert (folder / "plan.json").exists()
        process.communicate(b"\n")
    assert main([*command, "--resume", "--force"]) == 0


def test_a_wrapping_canvas_differs(tiny, tmp_path):
    for name, more in (("a", []), ("b", ["--wrap"])):
        out = str(tmp_path / f"{name}.png")
        assert main(["canvas", tiny, "--size", "40x40", "--steps", "2", "--out", out, *more]) == 0
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_what_was_stopped_goes_on(tiny, tmp_path, capsys, monkeypatch):
    command = [
        "canvas",
        tiny,
        "--size",
        "60x60",
        "--tile",
        "20",
        "--steps",
        "3",
        "--out",
        str(tmp_path / "a.png"),
    ]
    advance, calls = outofcore.Canvas.advance, []

    def interrupted(canvas, *place):
        calls.append(place)
        if len(calls) == 10:
            raise KeyboardInterrupt
        advance(canvas, *place)

    monkeypatch.setattr(outofcore.Canvas, "advance", interrupted)
    assert main(command) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert main(command) == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*command, "--seed", "3", "--resume"]) == 2
    assert "another seed" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert len(calls) == 10 + 27 - 9
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png.canvas").mkdir()  # stopped before anything was planned: there is nothing to go on with
    assert main([*command, "--resume"]) == 0
    assert len(calls) == 10 + 27 - 9 + 27
    monkeypatch.undo()
    assert main(["sample", tiny, "--size", "60x60", "--steps", "3", "--out", str(tmp_path / "b.png")]) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "9000x9000", "--out", "a.png"], ".tiff and .zarr hold it"),
        (["--size", "64", "--out", "a.png"], "--size is WIDTHxHEIGHT"),
        (["--region", "64x64", "--out", "a.png"], "--region is X,Y,WIDTHxHEIGHT"),
        (["--region", "0,0,8x8", "--wrap", "--out", "a.png"], "it takes no --wrap"),
        (["--region", "0,0,8x8", "--workers", "2", "--out", "a.png"], "it takes no --workers"),
        (["--out", "a.png"], "give --size"),
        (["--size", "64x64", "--out", "a.jpg"], "none of .tiff, .zarr, .png"),
        (["--size", "64x64", "--out", "nowhere/a.png"], "the folder nowhere does not exist"),
        (["--size", "64x64", "--out", "here.png"], "add --force"),
        (["--size", "64x64", "--out", "photos.png", "--force"], "photos.png is no file"),
        (["--size", "64x64", "--out", "a.tiff", "--mpp", "0"], "--mpp: 0 micrometres"),
        (["--size", "64x64", "--out", "a.tiff", "--mpp", "nan"], "--mpp: nan micrometres"),
        (["--size", "64x64", "--out", "a.tiff", "--mpp", "1e-12"], "--mpp: 1e-12 micrometres"),
        (["--size", "64x64", "--out", "a.png", "--mpp", "0.5"], "a .png does not say"),
        (["--size", "64x64", "--out", "a.ome.tiff"], "would hold no OME-XML"),
        (["--size", "1x9", "--out", "a.png"], "at least 2x2"),
        (["--size", "9x9", "--out", "a.png", "--device", "abacus"], "device 'abacus'"),
        (["--region", "0,0,400000x400000", "--out", "a.tiff"], "a window of 400000x400000: at least"),
    ],
)
def test_refusals(tiny, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.png").touch()
    (tmp_path / "photos.png").mkdir()
    assert main(["canvas", tiny, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"here.png", "photos.png"}


def test_a_full_disk_and_a_scheduler_that_is_not_there_leave_a_canvas_to_go_on_with(
    tiny, tmp_path, capsys, monkeypatch
):
    command = ["canvas", tiny, "--size", "24x24", "--steps", "1", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--scheduler", "nonsense"]) == 2
    assert "scheduler nonsense: missing port" in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(outofcore.Canvas, "advance", full)
        assert main([*command, "--resume"]) == 2
    assert "No space left on device; it holds what is done, --resume goes on" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.zarr"])
@pytest.mark.parametrize(
    ("error", "status"), [(OSError(errno.ENOSPC, "No space left"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_cannot_be_written_leaves_nothing_beside_it(tiny, tmp_path, monkeypatch, name, error, status):
    def failing(write):
        def fail(path, *args, **options):
            written = write(path, *args, **options)
            if path.stem == "a.partial":
                raise error
            return written

        return fail

    for write in ("write_png", "write_pyramid", "write_tiff"):
        monkeypatch.setattr(formats, write, failing(getattr(formats, write)))
    command = ["canvas", tiny, "--region", "0,0,24x24", "--steps", "1", "--out", str(tmp_path / name)]
    assert main(command) == status
    assert not [*tmp_path.iterdir()]


def test_an_ome_zarr_calls_itself_as_its_folder(tiny, tmp_path):
    import zarr

    assert main(["canvas", tiny, "--size", "24x24", "--steps", "1", "--out", str(tmp_path / "a.zarr")]) == 0
    (multiscale,) = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["multiscales"]
    assert multiscale["name"] == "a.zarr"


def test_force_replaces_a_plain_file_by_a_folder(tiny, tmp_path):
    (tmp_path / "a.zarr").write_text("not a folder")
    command = ["canvas", tiny, "--size", "24x24", "--steps", "1", "--out", str(tmp_path / "a.zarr")]
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "a.zarr" / "0").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
