"""Which Pythons and which versions of PyTorch: `pip install nox`, then `nox`, or `nox -s oldest`.

Each session installs the library with its extras into an environment of its own, which downloads gigabytes.
The pages of the book are left to `make test`. Pythons that are not installed are skipped.
"""

from collections.abc import Sequence

import nox

nox.options.sessions = ["newest", "oldest"]
nox.options.error_on_missing_interpreters = False
TESTED = [
    "tests",
    "--ignore=tests/browser",
    "--ignore=tests/test_readme.py",
    "--ignore=tests/test_execution.py",
]
# The lower bounds of pyproject.toml, where Python 3.11 has wheels of them.
OLDEST = ["torch==2.10.*", "torchvision==0.25.*", "numpy==1.26.*", "pillow==10.1.*", "pydantic==2.11.*"]


def tested(session: nox.Session, *pins: str, ignored: Sequence[str] = ()) -> None:
    """Install, say which PyTorch it came to, and run the tests; arguments after `--` are pytest's."""
    session.install(".[all,book,dev]", *pins)
    session.run("python", "-c", "import sys, torch; print(sys.version, torch.__version__)")
    left_out = [f"--ignore={path}" for path in ignored]
    session.run(
        "pytest", *(session.posargs or [*TESTED, *left_out]), env={"MPLBACKEND": "agg", "PYTHONPATH": "tests"}
    )


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def newest(session: nox.Session) -> None:
    """The newest versions that the bounds allow."""
    tested(session)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The oldest PyTorch; it counts a UNet's operations otherwise, by which a diagram is drawn."""
    tested(session, *OLDEST, ignored=["tests/book/test_diagrams.py"])
