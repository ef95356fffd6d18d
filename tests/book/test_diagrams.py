"""The diagrams in `_static` are those that the code draws, and say what the models cost."""

import importlib
import sys
from xml.etree import ElementTree

import pytest
from expected_pages import ROOT

sys.path.insert(0, str(ROOT / "book"))
make_diagrams = importlib.import_module("make_diagrams")


@pytest.mark.parametrize("name", make_diagrams.DIAGRAMS)
def test_the_file_is_what_is_drawn(name: str) -> None:
    drawn = make_diagrams.DIAGRAMS[name]()
    assert (make_diagrams.STATIC / name).read_text() == drawn, "run: python book/make_diagrams.py"
    sheet = ElementTree.fromstring(drawn)
    assert sheet.get("viewBox") == f"0 0 360 {sheet.get('viewBox').split()[-1]}"
    sizes = [int(text.get("font-size")) for text in sheet.iter("{http://www.w3.org/2000/svg}text")]
    assert min(sizes) >= 11, "smaller letters are not read on a telephone"


def test_the_comparison_names_the_published_sizes() -> None:
    assert "336,528 parameters" in make_diagrams.unet_and_nca()
    assert "3,940,547 parameters" in make_diagrams.unet_and_nca()
