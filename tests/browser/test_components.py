"""The demos of the published page in a browser without a network: from disk, over http, and as a widget."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, Route

from nca_lib.book import pages
from nca_lib.book.export import export, rounded
from nca_lib.book.pages import WEB, bundle
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.samplers import SAMPLERS, sample

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><body>'
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
EXPORT = "export {CounterNoise, load};"
HIDE = """hidden => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
# The canvas' pixels, row by row, four numbers each.
PIXELS = """() => {
    const canvas = document.querySelector("canvas");
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""
OPACITY_IN_THE_MIDDLE = """() => {
    const data = document.querySelector("canvas").getContext("2d").getImageData(23, 23, 3, 3).data;
    return data.filter((_, i) => i % 4 === 3).reduce((sum, v) => sum + v, 0);
}"""
# As anywidget calls it; the model is the stand-in that a widget's front end would be given.
MOUNT = """async ([source, traits]) => {
    const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
    const model = {get: name => traits[name], on() {}, off() {}, set() {}, save_changes() {}, send() {}};
    window.cleanup = await module.default.render({model, el: document.body});
}"""

Open = Callable[..., Page]


def network_of() -> DiffNCA:
    torch.manual_seed(0)
    return DiffNCA(8, 12, 2, position=False, update_probability=1.0, encoding="sinusoidal")


def traits_of(kind: str) -> dict[str, Any]:
    """Small models: what is tested here is the interface."""
    if kind == "growing":
        models: Any = {"regenerate": json.loads((WEB / "growing-regenerate.json").read_text())}
    else:
        models = {"untrained": export(Denoiser(network_of(), noise_schedule(), "v"), steps=8)}
    return {"engine": bundle("sampling.js"), "weights": models, "label": "a test"}


@pytest.fixture
def open_demo(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a static page with a demo; whatever goes wrong on it fails the test at its end."""
    problems: list[str] = []
    contexts = []

    def opened(
        kind: str, *, over: str = "file", width: int = 800, below: str = "", anchor: str = "", **settings: Any
    ) -> Page:
        html = HEAD + str(pages.page(f"{kind}.js", traits_of(kind)).data) + below
        context = browser.new_context(viewport={"width": width, "height": 700}, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        address = (tmp_path / "page.html").as_uri() if over == "file" else "http://book.test/page.html"
        (tmp_path / "page.html").write_text(html)

        def serve(route: Route) -> None:
            if route.request.url == address:
                route.fulfill(body=html, content_type="text/html")
            else:
                problems.append(f"asked for {route.request.url}")
                route.abort()

        page.route("http*://**/*", serve)
        page.goto(address + anchor)
        if kind == "growing":
            page.get_by_label("speed").fill("120")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def step(page: Page) -> int:
    return int(page.locator("output").inner_text().removeprefix("step "))


def wait_for_step(page: Page, number: int) -> None:
    page.wait_for_function(
        "least => Number(document.querySelector('output').textContent.slice(5)) >= least", arg=number
    )


def wait_for_workers(page: Page, count: int) -> None:
    for _ in range(100):
        if len(page.workers) == count:
            return
        page.wait_for_timeout(50)
    assert len(page.workers) == count


def wait_until_drawn(page: Page, seed: int) -> None:
    page.get_by_text(f"seed {seed}, ").filter(has_text="calls of the denoiser").wait_for()


@pytest.mark.parametrize("over", ["file", "http"])
def test_growing_paints_changing_pixels(open_demo: Open, over: str) -> None:
    page = open_demo("growing", over=over)
    wait_for_step(page, 5)
    first = page.evaluate(PIXELS)
    wait_for_step(page, 25)
    later = page.evaluate(PIXELS)
    assert sum(value > 128 for value in later[3::4]) > sum(value > 128 for value in first[3::4]) > 0
    assert len(page.workers) == 1


def test_a_click_erases_and_a_double_click_plants(open_demo: Open) -> None:
    page = open_demo("growing")
    wait_for_step(page, 50)
    page.get_by_role("button", name="Pause").click()
    wait_for_workers(page, 0)
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) > 0
    canvas = page.locator("canvas")
    canvas.click()
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) == 0
    canvas.dblclick()
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) == 255
    stopped = step(page)
    page.get_by_role("button", name="Play").click()
    wait_for_step(page, stopped + 3)


def test_the_keyboard_erases_plants_and_pauses(open_demo: Open) -> None:
    page = open_demo("growing")
    wait_for_step(page, 50)
    play = page.get_by_role("button", name="Pause")
    play.focus()
    page.keyboard.press("Enter")
    wait_for_workers(page, 0)
    stopped = step(page)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    page.keyboard.press("Space")
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) == 0
    page.keyboard.press("Enter")
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) == 255
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    before = sum(page.evaluate(PIXELS)[3::4])
    page.keyboard.press("Enter")
    assert sum(page.evaluate(PIXELS)[3::4]) != before
    assert step(page) == stopped


