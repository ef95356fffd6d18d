"""What each explorer shows, how fast it answers, what it weighs; as a table.

    python benchmarks/components.py

In pages: from a changed control to changed pixels in Chromium, and the component's weight in the page. In
notebooks: from a changed control to the first picture of the answer in the kernel, and the weight of that
answer's film. Medians.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from nca_lib.book import demo, edits, explorers
from nca_lib.book.branches import Branches
from nca_lib.book.inside import inside_explorer
from nca_lib.book.panel import Explorer
from nca_lib.book.subjects import shipped

CHANGES = 15
# Change a control (or click), and the milliseconds until any canvas or chart shows something else.
CHANGE = """async ([words, value]) => {
    const shown = () => [...document.querySelectorAll("canvas")].map(canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.reduce((hash, v) => (31 * hash + v) | 0, 0);
    }).join() + [...document.querySelectorAll("svg")].map(svg => svg.innerHTML).join();
    const before = shown(), began = performance.now();
    const label = [...document.querySelectorAll("label")].find(l => words && l.textContent.startsWith(words));
    if (label) {
        const control = label.querySelector("input, select");
        control.value = value;
        for (const event of ["input", "change"]) control.dispatchEvent(new Event(event, {bubbles: true}));
    } else {
        const canvas = document.querySelector("canvas");
        for (let k = 0; k < 3; k++) canvas.dispatchEvent(new KeyboardEvent("keydown", {key: value}));
        canvas.dispatchEvent(new KeyboardEvent("keydown", {key: " "}));
    }
    while (shown() === before && performance.now() - began < 5000) await new Promise(requestAnimationFrame);
    return shown() === before ? null : performance.now() - began;
}"""


def in_pages(page: Page) -> list[tuple[str, str, float, float]]:
    """Rows (component, finding, milliseconds, kB)."""
    results = resources.files("nca_lib") / "experiments" / "results"
    rows, calls = (
        [json.loads(line) for line in (results / name).read_text().splitlines()]
        for name in ("results.jsonl", "calls.jsonl")
    )
    _, _, faces = shipped()
    numbers = [str(k) for k in range(2, 2 + CHANGES)]
    # what it is, what one finds out, the condition (JavaScript) when it is ready, a control and its values
    told: list[tuple[str, Callable[[], Any], str, str, str, list[str]]] = [
        (
            "noise_explorer",
            lambda: demo.noise_explorer(faces.images),
            "the step at which a face is lost, and that the linear schedule keeps a trace of it",
            "",
            "timestep t",
            [str(k) for k in range(20, 290, 18)],
        ),
        (
            "digits_demo",
            demo.digits_demo,
            "how few calls each sampler needs, and which two draw the same digits",
            "",
            "steps",
            numbers,
        ),
        (
            "message_player",
            demo.message_player,
            "k steps carry a message k cells, in frequency space everywhere at once",
            "",
            "steps k",
            numbers,
        ),
        (
            "spectrum_painter",
            lambda: demo.spectrum_painter(faces.images[0]),
            "a few low waves make the face; their directions matter",
            "",
            "frequencies n",
            [str(2 + k % 12) for k in range(CHANGES)],
        ),
        (
            "growing_demo: erase",
            demo.growing_demo,
            "which of three rules closes a wound",
            "Number(document.querySelector('output').textContent.slice(5)) > 40",
            "",
            ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"] * 3,
        ),
        (
            "diffusion_demo: scrub",
            demo.diffusion_demo,
            "when tissue is decided; how late a painted colour is still heard",
            "document.body.innerText.includes('calls of the denoiser')",
            "call",
            numbers,
        ),
        (
            "results_explorer",
            lambda: demo.results_explorer(rows),
            "which model is best for its parameters, and which for its operations",
            "",
            "across",
            ["operations", "training_seconds", "images_seen", "parameters"] * 3,
        ),
        (
            "calls_explorer",
            lambda: demo.calls_explorer(calls),
            "ten calls of DPM-Solver++ for faces; for tissue, more noise",
            "",
            "across",
            ["seconds", "calls"] * 6,
        ),
        (
            "film (sampler_explorer)",
            lambda: explorers.sampler_explorer(faces, steps=12),
            "coarse before fine, and the call that decides a face",
            "",
            "call",
            [str(k % 12) for k in range(CHANGES)],
        ),
    ]
    return [
        (name, finding, *page_row(page, make().data, ready, label, values))
        for name, make, finding, ready, label, values in told
    ]


def page_row(page: Page, html: str, ready: str, label: str, values: list[str]) -> tuple[float, float]:
    """Median milliseconds and kB of a component."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(f'<!doctype html><meta charset="utf-8"><body>{html}')
        page.goto(path.as_uri())
        page.locator(".nca-demo").wait_for()
        if ready:
            page.wait_for_function(ready)
        if page.get_by_role("button", name="Pause").count():
            page.get_by_role("button", name="Pause").click()
        taken = [page.evaluate(CHANGE, [label, value]) for value in values]
    seen = [ms for ms in taken if ms is not None]
    return statistics.median(seen), len(html.encode()) / 1000


