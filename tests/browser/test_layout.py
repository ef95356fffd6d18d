"""The sketch of a layout in a browser without a network: what is painted is what PyTorch is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from torch import Tensor

from nca_lib.book.demo import gland_sketch, layout_painter
from nca_lib.book.export import rounded
from nca_lib.book.figures import to_uint8
from nca_lib.cascade import Cascade
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.samplers import sample

SIDE = 8
PIXELS = """number => {
    const canvas = document.querySelectorAll("canvas")[number];
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@pytest.fixture(scope="module")
def model() -> Cascade:
    def level(channels: int, context: int) -> Denoiser:
        torch.manual_seed(channels)
        network = DiffNCA(
            channels, 12, 2, position=False, update_probability=1.0, context_channels=context
        ).requires_grad_(False)
        return Denoiser(network, noise_schedule(), "v")

    return Cascade(level(8, 0), level(12, 4), 4)


@pytest.fixture
def page(browser: Browser, model: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    html: Any = layout_painter(model, "the_model", side=SIDE, steps=4)
    (tmp_path / "page.html").write_text(f'<!doctype html><meta charset="utf-8"><body>{html.data}')
    context = browser.new_context(offline=True)
    opened, problems = context.new_page(), []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto((tmp_path / "page.html").as_uri())
    yield opened
    context.close()
    assert not problems


def seen(page: Page, number: int, side: int) -> Tensor:
    return torch.tensor(page.evaluate(PIXELS, number)).reshape(side, side, 4)[..., :3]


def bytes_of(image: Tensor) -> Tensor:
    return torch.from_numpy(to_uint8(image)).long()


def assert_drawn(page: Page, picture: Tensor) -> None:
    """That the tissue becomes this picture, and is finished then."""
    for _ in range(300):
        if (off := (seen(page, 1, 4 * SIDE) - picture).abs().max()) <= 1:
            break
        page.wait_for_timeout(100)
    assert off <= 1
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def expected(model: Cascade, sketch: Tensor, strength: float, seed: int) -> Tensor:
    copy: Any = rounded(model)
    size = (4 * SIDE, 4 * SIDE)
    return bytes_of(sample(copy.laid_out(sketch[None], strength), size, steps=4, seed=seed)[0])


def test_it_opens_on_a_gland_and_the_tissue_drawn_in_it(page: Page, model: Cascade) -> None:
    sketch = gland_sketch(SIDE)
    assert torch.equal(seen(page, 0, SIDE), bytes_of(sketch))
    assert (seen(page, 1, 4 * SIDE) - expected(model, sketch, 0.5, 0)).abs().max() <= 1
    assert not page.workers  # nothing is computed before something is painted


def test_what_is_painted_is_told_and_undone_again(page: Page, model: Cascade) -> None:
    sketch = bytes_of(gland_sketch(SIDE)).movedim(-1, 0) / 127.5 - 1
    page.locator("select", has_text="stroma").select_option("stroma")
    canvas = page.locator("canvas").first
    canvas.focus()
    for _ in range(3):
        canvas.press("ArrowUp")
    canvas.press(" ")
    painted, stroma = sketch.clone(), torch.tensor([0.52, 0.46, 0.42])
    for y, x in [(1, 4), (0, 4), (2, 4), (1, 3), (1, 5), (0, 3), (0, 5), (2, 3), (2, 5)]:
        painted[:, y, x] = stroma  # a disc of radius 1.5 around the cell (1, 4)
    assert torch.equal(seen(page, 0, SIDE), bytes_of(painted))
    assert_drawn(page, expected(model, painted, 0.5, 0))
    page.get_by_role("button", name="Undo").click()
    assert_drawn(page, expected(model, sketch, 0.5, 0))
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_seed_and_strength_are_heeded(page: Page, model: Cascade) -> None:
    sketch = bytes_of(gland_sketch(SIDE)).movedim(-1, 0) / 127.5 - 1
    page.get_by_role("button", name="Draw again").click()
    assert_drawn(page, expected(model, sketch, 0.5, 1))
    page.get_by_label("drawn anew").fill("0")
    assert_drawn(page, expected(model, sketch, 0.0, 1))
    page.locator("summary").click()
    code = page.locator("pre")
    expect(code).to_contain_text("the_model")
    expect(code).to_contain_text("laid_out(sketch, 0), (32, 32), steps=4, seed=1")
