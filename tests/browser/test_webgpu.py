"""The engine on WebGPU, which SwiftShader computes in software here, equals PyTorch; no network."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from chromium import CHROMIUM
from playwright.sync_api import Page, sync_playwright
from test_components import HEAD, MOUNT, PIXELS, traits_of

from nca_lib.book.export import export
from nca_lib.book.pages import WEB, bundle
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule

SOFTWARE_GPU = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
BY_GPU = """async ([source, model]) => {
    const E = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
    const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
    const denoiser = E.load(model), {seed, size: [height, width], sample} = model.golden;
    const gpu = await E.GpuDiffNCA.of(denoiser.network);
    if (!gpu) return null;
    let frame;
    for await (frame of denoiser.sampleBy(gpu, {height, width, seed, steps: model.sampler_steps}));
    return Math.max(...floats(sample).map((v, i) => Math.abs(v - frame.image[i])));
}"""


@pytest.fixture(scope="module")
def gpu_page() -> Iterator[Page]:
    """A page whose WebGPU is computed by SwiftShader; where Chromium has none the test is skipped."""
    assert CHROMIUM, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GPU)
        page = browser.new_page(viewport={"width": 800, "height": 700})
        page.goto((WEB / "gpu.js").as_uri())  # WebGPU wants an address that may keep secrets
        if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU")
        yield page
        browser.close()


@pytest.mark.parametrize("kind", ["shipped", "masks, odd sizes"])
def test_the_gpus_golden_frames_are_pytorchs(gpu_page: Page, kind: str) -> None:
    model = json.loads((WEB / "web-tissue.json").read_text())
    if kind != "shipped":
        torch.manual_seed(0)
        settings: dict[str, Any] = {"position": False, "update_probability": 0.7, "image_channels": 1}
        model = export(Denoiser(DiffNCA(7, 10, 3, **settings), noise_schedule(), "v"), steps=6)
    source = bundle("sampling.js") + "export {GpuDiffNCA, load};"
    assert gpu_page.evaluate(BY_GPU, [source, model]) < 1e-3


def test_whoever_computes_draws_the_same_and_the_demo_says_who(gpu_page: Page) -> None:
    gpu_page.set_content(HEAD + "</body>")
    gpu_page.evaluate(MOUNT, [bundle("diffusion.js"), traits_of("diffusion")])
    gpu_page.get_by_text("s on the processor").wait_for()  # a GPU in software is not chosen by itself
    first = gpu_page.evaluate(PIXELS)
    gpu_page.get_by_label("computed by").select_option("GPU")
    gpu_page.get_by_label("seed").press("Enter")
    gpu_page.get_by_label("seed").fill("2")
    gpu_page.get_by_label("seed").press("Enter")
    gpu_page.get_by_text("seed 2, 8 calls").filter(has_text="s on the GPU").wait_for()
    gpu_page.get_by_label("seed").fill("1")
    gpu_page.get_by_label("seed").press("Enter")
    gpu_page.get_by_text("seed 1, 8 calls").filter(has_text="s on the GPU").wait_for()
    second = gpu_page.evaluate(PIXELS)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 1
