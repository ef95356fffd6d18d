"""Executing the notebooks: widgets draw pictures, and results of another library or with warnings are forgotten."""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib.metadata import distributions
from pathlib import Path

from sphinx.application import Sphinx

import nca_lib


def digest(library: Path) -> str:
    """A hash of what results depend on beside a notebook's text: the library's files, and what is installed."""
    found = hashlib.sha256()
    for path in sorted(library.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            found.update(path.relative_to(library).as_posix().encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    installed = sorted(
        f"{each.name} {each.version}" for each in distributions()
    )
    found.update("\n".join(installed).encode())
    return found.hexdigest()


def forget_unless(current: str, build: Path) -> None:
    """Forget executed notebooks, kept by their own text, and pages, unless made with the `current` digest."""
    record = build / ".library"
    if record.exists() and record.read_text() == current:
        return
    for made in (build / ".jupyter_cache", build / ".doctrees"):
        if made.exists():
            shutil.rmtree(made)
    build.mkdir(parents=True, exist_ok=True)
    record.write_text(current)


def _forget_warned(app: Sphinx, exception: Exception | None) -> None:
    """Sphinx warns only about pages that it reads: read them again, or the next build would pass."""
    if app._warncount:
        shutil.rmtree(app.doctreedir)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, and prepare: this runs before earlier pages are loaded and kernels start."""
    os.environ.setdefault("NCA_LIB_BOOK", "1")  # kernels inherit it
    library = Path(nca_lib.__file__).parent
    forget_unless(digest(library), Path(app.outdir).parent)
    app.connect("build-finished", _forget_warned, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
