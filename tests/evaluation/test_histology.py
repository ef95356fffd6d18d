"""Stains and nuclei: drawn ones are measured as drawn; halves of tissue agree, damaged tissue does not."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.color import hed2rgb
from skimage.data import immunohistochemistry
from skimage.filters import gaussian
from torch import Tensor

from nca_lib.data.faces import Faces
from nca_lib.data.images import to_float
from nca_lib.data.tissue import Tissue
from nca_lib.evaluation.copying import grid
from nca_lib.evaluation.histology import (
    StainThresholds,
    fit_thresholds,
    segment_nuclei,
    stain_amounts,
    tissue_statistics,
)
from nca_lib.evaluation.judges import FaceJudge, TissueJudge, judge_of

DEEP = 0.06  # haematoxylin of a dark nucleus
HALF = StainThresholds(DEEP / 2, 0.05)


def dye(haematoxylin: np.ndarray, dab: np.ndarray | None = None) -> Tensor:
    """An image (1, 3, H, W) of so much of both stains."""
    amounts = np.zeros((*haematoxylin.shape, 3))
    amounts[..., 0] = haematoxylin
    amounts[..., 2] = 0 if dab is None else dab
    return torch.from_numpy(hed2rgb(amounts)).permute(2, 0, 1)[None].float() * 2 - 1


def discs(centres: list[tuple[float, float]], radius: float, size: int = 96) -> Tensor:
    """Blue discs on white, their edges smooth."""
    y, x = np.mgrid[:size, :size]
    cover = np.zeros((size, size))
    for cy, cx in centres:
        cover = np.maximum(cover, (radius + 0.5 - np.hypot(y - cy, x - cx)).clip(0, 1))
    return dye(DEEP * cover)


@lru_cache
def tissue() -> Tensor:
    return F.avg_pool2d(to_float(immunohistochemistry())[None], 2)


APART = [(15.3, 20.1), (18.0, 60.5), (50.6, 40.4), (75.2, 15.8), (70.9, 75.7)]


@pytest.mark.parametrize("radius", [4, 5, 6, 8])
def test_discs_are_counted_and_their_areas_measured(radius: float) -> None:
    found = tissue_statistics(discs(APART, radius), HALF)
    assert float(found["nuclei"]) == pytest.approx(5 * 1000 / 96**2)
    area = np.pi * radius**2
    assert len(found["nucleus_area"]) == 5
    assert float(found["nucleus_area"].mean()) == pytest.approx(area, rel=0.05)
    assert float(found["haematoxylin"]) == pytest.approx(5 * area / 96**2, rel=0.06)
    assert float(found["dab"]) == 0


def test_discs_that_touch_are_split() -> None:
    pairs = [(20.0, 20.0), (20.0, 30.0), (60.0, 60.0), (67.0, 67.0)]
    found = tissue_statistics(discs(pairs, 5.5), HALF)
    assert found["nucleus_area"].tolist() == pytest.approx([np.pi * 5.5**2] * 4, rel=0.1)


def test_nuclei_on_an_edge_are_counted_in_one_of_two_neighbouring_images() -> None:
    image = discs([(20.0, 48.0), (48.0, 70.0), (70.0, 20.0), (0.0, 60.0), (50.0, 95.0)], 5)
    pieces = grid(image, 48)[0]
    found = tissue_statistics(pieces, HALF)
    per_image = (found["nuclei"] * 48**2 / 1000).round().tolist()
    # Of the two on inner edges the right and the lower image count; those on the outer left and top count,
    # and the one on the outer right edge does not.
    assert per_image == [0, 2, 1, 1]
    assert len(found["nucleus_area"]) == 1
    assert float(tissue_statistics(image, HALF)["nuclei"]) * 96**2 / 1000 == pytest.approx(4)


def test_specks_and_faint_blue_are_no_nuclei() -> None:
    assert len(tissue_statistics(discs(APART, 1), HALF)["nucleus_area"]) == 0
    faint = tissue_statistics(dye(np.full((40, 40), 0.4 * DEEP)), HALF)
    assert float(faint["nuclei"]) == 0 and float(faint["haematoxylin"]) == 0


def test_nuclei_are_parted_from_a_stained_gland() -> None:
    y, x = np.mgrid[:64, :64]
    blobs = np.exp(-((y % 16 - 8.0) ** 2 + (x % 16 - 8.0) ** 2) / (2 * 3.0**2))
    amount = DEEP * (0.6 + 0.4 * blobs)  # bluer than the threshold everywhere
    assert segment_nuclei(amount, HALF.haematoxylin).max() == 16


def test_an_empty_image_has_nothing() -> None:
    found = tissue_statistics(torch.ones(2, 3, 32, 32), HALF)
    assert all(found[name].tolist() == [0, 0] for name in ("haematoxylin", "dab", "nuclei"))
    assert len(found["nucleus_area"]) == 0


def test_amounts_of_a_mixture_are_what_was_mixed() -> None:
    haematoxylin, dab = np.meshgrid(np.linspace(0.01, 0.1, 10), np.linspace(0.02, 0.25, 12))
    amounts = stain_amounts(dye(haematoxylin, dab))[0]
    np.testing.assert_allclose(amounts[0], haematoxylin, atol=1e-4)
    np.testing.assert_allclose(amounts[1], dab, atol=1e-4)


def test_stained_fractions_are_those_of_the_mixture() -> None:
    haematoxylin, dab = np.zeros((60, 80)), np.zeros((60, 80))
    haematoxylin[:, :32] = DEEP  # 40%
    dab[:15] = 0.1  # 25%, over both
    found = tissue_statistics(dye(haematoxylin, dab), HALF)
    assert float(found["haematoxylin"]) == pytest.approx(0.4, abs=0.01)
    assert float(found["dab"]) == pytest.approx(0.25, abs=0.01)


def test_thresholds_lie_between_stained_and_unstained() -> None:
    haematoxylin, dab = np.zeros((60, 80)), np.zeros((60, 80))
    haematoxylin[:, :32], dab[:15] = DEEP, 0.1
    found = fit_thresholds(dye(haematoxylin, dab))
    assert 0 < found.haematoxylin < DEEP and 0 < found.dab < 0.1


def test_every_nucleus_has_one_number() -> None:
    nuclei = segment_nuclei(stain_amounts(tissue())[0, 0].numpy(), fit_thresholds(tissue()).haematoxylin)
    sizes = np.bincount(nuclei.flat)
    assert (sizes[1:] >= 12).all()
    assert 250 < len(sizes) - 1 < 450  # by eye: some 330


def test_two_halves_of_the_tissue_agree_and_damaged_tissue_does_not() -> None:
    pieces, thresholds = grid(tissue(), 32)[0], fit_thresholds(tissue())
    number = torch.arange(64)
    chequered = (number // 8 + number) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    shuffled = (
        pieces[~chequered].flatten(2)[:, :, torch.randperm(1024, generator=generator)].view(-1, 3, 32, 32)
    )
    blurred = torch.from_numpy(gaussian(pieces[~chequered].numpy(), (0, 0, 1.5, 1.5)))
    one, other, random, smooth = (
        tissue_statistics(x, thresholds) for x in (pieces[chequered], pieces[~chequered], shuffled, blurred)
    )
    for name in ("haematoxylin", "dab", "nuclei"):
        error = (one[name].var() / 32 + other[name].var() / 32).sqrt()
        assert float((one[name].mean() - other[name].mean()).abs()) < 2 * float(error)

    def typical(found: dict[str, Tensor]) -> float:
        return float(found["nucleus_area"].median())

    assert typical(one) == pytest.approx(typical(other), rel=0.15)
    assert typical(random) < 0.6 * typical(one)
    assert typical(smooth) > 1.3 * typical(one)


def test_the_judge_says_of_many_images_what_the_statistics_say() -> None:
    judge = TissueJudge(Tissue(64, downscale=2))
    pieces = grid(tissue(), 64)[0]
    said = judge.summary(judge(pieces).double().mean(0))
    found = tissue_statistics(pieces, judge.thresholds)
    for key in ("haematoxylin", "dab", "nuclei", "nucleus_area"):
        assert said[key] == pytest.approx(float(found[key].mean()), rel=1e-4)
    nothing = judge.summary(judge(torch.ones(2, 3, 64, 64)).double().mean(0))
    assert nothing == dict.fromkeys(said, 0)


def test_tissue_is_judged_as_tissue_and_a_folder_where_it_is_said_to_be() -> None:
    train = Tissue(32, downscale=2)
    assert isinstance(judge_of("tissue", train), TissueJudge)
    assert isinstance(judge_of("folder", train, stained=True), TissueJudge)
    assert judge_of("folder", train) is None
    assert isinstance(judge_of("faces", Faces(32)), FaceJudge)
