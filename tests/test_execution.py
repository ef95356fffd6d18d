"""Executing the book: the plain `jupyter-book build .` makes whole pages, stale results are forgotten."""

import importlib
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from expected_pages import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

sys.path.insert(0, str(ROOT / "book" / "_extensions"))
nca_execution = importlib.import_module("nca_execution")

DEMO = "from nca_lib.book.demo import growing_demo\ngrowing_demo()"
EXPLORER = """import nca_lib
from nca_lib.book.explorers import growing_player
growing_player(nca_lib.load("growing-grow"), size=12)"""


def notebook(*cells: str) -> str:
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    made = [{"cell_type": "markdown", "metadata": {}, "source": "# Small", "id": "title"}]
    made += [{**code, "source": source, "id": f"cell{i}"} for i, source in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def test_the_plain_command_draws_demos_and_pictures(tmp_path: Path) -> None:
    """On a book of one chapter, with the book's own settings."""
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "book/_extensions", "book/_static", "book/_templates", "book/references.bib"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/01_small\n")
    (tmp_path / "book" / "01_small.ipynb").write_text(notebook(DEMO, EXPLORER))
    environment = {name: value for name, value in os.environ.items() if name != "NCA_LIB_BOOK"}
    environment |= {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "."]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    page = (tmp_path / "_build" / "html" / "book" / "01_small.html").read_text()
    assert '<div id="nca-demo-1">' in page
    assert 'src="data:image/' in page
    assert "in the live one (make lab)" in page
    assert "jupyter.widget" not in page


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that takes the library's place."""
    module = tmp_path / "library" / "noise.py"
    module.parent.mkdir()
    module.write_text("level = 1")
    monkeypatch.setattr(nca_execution, "nca_lib", SimpleNamespace(__file__=str(module)))
    monkeypatch.setenv("NCA_LIB_BOOK", "1")  # so that what the extension sets does not outlive the test
    return module


def pages_read(book: Path) -> list[str]:
    """Build a book with nothing but the extension, and say which pages Sphinx read."""
    read: list[str] = []
    folders = (book, None, book / "_build" / "html", book / "_build" / ".doctrees")
    with docutils_namespace():
        app = Sphinx(*folders, "dummy", {"extensions": ["nca_execution"]}, status=None, warning=StringIO())
        app.connect("source-read", lambda _, name, __: read.append(name))
        app.build()
    return read


def test_results_are_kept_until_the_library_changes(tmp_path: Path, library: Path) -> None:
    (tmp_path / "index.rst").write_text("Words.")
    executed = tmp_path / "_build" / ".jupyter_cache"
    assert pages_read(tmp_path) == ["index"]
    executed.mkdir()
    library.with_suffix(".pyc").write_text("compiled")
    assert not pages_read(tmp_path)
    assert executed.exists()
    library.write_text("level = 2")
    assert pages_read(tmp_path) == ["index"]
    assert not executed.exists()


def test_another_name_or_package_is_another_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nca_execution.digest(library.parent)
    library = library.rename(library.with_name("renamed.py"))
    second = nca_execution.digest(library.parent)
    monkeypatch.setattr(nca_execution, "distributions", lambda: [SimpleNamespace(name="torch", version="0")])
    assert len({first, second, nca_execution.digest(library.parent)}) == 3


@pytest.mark.usefixtures("library")
def test_a_page_with_a_warning_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "index.rst").write_text("An ``open literal.")
    assert pages_read(tmp_path) == ["index"]
    assert pages_read(tmp_path) == ["index"]
