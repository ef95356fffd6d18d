"""On a GPU: how often the host waits for it, and nothing that it refuses; on an emulated one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import Emulator, OnDevice
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from nca_lib import devices
from nca_lib.automaton import rollout
from nca_lib.devices import arithmetic, compile_step
from nca_lib.diffusion import Denoiser
from nca_lib.editing import KnownPixels, LowResolution, interpolate, vary
from nca_lib.evaluation.coherence import coherence
from nca_lib.evaluation.evaluate import evaluate_model
from nca_lib.evaluation.extractors.small import SmallFeatures
from nca_lib.evaluation.metrics import PrecisionRecall, measurements
from nca_lib.experiments import state, training
from nca_lib.experiments.settings import Experiment
from nca_lib.fast import _pad
from nca_lib.noise import CounterNoise, Purpose, TorchNoise, firing_from
from nca_lib.samplers import SAMPLERS, Constraint, sample

TISSUE, DIGITS = {"kind": "tissue", "size": 8}, {"kind": "digits", "size": 8}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "diff-nca": ({"channels": 8, "hidden": 16, "steps": 2}, TISSUE),
    "diff-nca everywhere alike": ({"channels": 8, "hidden": 16, "steps": 2, "position": False}, TISSUE),
    "diff-nca checkpointed": ({"channels": 8, "hidden": 16, "steps": 2, "checkpointing": True}, TISSUE),
    "fourier-diff-nca": ({"channels": 8, "hidden": 16, "steps": 2, "frequencies": 2}, TISSUE),
    "unet": ({"size": "71k"}, TISSUE),
    "mlp": ({"size": 8, "channels": 1}, DIGITS),
    "vnca": ({"size": 8, "image_channels": 1, "latent": 12, "hidden": 8}, DIGITS),
    "growing-nca": ({"channels": 6, "hidden": 16}, TISSUE),
}
DIFFUSING = [name for name in MODELS if name not in ("vnca", "growing-nca")]


def experiment(name: str, **options: Any) -> Experiment:
    model, data = MODELS[name]
    return Experiment.from_dict(
        {
            "name": "tiny",
            "model": {"kind": name.split()[0], **model},
            "data": data,
            "diffusion": {"timesteps": 30, "target": "v", "weighting": "min_snr"},
            "growing": {"size": 12, "pool": 8, "min_rollout": 2, "max_rollout": 2},
            "training": {"batch": 4, "compile": False, "save_every": 10**6, **options},
        }
    )


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_the_host_waits_once_in_a_step_of_training(
    name: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer == "muon" and name not in ("diff-nca", "growing-nca"):
        pytest.skip("one automaton of each kind will do")
    monkeypatch.setattr(training.Run, "save", lambda run: None)
    waits = []
    for steps in (2, 4):
        with Emulator() as gpu:
            options = experiment(name, steps=steps, optimizer=optimizer)
            training.train(options, tmp_path / str(steps), device=gpu.device, progress=False)
            waits.append(gpu.synchronisations)
    assert (waits[1] - waits[0]).total() == 2, waits[1] - waits[0]


def calls_and_waits(kind: str, model: Denoiser, draw: Callable[[Denoiser], Tensor]) -> tuple[int, Any]:
    """What drawing costs beside its denoiser calls, which are counted."""
    with Emulator(kind) as gpu:
        model, calls = model.to(gpu.device), []
        model.register_forward_hook(lambda *_: calls.append(1))
        draw(model)
        gpu.forget(), calls.clear()  # tables are on the device now
        assert isinstance(draw(model), OnDevice)
        return len(calls), gpu.synchronisations


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(
    ("name", "sampler"), [(name, "ddpm") for name in DIFFUSING] + [("diff-nca", name) for name in SAMPLERS]
)
def test_samplers_never_wait(name: str, sampler: str, kind: str) -> None:
    model = experiment(name).build_model()
    calls, waits = calls_and_waits(
        kind, model, lambda model: sample(model, (8, 8), sampler=SAMPLERS[sampler], steps=3, count=2)
    )
    assert calls == 3
    assert not waits


EDITS: dict[str, Callable[[], Constraint]] = {
    "known pixels": lambda: KnownPixels(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8) < 0.5),
    "low resolution": lambda: LowResolution(torch.rand(1, 3, 4, 4), 2),
}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_waits_only_until_its_image_is_there(edit: str, kind: str) -> None:
    model = experiment("diff-nca").build_model()
    calls, waits = calls_and_waits(
        kind, model, lambda model: sample(model, (8, 8), steps=6, constraint=EDITS[edit]())
    )
    assert calls >= 6
    assert waits.total() <= 2


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_variations_and_walks_run_on_a_device(kind: str) -> None:
    model, image = experiment("fourier-diff-nca").build_model(), torch.rand(2, 3, 8, 8)
    _, waits = calls_and_waits(kind, model, lambda model: vary(model, image, steps=3))
    assert waits.total() <= 1
    _, waits = calls_and_waits(kind, model, lambda model: interpolate(model, (0, 1), 3, (8, 8), steps=3))
    assert kind == "mps" or not waits  # MPS has no float64, so it asks the CPU


def test_all_masks_of_a_call_come_from_one_generator() -> None:
    noise = CounterNoise(3, first_sample=1, origin=(2, 5))
    with Emulator() as gpu:
        like = torch.zeros(2, 3, 6, 7, device=gpu.device)
        gpu.forget()
        together = [mask.held for mask in noise.firing_masks(like, 0.7, 9, 18)]
        assert gpu.launches.total() < 400  # 155 a generator
        assert not gpu.synchronisations
    like = torch.zeros(2, 3, 6, 7)
    apart = [noise.firing_mask(like, 0.7, 9, k) for k in range(18)]
    assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


def test_where_cells_are_many_few_masks_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nca_lib.noise._TOGETHER", 80)  # one block of four masks
    like, noise = torch.zeros(2, 3, 6, 7), CounterNoise(3)
    for k, number in enumerate(noise.uniforms(like, Purpose.FIRING, 9, 6)):
        assert torch.equal(number, noise.uniform(like, Purpose.FIRING, 9, k))
    assert k == 5


def test_judges_and_metrics_run_on_a_device() -> None:
    images, features = torch.rand(4, 3, 32, 32) * 2 - 1, torch.rand(12, 5)
    expected = coherence(images)
    manifold = PrecisionRecall()
    manifold.update(features, real=True), manifold.update(features + 0.01, real=False)
    with Emulator() as gpu:
        found = coherence(images.to(gpu.device))
        assert all(torch.equal(found[rule].cpu(), holds) for rule, holds in expected.items())
        there = PrecisionRecall()
        there.update(features.to(gpu.device), real=True)
        there.update((features + 0.01).to(gpu.device), real=False)
        assert there.compute() == manifold.compute()


@pytest.mark.parametrize("name", MODELS)
def test_training_asks_mps_for_nothing_that_it_refuses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(state, "save", lambda *_: written.append("model"))  # files need numbers of their own
    monkeypatch.setattr(state.checkpoints, "write", lambda *_: written.append("checkpoint"))
    with Emulator("mps") as gpu:  # which refuses float64
        training.train(experiment(name, steps=2, sample_every=2), tmp_path, device=gpu.device, progress=False)
    assert written == ["model", "checkpoint"]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_an_evaluation_is_the_cpus(kind: str) -> None:
    digits = experiment("mlp")
    model, extractors = digits.build_model(), [SmallFeatures.shipped()]

    def measured(device: str | torch.device) -> dict[str, float]:
        found = evaluate_model(model, digits, count=110, steps=2, device=device, extractors=extractors)
        return measurements(found["metrics"])

    expected = measured("cpu")
    with Emulator(kind) as gpu:
        assert measured(gpu.device) == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """What `compile_step` compiles is traced, and counted, but not made into code."""
    counter, compiled = CompileCounter(), torch.compile
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)

    def traced(step: Any, mode: str | None = None, **options: Any) -> Any:
        return compiled(step, backend=counter, **options)

    monkeypatch.setattr(torch, "compile", traced)
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):  # as it is by default
        yield counter
    torch.compiler.reset()


def test_a_growing_step_is_one_graph_at_every_step_and_size(graphs: CompileCounter) -> None:
    model: Any = experiment("growing-nca").build_model()
    compile_step(model, torch.device("cpu"))
    for batch, noise in ((4, TorchNoise()), (8, CounterNoise(0)), (5, CounterNoise(1))):
        with firing_from(model, noise):
            rollout(model, model.seed(12, batch), 9).sum().backward()
    assert graphs.frame_count <= 4  # the first state needs no gradient; sizes after the first are one graph
    made = graphs.frame_count
    rollout(model, model.seed(12, 7), 9).sum().backward()
    assert graphs.frame_count == made


# How many graphs one training and its samples in four batch sizes take, at most. An automaton has one for
# each shape of a stage (its first state needs no gradient); others have dynamic ones after the first.
BOUND = {"diff-nca": 6, "fourier-diff-nca": 12, "unet": 5, "mlp": 5, "vnca": 8}


@pytest.mark.parametrize("name", BOUND)
def test_no_shape_is_left_to_the_interpreter(name: str, graphs: CompileCounter) -> None:
    model: Any = experiment(name).build_model()
    compile_step(model, torch.device("cpu"))
    for _ in range(2):
        made = graphs.frame_count
        images = torch.zeros(4, model.image_channels, 8, 8)
        rest = (torch.arange(4), images) if isinstance(model, Denoiser) else ()
        model.loss(images, *rest).backward()
        for count in (8, 4, 2, 1):
            sample(model, (8, 8), count=count, steps=2)
    assert 0 < made == graphs.frame_count <= BOUND[name]  # of the second round nothing is new
    assert counters["frames"]["total"] == counters["frames"]["ok"]
    assert not counters["graph_break"]


def test_without_a_gpu_the_compiler_does_not_warn_of_cuda(graphs: CompileCounter) -> None:
    """It imports what logs "No CUDA runtime is found" wherever a CUDA lies around."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.setLevel(logging.NOTSET)
    compile_step(experiment("diff-nca").build_model(), torch.device("cpu"))
    assert not logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.ERROR)


def test_arithmetic_is_as_asked_for_within_the_block_only() -> None:
    def now() -> tuple[Any, ...]:
        repeatable = torch.are_deterministic_algorithms_enabled()
        assert torch._inductor.config.deterministic == repeatable
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, repeatable

    before = now()
    for tf32, deterministic in ((True, False), (False, True)):
        with arithmetic(torch.device("cuda", 0), tf32=tf32, deterministic=deterministic):
            assert now() == ("high" if tf32 else "highest", not deterministic, deterministic)
        assert now() == before
    with arithmetic(torch.device("cpu"), tf32=True, deterministic=False):
        assert now() == before


def test_deterministic_reflection_is_reflection() -> None:
    x = torch.randn(2, 3, 4, 5)
    with arithmetic(torch.device("cpu"), tf32=False, deterministic=True):
        by_slices = _pad(x, "reflect")
    assert torch.equal(by_slices, _pad(x, "reflect"))
