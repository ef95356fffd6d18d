"""Chapter 7 in a browser without a network: the endless plane, and the deep-zoom page of a slide."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page
from test_components import HEAD, OVERFLOW, network_of

from nca_lib.book.demo import endless_plane
from nca_lib.book.export import rounded
from nca_lib.canvas.formats import write_pyramid
from nca_lib.canvas.tiles import sample_region
from nca_lib.diffusion import Denoiser, noise_schedule

ROOT = Path(__file__).parents[2]
PIXELS = """() => {
    const canvas = document.querySelector("canvas");
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def opened(browser: Any, path: Path, problems: list[str], **settings: Any) -> Page:
    page = browser.new_context(viewport={"width": 390, "height": 800}, offline=True, **settings).new_page()
    page.on("console", lambda m: m.type == "error" and problems.append(m.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(path.as_uri())
    return page


def test_moving_over_the_plane_shows_what_the_library_draws_there(
    browser: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    model = Denoiser(network_of(), noise_schedule(), "v").requires_grad_(False)
    shown = endless_plane(model, "untrained", height=12, width=18, seed=3, steps=3)
    (tmp_path / "page.html").write_text(HEAD + str(shown.data))
    problems: list[str] = []
    page = opened(browser, tmp_path / "page.html", problems)
    place, copy = page.locator(".nca-demo-tools output").first, rounded(model)

    def shows(y: int, x: int, seed: int = 3) -> None:
        page.wait_for_function(
            "text => document.querySelector('.nca-demo-tools output').textContent === text",
            arg=f"row {y}, column {x}",
        )
        found = np.array(page.evaluate(PIXELS)).reshape(12, 18, 4)[..., :3]
        image = sample_region(copy, y, x, 12, 18, seed, steps=3)[0].movedim(0, -1)  # type: ignore[arg-type]
        assert np.abs(found - 127.5 * (1 + image.numpy())).max() < 2

    shows(0, 0)
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    shows(0, 8)
    page.keyboard.press("Shift+ArrowUp")
    shows(-12, 8)
    box = page.locator("canvas").bounding_box()
    assert box
    cell = box["width"] / 18
    page.mouse.move(box["x"] + 9 * cell, box["y"] + 6 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 6 * cell, box["y"] + 8 * cell, steps=3)
    page.mouse.up()
    shows(-14, 11)
    page.get_by_role("button", name="Back").click()
    shows(0, 0)
    page.get_by_label("seed").fill("4")
    page.get_by_label("seed").blur()
    shows(0, 0, seed=4)
    page.get_by_role("button", name="Far away").click()
    page.wait_for_function("() => !document.querySelector('output').textContent.includes('row 0,')")
    assert "row" in place.inner_text()
    assert page.evaluate(OVERFLOW) <= 0
    page.context.close()
    assert not problems


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's own HTML over the tiles of a picture whose colours tell the place."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "book"), *sys.path])
    make_slide = importlib.import_module("make_slide")
    monkeypatch.setattr(make_slide, "SLIDE", tmp_path / "_static" / "slide")
    y, x = np.mgrid[:700, :1300]
    picture = np.stack([y // 3, x // 6, 0 * x]).astype(np.uint8)
    write_pyramid(tmp_path / "a.zarr", picture)
    make_slide.cut(tmp_path / "a.zarr", "the command")
    for name in ("openseadragon", "slide.js"):
        (tmp_path / "_static" / name).symlink_to(ROOT / "book" / "_static" / name)
    text = (ROOT / "book" / "slide.md").read_text()
    style = f"<style>{(ROOT / 'book' / '_static' / 'book.css').read_text()}</style>"
    (tmp_path / "book").mkdir()
    html = text.split("```{raw} html\n")[1].split("```")[0]
    (tmp_path / "book" / "slide.html").write_text(HEAD + style + html)
    return tmp_path / "book" / "slide.html"


def test_a_slide_opens_from_disk_and_keys_lead_through_it(browser: Any, slide: Path) -> None:
    problems: list[str] = []
    page = opened(browser, slide, problems, reduced_motion="reduce")
    status = page.locator(".slide-tools output")

    page.wait_for_function("() => document.querySelector('.slide-tools output').textContent.includes('1300')")
    assert "1300 × 700 pixels, here row 350, column 650" in status.inner_text()
    page.get_by_role("button", name="Pixel for pixel").click()
    page.wait_for_function("() => document.querySelector('output').textContent.includes('at 1.0 times')")
    page.get_by_role("application").focus()
    page.keyboard.press("+")
    page.wait_for_function("() => document.querySelector('output').textContent.includes('at 1.5 times')")
    page.wait_for_timeout(500)
    page.screenshot(path=str(slide.with_name("seen.png")))
    box = page.locator(".slide-stage").bounding_box()
    assert box
    seen = np.array(Image.open(slide.with_name("seen.png")))
    middle = seen[int(box["y"] + box["height"] / 2), int(box["x"] + box["width"] / 2)]
    assert np.abs(middle[:3].astype(int) - [350 // 3, 650 // 6, 0]).max() < 12, "the tiles lie elsewhere"
    page.keyboard.press("0")
    page.wait_for_function("() => document.querySelector('output').textContent.includes('at 0.3 times')")
    assert not page.locator(".slide-still").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".slide-still").is_visible()
    assert not page.locator(".slide-stage").is_visible()
    page.context.close()
    assert not problems
