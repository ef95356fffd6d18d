"""The README's example runs as printed, its links lead somewhere, and commands have their environment."""

import re
from pathlib import Path

import pytest
from expected_pages import ROOT
from PIL import Image

README = (ROOT / "README.md").read_text()


def test_the_example_writes_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})
    assert Image.open("tissue.png").width > 300


def test_links_and_pictures_exist() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert len(targets) > 4
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_pages_with_commands_tell_the_activation_first() -> None:
    told = re.compile(r"source \.venv/bin/activate|<reference/command_line>`")
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").rglob("*.md")]
    parts = {path: path.read_text().split("python -m nca_lib") for path in pages}
    before = {path: first for path, (first, *rest) in parts.items() if rest}
    assert len(before) > 8
    assert not [path for path, text in before.items() if not told.search(text)]
