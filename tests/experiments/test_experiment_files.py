"""What an experiment inherits: bases, kinds, circles."""

from __future__ import annotations

from pathlib import Path

import pytest

from nca_lib.experiments import files
from nca_lib.experiments.files import ExperimentError, layers_of, origins
from nca_lib.experiments.settings import Experiment

FIRST = """
name = "first"
model = { kind = "fourier-diff-nca", channels = 8, frequencies = 4 }
training = { steps = 5, batch = 3 }
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_changes_what_it_says_and_inherits_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "first", FIRST)
    write(tmp_path, "second", 'base = "first.toml"\nname = "second"\ntraining.steps = 6\n')
    third = write(tmp_path, "third", 'base = "second.toml"\ntraining.batch = 4\ndata.kind = "faces"\n')
    experiment = Experiment.read(third)
    assert experiment.name == "second"
    assert (experiment.training.steps, experiment.training.batch) == (6, 4)
    assert experiment.model == {"kind": "fourier-diff-nca", "channels": 8, "frequencies": 4}
    assert experiment.data == {"kind": "faces"}
    layers = layers_of(third)
    assert [origin for origin, _ in layers] == ["first.toml", "second.toml", str(third)]
    assert origins(layers) == {
        "name": "second.toml",
        "model.kind": "first.toml",
        "model.channels": "first.toml",
        "model.frequencies": "first.toml",
        "training.steps": "second.toml",
        "training.batch": str(third),
        "data.kind": str(third),
    }


def test_another_kind_inherits_the_keys_that_both_have(tmp_path: Path) -> None:
    first = write(tmp_path, "first", FIRST)
    assert Experiment.read(first, {"model.kind": "diff-nca"}).model == {"kind": "diff-nca", "channels": 8}
    assert Experiment.read(first, {"model.kind": "unet"}).model == {"kind": "unet"}
    with pytest.raises(ExperimentError, match=r"model\.kind: 'nonsense' is unknown"):
        Experiment.read(first, {"model.kind": "nonsense"})


def test_a_shipped_experiment_can_be_a_base_from_anywhere(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine", 'base = "faces-fourier"\nname = "mine"\n')
    shipped = Experiment.read("faces-fourier").to_dict()
    assert Experiment.read(mine).to_dict() == {**shipped, "name": "mine"}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nonsense", r"mine\.toml: base: no experiment 'nonsense'; .*faces-fourier"),
        ("gone.toml", r"mine\.toml: base: no experiment 'gone\.toml'"),
        ("mine.toml", r"mine\.toml: base: mine -> mine is a circle"),
        ("back.toml", r"base: mine -> back -> mine is a circle"),
        ("wrong.toml", r"wrong\.toml: not valid TOML"),
        ("latin.toml", r"latin\.toml: not valid TOML"),
    ],
)
def test_wrong_bases_are_refused_by_name(tmp_path: Path, base: str, message: str) -> None:
    write(tmp_path, "back", 'base = "mine.toml"\n')
    write(tmp_path, "wrong", "name = \n")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"\n')
    with pytest.raises(ExperimentError, match=message) as caught:
        Experiment.read(write(tmp_path, "mine", f'base = "{base}"\nname = "mine"\n'))
    assert "\n" not in str(caught.value)


MATRIX = """
name = "small"
seeds = 2
[[entry]]
base = "faces-fourier"
name = "a"
training.batch = 16
training.steps = 1
[[entry]]
base = "a"
name = "b"
training.batch = 32
"""


def test_an_entry_can_be_the_base_of_a_later_one(tmp_path: Path) -> None:
    head, entries = files.read_matrix(write(tmp_path, "small", MATRIX))
    assert head == {"name": "small", "seeds": 2}
    found = [Experiment.from_layers(layers) for layers in entries]
    assert [e.name for e in found] == ["a", "a-seed-1", "b", "b-seed-1"]
    assert [(e.training.batch, e.training.steps, e.training.seed) for e in found] == [
        (16, 1, 0),
        (16, 1, 1),
        (32, 1, 0),
        (32, 1, 1),
    ]
    assert found[2].model == found[0].model == Experiment.read("faces-fourier").model
    backwards = MATRIX.replace('base = "faces-fourier"', 'base = "b"')
    with pytest.raises(ExperimentError, match="no experiment 'b'"):
        files.read_matrix(write(tmp_path, "small", backwards))
