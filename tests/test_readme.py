"""The README's example runs as printed, and its links lead somewhere."""

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
