"""What a training is predicted to cost: its work in closed form, its memory, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nca_lib import weights
from nca_lib.__main__ import main
from nca_lib.errors import ExperimentError, UsageError
from nca_lib.experiments import cost
from nca_lib.experiments.cost import (
    COUNTED,
    DEVICES,
    Device,
    Work,
    _Meter,
    device_named,
    predict,
    table,
    work_of,
)
from nca_lib.experiments.files import names
from nca_lib.experiments.matrix import operations, read
from nca_lib.experiments.settings import Experiment

ROOT = Path(__file__).parents[2]


def automaton(channels: int = 8, hidden: int = 16, size: int = 12, **more: Any) -> Experiment:
    sizes = {"channels": channels, "hidden": hidden, "steps": 3, "position": False, "modulation": False}
    model = {"kind": "diff-nca", **sizes, **more.pop("model", {})}
    training = {"steps": 1000, "batch": 16, "bf16": False} | more
    data = {"kind": "tissue", "size": size}
    return Experiment.from_dict({"name": "tiny", "model": model, "data": data, "training": training})


def products_of(channels: int, hidden: int, size: int) -> float:
    """Of three steps' cells, two operations a weight, thrice: forward, and for both gradients."""
    weights = 9 * channels**2 + 2 * channels * hidden + hidden * channels
    return 3 * 2 * 3 * size**2 * weights


@pytest.mark.parametrize(("channels", "hidden", "size"), [(32, 64, 16), (32, 128, 16), (32, 64, 32)])
def test_operations_are_the_closed_form(channels: int, hidden: int, size: int) -> None:
    found = work_of(automaton(channels, hidden, size)).operations
    # The first step's state needs no gradient; folding and embedding are a few products of small matrices.
    assert found == pytest.approx(products_of(channels, hidden, size), rel=0.1)


def test_checkpointing_takes_more_operations_and_less_memory() -> None:
    kept, recomputed = (work_of(automaton(model={"checkpointing": on, "steps": 12})) for on in (False, True))
    assert 1.2 < recomputed.operations / kept.operations < 1.4  # four passes instead of three
    assert recomputed.memory < 0.4 * kept.memory


def test_low_precision_halves_the_traffic_of_products() -> None:
    full, low = (work_of(automaton(32, 64, bf16=on)) for on in (False, True))
    assert low.operations == full.operations
    assert 0.45 < low.bytes / full.bytes < 0.65


def test_memory_is_what_is_held_at_once() -> None:
    with _Meter() as meter:
        first = torch.ones(1000)
        second = first.view(10, 100)  # no memory of its own
        del first
        third = second * 2
        del second
        fourth = third * 2
    assert fourth.sum() == 4000
    assert meter.peak == 2 * 4000
    assert meter.held == 2 * 4000


@pytest.mark.parametrize(
    "name", ["growing-grow", "digits-vnca", "digits-mlp", "digits-by-class", "tissue-full"]
)
def test_every_kind_of_model_is_counted(name: str) -> None:
    overrides = {"growing.min_rollout": 2, "growing.max_rollout": 2} if name == "growing-grow" else {}
    work = work_of(Experiment.read(name, overrides))
    assert min(work.operations, work.bytes, work.memory, work.parameters) > 0


def test_a_student_takes_its_teachers_forward_pass_too() -> None:
    taught = Experiment.read("tissue-distil-5", {"data.size": 16})
    alone = Experiment.read("tissue-distil-5", {"data.size": 16, "training.teacher": "none"})
    more = work_of(taught).operations - work_of(alone).operations
    teacher = Experiment.from_dict(weights.record("tissue-diff-nca")["experiment"]).build_model()
    assert more == pytest.approx(operations(teacher, 16), rel=0.1)
    assert work_of(taught).parameters == work_of(alone).parameters
    with pytest.raises(ExperimentError, match="growing-grow is no denoiser"):
        work_of(Experiment.read("tissue-distil-5", {"training.teacher": "growing-grow"}))


