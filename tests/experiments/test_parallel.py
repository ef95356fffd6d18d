"""Several processes, and several parts of a batch, learn what one learns."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from test_training import diffusing, growing

from nca_lib.experiments.parallel import Part, PartNoise, parts
from nca_lib.experiments.settings import Experiment, Training
from nca_lib.experiments.training import train
from nca_lib.noise import Purpose
from nca_lib.weights import record


def vnca(**training: Any) -> Experiment:
    model = {"kind": "vnca", "size": 8, "image_channels": 1, "latent": 12, "hidden": 8}
    data, options = {"kind": "digits", "size": 8}, diffusing(**training).to_dict()
    return Experiment.from_dict(options | {"model": model, "data": data})


def experiments(steps: int, compiled: bool = False) -> dict[str, Experiment]:
    options = {"steps": steps, "batch": 8, "decay": "reference"}  # a rate that does not depend on the steps
    return {
        "diffusing": diffusing(**options, compile=compiled),
        "growing": growing("regenerate", **options),
        "vnca": vnca(**options),
    }


def _one_of_several(rank: int, processes: int, folder: str, steps: int, resume: bool) -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="eager")  # within DDP, by a compiler that changes nothing
    meet = f"file://{folder}/meet-{steps}-{processes}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=processes)
    for name, experiment in experiments(steps, compiled=True).items():
        train(experiment, Path(folder) / name, device="cpu", progress=False, resume=resume)
        dist.barrier()
    dist.destroy_process_group()


def together(processes: int, folder: Path, steps: int, resume: bool = False) -> None:
    multiprocessing.set_forkserver_preload(["nca_lib.experiments.training"])  # imported once, not by each
    arguments = (processes, str(folder), steps, resume)
    mp.start_processes(_one_of_several, arguments, nprocs=processes, start_method="forkserver")


def assert_same_weights(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=tolerance, msg=name)


def test_two_and_then_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    for name, experiment in experiments(4).items():
        train(experiment, tmp_path / "alone" / name, device="cpu", progress=False)
    (tmp_path / "several").mkdir()
    together(2, tmp_path / "several", steps=2)
    together(4, tmp_path / "several", steps=4, resume=True)
    for name in experiments(4):
        assert_same_weights(tmp_path / "alone" / name, tmp_path / "several" / name)
        assert record(tmp_path / "several" / name / "model.safetensors")["hardware"].startswith("4 x ")


def test_accumulating_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for accumulate in (1, 4):
        options = diffusing(steps=4, batch=8, accumulate=accumulate)
        train(options, tmp_path / str(accumulate), device="cpu", progress=False)
    assert_same_weights(tmp_path / "1", tmp_path / "4")


def test_parts_make_up_the_whole() -> None:
    like = torch.empty(6, 3, 4, 5)
    torch.manual_seed(0)
    whole = torch.randn_like(like), torch.rand(6, 1, 4, 5)
    drawn = []
    for index in range(3):
        torch.manual_seed(0)
        noise = PartNoise(Part(index, 3))
        normal = noise.normal(like[:2], Purpose.START, 0)
        drawn.append((normal, noise.uniform(like[:2], Purpose.FIRING, 0, 0)))
    for expected, found in zip(whole, zip(*drawn, strict=True), strict=True):
        assert torch.equal(torch.cat(found), expected)


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    assert parts(Training(batch=8, accumulate=2)) == [Part(0, 2), Part(1, 2)]
    with pytest.raises(ValueError, match=r"batch is 9; 1 processes times training.accumulate = 2 .* of 2"):
        parts(Training(batch=9, accumulate=2))
    with pytest.raises(ValueError, match=r"training.accumulate: a growing automaton"):
        train(growing("grow", accumulate=2), tmp_path, device="cpu", progress=False)


KILLED = """
import os, signal, sys
from nca_lib.__main__ import main
from nca_lib.experiments.training import Run
count, calls = Run.count, []
def dying(run, *arguments):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    count(run, *arguments)
Run.count = dying
sys.exit(main(["train", sys.argv[1], "--out", sys.argv[2], "--device", "cpu"]))
"""


def test_where_one_process_is_killed_the_others_end_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(diffusing(steps=10**6).to_toml())
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "tiny.toml"), str(tmp_path / "run")]
    running = [
        subprocess.Popen(command, env=environment | ranks, stderr=subprocess.PIPE, text=True)
        for ranks in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [1, -9]
    assert "process 0 of 2: another process ended; the same command goes on from there" in said[0]
    assert "Traceback" not in said[0]
