"""A resolved experiment is shown whole: every key with its value, where that was written, and its meaning."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from nca_lib.experiments.files import ExperimentError
from nca_lib.experiments.kinds import KINDS, arguments, meanings
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.show import show


def rows(text: str) -> dict[str, list[str]]:
    """Value, origin and meaning of each dotted key, as the table has them in lines wide enough."""
    found, section = {}, ""
    for line in text.splitlines()[1:]:
        if line.startswith("["):
            section = line[1 : line.index("]")]
        elif line:
            key, *rest = re.split(r"\s{2,}", line.strip())
            found[f"{section}.{key}"] = rest
    return found


def test_each_value_is_shown_with_its_origin_and_meaning() -> None:
    found = rows(show("bcss-fourier-887k", width=1000))
    assert found["model.steps"][:2] == ["48", "bcss-fourier-887k"]
    assert found["model.norm"] == ["group", "celeba-fourier-887k", '"cell" or "group".']
    assert found["model.window"] == [
        "quadrant",
        "default",
        '"quadrant" as published, or "half_plane", see spectrum_window.',
    ]
    assert found["data.kind"] == ["bcss", "bcss-fourier-887k"]
    assert found["training.workers"][:2] == ["8", "celeba-fourier-1.1m"]
    assert found["training.bf16"][:2] == ["true", "default"]
    assert found["training.teacher"][:2] == ["none", "default"]
    experiment = Experiment.read("bcss-fourier-887k").to_dict()
    for section, values in experiment.items():
        for key, value in values.items() if section != "name" else ():
            assert found[f"{section}.{key}"][0].lower() == str(value).lower()


@pytest.mark.parametrize("section", ["model", "data"])
def test_every_argument_has_a_default_to_show_and_a_meaning(section: str) -> None:
    for build in KINDS[section].values():
        told = meanings(build)
        for name, parameter in arguments(build).items():
            assert told[name], f"{build.__name__}.{name}"
            assert "`" not in told[name]
            assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


def test_an_entry_of_a_matrix_is_shown_by_its_name(tmp_path: Path) -> None:
    found = rows(show("ablations/digits-improved-seed-1", width=1000))
    assert found["training.seed"][:2] == ["1", "seeds"]
    assert found["training.optimizer"][:2] == ["muon", "ablations"]
    assert found["training.steps"][:2] == ["3000", "digits-reference"]
    with pytest.raises(ExperimentError, match="nope: no such entry in matrix faces; it has faces-fourier"):
        show("faces/nope")
    path = tmp_path / "mine.toml"
    path.write_text('base = "faces-64"\nname = "mine"\ntraining.batch = 3\n')
    assert rows(show(str(path), width=1000))["training.batch"][:2] == ["3", str(path)]


def test_columns_are_aligned_and_lines_fit() -> None:
    lines = show("tissue-diff-nca", width=90).splitlines()
    assert max(map(len, lines)) <= 90
    table = [line for line in lines[1:] if line.startswith("  ")]
    origin = next(line for line in table if line.startswith("  channels ")).index("tissue-diff-nca")
    starts = {
        re.search(r"default|tissue-diff-nca|tissue-fourier|faces-fourier", line[origin:])
        for line in table
        if line[2] != " "
    }
    assert all(match and match.start() == 0 for match in starts)
