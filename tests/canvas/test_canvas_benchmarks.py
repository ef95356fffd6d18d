"""What the benchmarks of canvases count and compare, and when they refuse to."""

import canvas  # from benchmarks/
import others
import pytest
import tiles
import torch

from nca_lib import load
from nca_lib.canvas import TiledDenoiser
from nca_lib.canvas.outofcore import Plan
from nca_lib.experiments.cost import Device


def test_a_line_through_small_canvases_predicts_one_that_lies_on_it():
    rows = [{"megapixels": float(m), "cpu_seconds": 3 + 16.0 * m} for m in (1, 4, 16)]
    assert canvas.prediction(rows) == pytest.approx(1)
    rows[-1]["cpu_seconds"] *= 1.2
    assert canvas.prediction(rows) == pytest.approx(1.2)


def test_what_a_large_canvas_costs_is_what_its_cells_cost():
    network = load("web-tissue").network
    c, h = network.channels, network.hidden
    operations, moved = canvas.of_cell(network)
    assert operations == 2 * (9 * (c + 4) * c + (2 * c + 4) * h + h * c)
    device = Device("", operations, moved, None, 0, None, "")  # a second for each
    cells = (100 + 2 * network.steps) ** 2 / 100**2
    assert canvas.seconds_per_pixel(network, 100, device) == pytest.approx(2 * network.steps * cells)
    found = canvas.costs("web-tissue", 512, steps=5)["devices"]["h100"]["32768x32768"]
    assert found["hours"][1] == pytest.approx(64 * found["hours"][64])
    assert found["state on disk, bytes"] == 2 * 2 * 3 * 4 * 32768**2


def test_workers_are_compared_where_each_has_a_core_only(monkeypatch):
    plan, made = Plan("", 8, 8), []

    def make(plan, workers=1):
        made.append(workers)
        return {"seconds": 6.0 / workers}

    monkeypatch.setattr(canvas, "make", make)
    monkeypatch.setattr(canvas.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(canvas.os, "getloadavg", lambda: (7.5, 0, 0))
    busy = canvas.several(plan, 2)
    assert (busy["speed"], busy["load before"], made) == (None, 7.5, [])
    monkeypatch.setattr(canvas.os, "getloadavg", lambda: (0.1, 0, 0))
    assert canvas.several(plan, 2)["speed"] == 2
    assert made == [2, 1]


def test_tiles_of_each_side_are_compared_with_the_whole():
    rows = tiles.compare("web-tissue", "eager", 40, [20, 64], rounds=1)
    assert [row["side"] for row in rows] == [40, 20]
    assert rows[1]["window"] == 20 + 2 * load("web-tissue").network.steps
    assert all(row["equal"] for row in rows)


def test_cells_are_counted_where_they_are_computed():
    model = load("web-tissue")
    cells = others.Cells(model.network)
    with torch.no_grad():
        TiledDenoiser(model, 32)(torch.zeros(1, 3, 40, 64), torch.tensor([5]))
    assert cells.count == 4 * 40 * (32 + 2 * model.network.steps)
    image = torch.zeros(1, 3, 4, 8)
    image[..., 4:] = 1
    assert others.seam(image, [4]) == pytest.approx(7)
