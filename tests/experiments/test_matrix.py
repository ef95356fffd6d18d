"""Every shipped experiment runs (tiny, same code path), rows are kept, interruption loses nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nca_lib import weights
from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.evaluation.metrics import Measure
from nca_lib.experiments import files, matrix
from nca_lib.experiments.files import ExperimentError
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.training import train
from nca_lib.fourier import FourierDiffNCA
from nca_lib.samplers import sample

TINY: dict[str, dict[str, Any]] = {
    "diff-nca": {"channels": 8, "hidden": 8, "steps": 1},
    "fourier-diff-nca": {"channels": 8, "hidden": 8, "steps": 1, "frequencies": 4},
    "unet": {"size": "S"},
    "vnca": {"size": 16, "latent": 16, "hidden": 16},
    "mlp": {"width": 8},
    "growing-nca": {"channels": 6, "hidden": 8},
}


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CelebA and BCSS of a few made pictures, in the layouts that the real ones have."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    for n in range(6):
        Image.fromarray(random.integers(0, 255, (218, 178, 3), np.uint8)).save(images / f"{n:06d}.jpg")
    (root / "celeba" / "list_eval_partition.txt").write_text(
        "".join(f"{n:06d}.jpg {n % 3}\n" for n in range(6))
    )
    bcss = root / "bcss"
    bcss.mkdir()
    for n in range(12):
        name = f"TCGA-A1-A0S{n:X}-DX1_xmin1_ymin1_MPP-0.2500.png"
        Image.fromarray(random.integers(0, 255, (80, 90, 3), np.uint8)).save(bcss / name)
    return {"celeba": str(root), "bcss": str(bcss)}


@pytest.mark.parametrize("name", files.names())
def test_every_shipped_experiment_trains_samples_and_is_read_back(
    name: str, tmp_path: Path, made_data: dict[str, str]
) -> None:
    full = Experiment.read(name)
    kind, data = full.model["kind"], full.data["kind"]
    overrides: dict[str, Any] = {f"model.{key}": value for key, value in TINY[kind].items()}
    context = full.model.get("context_channels", 0)
    if context:
        overrides["model.channels"] = 8 + 2 * context
    training = {"steps": 1, "minutes": None, "batch": 2, "compile": False, "workers": 0}
    training |= {"init_from": None, "teacher": None}  # whose sizes are not these
    overrides |= {f"training.{key}": value for key, value in training.items()}
    if kind == "growing-nca":
        overrides |= {
            "growing.size": 12,
            "growing.pool": 4,
            "growing.min_rollout": 1,
            "growing.max_rollout": 2,
        }
    else:
        overrides["data.size"] = 8 if kind == "mlp" else 16
    if data in made_data:
        overrides["data.root"] = made_data[data]
    tiny = Experiment.read(name, overrides)
    train(tiny, tmp_path, progress=False, device="cpu")
    model = weights.load(tmp_path / "model.safetensors")
    assert np.isfinite(weights.record(tmp_path / "model.safetensors")["held_out_loss"])
    if isinstance(model, GrowingNCA):
        return
    channels = tiny.build_data().channels
    if isinstance(model, VNCA):
        images = model.sample((16, 16), count=2)
    else:
        size = (8, 8) if kind == "mlp" else (16, 16)
        if context:
            model = model.given(torch.zeros(1, context, *size))
        images = sample(model, size, count=2, steps=2)
    assert images.shape[:2] == (2, channels)
    assert images.isfinite().all()


PUBLISHED = {
    "diff-nca-208k": 208_792,
    "diff-nca-336k": 336_528,
    "fourier-887k": 885_960,
    "fourier-526k": 524_768,
    "fourier-1.1m": 1_098_144,
    "fourier-1.85m": 1_845_792,
    "unet-s": 989_795,
    "unet-m": 3_940_547,
    "unet-l": 17_282_243,
    "vnca": 9_732_416,
}


@pytest.mark.parametrize("data", ["celeba", "bcss"])
def test_the_full_experiments_are_the_published_models_and_differ_in_data_and_steps_only(data: str) -> None:
    entries = matrix.read(data).entries
    assert [entry.name for entry in entries] == [f"{data}-{preset}" for preset in PUBLISHED]
    for entry, count in zip(entries, PUBLISHED.values(), strict=True):
        assert sum(p.numel() for p in entry.build_model().parameters()) == count
    for entry, other in zip(entries, matrix.read("celeba").entries, strict=True):
        assert entry.training == other.training
        assert entry.diffusion == other.diffusion
        assert {**entry.model, "steps": 0} == {**other.model, "steps": 0}


@pytest.mark.parametrize("name", files.matrices())
def test_every_shipped_matrix_is_read_and_takes_a_budget(name: str) -> None:
    for entry in matrix.read(name, minutes=8).entries:
        assert entry.training.minutes == 8


def test_each_ablation_switches_one_thing() -> None:
    reference, *others = matrix.read("ablations").entries

    def changes(entry: Experiment) -> set[str]:
        before, after = flat(reference.to_dict()), flat(entry.to_dict())
        return {key for key in before | after if before.get(key) != after.get(key)} - {"name"}

    others = [entry for entry in others if entry.training.seed == 0]
    for entry in others:
        if "improved" not in entry.name:
            assert len(changes(entry)) == 1, entry.name
    improved = next(entry for entry in others if entry.name == "digits-improved")
    singles = set().union(*(changes(e) for e in others if "improved" not in e.name))
    assert changes(improved) == {"diffusion.schedule", "training.optimizer"} < singles


def flat(mapping: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


SMALL = """
name = "small"

