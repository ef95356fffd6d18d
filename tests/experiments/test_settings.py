"""Experiments: what is written is read back, and what is wrong is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA
from nca_lib.diffusion import Denoiser
from nca_lib.experiments import settings as module
from nca_lib.experiments.settings import Experiment, ExperimentError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", module.names())
def test_a_shipped_experiment_survives_a_round_trip_through_toml(name: str, tmp_path: Path) -> None:
    shipped = Experiment.read(name)
    assert shipped.name == name
    assert Experiment.read(write(tmp_path, shipped.to_toml())) == shipped
    assert Experiment.from_dict(shipped.to_dict()) == shipped


@pytest.mark.parametrize("name", module.names())
def test_a_shipped_experiment_can_be_built(name: str) -> None:
    assert isinstance(Experiment.read(name).build_model(), (Denoiser, GrowingNCA, VNCA))


def test_awkward_strings_survive_a_round_trip(tmp_path: Path) -> None:
    odd = Experiment.from_dict({"name": 'a "quoted" \\ name', "growing": {"picture": "C:\\ü.png"}})
    assert Experiment.read(write(tmp_path, odd.to_toml())) == odd


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"training": {"stepz": 3}}, r"training\.stepz: unknown key; did you mean 'steps'"),
        ({"trainings": {}}, r"trainings: unknown key; did you mean 'training'"),
        (
            {"model": {"kind": "diff-nca", "chanels": 8}},
            r"model\.chanels: unknown key; did you mean 'channels'",
        ),
        ({"data": {"kind": "tissue", "zzz": 8}}, r"data\.zzz: unknown key; known are size, downscale"),
        ({"data": {"kind": "tissue", "split": "test"}}, r"data\.split: unknown key"),
        ({"training": {"bf16": 1}}, r"training\.bf16: 1 is not of type bool"),
        ({"training": {"steps": "ten"}}, r"training\.steps: 'ten' is not of type int"),
        ({"training": {"steps": True}}, r"training\.steps: True is not of type int"),
        ({"training": {"steps": 1.5}}, r"training\.steps: 1\.5 is not of type int"),
        ({"training": {"learning_rate": True}}, r"training\.learning_rate: True is not of type float"),
        ({"training": {"minutes": "2"}}, r"training\.minutes: '2' is not of type"),
        ({"training": {"decay": "linear"}}, r"training\.decay: 'linear' is not one of cosine, reference"),
        ({"diffusion": {"schedule": "square"}}, r"diffusion\.schedule: 'square'"),
        ({"model": {"kind": "diff-nca", "norm": "batch"}}, r"model\.norm: 'batch' is not one of cell, group"),
        ({"model": {"kind": "unet-9000"}}, r"model\.kind: 'unet-9000' is unknown; .*diff-nca"),
        ({"data": {"kind": "faeces"}}, r"data\.kind: 'faeces' is unknown; .*tissue"),
        ({"data": {}}, r"data\.kind: 'None' is unknown"),
        ({"model": 3}, r"model: must be a table"),
        ({"training": 3}, r"training: must be a table"),
    ],
)
def test_what_is_wrong_is_named(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Experiment.from_dict({"name": "x", **mapping})


def test_whole_numbers_are_accepted_where_a_fraction_is_expected() -> None:
    training = Experiment.from_dict({"name": "x", "training": {"minutes": 2, "learning_rate": 1}}).training
    assert (training.minutes, training.learning_rate) == (2, 1)


def test_a_name_is_needed() -> None:
    with pytest.raises(ExperimentError, match="name: missing"):
        Experiment.from_dict({})


def test_overrides_reach_into_sections_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[training]\nsteps = 5\nbatch = 3\n')
    changed = Experiment.read(
        path, {"training.steps": 7, "model.kind": "mlp", "name": "y", "growing.size": 9}
    )
    assert (changed.training.steps, changed.training.batch) == (7, 3)
    assert (changed.model, changed.name, changed.growing.size) == ({"kind": "mlp"}, "y", 9)
    with pytest.raises(ExperimentError, match=r"training\.setps"):
        Experiment.read(path, {"training.setps": 7})


def test_what_is_not_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"mine\.toml: not valid TOML: .*line 2"):
        Experiment.read(write(tmp_path, 'name = "x"\nsteps = = 3\n'))


def test_a_missing_experiment_lists_the_shipped_ones() -> None:
    assert module.names()
    with pytest.raises(ExperimentError, match="no experiment 'nonsense'") as caught:
        Experiment.read("nonsense")
    assert all(name in str(caught.value) for name in module.names())


def test_every_key_is_documented() -> None:
    fields = module.fields()
    assert {"training.steps", "diffusion.target", "growing.regime"} <= fields.keys()
    assert all(len(meaning) > 10 for _, meaning in fields.values())
    assert len({meaning for _, meaning in fields.values()}) == len(fields)
