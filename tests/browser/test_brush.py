"""The brush paints with mouse and keyboard, and tells its model what is painted; no network."""

from collections.abc import Iterator

import pytest
import torch
from chromium import CHROMIUM, QUIET
from playwright.sync_api import Page, sync_playwright

from nca_lib.book.figures import image_bytes
from nca_lib.book.pages import bundle

SOURCE = bundle("brush.js")
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
        send: (content, _, buffers) => {
            (window.sent ||= []).push([content.event, buffers ? [...new Uint8Array(buffers[0])] : []]);
        },
    };
    window.painted = () => [...new Uint8Array(traits.mask.buffer)];
    window.listeners = () => Object.keys(heard).length;
    const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
    window.cleanup = await module.default.render({model: window.model, el: document.body});
}"""


@pytest.fixture
def blank() -> Iterator[Page]:
    assert CHROMIUM, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.context.set_offline(True)
        page.set_content("<body></body>")
        yield page
        browser.close()


def mount(page: Page, fleeting: bool) -> Page:
    traits = {"height": 8, "width": 8, "fleeting": fleeting, "label": "a test"}
    page.evaluate(MOUNT, [SOURCE, traits, list(image_bytes(torch.zeros(3, 8, 8)))])
    return page


@pytest.fixture
def page(blank: Page) -> Page:
    return mount(blank, fleeting=False)


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


def test_the_page_says_when_it_has_drawn_the_picture(page: Page) -> None:
    page.wait_for_function("(window.sent || []).length")
    assert page.evaluate("window.sent") == [["drawn", []]]
    corner = "[...document.querySelector('canvas').getContext('2d').getImageData(2, 2, 1, 1).data]"
    assert page.evaluate(corner) == pytest.approx([127.5, 127.5, 127.5, 255], abs=0.6)


def test_a_fleeting_brush_tells_during_the_stroke_and_keeps_nothing(blank: Page) -> None:
    page = mount(blank, fleeting=True)
    strokes = "(window.sent || []).filter(([event]) => event === 'painted')"
    box = page.locator("canvas").bounding_box()
    assert box
    cell = box["width"] / 8
    page.mouse.move(box["x"] + 1.5 * cell, box["y"] + 3.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 4.5 * cell, box["y"] + 3.5 * cell, steps=4)
    page.wait_for_function(f"{strokes}.length > 0")  # the button is still down
    page.mouse.move(box["x"] + 6.5 * cell, box["y"] + 3.5 * cell, steps=4)
    page.mouse.up()
    told = page.evaluate(strokes)
    cells = {divmod(i, 8) for _, mask in told for i, value in enumerate(mask) if value}
    assert {(3, x) for x in range(1, 7)} <= cells
    assert painted(page) == set()
    page.keyboard.press("Space")
    page.keyboard.press("Space")  # the same again is told again
    assert page.evaluate(f"{strokes}.slice(-2).map(([, mask]) => mask.some(Boolean))") == [True, True]


def test_an_own_picture_goes_to_python_and_one_too_heavy_is_refused_in_words(blank: Page) -> None:
    mount = """async source => {
        const traits = {most: 1000, label: "own picture", value: new DataView(new ArrayBuffer(0))};
        const set = (name, value) => { traits[name] = value; };
        const model = {get: name => traits[name], set, save_changes() {}};
        window.value = () => [...new Uint8Array(traits.value.buffer)];
        const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
        module.default.render({model, el: document.body});
    }"""
    blank.evaluate(mount, bundle("upload.js"))
    chosen = blank.get_by_label("own picture")
    chosen.set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": b"abc"})
    blank.get_by_text("cat.png, 0.0 MB").wait_for()
    assert bytes(blank.evaluate("window.value()")) == b"abc"
    chosen.set_input_files({"name": "dog.png", "mimeType": "image/png", "buffer": bytes(1001)})
    blank.get_by_text("at most 0.001 MB").wait_for()
    assert bytes(blank.evaluate("window.value()")) == b"abc"
    blank.get_by_role("button", name="Use none").click()
    assert blank.evaluate("window.value()") == []
