"""What pages make of outputs and sources.

Figures get ink for both themes, diagrams become part of the text, wide tables get small print, long messages are
wrapped, and a page's source can be saved from disk.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import numpy as np
from docutils import nodes
from PIL import Image, ImageColor
from sphinx.application import Sphinx

from nca_lib.book.figures import INK

INKS = {"only-light": "#3a3a3e", "only-dark": "#c4c4c8"}
FITS, TABLE = (
    86,
    150,
)  # characters: a line that fits the page, and the longest that is a table's


def inked(image: Image.Image, ink: str) -> Image.Image | None:
    """A figure with its text and axes in another ink; None where there is none to change.

    A figure has no ground of its own, so that its text is of one colour, more or less transparent. That is
    [`INK`][nca_lib.book.figures.INK], which no grey picture holds; faint pixels round it.
    """
    if image.mode != "RGBA":
        return None
    pixels = np.array(image)
    opacity = pixels[..., 3].astype(int)
    off = np.abs(pixels[..., :3].astype(int) - ImageColor.getrgb(INK)).max(-1)
    text = (opacity > 0) & (off * opacity < 255)
    if not text.any():
        return None
    pixels[text, :3] = ImageColor.getrgb(ink)
    return Image.fromarray(pixels)


def _ink_figures(app: Sphinx, document: nodes.document) -> None:
    """Replace each figure of a notebook by two, of which the style sheet shows the theme's."""
    for shown in list(document.findall(nodes.image)):
        # MyST-NB gives the place from the source directory, as if from its root.
        path = Path(app.srcdir) / shown["uri"].lstrip("/")
        if not _in_output(shown) or path.suffix != ".png":
            continue
        figure = Image.open(path)
        for theme, ink in INKS.items():
            if (recoloured := inked(figure, ink)) is None:
                break
            name = f"{path.stem}-{theme}.png"
            recoloured.save(path.with_name(name), optimize=True)
            copy = shown.deepcopy()
            copy["uri"] = shown["uri"].replace(path.name, name)
            copy["classes"].append(theme)
            shown.parent.insert(shown.parent.index(shown), copy)
        else:
            shown.parent.remove(shown)


def _inline_diagrams(app: Sphinx, document: nodes.document) -> None:
    """Put a diagram's SVG in place of its picture: only so it has the theme's ink."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for shown in list(document.findall(nodes.image)):
        if not shown["uri"].endswith(".svg"):
            continue
        svg = (folder / shown["uri"]).read_text(encoding="utf-8")
        label = f'<svg role="img" aria-label="{escape(shown["alt"])}"'
        shown.replace_self(
            nodes.raw("", svg.replace("<svg", label, 1), format="html")
        )


def _fit_outputs(app: Sphinx, document: nodes.document) -> None:
    for block in document.findall(nodes.literal_block):
        widest = max(map(len, block.astext().splitlines()), default=0)
        if _in_output(block) and widest > FITS:
            block["classes"].append("wide" if widest <= TABLE else "message")


def _write_sources(app: Sphinx, exception: Exception | None) -> None:
    """Beside each source a script that holds it: all that a page on disk may read of its neighbours."""
    for source in sorted((Path(app.outdir) / "_sources").rglob("*.*")):
        if source.suffix != ".js":
            text = json.dumps(source.read_text(encoding="utf-8"))
            source.with_name(f"{source.name}.js").write_text(
                f"window.pageSource = {text};\n", encoding="utf-8"
            )


def _in_output(node: nodes.Node) -> bool:
    while (node := node.parent) is not None:
        if "cell_output" in node.get("classes", []):
            return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; images are collected with priority 500."""
    app.connect("doctree-read", _ink_figures, priority=400)
    app.connect("doctree-read", _inline_diagrams, priority=400)
    app.connect("doctree-read", _fit_outputs)
    app.connect("build-finished", _write_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
