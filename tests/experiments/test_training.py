"""Training: bit-exact resume, the moving average, the guard against NaN, and the files it leaves."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from nca_lib import devices, fast, weights
from nca_lib.errors import DataError, ExperimentError, TrainingError, WeightsError
from nca_lib.experiments import state
from nca_lib.experiments.settings import Experiment, Training
from nca_lib.experiments.tasks import DiffusionTask
from nca_lib.experiments.training import Average, Run, _nonfinite, decay_factor, train


def diffusing(**training: Any) -> Experiment:
    """A training of a fraction of a second."""
    options = {"steps": 12, "save_every": 4, "batch": 4, "warmup": 2, "compile": False, "bf16": False}
    return Experiment.from_dict(
        {
            "name": "tiny",
            "model": {"kind": "diff-nca", "channels": 8, "hidden": 16, "steps": 2, "update_probability": 0.9},
            "data": {"kind": "tissue", "size": 8},
            "diffusion": {"timesteps": 30},
            "training": options | training,
        }
    )


def growing(regime: str, **training: Any) -> Experiment:
    options = {"steps": 12, "save_every": 4, "batch": 4, "warmup": 2, "compile": False, "bf16": False}
    sizes = {"size": 12, "pool": 8, "min_rollout": 3, "max_rollout": 5}
    return Experiment.from_dict(
        {
            "name": "tiny-growing",
            "model": {"kind": "growing-nca", "channels": 6, "hidden": 16},
            "growing": {"regime": regime, **sizes},
            "training": options | training,
        }
    )


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of a nested state, by its path."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}/{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    one, other = leaves(checkpoint(first)), leaves(checkpoint(second))
    one.pop("/seconds"), other.pop("/seconds")
    assert one.keys() == other.keys()
    assert {path.split("/")[1] for path in one} >= {"model", "average", "optimizers", "cpu_random", "step"}
    for path, value in one.items():
        same = torch.equal(value, other[path]) if isinstance(value, torch.Tensor) else value == other[path]
        assert same, path
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_where_training_cannot_begin_no_new_folder_stays(tmp_path: Path) -> None:
    kept = diffusing().to_dict()
    experiment = Experiment.from_dict(kept | {"data": {"kind": "folder", "path": "/nowhere"}})
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(DataError, match="/nowhere"):
            train(experiment, tmp_path / name, device="cpu", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


RUNS = {
    "diffusion": diffusing(),
    "muon": diffusing(optimizer="muon"),
    **{name: growing(name) for name in ("grow", "persist", "regenerate")},
}


@pytest.mark.parametrize("experiment", RUNS.values(), ids=RUNS)
def test_an_interrupted_run_continues_bit_for_bit(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(experiment, tmp_path / "straight", device="cpu", progress=False)

    step, calls = torch.optim.Adam.step, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return step(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.Adam, "step", interrupted)
        train(experiment, tmp_path / "broken", device="cpu", progress=False)
    assert checkpoint(tmp_path / "broken")["step"] == 4
    torch.manual_seed(99)  # the process has lived on
    train(experiment, tmp_path / "broken", device="cpu", progress=False, resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


KILLED = """
import sys, time
import nca_lib.experiments.training as training
from nca_lib.experiments.settings import Experiment
save = training.Run.save
def save_and_linger(run):
    save(run)
    print("saved", flush=True)
    time.sleep(60)
