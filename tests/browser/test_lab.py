"""The explorers, clicked through in JupyterLab from a fresh start; no network but this machine's own."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, QUIET
from playwright.sync_api import Locator, Page, Route, TimeoutError, expect, sync_playwright

PATIENCE = 120_000  # ms: the longest that a condition may take
CELLS = [
    """import nca_lib
from nca_lib.book import branches, demo, explorers
from nca_lib.book.subjects import Subject
from nca_lib.data.digits import Digits
images = Digits(8).images
digits = Subject("digits", nca_lib.load("digits-mlp"), images[:20])
tissue = Subject("tissue", nca_lib.load("tissue-diff-nca"), images[:1])
growing = nca_lib.load("growing-regenerate")""",
    "demo.noise_explorer(images[:20])",
    "explorers.size_explorer(tissue)",
    "explorers.inpainting_painter(digits)",
    "explorers.growing_player(growing, size=32)",
    "branches.Branches(digits, steps=6)",
    "print('all', 'have', 'run')",
]


def notebook(cells: list[str]) -> str:
    made = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": c,
        }
        for i, c in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab with nobody's settings but its own."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder / "work").mkdir()
    (folder / "work" / "explorers.ipynb").write_text(notebook(CELLS))
    settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    kept = {name: value for name, value in os.environ.items() if name != "NCA_LIB_BOOK"}
    environment = kept | {
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder / "work", env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(server, address, folder / "log")
            yield address
        finally:
            server.terminate()  # and with it the kernels
            server.wait(30)


def wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
            return
        except urllib.error.URLError:
            try:
                server.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Page]:
    """The notebook, all of its cells run."""
    assert CHROMIUM, "these tests need Chromium: apt-get install chromium"

    def only_local(route: Route) -> None:
        if route.request.url.startswith((lab, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 2400})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.route("**/*", only_local)
        page.goto(f"{lab}/doc/tree/explorers.ipynb")
        page.get_by_text("Kernel status: Idle").first.wait_for(state="attached")
        run_all(page)
        yield page
        browser.close()


def cell(page: Page, number: int) -> Locator:
    return page.locator(".jp-CodeCell").nth(number)


def run_all(page: Page) -> None:
    # A slow machine says idle too early, asks for a kernel when cells are to be run, and forgets them.
    asked = page.locator(".jp-Dialog .jp-mod-accept")
    page.add_locator_handler(asked, lambda button: button.first.click(), no_wait_after=True)
    first = cell(page, 0).locator(".jp-InputPrompt", has_text=re.compile(r"\d"))
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(TimeoutError):
            first.wait_for()
            break
    cell(page, len(CELLS) - 1).locator(".jp-OutputArea-output", has_text="all have run").wait_for()


PIXELS = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.reduce((hash, value) => (31 * hash + value) | 0, 0);
}"""


def pixels(canvas: Locator) -> int:
    """A hash of what a canvas shows."""
    return canvas.evaluate(PIXELS)


def picture_changes(page: Page, canvas: Locator, before: int) -> None:
    until(lambda: pixels(canvas) != before, page)


