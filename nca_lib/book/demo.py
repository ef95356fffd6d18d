"""Demos that compute in the reader's browser (chapters 1 and 6).

In Jupyter they are widgets; while the book is built (environment variable `NCA_LIB_BOOK`) they are HTML that
holds everything needed: the page asks nothing from anywhere, and works from a file on disk.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from nca_lib.extras import extra

with extra("book"):
    import anywidget
    import traitlets
    from IPython.display import HTML

WEB = Path(__file__).parent / "web"
_MOUNTS = itertools.count(1)  # a page is one kernel's: its demos need different names


class Demo(anywidget.AnyWidget):
    """An automaton that runs in the browser, with controls; see `web/demo.js`."""

    _esm = WEB / "demo.js"
    kind = traitlets.Unicode().tag(sync=True)
    engine = traitlets.Unicode().tag(sync=True)
    weights = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)


def growing_demo() -> Demo | HTML:
    """The growing automaton, trained to grow, to persist or to regenerate; erase it, plant it."""
    names = {regime: f"growing-{regime}" for regime in ("grow", "persist", "regenerate")}
    return _demo("growing", names, "a growing automaton")


def diffusion_demo(name: str = "web-tissue") -> Demo | HTML:
    """Diffusion by an automaton: draw tissue from noise, fill a hole, grow wider.

    Args:
        name: of a model in `web/`, as `python -m nca_lib export-web` writes it.

    Raises:
        FileNotFoundError: there is no such model.
    """
    return _demo("diffusion", {name: name}, "tissue, drawn by an automaton")


def _demo(kind: str, names: dict[str, str], label: str) -> Demo | HTML:
    models: dict[str, Any] = {}
    for shown, name in names.items():
        models[shown] = json.loads((WEB / f"{name}.json").read_text())
        del models[shown]["golden"]  # for tests; the page needs none
    traits = {
        "kind": kind,
        "engine": (WEB / "engine.js").read_text(),
        "weights": json.dumps(models, separators=(",", ":")),
        "label": label,
    }
    return page(traits) if "NCA_LIB_BOOK" in os.environ else Demo(**traits)


def page(traits: dict[str, str]) -> HTML:
    """A demo as part of a page without a kernel: an element, its traits as JSON, and one module script."""
    mount = f"nca-demo-{next(_MOUNTS)}"
    data = json.dumps(traits).replace("<", "\\u003c")  # no "</script>" can end the script early
    script = (WEB / "demo.js").read_text() + (WEB / "shim.js").read_text().replace("MOUNT", mount)
    return HTML(
        f'<div id="{mount}"></div>\n'
        "<noscript>An animation belongs here; it needs JavaScript.</noscript>\n"
        f'<script type="application/json" id="{mount}-traits">{data}</script>\n'
        f'<script type="module">\n{script}</script>\n'
    )
