"""Search that shows what it found, without a server: the text of every section, in a file beside the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

PROSE = (nodes.paragraph, nodes.term, addnodes.desc_signature)
UNREADABLE = (nodes.raw, nodes.math, nodes.math_block)


def sections(document: nodes.Element) -> Iterator[tuple[str, str, str]]:
    """The anchor, the title and the prose of each section of a page, in order."""
    for section in document.findall(_is_section):
        blocks = [
            _text(block)
            for block in section.findall(_is_prose)
            if _home(block) is section
        ]
        yield section["ids"][0], section[0].astext(), " ".join(blocks)


def _is_prose(node: nodes.Node) -> bool:
    # Code and its output are in containers; what the command line's help says is not.
    return isinstance(node, PROSE) or (
        isinstance(node, nodes.literal_block)
        and not isinstance(node.parent, nodes.container)
    )


def _text(block: nodes.Element) -> str:
    words = (
        leaf.astext()
        for leaf in block.findall(nodes.Text)
        if not isinstance(leaf.parent, UNREADABLE)
    )
    return " ".join("".join(words).split())


def _is_section(node: nodes.Node) -> bool:
    # Exercises keep their text in sections without a title.
    return isinstance(node, nodes.section) and isinstance(
        node.next_node(), nodes.title
    )


def _home(node: nodes.Node) -> nodes.Node:
    while not (_is_section(node) or isinstance(node, nodes.document)):
        node = node.parent
    return node


def _write_texts(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    pages = {
        docname: list(sections(app.env.get_doctree(docname)))
        for docname in sorted(app.env.found_docs)
    }
    text = json.dumps(pages, ensure_ascii=False, separators=(",", ":"))
    target = Path(app.outdir) / "_static" / "search_texts.js"
    target.write_text(f"const SEARCH_TEXTS = {text};\n", encoding="utf-8")


def _add_scripts(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    if pagename == "search":
        app.add_js_file("search_texts.js")
        app.add_js_file("search.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", _add_scripts)
    app.connect("build-finished", _write_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
