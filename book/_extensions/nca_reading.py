"""Help for reading: chapters' numbers, the time that each takes, and what a term means where it is linked."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

WORDS_PER_MINUTE = 200
SECONDS_PER_CODE_LINE = 3
# Formulas, and HTML with what is embedded in it: the demos carry weights, pictures their bytes.
NOT_PROSE = (nodes.math, nodes.math_block, nodes.raw)


def reading_minutes(document: nodes.Node) -> int:
    """Minutes for a page: its words at a careful pace, and three seconds for each line of code, not output."""
    words = lines = 0
    for block in document.findall(nodes.Text):
        parents = list(_parents(block))
        if any(isinstance(parent, nodes.literal_block) for parent in parents):
            if not any(
                "cell_output" in parent.get("classes", []) for parent in parents
            ):
                lines += sum(bool(line.strip()) for line in block.splitlines())
        elif not any(isinstance(parent, NOT_PROSE) for parent in parents):
            words += len(re.findall(r"[A-Za-z][A-Za-z'-]*", block))
    return max(
        1, round(words / WORDS_PER_MINUTE + lines * SECONDS_PER_CODE_LINE / 60)
    )


def _parents(node: nodes.Node) -> list[nodes.Element]:
    found: list[nodes.Element] = []
    while (parent := node.parent) is not None:
        found.append(parent)
        node = parent
    return found


def _add_time(app: Sphinx, document: nodes.document) -> None:
    if not re.fullmatch(r"book/\d\d_\w+", app.env.docname):
        return
    title = next(document.findall(nodes.title))
    minutes = max(5, 5 * round(reading_minutes(document) / 5))
    note = nodes.paragraph(
        "", f"About {minutes} minutes of reading.", classes=["reading-time"]
    )
    title.parent.insert(title.parent.index(title) + 1, note)


def definitions(document: nodes.document) -> dict[str, str]:
    """What each term of a glossary page means, by the term's id."""
    return {
        identifier: item.next_node(nodes.definition).astext().replace("\n", " ")
        for item in document.findall(nodes.definition_list_item)
        for term in item.findall(nodes.term)
        for identifier in term["ids"]
    }


def _explain_terms(app: Sphinx, document: nodes.document, docname: str) -> None:
    links = [
        (
            reference,
            reference.get("refid")
            or reference.get("refuri", "").partition("#")[2],
        )
        for reference in document.findall(nodes.reference)
        if any(
            "std-term" in inline["classes"]
            for inline in reference.findall(nodes.inline)
        )
    ]
    if links:
        known = definitions(app.env.get_doctree("book/glossary"))
        for reference, identifier in links:
            reference["reftitle"] = known[identifier]


def _know_works(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Links to `bibliography.md#key` lead to a work; they read well in JupyterLab, which knows no roles of BibTeX."""
    slugs = env.metadata["book/bibliography"].setdefault("myst_slugs", {})
    for key in env.get_domain("cite").bibdata.data.entries:
        slugs[key] = (0, nodes.make_id(key), key)
    return []


def _number_by_file(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """A chapter has the number of its file's name, so that one still to be written leaves its number free."""
    for docname, anchors in env.toc_secnumbers.items():
        if named := re.match(r"book/(\d\d)_", docname):
            chapter = int(named[1])
            env.toc_secnumbers[docname] = {
                anchor: (chapter, *number[1:]) if number else number
                for anchor, number in anchors.items()
            }
            titles = [
                env.titles[docname],
                *env.tocs[docname].findall(nodes.reference),
            ]
            for title in titles:
                if number := title.get("secnumber"):
                    title["secnumber"] = (chapter, *number[1:])
    return []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", _add_time)
    app.connect("env-updated", _know_works)
    # after Sphinx, which counts, by its listener of priority 500
    app.connect("env-get-updated", _number_by_file, priority=600)
    app.connect("doctree-resolved", _explain_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
