"""JavaScript for widgets and for pages without a kernel: the modules of `web/`, joined to one text.

A page of the book asks nothing from anywhere and works from a file on disk, where browsers refuse to load
modules: what a component needs stands in the page.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from nca_lib.extras import extra

with extra("book"):
    from IPython.display import HTML

WEB = Path(__file__).parent / "web"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export \{[^}]*\};\n", re.MULTILINE)
_MOUNTS = itertools.count(1)  # a page is one kernel's: its components need different names


@cache
def bundle(name: str) -> str:
    """A module of `web/` after those that it imports, as one text; only `export default` stays."""
    joined: dict[str, str] = {}

    def add(name: str) -> None:
        text = (WEB / name).read_text()
        for needed in _IMPORT.findall(text):
            if needed not in joined:
                add(needed)
        joined[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add(name)
    return "\n".join(joined.values())


def page(module: str, traits: dict[str, Any], still: str = "", on_paper: str = "") -> HTML:
    """A component as part of a page: an element, its traits as JSON, and one module script.

    Args:
        module: a file of `web/` whose default export renders as anywidget's do.
        traits: what the component's model holds.
        still: HTML that stands there until the script runs, and where none does.
        on_paper: a caption for the still, which is then what is printed: for components that compute only
            while they are seen. The others are printed as they stand.
    """
    mount = f"nca-demo-{next(_MOUNTS)}"
    data = json.dumps(traits, separators=(",", ":")).replace("<", "\\u003c")  # no "</script>" ends it early
    script = bundle(module) + (WEB / "shim.js").read_text().replace("MOUNT", mount)
    if on_paper:
        still = f'<figure class="nca-demo-still">{still}<figcaption>{on_paper}</figcaption></figure>'
    return HTML(
        f'<div id="{mount}">{still}</div>\n'
        "<noscript>This can be explored where JavaScript runs.</noscript>\n"
        f'<script type="application/json" id="{mount}-traits">{data}</script>\n'
        f'<script type="module">\n{script}</script>\n'
    )
