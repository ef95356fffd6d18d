"""The book's own Sphinx extensions: docstrings become reference pages, chapters tell their time."""

import importlib
import pkgutil
import re
import sys
from base64 import b64encode
from hashlib import sha256
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from docutils import nodes
from docutils.utils import new_document
from expected_pages import ROOT
from PIL import Image

import nca_lib
from nca_lib.book.figures import STYLE
from nca_lib.experiments.settings import Training

sys.path.insert(0, str(ROOT / "book" / "_extensions"))
nca_reference = importlib.import_module("nca_reference")
nca_reading = importlib.import_module("nca_reading")
nca_pages = importlib.import_module("nca_pages")
nca_search = importlib.import_module("nca_search")
nca_policy = importlib.import_module("nca_policy")

BOOK = ROOT / "book"


def test_every_module_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (BOOK / "reference").glob("*.md"))
    shown = set(re.findall(r"automodule:: (nca_lib[\w.]+)", pages))
    modules = pkgutil.walk_packages(nca_lib.__path__, "nca_lib.")
    assert shown == {m.name for m in modules if not m.name.endswith("__main__")}


def test_names_become_links() -> None:
    [line] = nca_reference.to_rst(["[`sample`][] with `seed`"], "nca_lib.samplers")
    assert line == ":py:obj:`sample <nca_lib.samplers.sample>` with ``seed``"


def test_every_chapter_is_linked() -> None:
    for number, name in enumerate(sorted(path.stem for path in BOOK.glob("0[1-9]_*.ipynb")), 1):
        line = nca_reference.link_chapters(f"Exact tiles (chapter {number}).")
        assert line == f"Exact tiles (:doc:`chapter {number} </book/{name}>`)."
    assert nca_reference.link_chapters("in chapter 99") == "in chapter 99"


def test_a_name_is_found_where_it_is_defined() -> None:
    assert nca_reference.full_name("DiffNCA", "nca_lib.fourier") == "nca_lib.diff_nca.DiffNCA"


def test_settings_show_their_values_and_meanings() -> None:
    lines = nca_reference.settings(Training)
    assert "    batch (int >= 1, <= 1000000): images per step" in lines
    assert len(lines) == len(Training.__pydantic_fields__)


def test_lists_and_code_stand_apart() -> None:
    lines = ["Two kinds:", "- `a`", "- `b`", "", "Like this:", "", "    x = `raw`"]
    assert nca_reference.to_rst(lines, "nca_lib.noise") == [
        "Two kinds:", "", "- ``a``", "- ``b``", "", "Like this::", "", "    x = `raw`",
    ]  # fmt: skip


def test_an_example_below_the_first_sentence_is_code() -> None:
    lines = ["What it is.", "", '    x = `raw`("a")', "", "More.", "", "Args:", "    x: one.", ""]
    assert nca_reference.to_rst(lines, "nca_lib.noise") == [
        "What it is.", "", "::", "", '    x = `raw`("a")', "", "More.", "", "Args:", "    x: one.", "",
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


def test_figures_get_another_ink_and_keep_their_pictures() -> None:
    picture = np.random.default_rng(0).integers(100, 140, (40, 40, 1), np.uint8).repeat(3, 2)
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
        left.imshow(picture)
        left.set_axis_off()
        right.set_title("a title")
        right.set_yticks([])
        figure.canvas.draw()
    before = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    recoloured = nca_pages.inked(Image.fromarray(before), "#c4c4c8")
    assert recoloured is not None
    after = np.asarray(recoloured)
    changed = (before != after).any(-1)
    half = before.shape[1] // 2
    assert not changed[:, :half].any()
    solid = after[:, half:][after[:, half:, 3] == 255]
    assert (solid == (0xC4, 0xC4, 0xC8, 255)).all()
    assert len(solid) > 100
    assert nca_pages.inked(Image.fromarray(picture), "#c4c4c8") is None


def test_sections_are_told_apart_for_search() -> None:
    page = nodes.section("", nodes.title("", "A page"), nodes.paragraph("", "First words."), ids=["page"])
    page += nodes.raw("", "<b>embedded</b>", format="html")
    inner = nodes.section("", nodes.title("", "Deeper"), ids=["deeper"])
    inner += nodes.section("", nodes.paragraph("", "An exercise."))  # as sphinx-exercise makes them
    page += inner
    whole = nodes.section("", page)
    assert list(nca_search.sections(whole)) == [
        ("page", "A page", "First words."),
        ("deeper", "Deeper", "An exercise."),
    ]


def test_linked_terms_are_in_the_glossary() -> None:
    terms = set(re.findall(r"^(\w[^\n]*)$", (BOOK / "glossary.md").read_text(), re.MULTILINE))
    for path in [*BOOK.glob("*.ipynb"), *BOOK.glob("[a-z]*.md")]:
        used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", path.read_text())
        assert set(used) <= terms, path.name


def test_diagrams_become_part_of_the_text() -> None:
    page = SimpleNamespace(docname="book/page", doc2path=lambda name: str(ROOT / f"{name}.ipynb"))
    document = new_document("page")
    document += nodes.image(uri="_static/loops.svg", alt='Three "loops"')
    document += nodes.image(uri="_static/tissue-512.jpg", alt="Tissue")
    nca_pages._inline_diagrams(SimpleNamespace(env=page), document)
    [diagram] = document.findall(nodes.raw)
    assert diagram.astext().startswith('<svg role="img" aria-label="Three &quot;loops&quot;"')
    assert [shown["alt"] for shown in document.findall(nodes.image)] == ["Tissue"]


def test_a_page_allows_its_own_scripts_by_their_hashes() -> None:
    page = '<html><head lang="en">\n<script>let a = "&lt;";</script><script src="b.js"></script></head>'
    page += '<body onclick="go(&quot;x&quot;)"><script type="application/json">{}</script></body></html>'
    guarded = nca_policy.with_policy(page)
    assert guarded.index("Content-Security-Policy") < guarded.index("<script")
    hashes = [b64encode(sha256(text).digest()).decode() for text in (b'let a = "&lt;";', b'go("x")')]
    assert all(f"'sha256-{value}'" in guarded for value in hashes)
    assert guarded.count("sha256-") == 2
    assert "unsafe-eval" not in guarded
    assert nca_policy.META.sub("", guarded) == page
    assert nca_policy.with_policy(guarded) == guarded
