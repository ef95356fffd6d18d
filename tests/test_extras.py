"""The library without its extras: it loads, samples and trains, and names the extra that something needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from expected_pages import ROOT
from PIL import Image

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# An import system in which modules of other distributions are not found.
LEAN = """
import sys
from importlib.machinery import PathFinder

class Lean(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else super().find_spec(name, path, target)

sys.meta_path = [Lean if finder is PathFinder else finder for finder in sys.meta_path]
from nca_lib.__main__ import main
print([main(command) for command in {commands}])
{then}
"""


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def with_what_they_require(requirements: list[str]) -> set[str]:
    found: set[str] = set()
    waiting = [canonical(requirement) for requirement in requirements]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            try:
                needed = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another platform
                continue
            waiting += [canonical(line) for line in needed if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def absent() -> set[str]:
    """Installed modules that no dependency brings."""
    present = with_what_they_require(PROJECT["dependencies"])
    owners = metadata.packages_distributions()
    modules = {module for module, names in owners.items() if not present & {canonical(n) for n in names}}
    return modules - {"nca_lib", "_distutils_hack", "pkg_resources", "setuptools"}


def lean(absent: set[str], *commands: list[str], then: str = "") -> subprocess.CompletedProcess[str]:
    """Run command lines one after the other; the last line of the output has their exit statuses."""
    code = LEAN.format(absent=sorted(absent), commands=commands, then=then)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)


def test_what_is_absent_is_what_only_extras_bring(absent: set[str]) -> None:
    assert {"torchvision", "skimage", "sklearn", "scipy", "matplotlib", "tensorboard", "IPython"} <= absent
    assert {"ipywidgets", "anywidget", "torchmetrics", "diffusers"} <= absent
    assert not {"torch", "numpy", "PIL", "safetensors", "tqdm", "pydantic", "tomli_w"} & absent


def test_dependencies_alone_train_sample_and_show(absent: set[str], tmp_path: Path) -> None:
    out, picture = tmp_path / "run", tmp_path / "faces.png"
    tiny = ["--model.channels", "8", "--model.hidden", "8", "--model.steps", "1", "--model.frequencies", "4"]
    tiny += ["--training.steps", "3", "--training.batch", "2", "--training.compile", "false"]
    tiny += ["--training.sample_every", "3", "--data.size", "16", "--out", str(out), "--device", "cpu"]
    drawing = ["--size", "16x16", "--steps", "2", "--sampler", "ddim", "--count", "2", "--out", str(picture)]
    model = str(out / "model.safetensors")
    commands = [["train", "faces-fourier", *tiny], ["sample", model, *drawing]]
    ran = lean(absent, *commands, ["models"], ["show", "faces/faces-unet-990k"])
    assert ran.stdout.endswith("[0, 0, 0, 0]\n"), ran.stderr
    assert "pip install 'nca_lib[tensorboard]'" in ran.stdout
    assert Image.open(out / "samples-0000003.png").size == (4 * 18 + 2, 2 * 18 + 2)
    assert np.asarray(Image.open(picture)).std() > 0


def test_a_missing_extra_is_named_in_one_line(absent: set[str], tmp_path: Path) -> None:
    needed = [
        (["train", "tissue-diff-nca"], "skimage", "data"),
        (["train", "digits-mlp"], "sklearn", "data"),
        (["train", "faces-unet"], "diffusers", "baselines"),
        (["run", "faces"], "torchmetrics", "evaluation"),
        (["evaluate", "digits-mlp"], "torchmetrics", "evaluation"),
    ]
    commands = [[*command, "--out", str(tmp_path)] for command, *_ in needed[:-1]]
    refused = lean(absent, *commands, needed[-1][0], then="import nca_lib.book.explorers")
    assert refused.stdout == "[2, 2, 2, 2, 2]\n"
    said = refused.stderr.splitlines()
    assert re.search(r"MissingExtra: \w+ is not installed: pip install 'nca_lib\[book\]'$", said[-1])
    assert said[: len(needed)] == [
        f"nca_lib {command[0]}: {missing} is not installed: pip install 'nca_lib[{extra}]'"
        for command, missing, extra in needed
    ]


def test_every_extra_that_is_named_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "nca_lib").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'with extra\("(\w+)"\)', text)}
    assert named
    assert named <= PROJECT["optional-dependencies"].keys()
