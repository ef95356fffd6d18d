"""Rows of a results table side by side: means over seeds, quality against what it cost (chapter 5)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from nca_lib.experiments.matrix import rows

Row = Mapping[str, Any]
Cost = Literal["images", "operations", "seconds"]

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom; beyond, nearly the normal one.
_T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval, NaN to both sides where there is one seed only."""

    value: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.1f}" if self.count == 1 else f"{self.value:.1f} ± {self.half:.1f}"


def t95(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t with that many degrees of freedom, at least 1."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.5 / freedom


def mean(values: Sequence[float]) -> Mean:
    """Mean over seeds; the interval is Student's."""
    count = len(values)
    half = t95(count - 1) * statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
    return Mean(statistics.fmean(values), half, count)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation between runs that differ in the seed only, and its degrees of freedom.

    Args:
        groups: for each model, one number per seed. Groups of one say nothing.

    Raises:
        ValueError: no group has two.
    """
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        raise ValueError("no model has rows of two seeds")
    return math.sqrt(squares / freedom), freedom


def models(matrix: str, table: Sequence[Row] | None = None) -> dict[str, list[Row]]:
    """For each model of a matrix its rows at the end of training, one per seed, in the table's order.

    Args:
        matrix: its name.
        table: rows; by default those that come with the library.
    """
    found: dict[str, list[Row]] = {}
    for row in rows("shipped") if table is None else table:
        if row["matrix"] == matrix and row.get("weights", "model") == "model" and "diverged" not in row:
            found.setdefault(row["name"].partition("-seed-")[0], []).append(row)
    return found


def distance(row: Row, extractor: str = "nca-features-1") -> float:
    """The Frechet distance of a row's samples to held-out images."""
    return float(row["metrics"]["extractors"][extractor]["frechet_distance"])


def seconds_per_step() -> dict[str, float]:
    """Of each model that `benchmarks/steps.py` timed: one training step, on one idle core."""
    path = resources.files("nca_lib") / "experiments" / "results" / "steps.jsonl"
    timed = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["name"]: row["seconds_per_step"] for row in timed}


def cost(row: Row, kind: Cost) -> float:
    """What a row's training cost up to its snapshot: images seen, operations, or seconds of one idle core.

    A training step counts as three calls: one forward, about two for the gradients. For VNCA, whose
    operations are those of a whole image, likewise.
    """
    seen: float = row["images_seen"]
    if kind == "images":
        return seen
    if kind == "operations":
        return 3 * seen * float(row["operations"])
    name = row["name"].partition("-seed-")[0]
    return seen / row["experiment"]["training"]["batch"] * seconds_per_step()[name]


def curve(
    name: str, kind: Cost, table: Sequence[Row], extractor: str = "nca-features-1"
) -> list[tuple[float, Mean]]:
    """Distance against cost for one model: its snapshots, with the mean over the seeds that have them."""
    found: dict[float, list[float]] = {}
    for row in table:
        if row["name"].partition("-seed-")[0] == name and "diverged" not in row:
            found.setdefault(cost(row, kind), []).append(distance(row, extractor))
    return [(spent, mean(values)) for spent, values in sorted(found.items())]
