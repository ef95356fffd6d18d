"""Experiments: what is written is read back, and what is wrong is refused by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
from pydantic import Field

from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA
from nca_lib.data.images import Orientations
from nca_lib.diffusion import Denoiser
from nca_lib.experiments import files
from nca_lib.experiments import settings as module
from nca_lib.experiments.kinds import KINDS, arguments
from nca_lib.experiments.settings import Experiment, ExperimentError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", files.names())
def test_a_shipped_experiment_survives_a_round_trip_through_toml(name: str, tmp_path: Path) -> None:
    shipped = Experiment.read(name)
    assert shipped.name == name
    assert Experiment.read(write(tmp_path, shipped.to_toml())) == shipped
    assert Experiment.from_dict(shipped.to_dict()) == shipped


@pytest.mark.parametrize("name", files.names())
def test_a_shipped_experiment_can_be_built(name: str) -> None:
    assert isinstance(Experiment.read(name).build_model(), (Denoiser, GrowingNCA, VNCA))


def test_awkward_strings_survive_a_round_trip(tmp_path: Path) -> None:
    odd = Experiment.from_dict({"name": "x", "growing": {"picture": 'C:\\ü "🐞"\n.png'}})
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
        ({"data": {"kind": "folder"}}, r"data\.path: missing"),
    ],
)
def test_what_is_wrong_is_named(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Experiment.from_dict({"name": "x", **mapping})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.steps", -1, "greater than or equal to 0"),
        ("training.steps", 0, "takes weights from training.init_from"),
        ("training.minutes", 0, "greater than 0"),
        ("training.minutes", math.nan, "finite"),
        ("training.batch", 0, "greater than or equal to 1"),
        ("training.learning_rate", 0, "greater than 0"),
        ("training.muon_learning_rate", math.inf, "finite"),
        ("training.beta2", 1, "less than 1"),
        ("training.warmup", 0, "greater than or equal to 1"),
        ("training.clip", math.nan, "finite"),
        ("training.clip", 0.0, "greater than 0"),
        ("training.ema", 2, "less than 1"),
        ("training.ema", -0.1, "greater than or equal to 0"),
        ("training.seed", -1, "greater than or equal to 0"),
        ("training.seed", 2**63, "less than"),
        ("training.workers", -1, "greater than or equal to 0"),
        ("training.workers", 100_000, "less than or equal to 256"),
        ("training.log_every", 0, "greater than or equal to 1"),
        ("training.save_every", 0, "greater than or equal to 1"),
        ("training.sample_every", 0, "greater than or equal to 1"),
        ("training.snapshots", -1, "greater than or equal to 0"),
        ("training.init_from", "", "at least 1 character"),
        ("training.teacher", "", "at least 1 character"),
        ("diffusion.timesteps", 1, "greater than or equal to 2"),
        ("training.batch", 10**400, "less than or equal to 1000000"),
        ("growing.size", -3, "greater than or equal to 2"),
        ("growing.pool", 0, "greater than or equal to 1"),
        ("growing.min_rollout", 0, "greater than or equal to 1"),
        ("growing.min_rollout", 97, "is more than growing.max_rollout, 96"),
    ],
)
def test_numbers_out_of_range_are_refused_by_key(key: str, value: float, message: str) -> None:
    with pytest.raises(ExperimentError, match=rf"^{re.escape(f'{key}: {value!r}')} .*{message}") as caught:
        Experiment.from_dict(files.nested({"name": "x", key: value}))
    assert "\n" not in str(caught.value)


def test_sizes_beyond_any_machine_are_refused_by_key() -> None:
    said = {"name": "x", "model": {"kind": "diff-nca", "channels": 10**13}}
    with pytest.raises(ExperimentError, match=r"^model\.channels: 10000000000000 .*equal to 268435456"):
        Experiment.from_dict(said)


@pytest.mark.parametrize("section", ["model", "data"])
def test_every_number_of_every_model_and_data_set_has_a_range(section: str) -> None:
    checked = 0
    for kind, build in KINDS[section].items():
        required = {"path": "x"} if kind == "folder" else {"root": "x"} if kind == "bcss" else {}
        hints = get_type_hints(build.__init__, include_extras=True)
        for name in arguments(build):
            wrong = {float: [0.0, -1, 1.5, math.nan], int: [0, -3], int | None: [0, -3], Orientations: [0, 3]}
            wrong |= {Annotated[float, Field(gt=0)]: [0.0, -1], float | None: [0.0, -1.0]}
            least = int(name == "context_channels")  # 0 of them: a model that is told nothing
            for value in wrong.get(hints[name], [])[least:]:
                with pytest.raises(ExperimentError, match=rf"^{section}\.{name}: {value!r} "):
                    Experiment.from_dict({"name": "x", section: {"kind": kind, **required, name: value}})
                checked += 1
    assert checked > 20


def test_micrometres_are_no_probability() -> None:
    slides = {"kind": "slides", "path": "x", "mpp": 2.0, "slide_mpp": 2.5}
    assert Experiment.from_dict({"name": "x", "data": slides}).data == slides
    unset = Experiment.from_dict({"name": "x", "data": slides | {"slide_mpp": "none"}})
    assert unset.data["slide_mpp"] is None


def test_a_pool_smaller_than_a_batch_is_refused_where_there_is_one() -> None:
    small = {"name": "x", "growing": {"pool": 4}, "training": {"batch": 5}}
    assert Experiment.from_dict(small).growing.pool == 4
    with pytest.raises(ExperimentError, match=r"growing\.pool: 4 states are fewer than training\.batch, 5"):
        Experiment.from_dict({**small, "model": {"kind": "growing-nca"}})


@pytest.mark.parametrize(
    "name", ["../../escaped", "a/b", "a\\b", ".hidden", "-x", "", "a b", 'a"b', "ü", "🐞", "a\n"]
)
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(ExperimentError, match=r"^name: .* is no name") as caught:
        Experiment.from_dict({"name": name})
    assert "\n" not in str(caught.value)
    assert Experiment.from_dict({"name": "1.1m_A-b"}).name == "1.1m_A-b"


def test_what_may_be_unset_is_unset_by_none(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\ntraining = { minutes = 3, teacher = "a", init_from = "b" }\n')
    unset = {"training.minutes": "none", "training.teacher": "none", "training.init_from": "none"}
    assert Experiment.read(path).training.teacher == "a"
    assert Experiment.read(path, unset) == Experiment.from_dict({"name": "x"})
    fourier = {"name": "x", "model": {"kind": "fourier-diff-nca", "spectrum_steps": "none"}}
    assert Experiment.from_dict(fourier).model["spectrum_steps"] is None
    with pytest.raises(ExperimentError, match=r"training\.steps: 'none' is not of type int"):
        Experiment.read(path, {"training.steps": "none"})


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
    assert files.names()
    with pytest.raises(ExperimentError, match="no experiment 'nonsense'") as caught:
        Experiment.read("nonsense")
    assert all(name in str(caught.value) for name in files.names())


def test_every_key_is_documented() -> None:
    fields = module.fields()
    assert {"training.steps", "diffusion.target", "growing.regime"} <= fields.keys()
    assert all(len(meaning) > 10 for _, meaning in fields.values())
    assert len({meaning for _, meaning in fields.values()}) == len(fields)
    assert fields["training.batch"][0] == "int >= 1, <= 1000000"
    assert fields["training.ema"][0] == "float >= 0, < 1"
    assert fields["training.minutes"][0] == "float > 0 or none"
    assert fields["training.decay"][0] == "cosine or reference"
