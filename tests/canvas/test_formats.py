"""The files, opened by what others open them with."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from nca_lib.canvas.formats import Finished, write_png, write_pyramid, write_tiff
from nca_lib.canvas.tiles import CanvasError
from nca_lib.data.files import write


@pytest.fixture
def picture():
    """Smooth colours, so that JPEG changes little; an odd size, so that halves are not exact."""
    y, x = np.mgrid[:1501, :1200]
    waves = [np.sin(y / 90), np.cos(x / 70), np.sin((x + y) / 120)]
    return np.stack([127 + 100 * wave for wave in waves]).astype(np.uint8)


def reduced(picture):
    height, width = picture.shape[1] // 2, picture.shape[2] // 2
    blocks = picture[:, : 2 * height, : 2 * width].reshape(3, height, 2, width, 2)
    return blocks.mean((2, 4)) + 0.5


def test_the_levels_are_means_and_the_last_fits_into_a_tile(picture, tmp_path):
    levels = write_pyramid(tmp_path / "a.zarr", picture)
    assert [level.shape for level in levels] == [
        (3, 1501, 1200), (3, 751, 600), (3, 376, 300), (3, 188, 150)
    ]  # fmt: skip
    assert np.array_equal(levels[0][:], picture)
    assert np.array_equal(levels[1][:, :750], reduced(picture).astype(np.uint8))
    assert np.array_equal(
        levels[1][:, 750], (picture[:, 1500].reshape(3, 600, 2).mean(2) + 0.5).astype(np.uint8)
    )


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_openslide_tiffslide_and_tifffile_open_the_tiff(picture, tmp_path, compression):
    import openslide
    import tifffile
    import tiffslide

    path = tmp_path / "a.tiff"
    write_tiff(path, write_pyramid(tmp_path / "a.zarr", picture), mpp=0.5, compression=compression)
    close = 12 if compression == "jpeg" else 0
    for library in (openslide.OpenSlide, tiffslide.TiffSlide):
        with library(path) as slide:
            assert slide.level_count == 4
            assert slide.level_dimensions[:2] == ((1200, 1501), (600, 751))
            assert float(slide.properties[f"{library.__module__.split('.')[0]}.mpp-x"]) == pytest.approx(0.5)
            found = np.array(slide.read_region((1100, 1400), 0, (100, 101)).convert("RGB"))
        expected = np.moveaxis(picture[:, 1400:, 1100:], 0, -1)
        assert np.abs(found.astype(int) - expected).max() <= close
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert [page.is_reduced for page in file.pages] == [False, True, True, True]
        assert all(page.tile == (256, 256) for page in file.pages)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_zarr_says_what_it_holds(picture, tmp_path, version):
    import zarr

    write_pyramid(tmp_path / "a.zarr", picture, mpp=0.5, version=version)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    attributes = dict(group.attrs)
    described = attributes if version == "0.4" else attributes["ome"]
    (multiscale,) = described["multiscales"]
    assert multiscale["axes"][1] == {"name": "y", "type": "space", "unit": "micrometer"}
    levels = [group[entry["path"]] for entry in multiscale["datasets"]]
    assert [level.shape for level in levels][:2] == [(3, 1501, 1200), (3, 751, 600)]
    assert np.array_equal(levels[0][:], picture)
    scales = [entry["coordinateTransformations"][0]["scale"] for entry in multiscale["datasets"]]
    assert scales[:2] == [[1.0, 0.5, 0.5], [1.0, 1.0, 1.0]]
    if version == "0.4":
        assert (tmp_path / "a.zarr" / "0" / "0" / "5" / "4").is_file()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_py_opens_it(picture, tmp_path, version):
    # It holds back other packages of the lock, so it is tried where it is installed.
    pytest.importorskip("ome_zarr.io", exc_type=ImportError)
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    write_pyramid(tmp_path / "a.zarr", picture, mpp=0.5, version=version)
    (node,) = list(Reader(parse_url(tmp_path / "a.zarr"))())
    assert [level.shape for level in node.data][:2] == [(3, 1501, 1200), (3, 751, 600)]
    assert np.array_equal(np.asarray(node.data[0]), picture)
    scales = [level[0]["scale"] for level in node.metadata["coordinateTransformations"]]
    assert scales[:2] == [[1.0, 0.5, 0.5], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("mpp", [0.5, None])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_zarr_is_valid_by_the_schema_of_its_version(picture, tmp_path, version, mpp):
    # ngff-zarr brings the official schemas; nothing else of it is used, so it needs none of what it asks for.
    found = importlib.util.find_spec("ngff_zarr")
    if found is None:
        pytest.skip("the schemas come with ngff-zarr: pip install --no-deps ngff-zarr")
    folder = Path(found.origin).parent / "spec" / version / "schemas"
    schemas = [json.loads(path.read_text()) for path in sorted(folder.glob("*.schema"))]
    known = [(schema["$id"], Resource(schema, DRAFT202012)) for schema in schemas]
    image = next(schema for schema in schemas if schema["$id"].endswith("/image.schema"))
    validator = Draft202012Validator(image, registry=Registry().with_resources(known))
    write_pyramid(tmp_path / "a.zarr", picture[:, :300, :300], mpp=mpp, version=version)
    name = ".zattrs" if version == "0.4" else "zarr.json"
    attributes = json.loads((tmp_path / "a.zarr" / name).read_text())
    attributes = attributes if version == "0.4" else attributes["attributes"]
    validator.validate(attributes)
    described = attributes if version == "0.4" else attributes["ome"]
    del described["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    assert not validator.is_valid(attributes)


def test_a_grey_picture_becomes_a_tiff_and_a_png(tmp_path):
    import tifffile
    from PIL import Image

    grey = np.arange(300, dtype=np.uint8)[None, None].repeat(40, axis=1)
    write_tiff(tmp_path / "a.tiff", [grey], compression="deflate")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tiff").squeeze(), grey[0])
    write_png(tmp_path / "a.png", grey)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), grey[0])


def test_a_png_has_its_limit(tmp_path):
    huge = np.broadcast_to(np.uint8(0), (3, 8193, 8192))
    with pytest.raises(CanvasError, match=r"8192x8193 is too large for \.png"):
        write_png(tmp_path / "a.png", huge)


def test_halves_of_a_grey_level_are_rounded_as_in_other_pictures(tmp_path):
    image = (torch.arange(511.0) / 255 - 1).expand(3, 2, -1)
    on_disk = SimpleNamespace(
        image=np.zeros((2, 3, 2, 511)), size=(2, 511), finished=lambda y, x: image[:, y, x].numpy()
    )
    write_png(tmp_path / "canvas.png", Finished(on_disk))
    write(image, tmp_path / "sample.png")
    pictures = [np.array(Image.open(tmp_path / f"{name}.png")) for name in ("canvas", "sample")]
    assert np.array_equal(*pictures)