[evaluation]
protocol = "quick"
count = 150
steps = 2

[[entry]]
base = "digits-diff-nca"
name = "first"
training.steps = 2
training.snapshots = 0
training.compile = false
model.channels = 4
model.hidden = 8
model.steps = 1
data.size = 16

[[entry]]
base = "digits-vnca"
name = "second"
training.steps = 2
training.snapshots = 0
training.compile = false
model.size = 16
model.latent = 16
model.hidden = 16
data.size = 16
"""


def test_a_matrix_survives_interruption_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, table, said = tmp_path / "small.toml", tmp_path / "results.jsonl", []
    source.write_text(SMALL)
    small = matrix.read(source)

    def interrupted(experiment: Experiment, *args: Any, **kwargs: Any) -> nn.Module:
        if experiment.name == "second":
            raise KeyboardInterrupt
        return train(experiment, *args, progress=False, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(matrix, "train", interrupted)
        matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)
    assert [row["name"] for row in matrix.rows(table)] == ["first"]
    found = matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)
    assert [row["name"] for row in found] == ["first", "second"]
    assert said[-3:] == ["first: done before", "second: training", "second: evaluating model"]
    for row in found:
        assert json.loads(json.dumps(row)) == row
        assert row["matrix"] == "small"
        assert row["images_seen"] == 2 * row["experiment"]["training"]["batch"]
        assert row["recipe"]["counts"]["generated"] == 150
        assert set(row["metrics"]) == set(row["floor"])
        assert Image.open(tmp_path / "runs" / row["name"] / "samples.png").size > (100, 50)
    before = table.read_bytes()
    matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)
    assert table.read_bytes() == before


def small_matrix(tmp_path: Path, text: str) -> matrix.Matrix:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return matrix.read(path)


def first_only(text: str) -> str:
    return text[: text.rindex("[[entry]]")]


def test_seeds_train_each_entry_anew(tmp_path: Path) -> None:
    entries = small_matrix(tmp_path, "seeds = 2\n" + SMALL).entries
    assert [e.name for e in entries] == ["first", "first-seed-1", "second", "second-seed-1"]
    assert [e.training.seed for e in entries] == [0, 1, 0, 1]
    assert entries[0].model == entries[1].model
    assert small_matrix(tmp_path, SMALL).entries[0] == entries[0]


def test_snapshots_have_rows_of_their_own(tmp_path: Path) -> None:
    text = first_only(SMALL).replace(
        "training.steps = 2\ntraining.snapshots = 0", "training.steps = 8\ntraining.snapshots = 2"
    )
    small = small_matrix(tmp_path, text)
    found = matrix.run(small, tmp_path / "runs", tmp_path / "t.jsonl", device="cpu", progress=lambda _: None)
    assert [(row["weights"], row["steps"]) for row in found] == [
        ("model-0000002", 2),
        ("model-0000004", 4),
        ("model", 8),
    ]
    hashes = {row["recipe"]["model_sha256"] for row in found}
    assert len(hashes) == 3


def test_a_training_that_the_clock_ends_has_rows_of_the_snapshots_that_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = first_only(SMALL).replace(
        "training.steps = 2\ntraining.snapshots = 0", "training.steps = 8\ntraining.snapshots = 2"
    )
    (tmp_path / "small.toml").write_text(text)
    small, table, said = matrix.read(tmp_path / "small.toml", minutes=0.4), tmp_path / "t.jsonl", []
    ticks = itertools.count()  # one when training begins, and one for each step, of 8 seconds
    clock = SimpleNamespace(perf_counter=lambda: 8.0 * next(ticks))
    monkeypatch.setattr("nca_lib.experiments.training.time", clock)
    found = matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)
    assert [(row["weights"], row["steps"]) for row in found] == [("model-0000002", 2), ("model", 3)]
    assert matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append) == found
    assert said[-1] == "first: done before"


def test_what_diverges_has_a_row_that_says_so_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    text = """name = "grid"
[[entry]]
base = "digits-mlp"
name = "wild"
training.steps = 9
training.learning_rate = 1e30
training.clip = 1e30

