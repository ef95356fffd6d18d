"""What is released is whole: sdist and wheel hold all that the repository has of the library, and it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import nca_lib

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns("__pycache__")


def build(kind: str, source: Path, out: Path) -> Path:
    """What setuptools makes of a source tree, as pip asks it to, but without pip's downloads."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    [made] = out.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the wheel's files; the wheel is made of the sdist."""
    pytest.importorskip("setuptools")
    work = tmp_path_factory.mktemp("release")
    tree = work / "tree"
    shutil.copytree(ROOT / "nca_lib", tree / "nca_lib", ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.unpack_archive(build("sdist", tree, work / "sdist"), work / "unpacked", filter="data")
    [unpacked] = (work / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, work / "wheel")) as wheel:
        wheel.extractall(work / "installed")
    return work / "installed"


def run(installed: Path, *words: str) -> str:
    """The output of a command that finds no other nca_lib, in an empty folder."""
    place = installed.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.check_output([sys.executable, *words], cwd=place, env=env, text=True)


def test_the_wheel_holds_every_file_of_the_library(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return {name for name in found if "__pycache__" not in name}

    assert files(installed / "nca_lib") == files(ROOT / "nca_lib")
    assert (installed / "nca_lib" / "py.typed").is_file()


def test_what_is_installed_lists_samples_and_trains(installed: Path) -> None:
    where = run(installed, "-c", "import nca_lib; print(nca_lib.__file__)")
    assert where.strip() == str(installed / "nca_lib" / "__init__.py")
    assert "digits-mlp" in run(installed, "-m", "nca_lib", "models")
    run(installed, "-m", "nca_lib", "sample", "digits-mlp", "--size", "8x8", "--steps", "2", "--out", "a.png")
    tiny = ["--model.width", "8", "--training.steps", "1", "--training.compile", "false", "--device", "cpu"]
    run(installed, "-m", "nca_lib", "train", "digits-mlp", *tiny, "--out", "run")
    elsewhere = installed.parent / "elsewhere"
    assert (elsewhere / "a.png").is_file()
    assert (elsewhere / "run" / "model.safetensors").is_file()


def test_the_version_is_the_same_wherever_it_is_said(installed: Path) -> None:
    [described] = installed.glob("*.dist-info")
    released = metadata.PathDistribution(described)
    assert released.version == nca_lib.__version__
    assert [(entry.name, entry.value) for entry in released.entry_points] == [
        ("nca-lib", "nca_lib.__main__:main")
    ]
    assert f"\nversion: {nca_lib.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {nca_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_both_locks_hold_the_same_versions_and_one_their_hashes() -> None:
    plain, hashed = (
        [line for line in (ROOT / name).read_text().replace("\\\n", "").splitlines() if line[0] not in "# "]
        for name in ("requirements.txt", "requirements-hashed.txt")
    )
    # With its extras a package stands there a second time where pip would not know it as pinned otherwise.
    pins = [{re.sub(r"\[.*?\]", "", line).split()[0] for line in lock} for lock in (plain, hashed)]
    assert pins[0] == pins[1]
    assert {line.strip() for line in plain} <= {
        re.sub(r"\[.*?\]", "", line.partition("--hash")[0]).strip() for line in hashed
    }
    assert any(line.startswith("markdown-it-py[linkify]==") for line in hashed)
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) for line in hashed)
