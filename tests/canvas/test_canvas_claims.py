"""What chapter 7 says in so many words holds in the rows that it shows."""

import json
from typing import Any

import pytest
from expected_pages import ROOT

RESULTS = ROOT / "nca_lib" / "experiments" / "results"


@pytest.fixture(scope="module")
def ways() -> dict[str, dict[str, Any]]:
    return json.loads((RESULTS / "canvas-others.json").read_text())["ways"]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return json.loads((RESULTS / "canvas.json").read_text())


@pytest.fixture(scope="module")
def timed() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / "canvas-tiles.jsonl").read_text().splitlines()]


def test_what_has_a_halo_is_exact_and_what_averages_is_another_image_at_more_work(
    ways: dict[str, dict[str, Any]],
) -> None:
    exact = {"whole", "exact tiles", "dask map_overlap", "sample_region", "infinite-tensor, with a halo"}
    assert {name for name, way in ways.items() if way["equal"]} == exact
    for kind, halo in (("canvas", "exact tiles"), ("plane", "infinite-tensor, with a halo")):
        averaged = [way for name, way in ways.items() if way["draws"] == kind and "overlapping" in name]
        assert averaged
        assert min(way["work"] for way in averaged) > ways[halo]["work"]
        assert min(way["mean_difference"] for way in averaged) > 0
    assert len({way["calls"] for way in ways.values() if way["draws"] == "plane"}) == 1


def test_averaging_hides_cuts_and_windows_of_map_overlap_are_smaller(ways: dict[str, dict[str, Any]]) -> None:
    averaged = [way["seam"] for name, way in ways.items() if "overlapping" in name]
    assert max(averaged) < ways["cut and pasted"]["seam"]
    assert ways["dask map_overlap"]["work"] < ways["exact tiles"]["work"]


def test_memory_is_flat_and_time_linear(measured: dict[str, Any]) -> None:
    rows = measured["canvases"]
    assert rows[-1]["megapixels"] >= 16 * rows[0]["megapixels"] * 0.99
    assert abs(measured["memory, largest over smallest"] - 1) < 0.1
    assert abs(measured["time per pixel, largest over smallest"] - 1) < 0.1
    assert abs(measured["largest over a line's prediction"] - 1) < 0.15


def test_two_workers_gain_where_each_has_a_core(measured: dict[str, Any]) -> None:
    team = measured["several workers"]
    assert team["load before"] < 0.5  # measured on an idle machine
    assert team["speed"] > 1.7


def test_no_tile_is_faster_than_the_whole_and_all_are_equal(timed: list[dict[str, Any]]) -> None:
    cut = [row for row in timed if row["side"] < row["size"]]
    assert {row["way"] for row in cut} == {"eager", "compiled"}
    assert max(row["ratio"] for row in cut) < 1.05
    assert all(row["equal"] for row in timed)


def test_a_tile_of_512_adds_less_than_a_tenth(measured: dict[str, Any]) -> None:
    assert measured["halo"]["512"] < 0.1
    assert measured["predicted"]["tile"] == 512