def drag(page: Page, canvas: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place to another, both (x, y) in parts of the canvas."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=8)
    page.mouse.up()


def inked(canvas: Locator) -> int:
    """How many pixels of a canvas are not nearly white."""
    return canvas.evaluate("""canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) count += data[i] + data[i + 1] + data[i + 2] < 600;
        return count;
    }""")


def until(condition: Callable[[], bool], page: Page) -> None:
    for _ in range(PATIENCE // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen")


def test_a_slider_moved_by_keyboard_draws_another_picture(page: Page) -> None:
    explorer = cell(page, 1)
    expect(explorer.get_by_text("At t = 100 the")).to_be_visible()
    noisy = explorer.get_by_role("img", name="noisy image")
    before = pixels(noisy)
    explorer.get_by_role("slider", name="timestep t").press("ArrowRight")
    expect(explorer.get_by_text("At t = 101 the")).to_be_visible()
    picture_changes(page, noisy, before)


def test_sampling_shows_frame_by_frame_stops_when_told_and_goes_back(page: Page) -> None:
    explorer = cell(page, 2)
    expect(explorer.get_by_text(re.compile("^done: 20 frames"))).to_be_visible()
    explorer.get_by_role("slider").nth(2).focus()  # height, width, steps
    page.keyboard.press("End")  # 100 steps: time enough to press stop
    expect(explorer.get_by_text(re.compile(r"^frame ([3-9]|[1-9]\d) of 100, about"))).to_be_visible()
    explorer.get_by_role("button", name="Stop").click()
    expect(explorer.get_by_text(re.compile("^stopped: "))).to_be_visible()
    expect(explorer.get_by_role("button", name="Stop")).to_be_disabled()
    clean = explorer.get_by_role("img", name="clean estimate")
    before = pixels(clean)
    scrubber = explorer.locator(".nca-demo input[type=range]")
    scrubber.focus()
    page.keyboard.press("Home")
    expect(explorer.get_by_text(re.compile("^Call 1:"))).to_be_visible()
    picture_changes(page, clean, before)


def test_a_painted_hole_is_filled_beside_the_brush(page: Page) -> None:
    explorer = cell(page, 3)
    expect(explorer.get_by_text(re.compile("^done"))).to_be_visible()
    canvas, filled = explorer.locator(".nca-brush canvas"), explorer.get_by_role("img", name="filled")
    before = pixels(filled)
    drag(page, canvas, (0.2, 0.2), (0.8, 0.2))
    picture_changes(page, filled, before)
    expect(explorer.get_by_text(re.compile("^done"))).to_be_visible()
    explorer.get_by_role("combobox").nth(1).select_option("published")  # after the model
    expect(explorer.get_by_text("10 denoiser calls.")).to_be_visible()
    left, right = canvas.bounding_box(), filled.bounding_box()
    assert left and right
    assert left["x"] + left["width"] <= right["x"]


def test_the_growing_automaton_is_erased_pauses_and_begins_again(page: Page) -> None:
    player = cell(page, 4)
    canvas = player.locator("canvas")
    until(lambda: inked(canvas) > 100, page)
    player.get_by_role("button", name="Pause").click()
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    grown = inked(canvas)
    drag(page, canvas, (0.1, 0.6), (0.9, 0.6))
    until(lambda: inked(canvas) < 0.95 * grown, page)
    page.set_viewport_size({"width": 1280, "height": 700})
    player.get_by_role("button", name="Play").click()
    cell(page, 0).scroll_into_view_if_needed()  # out of view it stands still
    page.wait_for_timeout(1000)
    unseen = player.get_by_text(re.compile("^step")).inner_text()
    page.wait_for_timeout(500)
    assert player.get_by_text(re.compile("^step")).inner_text() == unseen
    page.set_viewport_size({"width": 1280, "height": 2400})
    player.get_by_role("button", name="Pause").click()
    step = player.get_by_text(re.compile("^step"))
    paused = int(step.inner_text().split()[1])
    player.get_by_role("button", name="Play").click()
    until(lambda: int(step.inner_text().split()[1]) > paused, page)
    player.get_by_role("button", name="Restart").click()
    until(lambda: int(step.inner_text().split()[1]) < paused, page)


def test_a_painted_branch_stands_in_the_tree_and_a_thumbnail_leads_back(page: Page) -> None:
    hand = cell(page, 5)
    tree = hand.get_by_role("group", name="the branches as a tree")
    first = tree.get_by_role("button", name="branch 1, call 2")
    first.click()
    expect(first).to_have_attribute("aria-pressed", "true")
    canvas = hand.locator(".nca-brush canvas")
    before = pixels(canvas)
    drag(page, canvas, (0.3, 0.3), (0.7, 0.7))
    picture_changes(page, canvas, before)
    hand.get_by_role("button", name="Go on").click()
    expect(tree.get_by_text("2: painted, went on, from 1 after call 2")).to_be_visible()
    tree.get_by_role("button", name="branch 1, call 4").press("Enter")
    expect(hand.get_by_text(re.compile("^Branch 1, t = "))).to_be_visible()
