"""Every component of the pages: by keyboard, on narrow and wide screens, in both themes; what they show."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page
from test_components import HEAD, OVERFLOW

from nca_lib.book import demo
from nca_lib.book.film import View, film_page
from nca_lib.data.faces import Faces

FACE = Faces(32).image(0, np.random.default_rng(0))
ROWS: list[dict[str, Any]] = [
    {
        "name": f"{kind}-{number}",
        "matrix": data,
        "images_seen": 1000,
        "experiment": {"model": {"kind": kind}, "data": {"kind": data}},
        "parameters": 1000 * number,
        "operations": 1e9,
        "metrics": {
            "extractors": {},
            ("spectrum_distance" if data == "faces" else "accuracy"): 0.1 * number,
        },
        "floor": {"extractors": {}, "spectrum_distance": 0.05},
    }
    for kind in ("unet", "diff-nca")
    for data in ("faces", "digits")
    for number in (1, 2, 3)
]
CALLS = [
    {
        "model": "m",
        "sampler": sampler,
        "calls": calls,
        "extractors": {"eye": {"frechet_distance": 90.0 / calls, "standard_error": 1.0, "floor": 8.0}},
        "count": 256,
        "seconds": 10.0 * calls,
        "firing": "fresh",
    }
    for sampler in ("ddim", "ddpm")
    for calls in (5, 10, 20)
]
VIEWS = [View({"p": torch.full((3, 20, 20), n / 9)}, f"frame {n}") for n in range(9)]
COMPONENTS: dict[str, Callable[[], Any]] = {
    "noise": lambda: demo.noise_explorer(torch.stack([FACE, -FACE])),
    "digits": demo.digits_demo,
    "messages": lambda: demo.message_player(17),
    "spectrum": lambda: demo.spectrum_painter(FACE),
    "growing": demo.growing_demo,
    "diffusion": demo.diffusion_demo,
    "results": lambda: demo.results_explorer(ROWS),
    "calls": lambda: demo.calls_explorer(CALLS),
    "film": lambda: film_page(VIEWS, "a film", "frame", "", "code"),
}
# Everything that a component shows.
SHOWN = """() => [...document.querySelectorAll("canvas")].map(canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.reduce((hash, v) => (31 * hash + v) | 0, 0);
}).join() + [...document.querySelectorAll("svg")].map(svg => svg.innerHTML).join()"""

Show = Callable[..., Page]


@pytest.fixture
def show(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Show]:
    """Open a page with a component; whatever goes wrong on it fails the test at its end."""
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    problems: list[str] = []
    contexts = []

    def shown(kind: str, width: int = 800, style: str = "", **settings: Any) -> Page:
        html = f"{HEAD}<style>{style}</style>{COMPONENTS[kind]().data}<div style='height: 2000px'></div>"
        (tmp_path / "page.html").write_text(html)
        settings = {"reduced_motion": "reduce"} | settings
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.goto((tmp_path / "page.html").as_uri())
        page.locator(".nca-demo").wait_for()
        return page

    yield shown
    for context in contexts:
        context.close()
    assert not problems


def changed(page: Page, act: Callable[[], None]) -> None:
    """Wait until the page shows something else than before the act."""
    before = page.evaluate(SHOWN)
    act()
    page.wait_for_function(f"before => ({SHOWN})() !== before", arg=before)


@pytest.mark.parametrize("kind", COMPONENTS)
def test_it_fits_every_screen_and_fingers_find_its_controls(show: Show, kind: str) -> None:
    for width in (390, 1600):
        page = show(kind, width, has_touch=width == 390, is_mobile=width == 390)
        assert page.evaluate(OVERFLOW) <= 0
        for control in page.locator(".nca-demo :is(button, select, input)").all():
            box = control.bounding_box()
            if not box or not box["height"]:  # in a closed part
                continue
            if width == 390:
                assert box["height"] >= 40 or control.get_attribute("type") == "checkbox"
            if control.evaluate("control => control.tagName") != "BUTTON":
                assert control.evaluate("control => control.labels.length") == 1


@pytest.mark.parametrize("kind", COMPONENTS)
def test_its_ink_can_be_read_on_light_and_dark_paper(show: Show, kind: str) -> None:
    for paper, ink in (("#ffffff", "rgb(30, 30, 30)"), ("#121212", "rgb(220, 220, 220)")):
        page = show(kind, style=f":root {{ --pst-color-text-base: {ink}; background: {paper} }}")
        colours = page.evaluate("""() => [...document.querySelectorAll(
            ".nca-demo, .nca-demo button, .nca-demo select, .nca-demo figcaption, .nca-demo svg text"
        )].filter(e => e.getClientRects().length).map(e => {
            const style = getComputedStyle(e);
            return e.closest("svg") ? style.fill : style.color;
        })""")
        assert set(colours) == {ink}


@pytest.mark.parametrize("kind", [kind for kind in COMPONENTS if kind not in ("growing", "diffusion")])
def test_the_keyboard_moves_its_sliders_and_the_picture_follows(show: Show, kind: str) -> None:
    page = show(kind)
    names = {"noise": "timestep t", "digits": "steps", "messages": "steps k", "spectrum": "frequencies n"}
    label = names.get(kind, "frame" if kind == "film" else "across")
    control = page.get_by_label(label).first
    control.focus()
    for key in ("ArrowDown", "ArrowDown") if kind != "results" else ("ArrowDown",):
        changed(page, lambda key=key: page.keyboard.press(key))  # type: ignore[misc]


def test_a_message_starts_where_one_clicks_and_is_at_k_at_once(show: Show) -> None:
    page = show("messages")
    page.get_by_label("steps k").fill("3")
    page.get_by_text("After 3 steps: 49 cells").wait_for()
    page.get_by_role("img", name="in image space").click(position={"x": 2, "y": 2})
    page.get_by_text("After 3 steps: 16 cells").wait_for()  # from a corner


def test_the_same_window_of_waves_twice_begins_anew_twice(show: Show) -> None:
    page = show("spectrum")
    button = page.get_by_role("button", name="half plane")
    for _ in range(2):
        changed(page, lambda: page.locator("canvas").first.click(position={"x": 5, "y": 5}))
        changed(page, button.click)


@pytest.mark.parametrize("kind", ["results", "calls"])
def test_every_choice_shows_points_whose_names_do_not_overlap(show: Show, kind: str) -> None:
    page = show(kind)
    overlaps = """() => {
        const boxes = [...document.querySelectorAll("svg circle + text, svg text")]
            .map(text => text.getBoundingClientRect());
        const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1
            || a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => !apart(a, b))).length;
    }"""
    selects = page.locator("select")
    for data in selects.nth(0).locator("option").all():
        selects.nth(0).select_option(data.get_attribute("value") or data.inner_text())
        for number in (1, 2):
            for option in selects.nth(number).locator("option").all():
                words = option.inner_text()
                assert "_" not in words
                selects.nth(number).select_option(words)
                assert page.locator("svg circle title").count() >= 3
                assert page.evaluate(overlaps) == 0
                assert page.locator("output").inner_text()
    if kind == "calls":
        selects.nth(2).select_option("Fréchet distance (eye)")
        assert "lower is better" in page.locator("output").inner_text()


def test_a_film_of_pictures_of_other_sizes_leaves_the_page_below_where_it_is(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [View({"p": torch.zeros(3, n, 20)}, f"frame {n}") for n in (30, 10, 20)]
    monkeypatch.setitem(COMPONENTS, "film", lambda: film_page(views, "a film", "frame", ""))
    page = show("film")
    below = "document.querySelector('.nca-demo').getBoundingClientRect().bottom"
    scrubber = page.get_by_label("frame")
    places = []
    for at in ("0", "1", "2"):
        scrubber.fill(at)
        page.wait_for_timeout(100)
        places.append(page.evaluate(below))
    assert max(places) - min(places) < 1


def test_digits_are_those_of_the_library_and_scrubbing_back_shows_the_noise(show: Show) -> None:
    page = show("digits")
    page.get_by_text("16 digits by 20 calls each").wait_for()
    assert json.dumps(page.locator("output").all_inner_texts()).count("20 of 20") == 1
    changed(page, lambda: page.get_by_label("call").fill("0"))
    page.get_by_text("noisy images, t = 299").wait_for()
    changed(page, lambda: page.get_by_label("sampler").select_option("ddpm"))
    page.get_by_text("finished").wait_for()
