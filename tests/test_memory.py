"""What cannot fit is refused before it is begun, with what it needs and what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nca_lib import memory
from nca_lib.baselines import VNCA
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import MLP, Denoiser, noise_schedule
from nca_lib.editing import interpolate
from nca_lib.errors import NCAError, TooLargeError, UsageError
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.training import train
from nca_lib.memory import available, check_memory
from nca_lib.samplers import sample

CPU = torch.device("cpu")
# Page faults of ten blocks of 64 MB, each freed before the next, after ten others.
FAULTS = """
import resource
import threading
import torch
import nca_lib

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    before = 0
    for turn in range(20):
        before = faults() if turn == 10 else before
        torch.ones(2**24)
    print(faults() - before)

{run}
"""
AUTOMATON = Denoiser(DiffNCA(8, 16, 2), noise_schedule("cosine", 20))


@pytest.fixture
def ten_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  99999999 kB\nMemAvailable:   10000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)


def test_what_is_available_is_the_lesser_of_the_machines_and_the_containers(
    tmp_path: Path, ten_megabytes: None
) -> None:
    assert available(CPU) == 10_240_000
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert available(CPU) == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available(CPU) == 10_240_000


def test_the_message_says_what_is_needed_and_what_there_is(ten_megabytes: None) -> None:
    check_memory(10_240_000, "it", "take less")
    with pytest.raises(TooLargeError, match=r"it: at least 20\.5 GB of memory.* cpu has 10\.2 MB; take less"):
        check_memory(20_480_000_000, "it", "take less")
    assert issubclass(TooLargeError, NCAError)


def test_images_that_do_not_fit_are_refused(ten_megabytes: None) -> None:
    assert sample(AUTOMATON, (32, 32), count=2, steps=1).shape == (2, 3, 32, 32)
    with pytest.raises(TooLargeError, match="1 image of 512x256: at least"):
        sample(AUTOMATON, (256, 512), steps=1)
    with pytest.raises(TooLargeError, match="200 images of 32x32"):
        interpolate(AUTOMATON, (0, 1), 200, (32, 32), steps=1)
    with pytest.raises(TooLargeError):
        sample(VNCA(8, 1, latent=12, hidden=8), (512, 512))


def test_more_is_needed_than_is_counted() -> None:
    # Counted from below: what PyTorch allocates in one call is more, but of the same size.
    network, noisy, time = DiffNCA(16, 256, 2, position=False), torch.zeros(1, 3, 64, 64), torch.zeros(1)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        network(noisy, time)
    events = [
        event.nbytes() for event in profile.profiler.kineto_results.events() if "[memory]" in event.name()
    ]
    held = peak = 0
    for change in events:
        held += change
        peak = max(peak, held)
    counted = 4 * 64 * 64 * network.numbers_per_pixel
    assert counted < peak < 8 * counted


@pytest.mark.parametrize(("count", "size"), [(0, (8, 8)), (1, (0, 8)), (-1, (8, 8)), (1, (8, -3))])
def test_no_images_are_refused(count: int, size: tuple[int, int]) -> None:
    for model in (AUTOMATON, Denoiser(MLP(8), noise_schedule()), VNCA(8, 1, latent=12, hidden=8)):
        with pytest.raises(UsageError):
            sample(model, size, count=count)


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("digits-mlp", {"model.width": 2000}, "model of .* parameters"),
        ("digits-mlp", {"model.width": 8, "training.batch": 100_000}, "100000 images of 8x8 in training"),
        ("growing-grow", {"growing.pool": 10_000}, "sample pool"),
        ("growing-grow", {"growing.pool": 8, "growing.max_rollout": 10_000}, "4 images of 32x32"),
    ],
)
def test_a_training_that_does_not_fit_is_refused(
    name: str, changes: dict[str, int], what: str, tmp_path: Path, ten_megabytes: None
) -> None:
    with pytest.raises(TooLargeError, match=what):
        train(Experiment.read(name, changes), tmp_path / "run", device="cpu", progress=False)


def test_checkpointing_fits_where_keeping_all_does_not(tmp_path: Path, ten_megabytes: None) -> None:
    changes = {"training.steps": 1, "training.batch": 2, "training.compile": False, "model.steps": 12}
    changes |= {"data.size": 16, "model.channels": 16, "model.hidden": 512, "training.bf16": False}
    with pytest.raises(TooLargeError, match="2 images of 16x16"):
        train(Experiment.read("web-tissue", changes), tmp_path, device="cpu", progress=False)
    changes["model.checkpointing"] = True
    train(Experiment.read("web-tissue", changes), tmp_path, device="cpu", progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_blocks_are_used_again_unless_the_environment_tunes_malloc() -> None:
    def faults(run: str = "work()", **environment: str) -> int:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", FAULTS.replace("{run}", run)]
        return int(subprocess.check_output(command, env=clean | environment, text=True))

    kept = faults()
    assert kept < 1000
    assert faults("thread = threading.Thread(target=work); thread.start(); thread.join()") < 1000
    assert faults(GLIBC_TUNABLES="glibc.malloc.perturb=0") > 100 * max(kept, 1)  # its default, but said
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > 100 * max(kept, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_was_kept_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []

    class Library:
        def malloc_trim(self, pad: int) -> None:
            trimmed.append(pad)

    monkeypatch.setattr(memory, "_glibc", Library)
    monkeypatch.setattr(memory, "available", lambda device: 1e9 if trimmed else 1e6)
    check_memory(5e8, "this", "wait")
    assert trimmed == [0]
    with pytest.raises(TooLargeError, match="of which cpu has 1 GB; wait"):
        check_memory(5e9, "this", "wait")