[[entry]]
base = "digits-mlp"
name = "tame"
training.steps = 2
"""
    small = small_matrix(tmp_path, text)
    matrix.run(small, tmp_path / "runs", tmp_path / "table.jsonl", device="cpu", progress=lambda _: None)
    said: list[str] = []
    again = matrix.run(small, tmp_path / "runs", tmp_path / "table.jsonl", device="cpu", progress=said.append)
    wild, tame = again
    assert wild["name"] == "wild" and wild["diverged"].startswith("step ") and "sha256" not in wild
    assert str(tmp_path) not in wild["diverged"]
    assert "diverged" not in tame and "sha256" in tame
    assert said == ["wild: done before", "tame: done before"]


def test_a_row_older_than_a_setting_is_recognised(tmp_path: Path) -> None:
    table, small = tmp_path / "t.jsonl", small_matrix(tmp_path, first_only(SMALL))
    [row] = matrix.run(small, tmp_path / "runs", table, device="cpu", progress=lambda _: None)
    del row["experiment"]["training"]["tf32"]
    table.write_text(json.dumps(row) + "\n")
    said: list[str] = []
    matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)
    assert said == ["first: done before"]
    row["experiment"]["training"]["tf32"] = False
    table.write_text(json.dumps(row) + "\n")
    assert len(matrix.run(small, tmp_path / "runs", table, device="cpu", progress=said.append)) == 2


def test_another_evaluation_makes_other_rows_and_none_leaves_the_record(tmp_path: Path) -> None:
    table, places = tmp_path / "t.jsonl", (tmp_path / "runs", tmp_path / "t.jsonl")
    for text in (SMALL, SMALL.replace("count = 150", "count = 151")):
        matrix.run(small_matrix(tmp_path, first_only(text)), *places, device="cpu", progress=lambda _: None)
    assert [row["recipe"]["counts"]["generated"] for row in matrix.rows(table)] == [150, 151]
    bare = first_only(SMALL).replace('[evaluation]\nprotocol = "quick"\ncount = 150\nsteps = 2\n', "")
    matrix.run(small_matrix(tmp_path, bare), *places, device="cpu", progress=lambda _: None)
    row = matrix.rows(table)[-1]
    assert "metrics" not in row
    assert row["held_out_loss"] > 0


def test_an_entry_in_a_second_matrix_has_a_row_there_too(tmp_path: Path) -> None:
    places, said = (tmp_path / "runs", tmp_path / "t.jsonl"), []
    for text in (SMALL, SMALL.replace('name = "small"', 'name = "other"')):
        rows = matrix.run(
            small_matrix(tmp_path, first_only(text)), *places, device="cpu", progress=said.append
        )
        assert len(rows) == 1
    assert [row["matrix"] for row in matrix.rows(places[1])] == ["small", "other"]
    assert not [line for line in said if "done before" in line]
    one, other = ({k: v for k, v in row.items() if k != "matrix"} for row in matrix.rows(places[1]))
    assert one == other  # trained and evaluated once


@pytest.mark.parametrize("changed", ["model.hidden = 12", "training.steps = 3", "training.minutes = 0.1"])
def test_an_edited_entry_is_not_given_the_old_ones_weights(changed: str, tmp_path: Path) -> None:
    places = (tmp_path / "runs", tmp_path / "t.jsonl")
    matrix.run(small_matrix(tmp_path, first_only(SMALL)), *places, device="cpu", progress=lambda _: None)
    key = changed.split(" = ")[0]
    lines = [line for line in first_only(SMALL).splitlines() if not line.startswith(f"{key} =")]
    edited = small_matrix(tmp_path, "\n".join([*lines, changed]))
    with pytest.raises(ExperimentError, match=f"first holds a training with {key} = .*another --out"):
        matrix.run(edited, *places, device="cpu", progress=lambda _: None)
    assert len(matrix.rows(places[1])) == 1


def test_images_are_drawn_in_mixed_precision_and_measured_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features and judges in bf16 turn verdicts: 7 of 256 faces' did."""
    drawn, measured = set(), set()
    forward = Denoiser.forward

    def watched(self: Denoiser, *arguments: Tensor) -> Tensor:
        drawn.add(torch.is_autocast_enabled("cpu"))
        return forward(self, *arguments)

    def seen(self: Measure, images: Tensor) -> dict[str, Tensor]:
        measured.add((torch.is_autocast_enabled("cpu"), images.dtype))
        return measure(self, images)

    measure = Measure.__call__
    monkeypatch.setattr(Denoiser, "forward", watched)
    monkeypatch.setattr(Measure, "__call__", seen)
    monkeypatch.setattr(matrix, "computes_bf16", lambda device: True)
    small = small_matrix(tmp_path, first_only(SMALL))
    train(small.entries[0], tmp_path / "runs" / "first", progress=False, device="cpu")
    drawn.clear()
    (row,) = matrix.run(small, tmp_path / "runs", tmp_path / "t.jsonl", device="cpu", progress=lambda _: None)
    assert True in drawn
    assert measured == {(False, torch.float32)}
    assert row["recipe"]["precision"] == "bf16"


