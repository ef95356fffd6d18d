"""Open every page of the built book from disk in a browser without a network."""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_cache import get_cache
from playwright.sync_api import Browser, Page, Route

import nca_lib

HTML = Path(__file__).parents[2] / "_build" / "html"
START = "index.html"  # only leads on to the preface
CHAPTERS = sorted(page.relative_to(HTML).as_posix() for page in HTML.glob("book/**/*.html"))
PAGES = [*CHAPTERS, "genindex.html", "search.html"]
LOCAL = ("file:", "data:", "blob:", "about:")

# What a reader would call broken, found in the page itself. Each entry is a list of descriptions.
DEFECTS = """() => {
    const visible = element => element.getClientRects().length > 0;
    const name = element => element.outerHTML.slice(0, 160);
    const all = selector => [...document.querySelectorAll(selector)];
    const widget = "script[type^='application/vnd.jupyter.widget'], .jupyter-widgets, .lm-Widget";
    return {
        "mathematics left as text": all("span.math, div.math")
            .filter(m => !m.querySelector("mjx-container")).map(name),
        "formula with an error": all("[data-mjx-error], mjx-merror, [data-mml-node=merror]").map(name),
        "picture missing": all("img").filter(i => i.complete && i.naturalWidth === 0).map(name),
        "picture without alt text": all("article img")
            .filter(i => !i.getAttribute("alt") || i.alt.includes("_images/")).map(name),
        "widget without a kernel": all(widget).map(name),
        "text of a widget": all(".cell_output .output pre").map(p => p.textContent)
            .filter(t => /^(interactive|VBox|HBox|IntSlider|FloatSlider|Output)\\(/.test(t)),
        "icon font missing": all("i.fas, i.fa-solid, i.fab, i.far").some(visible)
            && !document.fonts.check("900 16px 'Font Awesome 6 Free'") ? ["Font Awesome"] : [],
    };
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Visit:
    """One page, opened without a network, and all that went wrong on it."""

    def __init__(self, browser: Browser, path: str, width: int = 1280, query: str = "") -> None:
        self.problems: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        self.context.route("**/*", self._only_local)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda m: m.type == "error" and self.problems.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url} ({r.failure})"))
        self.page.goto((HTML / path).as_uri() + query, wait_until="load")
        self.page.evaluate(
            "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
        )

    def _only_local(self, route: Route) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            self.problems.append(f"left the page: {route.request.url}")
            route.abort()

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()


def test_the_book_is_built() -> None:
    assert "book/index.html" in PAGES, "no built book: run `make book` first"


def test_every_code_cell_was_executed() -> None:
    """Solutions too: a built notebook has the source's cells, and a number at each that has code."""
    # What pages show; MyST-NB's other copies lack the outputs of what it did not execute anew.
    cache = get_cache(HTML.parent / ".jupyter_cache")
    for source in sorted((HTML.parents[1] / "book").glob("*.ipynb")):
        executed = cache.match_cache_notebook(nbformat.read(source, 4))
        built = [cell for cell in cache.get_cache_bundle(executed.pk).nb.cells if cell.cell_type == "code"]
        assert [cell["id"] for cell in built] == [cell["id"] for cell in _code(source)], source.name
        assert not [cell["id"] for cell in built if cell["execution_count"] is None], source.name


def test_every_public_name_is_in_the_built_reference() -> None:
    pages = "".join(page.read_text() for page in (HTML / "book" / "reference").glob("*.html"))
    for info in pkgutil.iter_modules(nca_lib.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"nca_lib.{info.name}")
        for name, thing in vars(module).items():
            named = inspect.isclass(thing) or inspect.isfunction(thing)
            if named and thing.__module__ == module.__name__ and not name.startswith("_"):
                assert f'id="{module.__name__}.{name}"' in pages, f"{module.__name__}.{name}"


