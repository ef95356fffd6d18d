"""The reference from the library's docstrings, the command line from its parser, model cards from records."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

CHAPTERS = {
    int(path.stem[:2]): path.stem
    for path in Path(__file__).parents[1].glob("0[1-9]_*.ipynb")
}
REFERENCE_OR_CODE = re.compile(
    r"\[`([\w.]+)`\]\[([\w.]*)\]|(?<!`)(?<!:)`([^`\n]+)`(?!`)"
)


def full_name(name: str, module: str) -> str:
    """Where `name`, as written in a docstring of `module`, is defined: `sample` to `nca_lib.samplers.sample`."""
    if name.startswith("nca_lib"):
        return name
    home = getattr(importlib.import_module(module), name, None)
    return (
        f"{getattr(home, '__module__', module)}.{name}"
        if callable(home)
        else f"{module}.{name}"
    )


def to_rst(lines: Sequence[str], module: str) -> list[str]:
    """A docstring of the library's form as reStructuredText.

    Backticks mean code, [`Name`][] and [`Name`][nca_lib.module.Name] are links, lists need no blank line, and an
    indented block after a colon and a blank line is code; so is one below a docstring's first sentences.
    """

    def replace(match: re.Match[str]) -> str:
        name, target, code = match.groups()
        return (
            f"``{code}``"
            if code
            else f":py:obj:`{name} <{target or full_name(name, module)}>`"
        )

    # A link or a piece of code may be broken over two lines, a paragraph never.
    out: list[str] = []
    code_indent: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if code_indent is not None and (
            not line.strip() or indent >= code_indent
        ):
            out.append(line)
            continue
        code_indent = None
        previous = lines[number - 1] if number else ""
        if (
            line.lstrip().startswith("- ")
            and previous.strip()
            and not _in_item(previous, indent)
        ):
            out.append("")
        out.append(REFERENCE_OR_CODE.sub(replace, line))
        following = lines[number + 2] if number + 2 < len(lines) else ""
        deeper = len(following) - len(following.lstrip()) >= indent + 4
        introduces = line.endswith(":") or (not indent and line.endswith("."))
        if (
            introduces
            and not lines[number + 1].strip()
            and following.strip()
            and deeper
        ):
            if line.endswith(":"):
                out[-1] += ":"
            else:
                out += ["", "::"]
            code_indent = indent + 4
    return out


def _in_item(line: str, indent: int) -> bool:
    """Whether the line belongs to a list whose items begin at `indent`."""
    depth = len(line) - len(line.lstrip())
    return depth > indent or line.lstrip().startswith("- ")


def link_chapters(line: str) -> str:
    """`(chapter 3)` as a link to it."""

    def replace(match: re.Match[str]) -> str:
        name = CHAPTERS.get(int(match[1]))
        return f":doc:`{match[0]} </book/{name}>`" if name else match[0]

    return re.sub(r"\bchapter (\d+)\b", replace, line)


def _process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    module = (
        name
        if what == "module"
        else getattr(obj, "__module__", None) or name.rpartition(".")[0]
    )
    if not module.startswith("nca_lib"):
        module = next(
            parent for parent in _parents(name) if parent in sys.modules
        )
    if what == "class" and hasattr(obj, "__pydantic_fields__"):
        lines += ["", "Attributes:", *settings(obj), ""]
    converted = to_rst(lines, module)
    lines[:] = (
        [link_chapters(line) for line in converted]
        if what == "module"
        else converted
    )


def settings(section: type) -> list[str]:
    """What a section of the settings says of its keys: their values, and what they mean."""
    from nca_lib.experiments.settings import in_words

    fields = section.__pydantic_fields__.items()  # type: ignore[attr-defined]
    return [
        f"    {key} ({in_words(field)}): {field.description}"
        for key, field in fields
        if field.description
    ]


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


class CommandLine(SphinxDirective):
    """The help of `python -m nca_lib` and of each of its commands."""

    def run(self) -> list[nodes.Node]:
        """One literal block for each command, in sections."""
        from nca_lib.__main__ import _parser

        with mock.patch.dict(os.environ, {"COLUMNS": "88"}):
            parser = _parser()
            action = next(
                action for action in parser._actions if action.dest == "command"
            )
            helps = {
                name: command.format_help()
                for name, command in action.choices.items()
            }  # type: ignore[union-attr]
        found: list[nodes.Node] = []
        for name, text in helps.items():
            section = nodes.section(ids=[f"command-{name}"])
            section += nodes.title("", name)
            section += nodes.literal_block(text, text, language="text")
            found.append(section)
        return found


def _write_cards(app: Sphinx, docname: str, source: list[str]) -> None:
    """Where a page says so, the data statements and the cards of all weights that ship."""
    from nca_lib import weights
    from nca_lib.experiments.cards import STATEMENTS, card, statement

    if "<!-- cards -->" in source[0]:
        said = "\n".join(map(statement, STATEMENTS))
        cards = "\n".join(map(card, weights.names()))
        source[0] = source[0].replace("<!-- statements -->", said)
        source[0] = source[0].replace("<!-- cards -->", cards)


class LinkNames(SphinxTransform):
    """Inline code that names something of the library, `nca_lib.noise` or longer, becomes a link to its entry."""

    default_priority = (
        700  # after Markdown is a document, before references are resolved
    )

    def apply(self, **kwargs: Any) -> None:
        """Wrap each such literal; a name without an entry stays plain code."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext()
            inside = isinstance(
                literal.parent,
                addnodes.pending_xref | nodes.reference | nodes.title,
            )
            if not inside and re.fullmatch(r"nca_lib(\.\w+)+", name):
                link = addnodes.pending_xref(
                    "",
                    refdomain="py",
                    reftype="obj",
                    reftarget=name,
                    refexplicit=True,
                    refwarn=False,
                    refdoc=self.env.docname,
                )
                literal.replace_self(link)
                link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; 400 comes before napoleon's 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("source-read", _write_cards)
    app.add_transform(LinkNames)
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
