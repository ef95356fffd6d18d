"""The extractors: Inception is read safely or refused; the small one can be trusted."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from nca_lib.data.digits import Digits
from nca_lib.data.faces import HAIR_STYLES, Faces, draw
from nca_lib.data.tissue import Tissue
from nca_lib.evaluation import lessons
from nca_lib.evaluation.distortions import blurred, glued, response_curves
from nca_lib.evaluation.extractors import inception
from nca_lib.evaluation.extractors import small as small_module
from nca_lib.evaluation.extractors.extractor import to_pixels
from nca_lib.evaluation.extractors.inception import Inception
from nca_lib.evaluation.extractors.small import SmallFeatures
from nca_lib.weights import WeightsError


def test_missing_inception_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refusal:
        Inception(tmp_path / "inception.pth")
    message = str(refusal.value)
    assert str(tmp_path / "inception.pth") in message and "\n" not in message
    assert "https://github.com/toshas/torch-fidelity/releases" in message


def test_inception_is_looked_for_where_torch_fidelity_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    there = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(WeightsError, match=str(there)):
        Inception()


def test_other_files_than_inceptions_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "inception.pth")
    with pytest.raises(WeightsError, match=r"sha256 begins with .* instead of 6726825d"):
        Inception(tmp_path / "inception.pth")


class Mischief:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def named_by_its_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `path` the file that the library expects."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "INCEPTION_FILE", f"weights-{digest[:8]}.pth")


def test_pickles_are_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "inception.pth"
    torch.save({"weight": Mischief()}, path)
    named_by_its_hash(path, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        Inception(path)
    assert "executed" not in capsys.readouterr().out


def test_inception_serves_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The real architecture with random weights, written to a file as torch-fidelity's are.
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        random = inception.inception_network({})
    torch.save(random.state_dict(), tmp_path / "inception.pth")
    named_by_its_hash(tmp_path / "inception.pth", monkeypatch)
    extractor = Inception(tmp_path / "inception.pth")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(extractor(images), random(images)[0])
    assert extractor(images).shape == (2, extractor.num_features)
    metric = FrechetInceptionDistance(extractor)
    metric.update(images, real=True)
    assert metric.real_features_sum.shape == (2048,) and metric.real_features_num_samples == 2


@pytest.fixture(scope="module")
def small() -> SmallFeatures:
    return SmallFeatures.shipped()


def test_the_shipped_extractor_is_small_and_known(small: SmallFeatures) -> None:
    path = small_module.shipped_path()
    assert path.stat().st_size < 600_000
    record = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"] == small.sha256
    assert set(record["held_out_accuracy"]) >= {"skin", "light", "texture", "digit", "distortion"}
    assert min(record["held_out_accuracy"].values()) > 0.8
    assert not small.is_inception


def test_a_damaged_extractor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_module.shipped_path()
    copy = tmp_path / "features.safetensors"
    copy.write_bytes(whole.read_bytes()[:-1] + b"\x00")
    copy.with_suffix(".json").write_text(whole.with_suffix(".json").read_text())
    monkeypatch.setattr(small_module, "shipped_path", lambda: copy)
    with pytest.raises(WeightsError, match="damaged"):
        SmallFeatures.shipped()


def test_features_do_not_depend_on_the_batch(small: SmallFeatures) -> None:
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    alone = torch.cat([small(image[None]) for image in images])
    assert torch.allclose(small(images), alone, atol=1e-4)


def pictures(kind: str) -> tuple[Tensor, Tensor]:
    """600 images and the modes they differ by: hair styles, shades."""
    if kind == "faces":
        portraits = [Faces(split="test").attributes(index) for index in range(600)]
        images = torch.cat([draw(portraits[i : i + 64], 64) for i in range(0, 600, 64)])
        return images, torch.tensor([list(HAIR_STYLES).index(p.hair_style) for p in portraits])
    tissue = Tissue(64, split="test")
    images = torch.stack([tissue.image(0, np.random.default_rng(i)) for i in range(600)])
    return images, images.mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["faces", "tissue"])
def test_the_distance_grows_with_every_damage(small: SmallFeatures, kind: str) -> None:
    for name, curve in response_curves(small, *pictures(kind)).items():
        distances = [distance for _, distance in curve]
        assert distances == sorted(distances), name
        assert distances[-1] > 2 * distances[0], name


def test_the_features_tell_the_classes_apart(small: SmallFeatures) -> None:
    # Nearest class mean on held-out digits, from features that were made by the other half.
    digits = Digits(32, "test")
    seen = small(to_pixels(digits.images))
    means = torch.stack([seen[:150][digits.labels[:150] == digit].mean(0) for digit in range(10)])
    right = torch.cdist(seen[150:], means).argmin(1) == digits.labels[150:]
    assert right.double().mean() > 0.7


def test_blur_keeps_the_mean_and_glue_keeps_the_halves() -> None:
    wave = torch.cos(2 * torch.pi * torch.arange(64) / 16).expand(1, 3, 64, 64)
    # A Gaussian's Fourier transform: a wave of frequency f shrinks by exp(-2 (pi f sigma)^2).
    shrunk = blurred(wave, 2.0)[0, 0, 32, 16:48] / wave[0, 0, 32, 16:48]
    assert shrunk.median() == pytest.approx(np.exp(-2 * (np.pi / 16 * 2) ** 2), rel=2e-2)
    first, second = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    both = glued(torch.cat([first, second]))
    assert (both[0, :, :, :4] == 0).all() and (both[0, :, :, 4:] == 1).all()


def test_the_same_seed_trains_the_same_extractor(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lessons.train_features(tmp_path / f"{name}.safetensors", steps=2, faces=64)
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
