"""How trainings stop and go on: damaged files, other settings, signals, a second process, a full disk."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import assert_same_run, checkpoint, diffusing

from nca_lib import weights
from nca_lib.errors import DataError, ExperimentError, OutputError, TrainingError
from nca_lib.experiments import checkpoints, tasks, training
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.training import train
from nca_lib.files import PARTIAL


def run(folder: Path, **options: Any) -> None:
    resume = {key: options.pop(key) for key in ("resume", "resume_anyway") if key in options}
    train(diffusing(**options), folder, device="cpu", progress=False, **resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of twelve steps, whose previous checkpoint is of step 8."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def edited(path: Path, **changes: Any) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in (state | changes).items() if value is not None}, path)


def poisoned(state: dict[str, Any]) -> dict[str, Any]:
    name = next(key for key, value in state.items() if value.is_floating_point())
    return state | {name: state[name] * math.nan}


def damage_of(kind: str, path: Path) -> None:
    state = torch.load(path, weights_only=True)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "garbage":
        path.write_bytes(os.urandom(4000))
    elif kind == "not a dictionary":
        torch.save([1], path)
    elif kind == "without its model":
        edited(path, model=None)
    elif kind == "without a tensor":
        edited(path, average={})
    elif kind == "a model of other shapes":
        edited(path, model={key: value.flatten() for key, value in state["model"].items()})
    elif kind == "NaN":
        edited(path, average=poisoned(state["average"]))
    elif kind == "moments of other shapes":
        for moments in state["optimizers"][0]["state"].values():
            moments["exp_avg"] = torch.zeros(3)
        torch.save(state, path)
    else:
        edited(path, optimizers=[])


DAMAGE = {
    "empty": "is empty",
    "truncated": "is truncated, or no checkpoint",
    "garbage": "is truncated, or no checkpoint",
    "not a dictionary": "holds a list",
    "without its model": "lacks model",
    "without a tensor": r"lacks average\.",
    "a model of other shapes": r"its model\..* instead of",
    "NaN": r"its average\..* is not finite",
    "moments of other shapes": "exp_avg is not that of a parameter",
    "no optimisers": "damaged",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_previous_one(
    kind: str, finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_of(kind, folder / "checkpoint.pt")
    run(folder, resume=True)
    said = capsys.readouterr().err.strip()
    assert re.search(rf"checkpoint\.pt: .*{DAMAGE[kind]}", said)
    assert "going on from checkpoint.previous.pt at step 8" in said
    assert "\n" not in said
    assert_same_run(finished, folder)


@pytest.mark.parametrize("kind", ["empty", "moments of other shapes"])
def test_where_none_is_whole_one_line_names_file_and_cure(kind: str, folder: Path) -> None:
    (folder / "checkpoint.previous.pt").unlink()
    damage_of(kind, folder / "checkpoint.pt")
    with pytest.raises(TrainingError, match=rf"checkpoint\.pt: .*{DAMAGE[kind]}.*another folder") as caught:
        run(folder, resume=True)
    assert "\n" not in str(caught.value)


def test_a_kill_between_two_generations_loses_nothing(finished: Path, folder: Path) -> None:
    (folder / "checkpoint.pt").replace(folder / "checkpoint.previous.pt")
    (folder / f"checkpoint.pt{PARTIAL}").write_bytes(b"half")
    run(folder, resume=True)
    assert (folder / "checkpoint.previous.pt").is_file()
    assert weights.record(folder / "model.safetensors")["steps"] == 12
    assert not list(folder.glob(f"*{PARTIAL}"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"learning_rate": 0.5}, r"training.learning_rate = 0.0016 \(not 0.5\)"),
        ({"seed": 1}, r"training.seed = 0 \(not 1\)"),
        ({"batch": 5}, r"training.batch = 4 \(not 5\)"),
    ],
)
def test_other_settings_are_refused_by_key_and_recorded_if_asked_for(
    changes: dict[str, Any], key: str, folder: Path
) -> None:
    with pytest.raises(ExperimentError, match=key):
        run(folder, resume=True, **changes)
    assert Experiment.read(folder / "experiment.toml") == diffusing()
    run(folder, resume=True, resume_anyway=True, steps=13, **changes)
    run(folder, resume=True, steps=14, **changes)
    (noted,) = weights.record(folder / "model.safetensors")["resumed_anyway"]
    assert noted["step"] == 12
    assert list(noted["changed"]) == [f"training.{next(iter(changes))}"]


def test_how_long_and_how_often_may_change(folder: Path) -> None:
    run(folder, resume=True, steps=14, minutes=5, save_every=3, log_every=7, workers=1)
    assert checkpoint(folder)["step"] == 14


def test_a_checkpoint_of_before_is_checked_by_the_folders_settings(folder: Path) -> None:
    edited(folder / "checkpoint.pt", experiment=None, threads=None, resumed_anyway=None, scaler=None)
    with pytest.raises(ExperimentError, match=r"training\.seed"):
        run(folder, resume=True, seed=2)
    run(folder, resume=True, steps=13)
    assert checkpoint(folder)["step"] == 13


def test_another_thread_count_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(folder / "checkpoint.pt", threads=77)
    run(folder, resume=True)
    assert "77 threads" in capsys.readouterr().out


def test_what_was_not_trained_yet_goes_on(folder: Path) -> None:
    start = str(folder / "model.safetensors")
    run(folder / "more", steps=0, init_from=start)
    run(folder / "more", steps=1, init_from=start, resume=True)
    assert checkpoint(folder / "more")["step"] == 1


TRAINER = """
import sys
import nca_lib.experiments.training as training
from nca_lib.__main__ import main
count = training.Run.count
def count_and_tell(run, *args):
    count(run, *args)
    if run.step == 6:
        print("step", flush=True)
        sys.stdin.readline()
