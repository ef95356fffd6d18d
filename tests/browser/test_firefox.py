"""Pages and components in Firefox, without a network; skipped where there is no Firefox.

Playwright drives only a Firefox of its own, so this speaks Marionette, the protocol of Firefox itself:
messages [0, number, command, parameters] and [1, number, error, result] as JSON, each after its length and a
colon.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pages import DEFECTS, HTML, PAGES

from nca_lib.book import demo
from nca_lib.book.film import View, film_page
from nca_lib.book.pages import WEB, bundle

FIREFOX = shutil.which("firefox")
PREFERENCES = {
    "marionette.port": 0,  # any; it is written into the profile
    "network.proxy.type": 1,  # whatever is not from disk goes to a proxy that is not there
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "datareporting.policy.dataSubmissionEnabled": False,
}
HEAD = """<!doctype html><meta charset="utf-8"><body><script>
window.problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("unhandledrejection", event => problems.push(`${event.reason}`));
</script>"""
UNTIL = """const [condition, done] = arguments, began = performance.now();
(function look() {
    const found = (0, eval)(condition);
    if (found || performance.now() - began > 60000) done(found);
    else setTimeout(look, 50);
})();"""


class Firefox:
    """A headless Firefox with a profile of its own."""

    def __init__(self, folder: str):
        lines = [
            f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()
        ]
        (Path(folder) / "user.js").write_text("\n".join(lines))
        command = [str(FIREFOX), "--headless", "--marionette", "--no-remote", "--profile", folder]
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | {"HOME": folder}, **quiet)
        port = Path(folder) / "MarionetteActivePort"
        for _ in range(600):
            if port.exists() and port.read_text():
                break
            time.sleep(0.1)
        self.socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=120)
        self._receive()  # a greeting
        self.call("WebDriver:NewSession")

    def call(self, command: str, **parameters: Any) -> Any:
        """The result of a command."""
        message = json.dumps([0, 1, command, parameters]).encode()
        self.socket.sendall(f"{len(message)}:".encode() + message)
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def open(self, path: Path) -> None:
        """Load a page from disk."""
        self.call("WebDriver:Navigate", url=path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.call("WebDriver:ExecuteScript", script=script, args=arguments, sandbox=None)["value"]

    def later(self, script: str, *arguments: Any) -> Any:
        """What a script tells the callback that is its last argument."""
        return self.call(
            "WebDriver:ExecuteAsyncScript", script=script, args=arguments, sandbox=None, scriptTimeout=90_000
        )["value"]

    def until(self, condition: str) -> None:
        """Wait until an expression holds."""
        assert self.later(UNTIL, condition), condition

    def _receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += self.socket.recv(1)
        left, parts = int(length[:-1]), []
        while left:
            parts.append(self.socket.recv(left))
            left -= len(parts[-1])
        return json.loads(b"".join(parts))


@pytest.fixture(scope="module")
def firefox() -> Iterator[Firefox]:
    if not FIREFOX:
        pytest.skip("there is no Firefox here: apt-get install firefox-esr")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Firefox(folder)
        yield browser
        browser.process.terminate()
        browser.process.wait(30)


@pytest.fixture
def in_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")


def show(firefox: Firefox, folder: Path, html: Any) -> None:
    (folder / "page.html").write_text(HEAD + html.data)
    firefox.open(folder / "page.html")


def set_to(firefox: Firefox, label: str, value: str) -> None:
    firefox.run(
        """const [words, value] = arguments;
        const label = [...document.querySelectorAll("label")].find(l => l.textContent.startsWith(words));
        const control = label.querySelector("input, select");
        control.value = value;
        for (const event of ["input", "change"]) control.dispatchEvent(new Event(event, {bubbles: true}));""",
        label,
        value,
    )


def said(words: str) -> str:
    return f"document.body.innerText.includes({json.dumps(words)})"


@pytest.mark.usefixtures("in_book")
def test_each_component_is_operated_without_an_error(firefox: Firefox, tmp_path: Path) -> None:
    row = {"model": "m", "sampler": "ddim", "count": 9, "seconds": 9.0, "firing": "fresh"}
    row |= {
        "calls": 5,
        "extractors": {"eye": {"frechet_distance": 30.0, "standard_error": 2.0, "floor": 8.0}},
    }
    digits = torch.rand(3, 1, 8, 8)
    shown: list[tuple[Any, list[tuple[str, str]], str]] = [
        (demo.noise_explorer(digits), [("timestep t", "250")], said("At t = 250 the")),
        (demo.message_player(17), [("steps k", "5")], said("After 5 steps: 121 cells")),
        (
            demo.spectrum_painter(torch.rand(3, 32, 32)),
            [("frequencies n", "2")],
            said("9 of 961 coefficients kept"),
        ),
        (demo.calls_explorer([row, row | {"calls": 9}]), [("across", "seconds")], said("seconds an image")),
        (demo.digits_demo(), [("steps", "5")], said("16 digits by 5 calls")),
        (
            film_page([View({"p": torch.rand(3, 9, 9)}, f"f{n}") for n in range(3)], "", "frame", ""),
            [],
            said("f2"),
        ),
        (
            demo.growing_demo(),
            [("speed", "120")],
            "Number(document.querySelector('output').textContent.slice(5)) > 5",
        ),
        (demo.diffusion_demo(), [("steps", "3")], said("3 calls of the denoiser")),
    ]
    for html, settings, condition in shown:
        show(firefox, tmp_path, html)
        firefox.until("document.querySelector('.nca-demo')")
        for label, value in settings:
            set_to(firefox, label, value)
        firefox.until(condition)
        assert firefox.run("return window.problems") == []


def test_the_engine_equals_pytorchs_golden_frames(firefox: Firefox, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(HEAD)
    firefox.open(tmp_path / "page.html")
    script = """const [source, model, done] = arguments;
    const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
    import(URL.createObjectURL(new Blob([source], {type: "text/javascript"}))).then(E => {
        const {seed, size: [height, width], sample} = model.golden;
        const frames = [...E.load(model).sample({height, width, seed, steps: model.sampler_steps})];
        done(Math.max(...floats(sample).map((v, i) => Math.abs(v - frames.at(-1).image[i]))));
    });"""
    for name in ("web-tissue", "web-digits"):
        model = json.loads((WEB / f"{name}.json").read_text())
        assert firefox.later(script, bundle("sampling.js") + "export {load};", model) < 1e-3


@pytest.mark.parametrize("path", PAGES)
def test_a_page_reads_from_disk(firefox: Firefox, path: str) -> None:
    firefox.open(HTML / path)
    firefox.later(
        "const [done] = arguments; Promise.resolve(window.MathJax?.startup?.promise).then(() => done(1));"
    )
    defects = firefox.run(f"return ({DEFECTS})()")
    assert not {kind: found for kind, found in defects.items() if found}
    count = "document.querySelectorAll('{}').length"
    firefox.until(f"{count.format('.nca-demo')} >= {count.format('script[id$=-traits]')}")
    assert (
        firefox.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    )