def test_a_size_that_nobody_says_is_the_datas() -> None:
    model = {"kind": "diff-nca", "channels": 8, "hidden": 8, "steps": 1}
    sizes = [{}, {"size": 8}, {"size": 16}]
    said = [{"name": "x", "model": model, "data": {"kind": "digits"} | size} for size in sizes]
    default, eight, sixteen = (work_of(Experiment.from_dict(each)).operations for each in said)
    assert default == eight < sixteen


UNIT = Device("a unit", 1e9, 1e9, 1e6, 0.0, 2.0, "made up")


def test_time_is_work_over_rates_and_never_less_than_the_host_needs() -> None:
    experiment = automaton()
    work = work_of(experiment)
    cost = predict(experiment, UNIT)
    step = 16 * (work.operations + work.bytes) / 1e9 + 40 * work.parameters / 1e9
    assert cost.seconds_per_step == pytest.approx(step)
    assert cost.images_per_second == pytest.approx(16 / step)
    assert cost.hours == pytest.approx(1000 * step / 3600)
    assert cost.dollars == pytest.approx(2 * cost.hours)
    slow = predict(experiment, replace(UNIT, launch=1.0))
    assert slow.seconds_per_step == pytest.approx(2 * work.products, rel=1e-3)
    assert predict(automaton(minutes=30.0), UNIT).hours == 0.5
    parts = predict(automaton(accumulate=4), UNIT)
    assert parts.memory == pytest.approx(20 * work.parameters + 4 * work.memory)
    assert COUNTED == 4


def test_the_command_says_what_is_predicted_and_on_what_basis(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "digits-mlp", "--device", "l4", "--price", "1.5", "--training.steps", "1000"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("predicted ")
    assert "digits-mlp" in said
    assert "data sheet (121 TFLOP/s, 300 GB/s), of which 40% and 70% are assumed" in said
    assert "here $1.50" in said


def test_the_books_table_is_the_cost_modules_of_every_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cost, "_counted", lambda toml: Work(1e12, 1e9, 2**30, 100, 10**6)
    )  # counted elsewhere
    page = json.loads((ROOT / "book" / "published_experiments.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]
    (cell,) = (source for source in sources if "table(" in source)
    exec(cell, {"read": read, "predict": predict, "table": table, "device_named": device_named})
    lines = capsys.readouterr().out.splitlines()
    published = {name for name in names() if name.startswith(("celeba-", "bcss-"))}
    assert {line.split()[0] for line in lines[1:-1]} == published
    assert len(published) == 20
    assert lines[0].split() == ["predicted", "hours", "memory", "images/s", "dollars"]
    assert lines[-1].startswith("NVIDIA A100")
    for assumed in ("data sheet (312 TFLOP/s, 2,039 GB/s)", "40% and 70%", "$2.00 an hour"):
        assert assumed in lines[-1]
    for line in lines[1:-1]:
        images, hours = Experiment.read(line.split()[0]).training, float(line.split()[1])
        rate = float(line.split()[4].replace(",", ""))
        assert hours == pytest.approx(images.steps * images.batch / rate / 3600, rel=0.02)


def test_what_the_page_says_of_predicted_and_measured_steps_is_in_the_file() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "cost-cpu.json").read_text())
    ratios = {name: row["ratio"] for name, row in kept["seconds of a step"].items()}
    assert ratios.pop("faces-unet") == pytest.approx(0.25, abs=0.03)  # narrow UNets: four times as long
    assert all(0.75 < ratio < 1.25 for ratio in ratios.values())
    assert kept["apart"] > 4


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = table([predict(automaton(), replace(UNIT, memory=10.0))])
    assert "too much: raise training.accumulate" in said
    assert "too much" not in table([predict(automaton(), DEVICES["h100"])])


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'b200' is unknown; choose one of h100, a100, l4, t4, or here"):
        device_named("b200")


def test_this_machine_is_measured() -> None:
    here = device_named("here")
    assert 1e9 < here.products < 1e14
    assert 1e8 < here.bandwidth < 1e13
    assert here.dollars is None