def test_operations_are_those_of_the_matrix_products() -> None:
    network = DiffNCA(8, 16, 3, weight_norm=False, modulation=False, position=False)
    denoiser = Denoiser(network, noise_schedule("cosine", 10))
    embedding = 8 * 256 + 256 * 4
    cell = 9 * 12 * 8 + 20 * 16 + 16 * 8
    assert matrix.operations(denoiser, 10) == 2 * 3 * (embedding + 100 * cell)


def test_the_published_models_cost_what_is_published() -> None:
    # Published are 38.7 and 10.4 GFLOP, without the nets of the conditioning: none here, and no position.
    options: dict[str, Any] = {"modulation": False, "position": False, "update_probability": 1}
    image, both = (kind(96, 512, 20, **options) for kind in (DiffNCA, FourierDiffNCA))
    cost = [matrix.operations(Denoiser(m, noise_schedule("cosine", 10)), 64) for m in (image, both)]
    assert cost[0] == pytest.approx(38.7e9, rel=0.01)
    assert cost[1] - cost[0] == pytest.approx(10.4e9, rel=0.02)


def test_what_is_told_is_counted_as_its_channels() -> None:
    torch.manual_seed(0)
    told, untold = (
        Denoiser(DiffNCA(24, 16, 2, context_channels=told), noise_schedule("cosine", 10), "v")
        for told in (4, 0)
    )
    assert matrix.operations(told, 8) == matrix.operations(untold, 8) > 0


