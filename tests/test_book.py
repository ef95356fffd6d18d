"""The book's structure: what each chapter owes its reader, and what git must not hold."""

import json
import re
from pathlib import Path

import pytest
from expected_pages import ROOT, toc_files
from pybtex.database import parse_file
from pybtex.richtext import Text

BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[:2].isdigit() and path.stem != "00_explore"]
WORKS = parse_file(BOOK / "references.bib")
STRIP = "run: jupyter nbconvert --clear-output --inplace book/*.ipynb"
WORDS = (1200, 4500)
EXERCISES = 3
CELL_LINES = 45

MATHEMATICS = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.DOTALL)
EXERCISE = re.compile(r"\{exercise\}.*?:label:\s*(\S+)", re.DOTALL)
OPTION = re.compile(r"^:[a-z]+:.*$", re.MULTILINE)  # of a directive; alt text stands for a picture
TITLE = re.compile(r"\{exercise\} (.+)")
MARK = re.compile(r" (★|★★|★★★, open)$")
TARGET = re.compile(r"\]\([^)\s]*\)")  # of a link
SOLUTION = re.compile(r"\{solution(?:-start)?\}\s*(\S+)")
CITATION = re.compile(r"\[([^][]+?)(?: \[|, )(\d{4})\]?\]\(bibliography\.md#(\w+)\)")
IMAGE_WITHOUT_ALT = re.compile(r"!\[\s*\]\(")
FIGURE = re.compile(r"\{(?:figure|image)\}[^\n]*\n(.*?)^(?:`{3,}|:{3,})", re.MULTILINE | re.DOTALL)


class Chapter:
    """A notebook, as the tests read it."""

    def __init__(self, path: Path) -> None:
        self.cells = json.loads(path.read_text())["cells"]
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        self.text = "\n\n".join("".join(c["source"]) for c in self.cells if c["cell_type"] == "markdown")

    def words(self) -> int:
        prose = OPTION.sub(" ", MATHEMATICS.sub(" ", TARGET.sub("]", self.text)))
        return len(re.findall(r"[A-Za-z][A-Za-z'-]*", prose))


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> Chapter:
    return Chapter(request.param)


def test_every_file_of_the_contents_exists() -> None:
    missing = [name for name in toc_files() if not list(ROOT.glob(f"{name}.*"))]
    assert not missing


def test_every_notebook_is_in_the_contents() -> None:
    assert CHAPTERS
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= set(toc_files())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    code = Chapter(path).code
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]], STRIP


def test_chapter_explains_itself(chapter: Chapter) -> None:
    assert WORDS[0] <= chapter.words() <= WORDS[1], "1,500 to 4,000 words of explanation are the aim"


def test_exercises_have_solutions(chapter: Chapter) -> None:
    exercises = EXERCISE.findall(chapter.text)
    assert len(exercises) >= EXERCISES
    assert set(exercises) == set(SOLUTION.findall(chapter.text))


def test_solutions_are_folded(chapter: Chapter) -> None:
    starts = re.findall(r"\{solution(?:-start)?\}[^`]*?:class:\s*dropdown", chapter.text)
    assert len(starts) == len(SOLUTION.findall(chapter.text))


def test_exercises_tell_their_difficulty(chapter: Chapter) -> None:
    """Each by one to three stars; one, the last, is an open project."""
    titles = TITLE.findall(chapter.text)
    marks = [MARK.search(title) for title in titles]
    assert all(marks), titles
    assert [mark[1] == "★★★, open" for mark in marks if mark] == [False] * (len(titles) - 1) + [True]


def test_diagrams_that_are_shown_exist(chapter: Chapter) -> None:
    shown = re.findall(r"\{figure\} (_static/\S+)", chapter.text)
    assert all((BOOK / name).is_file() for name in shown)


def test_chapter_ends_with_exercises_and_a_summary(chapter: Chapter) -> None:
    headings = [h for h in re.findall(r"^## (.+)", chapter.text, re.MULTILINE) if h != "Where this stands"]
    assert headings[-3:] == ["Exercises", "Summary", "Further reading"]


def test_citations_are_in_the_bibliography(chapter: Chapter) -> None:
    """As links, which JupyterLab shows too: the name and the year are the work's."""
    cited = CITATION.findall(chapter.text)
    assert cited
    assert len(cited) == chapter.text.count("bibliography.md#")
    for names, year, key in cited:
        assert (names, year) == named(key)


def named(key: str) -> tuple[str, str]:
    """Author or authors of a work, and its year, as the text calls them."""
    work = WORKS.entries[key]
    people = [str(Text.from_latex(" ".join(p.prelast_names + p.last_names))) for p in work.persons["author"]]
    names = " and ".join(people) if len(people) <= 2 and "others" not in people else f"{people[0]} et al."
    return names, work.fields["year"]


def test_in_jupyterlab_solutions_are_folded(chapter: Chapter) -> None:
    """By headings that the pages leave out: a folded one before each, and another after it."""
    for number, cell in enumerate(chapter.cells):
        source = "".join(cell["source"])
        if source.startswith("```{solution-start}"):
            before = chapter.cells[number - 1]
            assert "".join(before["source"]) == "#### Solution"
            assert before["metadata"] == {"tags": ["remove-cell"], "jp-MarkdownHeadingCollapsed": True}
        if "{solution-end}" in source:
            assert source.strip() == "```{solution-end}\n```"
            assert re.match("#{1,4} ", "".join(chapter.cells[number + 1]["source"]))


def test_pictures_have_words(chapter: Chapter) -> None:
    assert not IMAGE_WITHOUT_ALT.search(chapter.text)
    assert all(":alt:" in body for body in FIGURE.findall(chapter.text))


def test_code_cells_fit_a_screen(chapter: Chapter) -> None:
    long = [cell["id"] for cell in chapter.code if "".join(cell["source"]).count("\n") >= CELL_LINES]
    assert not long, f"code cells of more than {CELL_LINES} lines belong in nca_lib"
