"""`make slide`: what is finished is not drawn again, and the page's files stay within their budget."""

import importlib
import shutil
import sys

import numpy as np
import pytest
from expected_pages import ROOT
from PIL import Image

from nca_lib.canvas.formats import write_pyramid


@pytest.fixture
def make_slide(monkeypatch, tmp_path):
    """The script, its folders in a place of their own."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "book"), *sys.path])
    module = importlib.import_module("make_slide")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "SLIDE", tmp_path / "_static" / "slide")
    return module


@pytest.fixture
def pyramid(tmp_path):
    """Noise, which JPEG does not make small, of three levels."""
    picture = np.random.default_rng(0).integers(0, 256, (3, 600, 1030)).astype(np.uint8)
    write_pyramid(tmp_path / "picture.zarr", picture)
    return tmp_path / "picture.zarr"


def test_a_finished_slide_is_not_drawn_again_and_a_stopped_one_goes_on(make_slide, pyramid, monkeypatch):
    drawn = []

    def canvas(words):
        drawn.append(words)
        if len(drawn) == 1:
            return 130  # Ctrl-C
        out = words[words.index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(pyramid, out)
        return 0

    monkeypatch.setattr(make_slide, "nca_lib", canvas)
    with pytest.raises(SystemExit):
        make_slide.draw("mine", 600, 5, 3)
    first, again = make_slide.draw("mine", 600, 5, 3), make_slide.draw("mine", 600, 5, 3)
    assert len(drawn) == 2 and "--resume" in drawn[1]
    assert first == again
    assert make_slide.draw("mine", 600, 6, 3) != first
    assert len(drawn) == 3


def test_the_files_stay_within_their_budget_in_the_best_quality_that_does(make_slide, pyramid):
    def size():
        return sum(path.stat().st_size for path in make_slide.SLIDE.rglob("*.jpg"))

    make_slide.cut(pyramid, "the command", budget=100)
    best = size()
    make_slide.cut(pyramid, "the command", budget=best / 2e6)
    assert 0.4 * best < size() <= best / 2
    assert {path.name for path in (make_slide.SLIDE / "3").iterdir()} == {
        f"{x}_{y}.jpg" for x in range(3) for y in range(2)
    }
    assert Image.open(make_slide.SLIDE / "3" / "2_1.jpg").size == (6, 88)
    assert '"levels": 4' in (make_slide.SLIDE / "about.js").read_text()
    with pytest.raises(SystemExit, match=r"the budget is 0\.01"):
        make_slide.cut(pyramid, "the command", budget=0.01)
    assert size() <= best / 2  # what was there stays