WRONG = 'name = "x"\n[[entry]]\nname = "y"\n[evaluation]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"\n', r"a matrix has a name"),
        ('name = "x"\nseeds = 0\n[[entry]]\nname = "y"\n', "seeds: 0 is no whole number of at least 1"),
        (WRONG + "count = 0", r"evaluation\.count: 0 should be greater than 0"),
        (WRONG + "samplr = 'ddim'", r"evaluation\.samplr: unknown key; did you mean 'sampler'"),
        (WRONG + "sampler = 'euler'", r"evaluation\.sampler: 'euler' is not one of ddpm, ddim"),
        ('name = "x"\nevaluation = 3\n[[entry]]\nname = "y"\n', "a matrix has a name, seeds, .evaluation.,"),
        ('name = "x"\nentry = 3\n', "a matrix has a name"),
        ('name = "x"\n[[entry]]\nname = "../y"\n', "x/../y: name: '../y' is no name"),
        ('name = "x"\n[[entry]]\nname = "y"\ntraining.batch = 0\n', "x/y: training.batch: 0 should be"),
        ('name = "x"\n[[entry]]\nbase = "nonsense"\n', "no experiment 'nonsense'"),
        ('name = "x"\n[[entry]]\nbase = "growing-grow"\n', "x/growing-grow: a growing automaton draws no"),
        (
            'name = "x"\n[evaluation]\ncount = 9\n[[entry]]\nbase = "tissue-half"\n',
            "x/tissue-half: a level that is told a coarser one draws nothing alone",
        ),
        ('name = "x"\n[[entry]]\nname = "y"\nbase = "y"\n', "no experiment 'y'"),
        (
            'name = "x"\n' + '[[entry]]\nbase = "digits-mlp"\n' * 2,
            "more than one entry is named digits-mlp",
        ),
    ],
)
def test_a_wrong_matrix_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=message) as caught:
        matrix.read(path)
    assert "\n" not in str(caught.value).split(": not valid TOML")[0]


def test_unknown_matrices_and_entries_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no matrix 'nonsense'.*faces"):
        matrix.read("nonsense")
    with pytest.raises(ExperimentError, match=r"nope: no such entry in matrix faces"):
        matrix.run(matrix.read("faces"), tmp_path, tmp_path / "t.jsonl", only=["nope"])


def test_a_table_with_half_a_row_is_mended_and_garbage_is_named_by_line(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"a": 1}\n\n{"b": ')
    assert "half a row" in matrix.mend(table)
    assert matrix.rows(table) == [{"a": 1}]
    assert (tmp_path / "t.jsonl.half").read_text() == '{"b": '
    assert matrix.mend(table) == ""
    matrix._append(table, [{"c": 2}])
    assert matrix.rows(table) == [{"a": 1}, {"c": 2}]
    table.write_text('{"a": 1}\ngarbage\n{"c": 2}\n')
    with pytest.raises(ExperimentError, match="line 2: not a row of JSON"):
        matrix.rows(table)


def test_a_file_of_other_lines_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ExperimentError, match="a row of the table has no 'experiment'"):
        matrix.run(matrix.read("digits"), tmp_path, tmp_path / "t.jsonl")