def test_growing_sleeps_while_its_tab_is_hidden_and_goes_on_afterwards(open_demo: Open) -> None:
    page = open_demo("growing")
    wait_for_step(page, 10)
    page.evaluate(HIDE, True)
    wait_for_workers(page, 0)
    asleep = step(page)
    page.wait_for_timeout(900)
    assert step(page) == asleep
    page.evaluate(HIDE, False)
    wait_for_step(page, asleep + 1)
    assert step(page) < asleep + 70, "it caught up with the time that it slept"


def test_growing_runs_only_in_view_and_in_the_document(open_demo: Open) -> None:
    page = open_demo("growing", below='<div style="height: 3000px"></div>')
    wait_for_step(page, 3)
    page.evaluate("scrollTo(0, 3000)")
    wait_for_workers(page, 0)
    unseen = step(page)
    page.wait_for_timeout(300)
    assert step(page) == unseen
    page.evaluate("scrollTo(0, 0)")
    wait_for_workers(page, 1)
    page.evaluate("window.root = document.querySelector('.nca-demo'); root.remove()")
    wait_for_workers(page, 0)
    page.evaluate("document.body.prepend(root)")
    wait_for_workers(page, 1)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: false}))")
    wait_for_workers(page, 0)


def test_who_wants_less_motion_sees_what_has_grown_and_may_play(open_demo: Open) -> None:
    page = open_demo("growing", reduced_motion="reduce")
    wait_for_step(page, 1)
    still, stopped = page.evaluate(PIXELS), step(page)
    assert sum(value > 128 for value in still[3::4]) > 100
    wait_for_workers(page, 0)
    page.wait_for_timeout(300)
    assert page.evaluate(PIXELS) == still
    page.get_by_role("button", name="Play").click()
    wait_for_step(page, stopped + 1)
    quiet = open_demo("diffusion", reduced_motion="reduce")
    quiet.wait_for_timeout(300)
    assert not quiet.workers
    quiet.get_by_role("button", name="Draw new").click()
    wait_until_drawn(quiet, 1)


@pytest.mark.parametrize("over", ["file", "http"])
def test_diffusion_draws_while_one_watches_and_again_on_demand(open_demo: Open, over: str) -> None:
    page = open_demo("diffusion", over=over)
    wait_until_drawn(page, 1)
    first = page.evaluate(PIXELS)
    page.get_by_label("call", exact=True).fill("0")
    assert page.evaluate(PIXELS) != first
    for _ in range(5):  # each stops the one before it
        page.get_by_role("button", name="Draw new").click()
    wait_until_drawn(page, 6)
    assert page.evaluate(PIXELS) != first
    wait_for_workers(page, 0)