def in_notebooks() -> list[tuple[str, str, float, float]]:
    """Rows (component, finding, milliseconds, kB)."""
    digits, tissue, faces = shipped()
    told: list[tuple[str, Any, str, str, list[Any]]] = [
        (
            "sampler_explorer",
            explorers.sampler_explorer(faces),
            "the call that decides a face; which frequencies rise first",
            "seed",
            [1, 2, 3],
        ),
        (
            "compare_explorer",
            explorers.compare_explorer(digits, faces, steps=(12, 5)),
            "how few calls of one sampler draw what many of another draw",
            "seed",
            [1, 2, 3],
        ),
        (
            "inside_explorer",
            inside_explorer(faces),
            "how far a cell is heard after k steps, in both spaces",
            "t",
            [50, 150, 250],
        ),
        (
            "answers_explorer",
            edits.answers_explorer(faces),
            "when identity is decided; how far answers are from the truth, and chance",
            "strength",
            [30, 45, 75],
        ),
        (
            "walk_explorer",
            edits.walk_explorer(digits),
            "where one digit becomes the other",
            "second",
            [2, 3, 4],
        ),
        (
            "inpainting_painter",
            explorers.inpainting_painter(faces),
            "whether a new eye fits the other; what RePaint's repeats are worth",
            "seed",
            [1, 2, 3],
        ),
        (
            "size_explorer",
            explorers.size_explorer(tissue, size=(48, 48)),
            "the same weights on a ring, a heart, a strip",
            "seed",
            [1, 2, 3],
        ),
    ]
    rows = [
        (name, finding, *notebook_row(explorer, control, values))
        for name, explorer, finding, control, values in told
    ]
    branches = Branches(digits)
    branches.wait()
    taken = []
    for call in (3, 6, 9):
        branches.choose(0, call)
        began = time.perf_counter()
        branches.other_noise()
        branches.wait()
        taken.append(1000 * (time.perf_counter() - began))
    weight = len(json.dumps(branches.tree.branches)) / 1000
    finding = "until which call a painted stroke or another seed changes what is drawn"
    branches.close()
    return [*rows, ("branch_painter: a branch", finding, statistics.median(taken), weight)]


def notebook_row(explorer: Explorer, control: str, values: list[Any]) -> tuple[float, float]:
    """Median milliseconds to the first picture, and kB of the film."""
    explorer.wait()
    taken = []
    for value in values:
        began = time.perf_counter()
        explorer.controls[control].value = value
        while not explorer.message.value.startswith("frame 1"):
            if explorer.message.value.startswith("done") and time.perf_counter() - began > 0.5:
                break
            time.sleep(0.001)
        taken.append(1000 * (time.perf_counter() - began))
        explorer.wait()
    weight = len(json.dumps(explorer.film.frames)) / 1000
    explorer.close()
    return statistics.median(taken), weight


def main() -> None:
    """Print both tables."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 900})
        os.environ["NCA_LIB_BOOK"] = "1"
        pages = in_pages(page)
        browser.close()
    del os.environ["NCA_LIB_BOOK"]
    for title, rows in (("in a page", pages), ("in a notebook", in_notebooks())):
        print(
            f"| {title} | what one can find out in a minute | control to picture, ms | kB |\n"
            "|---|---|---:|---:|"
        )
        for name, finding, milliseconds, weight in rows:
            print(f"| `{name}` | {finding} | {milliseconds:.0f} | {weight:.0f} |")
        print()


if __name__ == "__main__":
    main()