training.Run.save = save_and_linger
training.train(Experiment.read(sys.argv[1]), sys.argv[2], device="cpu", progress=False)
"""


def test_a_killed_process_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(diffusing().to_toml())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "tiny.toml"), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert checkpoint(tmp_path / "killed")["step"] == 4
    train(diffusing(), tmp_path / "killed", device="cpu", progress=False, resume=True)
    train(diffusing(), tmp_path / "straight", device="cpu", progress=False)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_resumed_run_goes_on_counting_seconds(tmp_path: Path) -> None:
    train(diffusing(steps=4), tmp_path, device="cpu", progress=False)
    spent = checkpoint(tmp_path) | {"seconds": 1000.0}
    torch.save(spent, tmp_path / "checkpoint.pt")
    train(diffusing(steps=6), tmp_path, device="cpu", progress=False, resume=True)
    assert 1000 < checkpoint(tmp_path)["seconds"] < 1600


def test_progress_is_reported_by_moving_averages(tmp_path: Path) -> None:
    nothing: Any = None
    task: Any = SimpleNamespace(model=nn.Linear(1, 1))
    run = Run(diffusing(batch=6), tmp_path / "in" / "depth", task, nothing, nothing, torch.device("cpu"))
    run.count(5.0, seconds=2.0)
    assert (run.step, run.seconds, run.smooth_loss, run.images_per_second) == (1, 2.0, 5.0, 3.0)
    run.count(10.0, seconds=2.5)  # 12 images a second
    assert (run.step, run.seconds) == (2, 2.5)
    assert run.smooth_loss == pytest.approx(0.98 * 5 + 0.02 * 10)
    assert run.images_per_second == pytest.approx(0.98 * 3 + 0.02 * 12)
    run.images_per_second = 0.0  # as after a resume
    run.count(10.0, seconds=4.5)
    assert run.smooth_loss == pytest.approx(0.98 * 5.1 + 0.02 * 10)
    assert run.images_per_second == 3.0


@pytest.mark.parametrize(("step", "seconds", "over"), [(1, 1800.0, 0.5), (8, 1800.0, 0.8), (10, 0.0, 1.0)])
def test_a_run_is_over_by_its_clock_or_its_steps_whichever_is_first(
    tmp_path: Path, step: int, seconds: float, over: float
) -> None:
    nothing: Any = None
    task: Any = SimpleNamespace(model=nn.Linear(1, 1))
    run = Run(diffusing(steps=10, minutes=60), tmp_path, task, nothing, nothing, torch.device("cpu"))
    run.step, run.seconds = step, seconds
    assert run.progress() == over


def test_a_run_uses_the_best_device_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cpu"))
    train(diffusing(steps=1), tmp_path, progress=False)
    assert weights.record(tmp_path / "model.safetensors")["hardware"].endswith("(cpu)")


def test_a_different_seed_makes_a_different_run(tmp_path: Path) -> None:
    first = train(diffusing(steps=2), tmp_path / "a", device="cpu", progress=False).state_dict()
    second = train(diffusing(steps=2, seed=1), tmp_path / "b", device="cpu", progress=False).state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_training_learns(optimizer: str, tmp_path: Path) -> None:
    options = {"optimizer": optimizer, "learning_rate": 0.01, "ema": 0.9}
    experiment = diffusing(steps=80, batch=16, save_every=1000, **options)
    task = DiffusionTask(experiment, torch.device("cpu"))
    torch.manual_seed(0)
    before = task.evaluate(experiment.build_model())
    trained = train(experiment, tmp_path, device="cpu", progress=False)
    assert task.evaluate(trained) < 0.7 * before


def test_a_growing_automaton_learns(tmp_path: Path) -> None:
    experiment = growing("grow", steps=60, learning_rate=0.01, save_every=1)
    train(experiment, tmp_path, device="cpu", progress=False)
    last = weights.record(tmp_path / "model.safetensors")["held_out_loss"]
    train(growing("grow", steps=1), tmp_path / "untrained", device="cpu", progress=False)
    assert last < 0.95 * weights.record(tmp_path / "untrained" / "model.safetensors")["held_out_loss"]


def test_a_loss_that_is_not_finite_stops_with_step_and_tensor_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = DiffusionTask.loss, 0

    def poisoned(task: DiffusionTask) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            with torch.no_grad():
                task.model.network.cell.narrow.bias[0] = math.nan
        return loss(task)

    monkeypatch.setattr(DiffusionTask, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"step 6: loss is nan.*network\.cell\.narrow\.bias"):
        train(diffusing(), tmp_path, device="cpu", progress=False)
    kept = leaves(checkpoint(tmp_path))
    assert kept["/step"] == 4
    assert all(leaf.isfinite().all() for leaf in kept.values() if isinstance(leaf, torch.Tensor))
    assert all(
        value.isfinite().all() for value in weights.load(tmp_path / "model.safetensors").state_dict().values()
    )


def test_what_is_not_finite_is_named() -> None:
    layer = nn.Linear(1, 1)
    layer(torch.ones(1, 1)).sum().backward()
    assert _nonfinite(layer) == "the loss alone"
    assert layer.bias.grad is not None
    layer.bias.grad[0] = math.inf
    assert _nonfinite(layer) == "the gradient of bias"
    with torch.no_grad():
        layer.weight[0] = math.nan
    assert _nonfinite(layer) == "parameter weight"


def test_a_run_that_explodes_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: .*first non-finite tensor"):
        train(diffusing(learning_rate=1e30, warmup=1), tmp_path, device="cpu", progress=False)


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_the_moving_average_warms_up_and_leaves_buffers_alone(decay: float) -> None:
    model = nn.BatchNorm1d(1)
    average = Average(model, decay)
    values, buffers = [3.0, -1.0, 5.0, 2.0], [10.0, 20.0, 30.0, 40.0]
    expected = values[0]  # the first update copies
    for n, (value, buffer) in enumerate(zip(values, buffers, strict=True)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(buffer)
        average.update_parameters(model)
        if n > 0:
            kept = min(decay, (1 + n) / (10 + n))
            expected = kept * expected + (1 - kept) * value
    assert average.module.weight.item() == pytest.approx(expected)
    assert float(average.module.running_mean) == buffers[-1]  # copied, never a mixture


def test_learning_rates_follow_their_closed_forms() -> None:
    reference = Training(decay="reference")
    assert decay_factor(reference, 0, 0) == 1
    assert decay_factor(reference, 5000, 0.5) == pytest.approx(0.9999**5000)
    cosine = Training(decay="cosine", warmup=10)
    assert decay_factor(cosine, 0, 0) == pytest.approx(0.1)
    assert decay_factor(cosine, 9, 0) == pytest.approx(1)
    assert decay_factor(cosine, 100, 0.5) == pytest.approx(0.5)
    assert decay_factor(cosine, 100, 1 / 3) == pytest.approx(0.75)
    assert decay_factor(cosine, 100, 1.0) == pytest.approx(0, abs=1e-12)
    assert decay_factor(cosine, 100, 1.2) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("clip", "beta2"), [(0.01, 0.99), (0.02, 0.9)])
def test_adam_is_given_clipped_gradients_and_the_rates_asked_for(
    tmp_path: Path, clip: float, beta2: float
) -> None:
    experiment = diffusing(steps=1, clip=clip, beta2=beta2, learning_rate=0.01, warmup=5)
    train(experiment, tmp_path, device="cpu", progress=False)
    (optimizer,) = checkpoint(tmp_path)["optimizers"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.01 / 5)
    moments = optimizer["state"].values()
    gradients = [moment["exp_avg"] / 0.1 for moment in moments]  # after one step the mean is (1 - 0.9) g
    assert float(nn.utils.get_total_norm(gradients)) == pytest.approx(clip, rel=1e-3)
    for gradient, moment in zip(gradients, moments, strict=True):
        expected = (1 - beta2) * gradient**2
        torch.testing.assert_close(moment["exp_avg_sq"], expected, atol=0, rtol=1e-4)


def test_muon_and_adam_have_rates_of_their_own(tmp_path: Path) -> None:
    rates = {"learning_rate": 0.01, "muon_learning_rate": 0.03}
    experiment = diffusing(optimizer="muon", steps=1, warmup=5, **rates)
    train(experiment, tmp_path, device="cpu", progress=False)
    used = [optimizer["param_groups"][0]["lr"] for optimizer in checkpoint(tmp_path)["optimizers"]]
    assert used == pytest.approx([0.03 / 5, 0.01 / 5])


def test_gradients_below_the_norm_are_not_clipped(tmp_path: Path) -> None:
    norms = []
    for clip in (1e3, 1e6):
        train(diffusing(steps=1, clip=clip), tmp_path / str(clip), device="cpu", progress=False)
        moments = checkpoint(tmp_path / str(clip))["optimizers"][0]["state"].values()
        norms.append(float(nn.utils.get_total_norm([moment["exp_avg"] / 0.1 for moment in moments])))
    assert norms[0] == norms[1] > 0.1


@pytest.mark.parametrize(
    ("asked", "able", "dtype"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_layers_compute_in_bf16_where_it_is_asked_for_and_native(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, able: bool, dtype: torch.dtype
) -> None:
    multiply, seen = fast._multiply, set()

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        output = multiply(*arguments)
        if torch.is_grad_enabled():  # in training, not in the evaluation that follows
            seen.add(output.dtype)
        return output

    monkeypatch.setattr(fast, "_multiply", watched)
    monkeypatch.setattr(state, "computes_bf16", lambda device: able)
    model = train(diffusing(steps=1, bf16=asked), tmp_path, device="cpu", progress=False)
    assert seen == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_run_leaves_its_files_and_returns_the_averaged_model(tmp_path: Path) -> None:
    experiment = diffusing(sample_every=6, log_every=3)
    model = train(experiment, tmp_path, device="cpu", progress=False)
    names = {re.sub(r"tfevents.*", "tfevents", file.name) for file in tmp_path.iterdir()}
    expected = {"model.safetensors", "model.json", "experiment.toml", "events.out.tfevents", ".lock"}
    expected |= {"checkpoint.pt", "checkpoint.previous.pt"}
    assert names == expected | {"samples-0000006.png", "samples-0000012.png"}
    with Image.open(tmp_path / "samples-0000012.png") as grid:
        assert grid.size == (4 * 10 + 2, 2 * 10 + 2)
    assert Experiment.read(tmp_path / "experiment.toml") == experiment
    events = EventAccumulator(str(tmp_path)).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    regular = ("loss", "learning_rate", "images_per_second")
    assert steps == {tag: [3, 6, 9, 12] for tag in regular} | {"held_out_loss": [12]}
    assert [event.step for event in events.Images("samples")] == [6, 12]

    loaded, state = weights.load(tmp_path / "model.safetensors").state_dict(), checkpoint(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value)
        assert torch.equal(state["average"][f"module.{name}"], value)
    assert any(not torch.equal(state["model"][name], value) for name, value in loaded.items())
    record = weights.record(tmp_path / "model.safetensors")
    assert (record["steps"], record["images_seen"], record["seed"]) == (12, 48, 0)


def test_snapshots_are_the_averaged_weights_at_halves_of_the_steps(tmp_path: Path) -> None:
    train(diffusing(steps=8, snapshots=2), tmp_path / "whole", device="cpu", progress=False)
    kept = {
        path.name: weights.record(path)["steps"] for path in (tmp_path / "whole").glob("model*.safetensors")
    }
    assert kept == {"model-0000002.safetensors": 2, "model-0000004.safetensors": 4, "model.safetensors": 8}
    halfway = checkpoint(tmp_path / "whole")["average"]
    early = weights.load(tmp_path / "whole" / "model-0000004.safetensors").state_dict()
    assert any(not torch.equal(early[name], halfway[f"module.{name}"]) for name in early)

    def stopped(run: Run) -> float:
        return 1.0 if run.step == 4 else run.step / 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "progress", stopped)
        train(diffusing(steps=8, snapshots=2), tmp_path / "half", device="cpu", progress=False)
    expected = weights.load(tmp_path / "half" / "model.safetensors").state_dict()
    assert all(torch.equal(early[name], expected[name]) for name in early)


def test_fewer_timesteps_than_a_preview_takes_train_too(tmp_path: Path) -> None:
    short = Experiment.from_dict(diffusing().to_dict() | {"diffusion": {"timesteps": 20}})
    train(short, tmp_path, device="cpu", progress=False)
    assert weights.record(tmp_path / "model.safetensors")["steps"] == 12
    assert (tmp_path / "samples-0000012.png").is_file()


def test_what_was_learnt_is_saved_before_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: DiffusionTask, model: nn.Module) -> None:
        raise RuntimeError("no preview")

    monkeypatch.setattr(DiffusionTask, "preview", fails)
    with pytest.raises(RuntimeError, match="no preview"):
        train(diffusing(save_every=100), tmp_path, device="cpu", progress=False)
    assert weights.record(tmp_path / "model.safetensors")["steps"] == checkpoint(tmp_path)["step"] == 12


def test_training_can_start_from_trained_weights(tmp_path: Path) -> None:
    train(diffusing(), tmp_path / "first", device="cpu", progress=False)
    start = str(tmp_path / "first" / "model.safetensors")
    same = train(diffusing(steps=0, init_from=start), tmp_path / "same", device="cpu", progress=False)
    further = train(diffusing(steps=1, init_from=start), tmp_path / "further", device="cpu", progress=False)
    for name, value in weights.load(start).state_dict().items():
        assert torch.equal(same.state_dict()[name], value)
    away = [(a - b).abs().max() for a, b in zip(same.parameters(), further.parameters(), strict=True)]
    assert 0 < max(away) < 2e-3  # Adam's first step is no longer than its learning rate
    record = weights.record(tmp_path / "same" / "model.safetensors")
    assert (record["steps"], record["images_seen"], record["training_loss"]) == (0, 0, None)
    assert record["held_out_loss"] > 0


def test_a_training_goes_on_without_the_weights_that_it_began_with(tmp_path: Path) -> None:
    train(diffusing(steps=1), tmp_path / "first", device="cpu", progress=False)
    start = (tmp_path / "first" / "model.safetensors").rename(tmp_path / "start.safetensors")
    train(diffusing(steps=2, init_from=str(start)), tmp_path / "run", device="cpu", progress=False)
    start.unlink()
    further = diffusing(steps=3, init_from=str(start))
    train(further, tmp_path / "run", device="cpu", progress=False, resume=True)
    assert checkpoint(tmp_path / "run")["step"] == 3
    with pytest.raises(WeightsError, match=r"no weights .*start\.safetensors"):
        train(further, tmp_path / "anew", device="cpu", progress=False)


def test_weights_of_another_model_are_no_start(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"^training.init_from: digits-mlp is another model: .*key.*$"):
        train(diffusing(init_from="digits-mlp"), tmp_path, device="cpu", progress=False)


def test_a_student_learns_what_its_teacher_predicts(tmp_path: Path) -> None:
    def certain(**training: Any) -> Experiment:
        options = diffusing(**training).to_dict()
        return Experiment.from_dict(options | {"model": options["model"] | {"update_probability": 1.0}})

    train(certain(steps=40), tmp_path / "teacher", device="cpu", progress=False)
    teacher = str(tmp_path / "teacher" / "model.safetensors")
    wise, ignorant = weights.load(teacher), certain().build_model()
    torch.manual_seed(0)
    clean, noise = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    t = torch.tensor([3, 10, 20, 28])
    assert wise.loss(clean, t, noise, teacher=wise) == 0
    assert wise.loss(clean, t, noise) > 0

    student = train(certain(steps=150, teacher=teacher), tmp_path / "student", device="cpu", progress=False)
    distance = student.loss(clean, t, noise, teacher=wise)
    assert distance < 0.3 * ignorant.loss(clean, t, noise, teacher=wise)


def test_a_teacher_of_another_target_is_refused(tmp_path: Path) -> None:
    train(diffusing(), tmp_path, device="cpu", progress=False)
    other = diffusing(teacher=str(tmp_path / "model.safetensors")).to_dict()
    other["diffusion"]["target"] = "x0"
    with pytest.raises(ValueError, match="must have the same target"):
        train(Experiment.from_dict(other), tmp_path / "student", device="cpu", progress=False)
    grower = diffusing(teacher="growing-grow")
    with pytest.raises(ValueError, match="growing-grow is no denoiser"):
        train(grower, tmp_path / "student", device="cpu", progress=False)


def test_a_run_by_the_clock_stops_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # one when training begins, and one for each step, of 8 seconds
    clock = SimpleNamespace(perf_counter=lambda: 8.0 * next(ticks))
    monkeypatch.setattr("nca_lib.experiments.training.time", clock)
    experiment = diffusing(steps=10**9, minutes=1, save_every=10**9)
    train(experiment, tmp_path, device="cpu", progress=False)
    assert checkpoint(tmp_path)["step"] == 8  # 64 seconds, the first that are a minute


def test_a_compiled_run_saves_plain_names(tmp_path: Path) -> None:
    tiny = diffusing(steps=1, compile=True).to_dict()
    tiny["model"] |= {"steps": 1, "weight_norm": False, "modulation": False}
    train(Experiment.from_dict(tiny), tmp_path, device="cpu", progress=False)
    assert not [path for path in leaves(checkpoint(tmp_path)) if "_orig_mod" in path]
    weights.load(tmp_path / "model.safetensors")