def test_a_painted_hole_is_filled_and_nothing_else_changes(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    fill = page.get_by_role("button", name="Fill the hole")
    assert fill.is_disabled()
    before = page.evaluate(PIXELS)
    box = page.locator("canvas").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    holed = page.evaluate(PIXELS)
    hole = {i for i, (a, b) in enumerate(zip(before, holed, strict=True)) if a != b}
    assert 100 < len(hole) < len(before) / 2
    fill.click()
    wait_until_drawn(page, 2)
    filled = page.evaluate(PIXELS)
    changed = {i for i, (a, b) in enumerate(zip(before, filled, strict=True)) if a != b}
    rest = {i for i, (a, b) in enumerate(zip(holed, filled, strict=True)) if a == b}
    near = {i // 4 + dy * 40 + dx for i in hole for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert {i // 4 for i in changed} <= near, "noise may look like what it covers, hence the neighbours"
    assert len(hole - rest) > len(hole) / 2, "the noise is still there"
    wait_for_workers(page, 0)


def test_it_grows_wider_and_keeps_what_was_there(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    grow, columns = page.get_by_role("button", name="Grow wider"), []
    for seed in (2, 3):
        before, width = page.evaluate(PIXELS), page.evaluate("document.querySelector('canvas').width")
        grow.click()
        wait_until_drawn(page, seed)
        after, wider = page.evaluate(PIXELS), page.evaluate("document.querySelector('canvas').width")
        columns.append(wider)
        height = len(before) // (4 * width)
        for y in range(height):
            kept = after[4 * y * wider : 4 * (y * wider + width)]
            assert kept == before[4 * y * width : 4 * (y + 1) * width]
    assert columns[0] < columns[1]


def place(page: Page) -> str:
    return page.locator("figcaption").first.inner_text()


def test_stop_keeps_what_there_is_and_going_on_ends_as_without_stopping(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    whole = page.evaluate(PIXELS)
    scrubber = page.get_by_label("call", exact=True)
    scrubber.fill("4")
    wait_for_workers(page, 0)
    half = page.evaluate(PIXELS)
    assert half != whole
    assert place(page).startswith("noisy image, t = ")
    scrubber.fill("8")
    assert page.evaluate(PIXELS) == whole
    scrubber.fill("4")
    page.get_by_role("button", name="Step").click()
    page.get_by_text("call 5 of 8").wait_for()
    assert page.evaluate(PIXELS) not in (half, whole)
    page.get_by_role("button", name="Go on").click()
    wait_until_drawn(page, 1)
    assert page.evaluate(PIXELS) == whole
    assert page.get_by_role("button", name="Go on").is_disabled()
    wait_for_workers(page, 0)


def test_what_is_painted_on_the_noisy_image_changes_where_it_leads(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    whole = page.evaluate(PIXELS)
    page.get_by_label("call", exact=True).fill("3")
    before = page.evaluate(PIXELS)
    page.get_by_label("brush").select_option("colour")
    page.locator("canvas").first.click()
    painted = page.evaluate(PIXELS)
    changed = sum(a != b for a, b in zip(before, painted, strict=True)) / len(before)
    assert 0.01 < changed < 0.2
    page.get_by_role("button", name="Go on").click()
    wait_until_drawn(page, 1)
    assert page.evaluate(PIXELS) != whole


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_seed_sampler_steps_and_shape_are_what_the_controls_say(open_demo: Open, sampler: str) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    page.get_by_label("sampler").select_option(sampler)
    page.get_by_label("height").fill("12")
    page.get_by_label("width").fill("20")
    page.get_by_label("width").press("Enter")
    page.get_by_label("seed").fill("9")
    page.get_by_label("seed").press("Enter")
    page.get_by_text("seed 9, 8 calls").wait_for()
    model = Denoiser(network_of(), noise_schedule(), "v")
    expected = sample(rounded(model), (12, 20), sampler=SAMPLERS[sampler], steps=8, seed=9)  # type: ignore[arg-type]
    found = torch.tensor(page.evaluate(PIXELS)).view(12, 20, 4)[..., :3]
    wanted = ((expected[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    assert (found - wanted).abs().max() <= 1


def test_ddim_with_an_eta_of_one_draws_what_ddpm_draws(open_demo: Open) -> None:
    page = open_demo("diffusion", reduced_motion="reduce")
    drawn = []
    for sampler in ("ddim", "ddpm", "ddim"):
        page.get_by_label("sampler").select_option(sampler)
        if drawn and sampler == "ddim":
            page.get_by_label("eta").fill("1")
            page.get_by_label("eta").dispatch_event("change")
        page.get_by_label("seed").fill("5")
        page.get_by_label("seed").press("Enter")
        wait_until_drawn(page, 5)
        drawn.append(page.evaluate(PIXELS))
        assert page.get_by_label("eta").is_visible() == (sampler == "ddim")
    assert drawn[0] != drawn[1] == drawn[2]
    page.get_by_text("As code").last.click()
    page.get_by_text("sampler=partial(ddim, eta=1), steps=8, seed=5").wait_for()


def test_a_view_can_be_sent_as_an_address(open_demo: Open) -> None:
    first = open_demo("diffusion")
    wait_until_drawn(first, 1)
    first.get_by_label("seed").fill("5")
    first.get_by_label("seed").press("Enter")
    wait_until_drawn(first, 5)
    first.get_by_label("call", exact=True).fill("3")
    first.get_by_role("button", name="Link").click()
    anchor = first.evaluate("location.hash")
    assert anchor == "#untrained&seed=5&steps=8&sampler=ddim&eta=0&height=40&width=40&call=3"
    second = open_demo("diffusion", anchor=anchor)
    second.get_by_text("call 3 of 8").wait_for()
    second.get_by_text("stopped").wait_for()
    assert second.evaluate(PIXELS) == first.evaluate(PIXELS)


def test_numbers_of_an_address_are_clamped_as_those_of_the_controls(open_demo: Open) -> None:
    page = open_demo("diffusion", anchor="#untrained&seed=5&steps=0&height=x&width=99999")
    page.get_by_text("seed 5, 1 calls of the denoiser").wait_for()
    shown = [page.get_by_label(name, exact=True).input_value() for name in ("steps", "height", "width")]
    assert shown == ["1", "8", "232"]


def test_inside_a_call_a_clicked_cell_influences_a_square_that_grows_with_k(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    page.get_by_label("call", exact=True).fill("4")
    page.get_by_text("Inside the next call").click()
    page.get_by_text("influenced 25 cells").wait_for()  # two steps
    page.get_by_label("step k").fill("1")
    page.get_by_text("after step 1 of 2").wait_for()
    page.get_by_text("influenced 9 cells").wait_for()
    page.get_by_role("img", name="influence").click(position={"x": 3, "y": 3})
    page.get_by_text("cell y 0, x 0 has influenced 4 cells").wait_for()
    wait_for_workers(page, 0)


def test_what_cannot_be_done_says_why(open_demo: Open) -> None:
    page = open_demo("diffusion")
    wait_until_drawn(page, 1)
    page.get_by_label("height").fill("8")
    page.get_by_label("width").fill("224")
    page.get_by_label("width").press("Enter")
    page.get_by_text("224 cells are as wide as it gets").wait_for()
    grow = page.get_by_role("button", name="Grow wider")
    assert grow.is_disabled()
    assert grow.get_attribute("title") == "232 cells is the widest"


@pytest.mark.parametrize("kind", ["growing", "diffusion"])
def test_as_a_widget_it_cleans_up_after_itself(open_demo: Open, kind: str) -> None:
    page = open_demo(kind)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: false}))")
    wait_for_workers(page, 0)
    page.evaluate("document.body.replaceChildren()")
    page.evaluate(MOUNT, [bundle(f"{kind}.js"), traits_of(kind)])
    if kind == "growing":
        wait_for_step(page, 2)
    else:
        wait_until_drawn(page, 1)
        page.get_by_role("button", name="Draw new").click()
    page.evaluate("window.cleanup()")
    wait_for_workers(page, 0)
    left = page.evaluate(PIXELS)
    page.wait_for_timeout(300)
    assert page.evaluate(PIXELS) == left


def test_a_finger_erases(open_demo: Open) -> None:
    page = open_demo("growing", width=360, has_touch=True)
    wait_for_step(page, 50)
    page.get_by_role("button", name="Pause").tap()
    wait_for_workers(page, 0)
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) > 0
    page.locator("canvas").tap()
    assert page.evaluate(OPACITY_IN_THE_MIDDLE) == 0


@pytest.mark.parametrize("kind", ["growing", "diffusion"])
def test_it_fits_a_phone_and_names_its_controls(open_demo: Open, kind: str) -> None:
    page = open_demo(kind, width=360, has_touch=True)
    if kind == "diffusion":
        wait_until_drawn(page, 1)
        page.get_by_role("button", name="Grow wider").click()
        wait_until_drawn(page, 2)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.get_by_role("application").first.get_attribute("aria-label")
    for control in page.locator("select, input").all():
        assert control.evaluate("control => control.labels.length") == 1


@pytest.mark.parametrize("variable", ["--jp-ui-font-color1", "--pst-color-text-base"])
def test_it_wears_the_pages_theme(open_demo: Open, variable: str) -> None:
    page = open_demo("growing")
    colour = "element => getComputedStyle(element).color"
    button = page.get_by_role("button", name="Restart")
    page.evaluate(f"document.documentElement.style.setProperty('{variable}', 'rgb(201, 209, 217)')")
    assert button.evaluate(colour) == "rgb(201, 209, 217)"


def test_the_engine_equals_pytorch_in_the_browser_too(open_demo: Open) -> None:
    """By the golden frames: fifty steps of growing, and a whole sample."""
    page = open_demo("growing", reduced_motion="reduce")
    read = [json.loads((WEB / f"{name}.json").read_text()) for name in ("growing-regenerate", "web-tissue")]
    script = """async ([source, growing, diffusion]) => {
        const E = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
        const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
        const difference = (a, b) => Math.max(...b.map((v, i) => Math.abs(v - a[i])));
        const g = growing.golden, automaton = E.load(growing), state = automaton.seed(g.size, g.size);
        automaton.run(state, g.size, g.size, g.steps, new E.CounterNoise(g.seed));
        const d = diffusion.golden, settings = {seed: d.seed, steps: diffusion.sampler_steps};
        let frame;
        for (frame of E.load(diffusion).sample({height: d.size[0], width: d.size[1], ...settings}));
        const seen = state.filter((_, i) => i % g.every === 0);
        return [difference(seen, floats(g.state)), difference(frame.image, floats(d.sample))];
    }"""
    assert max(page.evaluate(script, [bundle("sampling.js") + EXPORT, *read])) < 1e-3


def test_a_page_survives_text_that_looks_like_markup() -> None:
    html = pages.page("growing.js", {"engine": "", "weights": {}, "label": "</script><b>"}).data
    assert html.count("</script>") == 2
    for module in WEB.glob("*.js"):
        assert "</script" not in module.read_text()


def test_a_finger_finds_controls_large_enough(open_demo: Open) -> None:
    page = open_demo("diffusion", width=390, has_touch=True, is_mobile=True)
    wait_until_drawn(page, 1)
    for control in page.locator("input, select, button").all():
        box = control.bounding_box()
        assert box is None or not box["height"] or box["height"] >= 40, control.evaluate(
            "control => control.outerHTML"
        )
