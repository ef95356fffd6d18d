"""Means over seeds, against closed forms."""

import math
from typing import Any

import pytest

from nca_lib.experiments.comparison import cost, curve, mean, models, pooled_deviation, t95


def row(name: str, images: int, found: float, weights: str = "model") -> dict[str, Any]:
    return {
        "name": name,
        "matrix": "m",
        "weights": weights,
        "images_seen": images,
        "operations": 2.0,
        "experiment": {"training": {"batch": 4}},
        "metrics": {"extractors": {"nca-features-1": {"frechet_distance": found}}},
    }


def test_the_interval_of_a_mean_is_students() -> None:
    assert mean([5.0]).count == 1 and math.isnan(mean([5.0]).half)
    three = mean([1.0, 2.0, 3.0])  # deviation 1
    assert three.value == 2 and three.half == pytest.approx(4.303 / math.sqrt(3))
    assert t95(30) == pytest.approx(2.042, abs=2e-3) and t95(120) == pytest.approx(1.980, abs=2e-3)


def test_the_deviation_between_seeds_is_pooled_over_models() -> None:
    deviation, freedom = pooled_deviation([[1.0, 3.0], [10.0, 10.0, 10.0], [7.0]])
    assert freedom == 3 and deviation == pytest.approx(math.sqrt(2 / 3))
    with pytest.raises(ValueError, match="two seeds"):
        pooled_deviation([[1.0], [2.0]])


def test_seeds_are_gathered_and_snapshots_left_out() -> None:
    table = [
        row("a", 8, 4.0, "model-0000001"),
        row("a", 16, 2.0),
        row("a-seed-1", 16, 3.0),
        row("b", 16, 9.0),
        row("c", 16, 1.0) | {"diverged": "step 3"},
    ]
    found = models("m", table)
    assert {name: [r["name"] for r in group] for name, group in found.items()} == {
        "a": ["a", "a-seed-1"],
        "b": ["b"],
    }
    assert cost(table[1], "images") == 16 and cost(table[1], "operations") == 3 * 16 * 2
    points = curve("a", "images", table)
    assert [(spent, m.value, m.count) for spent, m in points] == [(8, 4.0, 1), (16, 2.5, 2)]
