"""The book's own Sphinx extensions: docstrings become reference pages, chapters tell their time."""

import importlib
import pkgutil
import re
import sys

from docutils import nodes
from expected_pages import ROOT

import nca_lib

sys.path.insert(0, str(ROOT / "book" / "_extensions"))
nca_reference = importlib.import_module("nca_reference")
nca_reading = importlib.import_module("nca_reading")

BOOK = ROOT / "book"


def test_every_module_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (BOOK / "reference").glob("*.md"))
    shown = set(re.findall(r"automodule:: (nca_lib[\w.]+)", pages))
    modules = pkgutil.walk_packages(nca_lib.__path__, "nca_lib.")
    assert shown == {m.name for m in modules if not m.name.endswith("__main__")}


def test_names_become_links() -> None:
    [line] = nca_reference.to_rst(["[`sample`][] with `seed`"], "nca_lib.samplers")
    assert line == ":py:obj:`sample <nca_lib.samplers.sample>` with ``seed``"


def test_a_name_is_found_where_it_is_defined() -> None:
    assert nca_reference.full_name("DiffNCA", "nca_lib.fourier") == "nca_lib.diff_nca.DiffNCA"


def test_lists_and_code_stand_apart() -> None:
    lines = ["Two kinds:", "- `a`", "- `b`", "", "Like this:", "", "    x = `raw`"]
    assert nca_reference.to_rst(lines, "nca_lib.noise") == [
        "Two kinds:", "", "- ``a``", "- ``b``", "", "Like this::", "", "    x = `raw`",
    ]  # fmt: skip


def test_reading_time_counts_words_and_code_lines() -> None:
    page = nodes.section()
    page += nodes.paragraph("", "word " * 600)
    assert nca_reading.reading_minutes(page) == 3
    page += nodes.literal_block("", "x = 1\n" * 40)
    assert nca_reading.reading_minutes(page) == 5
    page += nodes.raw("", "embedded " * 9000, format="html")
    page += nodes.math_block("", "x " * 9000)
    assert nca_reading.reading_minutes(page) == 5


def test_linked_terms_are_in_the_glossary() -> None:
    terms = set(re.findall(r"^(\w[^\n]*)$", (BOOK / "glossary.md").read_text(), re.MULTILINE))
    for path in [*BOOK.glob("*.ipynb"), *BOOK.glob("*.md")]:
        used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", path.read_text())
        assert set(used) <= terms, path.name