def _code(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def test_start_page_leads_to_the_preface(browser: Browser) -> None:
    with browser.new_context(offline=True) as context, context.new_page() as page:
        page.goto((HTML / START).as_uri())
        page.wait_for_url("**/book/index.html")
        assert "Diffusion with Neural Cellular Automata" in page.locator("article h1").inner_text()


@pytest.mark.parametrize("path", PAGES)
def test_page_reads_from_disk(browser: Browser, path: str) -> None:
    with Visit(browser, path) as visit:
        for button in visit.page.locator("button.toggle-button").all():
            button.click()  # folded solutions are read too
        visit.page.evaluate(  # and pictures below the fold
            """() => Promise.all([...document.images].map(image => {
                image.loading = 'eager';
                return image.decode().catch(() => 0);
            }))"""
        )
        visit.page.wait_for_timeout(200)
        defects = {kind: found for kind, found in visit.page.evaluate(DEFECTS).items() if found}
        assert not visit.problems
        assert not defects


def test_a_page_runs_no_script_but_its_own(browser: Browser) -> None:
    """Its policy refuses text that becomes a program; that its own scripts run, the other tests see."""
    with Visit(browser, "search.html") as visit:
        ran = visit.page.evaluate("""async () => {
            const script = document.createElement("script");
            script.textContent = "window.injected = 1";
            document.head.append(script);
            setTimeout("window.evaluated = 1");
            await new Promise(done => setTimeout(done, 200));
            return [window.injected ?? 0, window.evaluated ?? 0];
        }""")
        assert ran == [0, 0]


@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_phone(browser: Browser, path: str) -> None:
    with Visit(browser, path, width=390) as visit:
        assert visit.page.evaluate(OVERFLOW) <= 0
        assert not visit.problems


def test_search_finds_the_chapter_and_shows_the_place(browser: Browser) -> None:
    with Visit(browser, "search.html", query="?q=inpainting") as visit:
        first = visit.page.locator("#search-results li").first
        first.wait_for(timeout=10_000)
        assert "One model, many tasks" in first.inner_text()
        assert "inpainting" in first.locator("p.context mark").first.inner_text()
        first.get_by_role("link").last.click()
        visit.page.wait_for_url("**/06_one_model_many_tasks.html#*")
        assert not visit.problems


def test_a_notebook_is_saved_from_disk(browser: Browser) -> None:
    source = HTML / "_sources" / "book" / "01_cells_that_grow.ipynb"
    with Visit(browser, "book/01_cells_that_grow.html") as visit:
        visit.page.get_by_role("button", name="Download this page").click()
        with visit.page.expect_download() as download:
            visit.page.locator("a.btn-download-source-button").click()
        assert download.value.suggested_filename == source.name
        assert Path(download.value.path()).read_text() == source.read_text()


def test_outputs_fit_the_page(browser: Browser) -> None:
    too_wide = """() => [...document.querySelectorAll(".cell_output pre")]
        .filter(pre => pre.scrollWidth > pre.clientWidth).map(pre => pre.textContent.slice(0, 80))"""
    for path in CHAPTERS:
        with Visit(browser, path) as visit:
            assert not visit.page.evaluate(too_wide), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_and_shows_everything(browser: Browser, scheme: str) -> None:
    with Visit(browser, "book/06_one_model_many_tasks.html") as visit:
        visit.page.emulate_media(media="print", color_scheme=scheme)
        visit.page.wait_for_timeout(500)  # the theme follows its medium late, and would undo what comes next
        visit.page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        seen = visit.page.evaluate("""() => {
            const colour = getComputedStyle(document.querySelector("article p")).color;
            const all = selector => [...document.querySelectorAll(selector)];
            return {
                darkness: 255 - Math.max(...colour.match(/\\d+/g).slice(0, 3)),
                cut: all(".cell_output pre").filter(pre => pre.scrollHeight > pre.clientHeight + 1).length,
                closed: all(".solution .admonition-title ~ *").filter(part => !part.offsetHeight).length,
                figures: all(".only-dark").filter(figure => figure.offsetHeight).length,
            };
        }""")
        assert seen["darkness"] > 100
        assert (seen["cut"], seen["closed"], seen["figures"]) == (0, 0, 0)
        visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.page.evaluate("document.documentElement.dataset.theme") == scheme


@pytest.mark.parametrize("chapter", ["01_cells_that_grow", "03_diff_nca"])
def test_on_paper_a_demo_is_a_still_with_a_caption(browser: Browser, chapter: str) -> None:
    with Visit(browser, f"book/{chapter}.html") as visit:
        still, live = visit.page.locator(".nca-demo-still"), visit.page.locator(".nca-demo-alive > .nca-demo")
        assert not still.first.is_visible()
        assert live.first.is_visible()
        visit.page.emulate_media(media="print")
        assert still.first.locator("img").bounding_box()["height"] > 150  # type: ignore[index]
        assert "In the web page" in still.first.inner_text()
        assert not live.first.is_visible()


def test_a_citation_leads_to_its_work(browser: Browser) -> None:
    with Visit(browser, "book/01_cells_that_grow.html") as visit:
        visit.page.get_by_role("link", name="Gardner, 1970").click()
        visit.page.wait_for_url("**/bibliography.html#gardner1970life")
        assert "Scientific American" in visit.page.locator("#gardner1970life").inner_text()
        assert not visit.problems
