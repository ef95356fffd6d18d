"""What would fail in the first ten minutes on a machine with several GPUs, or with old ones."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from emulator import Emulator
from test_devices import MODELS, experiment
from torch import Tensor, nn

from nca_lib.automaton import rollout
from nca_lib.devices import forked_random
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import DivergedError, ParallelError
from nca_lib.experiments import checkpoints, training
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.processes import own_gpu, processes

Patch = pytest.MonkeyPatch


@pytest.fixture
def two_gpus(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.usefixtures("two_gpus")
def test_each_process_takes_its_own_gpu(monkeypatch: Patch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpu(None) == own_gpu("cuda") == torch.device("cuda", 1)
    assert own_gpu("cpu") is None
    with pytest.raises(ParallelError, match="'cuda:0': of several processes each takes a GPU of its own"):
        own_gpu("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ParallelError, match=r"2 GPUs here are too few for process 2 .*--nproc-per-node 2"):
        own_gpu(None)
    assert own_gpu("cpu") is None


@pytest.mark.usefixtures("two_gpus")
def test_processes_part_in_peace_or_not_at_all(monkeypatch: Patch) -> None:
    """NCCL's farewell waits for all; after an error some may be gone."""
    began, ended = {}, []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda backends, **how: began.update(how, on=backends))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(1))
    with processes():
        pass
    assert (began["on"], began["device_id"]) == ("cpu:gloo,cuda:nccl", torch.device("cuda", 1))
    with pytest.raises(SystemExit), processes("cuda"):
        raise SystemExit(143)
    assert len(ended) == 2
    for error, shown in (
        (RuntimeError("NCCL error: remote"), ParallelError),
        (DivergedError(), DivergedError),
    ):
        with pytest.raises(shown), processes():
            raise error
    assert len(ended) == 2
    with processes("cpu"):
        pass
    assert (began["on"], began["device_id"]) == ("gloo", None)


def test_a_training_touches_no_other_gpu(tmp_path: Path, monkeypatch: Patch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(training.Run, "save", lambda run: run.task.evaluate(run.average.module))
    with Emulator() as gpu:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        states = torch.cuda.get_rng_state
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: (asked.append(where), states())[1])
        for name in ("diff-nca", "growing-nca", "vnca"):
            options = experiment(name, steps=1, sample_every=1)
            training.train(options, tmp_path / name, device=gpu.device, progress=False)
    assert set(asked) == {gpu.device}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_numbers_within_a_fork_do_not_count(kind: str) -> None:
    with Emulator(kind) as gpu:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        with forked_random(gpu.device):
            torch.manual_seed(5), torch.rand(7)
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_parts_of_a_batch_learn_what_the_whole_learns_on_a_device(
    kind: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(training.Run, "save", lambda run: None)
    weights = []
    with Emulator(kind) as gpu:
        for parts in (1, 2):
            options = experiment("diff-nca", steps=2, bf16=False, accumulate=parts)
            model = training.train(options, tmp_path / str(parts), device=gpu.device, progress=False)
            weights.append([p.held for p in model.parameters()])
    for whole, cut in zip(*weights, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_fp16_clips_by_the_norm_of_the_true_gradients_with_muon_too(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(training.Run, "save", lambda run: None)
    norms: list[float] = []
    clip = nn.utils.clip_grads_with_norm_

    def noted(parameters: Any, largest: float, norm: Tensor) -> None:
        norms.append(float(norm))
        clip(parameters, largest, norm)

    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", noted)
    with Emulator() as gpu:  # which has no bf16
        for fp16 in (True, False):
            options = experiment("diff-nca", steps=1, optimizer="muon", bf16=fp16)
            training.train(options, tmp_path / str(fp16), device=gpu.device, progress=False)
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_fp16_leaves_steps_out_but_not_for_ever(tmp_path: Path, monkeypatch: Patch) -> None:
    updates: list[int] = []

    def spoilt(model: nn.Module, options: Any) -> Any:
        next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        return optimizers_of(model, options)

    monkeypatch.setattr(training, "optimizers_of", spoilt)
    monkeypatch.setattr(training.Average, "update_parameters", lambda *_: updates.append(1))
    with Emulator() as gpu, pytest.raises(DivergedError, match=r"step 17: .* gradient norm (inf|nan)"):
        training.train(experiment("diff-nca", steps=40), tmp_path, device=gpu.device, progress=False)
    assert not updates


class Graph:
    """A step as a CUDA graph is: what it returns lies where the next replay writes."""

    def __init__(self, step: Any):
        self.step, self.memory = step, None

    def __call__(self, *given: Any) -> Tensor:
        if self.memory is not None:
            self.memory.fill_(torch.nan)
        result = self.step(*given)
        self.memory = result.clone() if self.memory is None else self.memory.copy_(result)
        return self.memory


def test_a_replayed_graph_overwrites_no_state_that_is_still_read(monkeypatch: Patch) -> None:
    model, noisy, time = (
        DiffNCA(8, 16, 4, update_probability=1.0),
        torch.randn(2, 3, 6, 6),
        torch.full((2,), 0.5),
    )
    with torch.no_grad():
        expected = model(noisy, time)
        monkeypatch.setattr(torch, "compile", lambda step, **_: Graph(step))
        model.compile_step("max-autotune")
        for _ in range(2):
            torch.testing.assert_close(model(noisy, time), expected)


def test_what_torchrun_hands_on_is_no_second_signal(monkeypatch: Patch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with checkpoints.stop_signals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)  # to this thread, at once
        assert stop.signal == signal.SIGINT
        stop.since -= 2 * checkpoints.ECHO
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_is_without_a_gradient(name: str) -> None:
    """Which DistributedDataParallel would wait for."""
    model: Any = experiment(name).build_model()
    images = torch.rand(2, getattr(model, "image_channels", 3), 8, 8)
    if name == "growing-nca":
        rollout(model, model.seed(8), 3).sum().backward()
    else:
        model.loss(
            images, *((torch.tensor([3, 20]), images) if isinstance(model, Denoiser) else ())
        ).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
