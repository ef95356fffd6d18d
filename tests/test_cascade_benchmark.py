"""What the cascade's benchmark reads from pictures, where the answer is known."""

import math

import cascade  # from benchmarks/
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nca_lib.cascade import Cascade
from nca_lib.data.tissue import Tissue

BROWN, WHITE = (torch.tensor(colour).view(3, 1, 1) for colour in ([0.1, -0.3, -0.6], [0.9, 0.9, 0.9]))
Y, X = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")


def test_brightness_of_a_wave_is_correlated_as_a_wave():
    period, columns = 8, torch.arange(480)
    wave = torch.cos(2 * math.pi * columns / period).expand(2, 3, 480, 480)
    for distance, found in cascade.correlation(wave).items():
        across = math.cos(2 * math.pi * distance / 8 / period)  # and down the columns 1
        assert found == pytest.approx((across + 1) / 2, abs=0.02)
    drift = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)  # between pictures it does not count
    assert cascade.correlation(wave + drift) == pytest.approx(cascade.correlation(wave), abs=1e-5)


def test_chords_of_discs_and_of_stripes_that_leave_the_picture():
    disc = ((Y - 100) ** 2 + (X - 80) ** 2 < 50**2).numpy()[None]
    assert cascade.chord(disc) == pytest.approx(math.pi / 2 * 50, rel=0.02)  # Cauchy: pi area / perimeter
    stripes = (X % 20 < 10).numpy()[None]
    across, down = 10, math.inf
    assert cascade.chord(stripes) == pytest.approx(2 / (1 / across + 1 / down), rel=0.06)


def test_of_all_pictures_the_same_share_is_stained():
    picture = torch.where((X < 100) & (Y < 100), BROWN, WHITE)[None]
    pale = cascade.architecture(F.interpolate(picture, scale_factor=2), 2, 0.25)
    dark = cascade.architecture(F.interpolate(0.8 * picture - 0.2, scale_factor=2), 2, 0.25)
    assert pale["chord"] == pytest.approx(dark["chord"], rel=1e-6)
    assert pale["chord"] == pytest.approx(400, rel=0.03)  # pixels of the photograph, of its 800


def test_order_is_that_of_parallel_edges():
    everywhere = np.ones((1, 100, 100), dtype=bool)
    lines = torch.cos(2 * math.pi * (X + 0.5 * Y) / 6).expand(1, 3, 200, 200)
    noise = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    assert cascade.order(lines, everywhere) > 0.95
    assert cascade.order(noise, everywhere) < 0.3
    left = np.kron(np.array([[True, False]]), np.ones((100, 50), dtype=bool))[None]
    mixed = torch.where(X < 100, lines, noise)
    assert cascade.order(mixed, left) > cascade.order(mixed, ~left) + 0.5


def test_pieces_are_cut_of_each_picture():
    pictures = torch.arange(5.0).view(5, 1, 1, 1) + torch.zeros(5, 3, 40, 40)
    pieces = cascade.pieces_of(pictures, 2, 0)
    assert pieces.shape == (10, 3, 32, 32)
    assert torch.equal(pieces[:, 0, 0, 0], torch.arange(5.0).repeat(2))


def test_a_rule_that_is_several_levels_counts_once():
    half = cascade.load("cascade, 1/2")
    assert cascade.parameters(half) == 3 * 69_288
    assert cascade.parameters(Cascade(half, half.below, 2)) == 3 * 69_288


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


def test_rows_of_other_weights_go_and_all_stand_in_order(tmp_path):
    table = tmp_path / "table.jsonl"
    told = [
        ("cascade, 1", "old", 0, 0),
        ("cascade, 1", "second", 1, 0),
        ("cascade, 1", "new", 0, 1),
        ("plain, 1", "p", 0, 0),
        ("cascade, 1", "new", 0, 0),
    ]
    for model, digest, training, seed in told:
        cascade._keep(table, {"model": model, "weights": digest, "training": training, "seed": seed})
    kept = [(row["model"], row["weights"], row["training"], row["seed"]) for row in cascade.rows(table)]
    assert kept == [
        ("plain, 1", "p", 0, 0),
        ("cascade, 1", "new", 0, 0),
        ("cascade, 1", "new", 0, 1),
        ("cascade, 1", "second", 1, 0),
    ]


def test_other_trainings_lie_under_the_same_names(monkeypatch):
    asked = []
    monkeypatch.setattr(cascade.weights, "load", lambda path, device: asked.append(path))
    for name in ("cascade, 1", "one rule, 1", "plain, 1"):
        cascade.load(name, 2)
    assert asked == [
        "runs/seed-2/tissue-cascade.safetensors",
        "runs/seed-2/one-rule.safetensors",
        "runs/seed-2/tissue-full-untold/model.safetensors",
    ]
