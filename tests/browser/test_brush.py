"""The brush paints with mouse and keyboard, and tells its model what is painted; no network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, sync_playwright
from test_pages import CHROMIUM, QUIET

from nca_lib.painting import png_bytes

SOURCE = (Path(__file__).parents[2] / "nca_lib" / "web" / "brush.js").read_text()
# A stand-in for anywidget's model: it keeps the traits and tells who listens.
MOUNT = """async ([source, traits, png]) => {
    const heard = {};
    traits.picture = new DataView(new Uint8Array(png).buffer);
    traits.mask = new DataView(new ArrayBuffer(traits.height * traits.width));
    window.model = {
        get: name => traits[name],
        set: (name, value) => { traits[name] = value; },
        save_changes: () => { window.saved = (window.saved || 0) + 1; },
        on: (event, call) => { heard[event] = call; },
        off: event => { delete heard[event]; },
        send: () => {},
    };
    window.painted = () => [...new Uint8Array(traits.mask.buffer)];
    window.listeners = () => Object.keys(heard).length;
    const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
    window.cleanup = await module.default.render({model: window.model, el: document.body});
}"""


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.context.set_offline(True)
        page.set_content("<body></body>")
        traits = {"height": 8, "width": 8, "mirror": False, "label": "a test"}
        page.evaluate(MOUNT, [SOURCE, traits, list(png_bytes(torch.zeros(3, 8, 8), 0))])
        yield page
        browser.close()


def painted(page: Page) -> set[tuple[int, int]]:
    flat = page.evaluate("window.painted()")
    return {divmod(i, 8) for i, value in enumerate(flat) if value}


def test_the_mouse_paints_where_it_is_dragged_and_saves_at_the_end(page: Page) -> None:
    box = page.locator("canvas").bounding_box()
    assert box
    cell = box["width"] / 8
    page.mouse.move(box["x"] + 1.5 * cell, box["y"] + 3.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 6.5 * cell, box["y"] + 3.5 * cell, steps=12)
    assert page.evaluate("window.saved || 0") == 0
    page.mouse.up()
    assert page.evaluate("window.saved") == 1
    assert {(3, x) for x in range(1, 7)} <= painted(page)
    assert (7, 0) not in painted(page)


def test_the_keyboard_paints_where_its_cursor_is(page: Page) -> None:
    page.locator("canvas").focus()
    page.keyboard.press("Space")
    first = painted(page)
    assert first
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert painted(page) != first
    assert page.evaluate("window.saved") >= 2


def test_clearing_removes_everything_and_leaving_stops_listening(page: Page) -> None:
    page.locator("canvas").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Clear").click()
    assert painted(page) == set()
    page.evaluate("window.cleanup && window.cleanup()")
    assert page.evaluate("window.listeners()") == 0
