"""A Content-Security-Policy in each page: it runs its own scripts, asks nobody for anything, evaluates no text."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path

from sphinx.application import Sphinx

# `file:` for pages on disk, of which browsers disagree whether they are 'self'. Styles are written into
# elements by MathJax and the theme; the engine of the demos is a worker made of a blob.
POLICY = (
    "default-src 'none'; script-src 'self' file: blob: {scripts}; worker-src blob:; "
    "style-src 'self' file: 'unsafe-inline'; img-src 'self' file: data: blob:; font-src 'self' file: data:; "
    "media-src 'self' file: data: blob:; connect-src 'none'; base-uri 'none'; form-action 'self' file:"
)
META = re.compile(
    r'<meta http-equiv="Content-Security-Policy" content="[^"]*"\s*/?>\n?'
)
DATA = re.compile(r"json|text/(?!javascript)|vnd\.", re.IGNORECASE)


class Inline(HTMLParser):
    """The scripts that stand in a page: whole ones, and those in attributes such as `onclick`."""

    def __init__(self, html: str):
        super().__init__()
        self.scripts: set[str] = set()
        self.handlers: set[str] = set()
        self.text: list[str] | None = None
        self.feed(html)

    def handle_starttag(
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        """Note handlers, and that a script begins."""
        given = dict(attrs)
        self.handlers |= {
            value for name, value in attrs if name.startswith("on") and value
        }
        if (
            tag == "script"
            and "src" not in given
            and not DATA.search(given.get("type") or "")
        ):
            self.text = []

    def handle_data(self, data: str) -> None:
        """Keep what is within a script."""
        if self.text is not None:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        """A script is whole."""
        if tag == "script" and self.text is not None:
            self.scripts.add("".join(self.text))
            self.text = None


def with_policy(html: str) -> str:
    """The page with the policy that allows the scripts in it, by their hashes, and no others."""
    html = META.sub("", html)
    inline = Inline(html)
    allowed = [
        f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for text in sorted(inline.scripts | inline.handlers)
    ]
    if inline.handlers:
        allowed.insert(0, "'unsafe-hashes'")
    policy = escape(
        POLICY.format(scripts=" ".join(allowed)).replace(" ;", ";"),
        quote=False,
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    return re.sub(r"<head[^>]*>\s*", lambda head: head[0] + meta, html, count=1)


def _write_policies(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for page in sorted(Path(app.outdir).rglob("*.html")):
            page.write_text(
                with_policy(page.read_text(encoding="utf-8")), encoding="utf-8"
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; after all that writes into pages."""
    app.connect("build-finished", _write_policies, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
