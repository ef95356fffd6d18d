"""The README's example runs as printed, its links lead somewhere, and commands have their environment."""

import re
from pathlib import Path

import pytest
from expected_pages import ROOT
from PIL import Image

README = (ROOT / "README.md").read_text()
EXAMPLES = {"README.md": "tissue.png", "book/architecture.md": "untrained.png"}


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_example_writes_its_picture(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    exec(example, {})
    assert Image.open(EXAMPLES[page]).width > 100


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_pictures_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_pages_with_commands_tell_the_activation_first() -> None:
    told = re.compile(r"source \.venv/bin/activate|<reference/command_line>`")
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").rglob("*.md")]
    parts = {path: path.read_text().split("python -m nca_lib") for path in pages}
    before = {path: first for path, (first, *rest) in parts.items() if rest}
    assert len(before) > 8
    assert not [path for path, text in before.items() if not told.search(text)]
