"""What the cascade's benchmark reads from pictures, where the answer is known."""

import math

import cascade  # from benchmarks/
import numpy as np
import pytest
import torch

from nca_lib.cascade import Cascade
from nca_lib.data.tissue import Tissue

BROWN, WHITE = (torch.tensor(colour).view(3, 1, 1) for colour in ([0.1, -0.3, -0.6], [0.9, 0.9, 0.9]))


def test_brightness_of_a_wave_is_correlated_as_a_wave():
    period, columns = 16, torch.arange(480)
    wave = torch.cos(2 * math.pi * columns / period).expand(2, 3, 480, 480)
    for distance, found in cascade.correlation(wave).items():
        across = math.cos(2 * math.pi * distance / cascade.COARSE / period)  # and down the columns 1
        assert found == pytest.approx((across + 1) / 2, abs=0.02)


def test_glands_are_as_large_as_they_were_drawn():
    y, x = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    disc = (y - 50) ** 2 + (x - 40) ** 2 < 20**2
    speck = (y < 2) & (x < 2)
    picture = torch.where(disc | speck, BROWN, WHITE)[None]
    threshold = float(cascade.stained(picture).max()) / 2
    found = cascade.glands(picture, threshold)
    area, outline = math.pi * 20**2, 2 * math.pi * 20
    assert found["share"] == pytest.approx(area / 100**2, rel=0.02)
    assert found["area"] == pytest.approx(area * cascade.COARSE**2, rel=0.03)  # the speck is none
    assert found["outline"] == pytest.approx(outline / area / cascade.COARSE, rel=0.08)
    ring = disc & ((y - 50) ** 2 + (x - 40) ** 2 > 10**2)
    of_ring = cascade.glands(torch.where(ring, BROWN, WHITE)[None], threshold)
    assert of_ring["outline"] == pytest.approx(1.5 / 0.75 * found["outline"], rel=0.08)


def test_a_piece_is_cut_of_each_picture():
    pictures = torch.arange(5.0).view(5, 1, 1, 1) + torch.zeros(5, 3, 40, 40)
    pieces = cascade.pieces_of(pictures, 0)
    assert pieces.shape == (5, 3, 32, 32)
    assert torch.equal(pieces[:, 0, 0, 0], torch.arange(5.0))


def test_real_pieces_are_taken_anywhere():
    anywhere = cascade.Anywhere(32, downscale=8, offsets=True)
    assert len(anywhere.corners) == (512 - 256 + 1) ** 2
    assert anywhere.image(0, np.random.default_rng(0)).shape == (3, 32, 32)
    assert anywhere.fingerprint() != Tissue(24, downscale=8, offsets=True).fingerprint()


def test_of_a_cascade_all_levels_down_to_a_scale_draw():
    whole, half = cascade.load("cascade, 1"), cascade.load("cascade, 1/2")
    assert isinstance(whole, Cascade) and isinstance(half, Cascade)
    size = {name: sum(p.numel() for p in model.parameters()) for name, model in (("1", whole), ("1/2", half))}
    assert size["1"] - size["1/2"] == sum(p.numel() for p in whole.network.parameters())