training.Run.count = count_and_tell
sys.exit(main(["train", sys.argv[1], "--out", sys.argv[2], "--device", "cpu", *sys.argv[3:]]))
"""


def started(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    (tmp_path / "tiny.toml").write_text(diffusing().to_toml())
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "tiny.toml"), str(tmp_path / "run"), *more]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_after_its_step_with_all_saved(
    number: signal.Signals, status: int, finished: Path, tmp_path: Path
) -> None:
    process = started(tmp_path)
    process.send_signal(number)
    said, _ = process.communicate("\n", timeout=60)
    assert process.returncode == status
    assert "stopped after step 6" in said
    assert "--resume" in said
    assert checkpoint(tmp_path / "run")["step"] == 6
    run(tmp_path / "run", resume=True)
    assert_same_run(finished, tmp_path / "run")


def test_a_second_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    process = started(tmp_path)
    with pytest.raises(OutputError, match=rf"run is in use by process {process.pid} on "):
        run(tmp_path / "run", resume=True)
    process.kill()
    process.communicate()
    run(tmp_path / "run", resume=True)


def test_a_full_disk_ends_in_one_line_and_leaves_what_was_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def kept() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir() if "events" not in file.name}

    before = kept()
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left on device"):
        patch.setattr(os, "fsync", full)
        run(folder, resume=True, steps=14)
    assert kept() == before
    run(folder, resume=True, steps=14)
    assert checkpoint(folder)["step"] == 14


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot be written"):
        run(tmp_path / "file")


def test_what_the_data_cannot_read_is_not_said_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Any, n: int) -> torch.Tensor:
        raise FileNotFoundError(2, "No such file or directory", "leaf.png")

    monkeypatch.setattr(tasks.Stream, "__getitem__", gone)
    with pytest.raises(FileNotFoundError, match=r"leaf\.png"):
        run(tmp_path)


def test_where_compiling_fails_training_goes_on_uncompiled(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.exc import InductorError

    def broken(model: Any, device: Any) -> None:
        def fail(*args: Any) -> None:
            raise InductorError(OSError("/tmp/cache/x.so: file too short"), None)

        model.register_forward_pre_hook(fail)
        model.network.register_forward_pre_hook(fail)

    monkeypatch.setattr(training, "compile_step", broken)
    run(tmp_path, compile=True)
    said = capsys.readouterr().out
    assert "going on uncompiled" in said
    assert "file too short" in said
    assert "if it fails again, delete /" in said
    one, other = (weights.load(place / "model.safetensors").state_dict() for place in (finished, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_worker_that_cannot_read_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: Any, n: int) -> torch.Tensor:
        raise DataError("leaf.png: unreadable (truncated)")

    monkeypatch.setattr(tasks.Stream, "__getitem__", unreadable)
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            run(tmp_path, workers=workers)
        assert str(caught.value) == "leaf.png: unreadable (truncated)"


def test_a_default_that_is_spelt_out_is_no_other_setting() -> None:
    plain = Experiment.from_dict({"name": "x", "model": {"kind": "diff-nca"}, "data": {"kind": "faces"}})
    told = {"kind": "diff-nca", "weight_norm": True, "hidden": 512}
    older = Experiment.from_dict({"name": "x", "model": told, "data": {"kind": "faces"}})
    assert checkpoints.differences(plain, older) == {}
    other = Experiment.from_dict({"name": "x", "model": told | {"hidden": 8}, "data": {"kind": "faces"}})
    assert checkpoints.differences(plain, other) == {"model.hidden": (512, 8)}
