"""`run` and `evaluate` by several processes: the rows of one process; one line where another is killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nca_lib.__main__ import main
from nca_lib.evaluation.metrics import Measure, measurements
from nca_lib.experiments import matrix

SMALL = """
name = "small"

[evaluation]
protocol = "quick"
count = 100
steps = 2

[[entry]]
base = "digits-diff-nca"
name = "tiny"
training.steps = 2
training.batch = 8
training.snapshots = 1
training.compile = false
training.bf16 = false
model.channels = 4
model.hidden = 8
model.steps = 1
data.size = 16
"""


def run(folder: Path) -> list[str]:
    (folder / "small.toml").write_text(SMALL)
    places = ["--out", f"{folder}", "--table", f"{folder}/table.jsonl"]
    return ["run", f"{folder}/small.toml", *places, "--device", "cpu"]


EVALUATE = ["evaluate", "digits-mlp", "--count", "100", "--steps", "2", "--device", "cpu"]


def _one_of_two(rank: int, folder: str, port: int, killed: bool, command: list[str]) -> None:
    """What torchrun starts, without its seconds of imports."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if killed and rank == 1:
        Measure.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    out, err = (open(f"{folder}/{rank}.{name}", "w") for name in ("out", "err"))  # noqa: SIM115
    with out, err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    sys.exit(status)


def together(folder: Path, port: int, command: list[str], killed: bool = False) -> list[int | None]:
    """The exit statuses of two processes; what they said is in the folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nca_lib.__main__", "nca_lib.experiments.matrix"])
    running = [
        context.Process(target=_one_of_two, args=(rank, str(folder), port, killed, command))
        for rank in range(2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


def assert_same_measurements(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for part in ("metrics", "floor"):
        assert measurements(one[part]) == pytest.approx(measurements(other[part]), rel=tolerance, abs=1e-6)


def test_two_processes_make_the_rows_of_one(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    assert together(tmp_path, 29518, run(tmp_path)) == [0, 0]
    assert main(run(alone)) == 0
    ones, severals = (matrix.rows(folder / "table.jsonl") for folder in (alone, tmp_path))
    assert [row["weights"] for row in severals] == ["model-0000001", "model"]
    for one, several in zip(ones, severals, strict=True):
        assert one["experiment"] == several["experiment"]
        assert one["held_out_loss"] == pytest.approx(several["held_out_loss"], rel=1e-3)
        assert_same_measurements(one, several, 1e-2)  # a rounded weight may move a pixel by a grey level
    assert (tmp_path / "0.out").read_text().count("tiny: training") == 1
    assert not (tmp_path / "1.out").read_text()


def test_two_processes_evaluate_as_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [*EVALUATE, "--folder", str(tmp_path / "kept")]
    assert together(tmp_path, 29519, kept) == [0, 0]
    several = json.loads((tmp_path / "0.out").read_text())
    assert not (tmp_path / "1.out").read_text()
    assert main(EVALUATE) == 0
    one = json.loads(capsys.readouterr().out)
    assert_same_measurements(one, several, 1e-6)
    assert one["recipe"] == several["recipe"]
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".json"]


def test_where_one_process_is_killed_in_an_evaluation_the_other_ends_with_one_line(tmp_path: Path) -> None:
    assert together(tmp_path, 29520, run(tmp_path), killed=True) == [1, -signal.SIGKILL]
    last = (tmp_path / "0.err").read_text().splitlines()[-1]
    assert last.startswith("nca_lib run: process 0 of 2: another process ended; the same command goes on")
    assert "Traceback" not in (tmp_path / "0.err").read_text()
    assert not (tmp_path / "table.jsonl").exists()
