"""What others made, and every picture and file of weights, is listed with its licence."""

import re
from fnmatch import fnmatch

from expected_pages import ROOT

FOLDERS = ("book", "nca_lib", "tests/golden")
LISTED = ROOT / "book" / "licences.md"


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def needs_a_licence() -> list[str]:
    """Binaries, drawings, minified scripts, and what lies in a folder that has a licence of its own."""
    found = []
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*")):
        made = any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
        if made or not path.is_file():
            continue
        theirs = any(path.parent.glob("LICENSE*")) or path.name.endswith((".svg", ".min.js"))
        if theirs or not is_text(path.read_bytes()):
            found.append(path.relative_to(ROOT).as_posix())
    return found


def test_all_that_ships_is_listed_and_all_that_is_listed_ships() -> None:
    rows = [line.split("|")[1] for line in LISTED.read_text().splitlines() if line.startswith("| `")]
    patterns = {name for row in rows for name in re.findall(r"`([^`]+)`", row) if name.startswith(FOLDERS)}
    shipped = needs_a_licence()
    assert len(shipped) > 60
    assert [name for name in shipped if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in shipped)] == []
