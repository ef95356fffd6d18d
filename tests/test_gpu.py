"""`make gpu`: what only a GPU can show. Skipped elsewhere; rehearsed by `DEVICE=cpu pytest -m gpu`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_devices import DIFFUSING, experiment
from torch import Tensor

import nca_lib
from nca_lib.devices import arithmetic, compile_step
from nca_lib.experiments import state
from nca_lib.experiments.training import train
from nca_lib.noise import CounterNoise, firing_from
from nca_lib.samplers import SAMPLERS, sample

DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
there = DEVICE.type != "cuda" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not there, reason="no GPU")]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products in float32: what is compared here differs in rounding only."""
    with arithmetic(DEVICE, tf32=False, deterministic=False):
        yield


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Within the block, an operation that makes the host wait for the GPU is an error."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.cpu().float(), expected.cpu().float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DIFFUSING)
def test_loss_and_gradients_are_the_cpus(name: str) -> None:
    torch.manual_seed(0)
    model = experiment(name).build_model()
    clean, noise = (torch.rand(4, model.image_channels, 8, 8) * 2 - 1 for _ in range(2))
    found = {}
    for device in (torch.device("cpu"), DEVICE):
        model = model.to(device)
        model.zero_grad(set_to_none=True)
        with firing_from(model, CounterNoise(1)):
            loss = model.loss(clean.to(device), torch.arange(4, device=device) * 7, noise.to(device))
        loss.backward()
        found[device] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for here, on_cpu in zip(found[DEVICE], found[torch.device("cpu")], strict=True):
        close(here, on_cpu)


def test_addressed_numbers_are_the_cpus_bit_for_bit() -> None:
    noise, like = CounterNoise(3, first_sample=1, origin=(2, 5)), torch.zeros(2, 3, 6, 7)
    for here, on_cpu in zip(
        noise.firing_masks(like.to(DEVICE), 0.7, 9, 18), noise.firing_masks(like, 0.7, 9, 18), strict=True
    ):
        assert torch.equal(here.cpu(), on_cpu)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_are_the_cpus_and_never_wait(sampler: str) -> None:
    images = []
    for device in (torch.device("cpu"), DEVICE):
        model = nca_lib.load("faces-fourier", device)

        def draw(model: torch.nn.Module = model) -> Tensor:
            return sample(model, (32, 32), sampler=SAMPLERS[sampler], steps=6, count=2)

        draw()  # tables are on the device now
        with never_waiting() if device == DEVICE else contextlib.nullcontext():
            images.append(draw())
    close(images[1], images[0], 1e-2)  # rounding, through six calls of an automaton


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_samples_equal_eager_ones(graphs: bool) -> None:
    model = nca_lib.load("faces-fourier", DEVICE)
    expected = sample(model, (32, 32), steps=3, count=2)
    torch.compiler.reset()
    if graphs and DEVICE.type == "cuda":
        model.compile_step("max-autotune")  # with CUDA graphs
    else:
        compile_step(model, DEVICE)
    for _ in range(3):  # a graph is recorded in the second call, and replayed from the third on
        found = sample(model, (32, 32), steps=3, count=2)
    close(found, expected, 1e-2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_trains_as_float32_does(
    precision: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "computes_bf16", lambda device: precision == torch.bfloat16)
    losses = []
    for bf16 in (True, False):
        train(
            experiment("diff-nca", steps=30, bf16=bf16),
            folder := tmp_path / str(bf16),
            device=DEVICE,
            progress=False,
        )
        losses.append(nca_lib.weights.record(folder / "model.safetensors")["held_out_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        for steps in (4,) if name == "whole" else (2, 4):
            options = experiment("diff-nca", steps=steps, decay="reference", deterministic=True)
            train(options, tmp_path / name, device=DEVICE, progress=False, resume=True, resume_anyway=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_two_cards_learn_what_one_learns(tmp_path: Path) -> None:
    if DEVICE.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    options = experiment("fourier-diff-nca", steps=4, tf32=False, bf16=False)
    (tmp_path / "tiny.toml").write_text(options.to_toml())
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        place = ["--out", str(tmp_path / str(processes)), "--device", DEVICE.type]
        command = [sys.executable, *launch, "-m", "nca_lib", "train", str(tmp_path / "tiny.toml"), *place]
        subprocess.run(command, check=True, capture_output=True, env=os.environ, timeout=300)
    one, two = (load_file(tmp_path / str(n) / "model.safetensors") for n in (1, 2))
    for name in one:
        close(two[name], one[name])
