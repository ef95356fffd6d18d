"""What a training would cost on a device: hours, memory, images a second, dollars (chapter 5).

    python -m nca_lib cost celeba-fourier-1.1m --device h100

*Counted*: a training step is carried out on tensors without numbers, and each operation's work, traffic and
memory is added up ([`work_of`][]). *Looked up or measured*: what the device does in a second ([`DEVICES`][],
[`measured`][]). *Assumed*: which part of its peaks a GPU reaches, and the price. All else is *predicted*.
`benchmarks/cost.py` compares predicted with measured steps on the CPU; no GPU has been asked.

A compiled step alternates products (matrix products, convolutions, attention) with loops into which all that
lies between them is fused. What a product reads has been written by a loop, and what it writes is read by
one; so the bytes that move are twice those of the products' operands and results.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nca_lib.automaton import GrowingNCA, rollout
from nca_lib.baselines import VNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import UsageError
from nca_lib.experiments.kinds import DATASETS, arguments
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.tasks import teacher_of

COUNTED = 4  # images in the step that is counted: few, for what is counted grows with their number
# Of the peaks in data sheets, these parts are assumed to be reached.
PRODUCTS_REACHED, BANDWIDTH_REACHED = 0.4, 0.7


@dataclass(frozen=True)
class Device:
    """What a device does in a second.

    Attributes:
        name: in words.
        products: floating-point operations of 16-bit matrix products, accumulated in float32, dense.
        bandwidth: bytes to and from its memory, as the loops between products reach it.
        memory: bytes, or None where that is not asked.
        launch: seconds between two kernels that Python starts.
        dollars: of an hour; None if it is not rented.
        basis: where these come from.
    """

    name: str
    products: float
    bandwidth: float
    memory: float | None
    launch: float
    dollars: float | None
    basis: str


def _gpu(name: str, products: float, bandwidth: float, memory: float, dollars: float) -> Device:
    return Device(
        name,
        products * PRODUCTS_REACHED,
        bandwidth * BANDWIDTH_REACHED,
        memory,
        1e-5,
        dollars,
        f"NVIDIA's data sheet ({products / 1e12:.0f} TFLOP/s, {bandwidth / 1e9:,.0f} GB/s), of which "
        f"{PRODUCTS_REACHED:.0%} and {BANDWIDTH_REACHED:.0%} are assumed to be reached, a kernel in 10 us; "
        f"${dollars:.2f} an hour assumed, as rented in 2026",
    )


DEVICES = {
    "h100": _gpu("NVIDIA H100 SXM", 989e12, 3350e9, 80e9, 3.0),
    "a100": _gpu("NVIDIA A100 SXM 80 GB", 312e12, 2039e9, 80e9, 2.0),
    "l4": _gpu("NVIDIA L4", 121e12, 300e9, 24e9, 0.8),
    "t4": _gpu("NVIDIA T4 (fp16)", 65e12, 320e9, 16e9, 0.4),
}


def measured(seconds: float = 0.5) -> Device:
    """The CPU here: its rates, measured for so long each, in seconds of this process.

    Seconds in which other programs had the processor do not count, so that a busy machine does not seem slow.
    """

    def rate(amount: float, work: Any) -> float:
        work()
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds:
            work()
            count += 1
        threads = torch.get_num_threads()
        return count * amount * threads / (time.process_time() - start)

    a, b = (torch.randn(1024, 1024, dtype=torch.bfloat16) for _ in range(2))
    numbers = torch.randn(2**22, dtype=torch.bfloat16)
    products = rate(2 * 1024**3, lambda: a @ b)
    # A loop as models have them: on a CPU it is its arithmetic, not the memory, that takes the time.
    bandwidth = rate(2 * 2 * len(numbers), lambda: F.silu(numbers))
    basis = f"measured: {products / 1e9:.0f} GFLOP/s in bf16, {bandwidth / 1e9:.1f} GB/s through a loop"
    return Device(f"{torch.get_num_threads()} threads here", products, bandwidth, None, 0.0, None, basis)


@dataclass(frozen=True)
class Work:
    """What one image takes in a training step, and what a step takes whatever its batch.

    Attributes:
        operations: floating-point operations of the products, forward and backward.
        bytes: that these read and write, twice, see above.
        memory: bytes that are held at once for its gradient.
        products: how many products there are in a step.
        parameters: of the model.
    """

    operations: float
    bytes: float
    memory: float
    products: int
    parameters: int


class _Meter(TorchDispatchMode):
    """Adds up what operations within it do, and which memory is held at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self.bytes, self.products, self.held, self.peak = 0, 0, 0, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.operations += count(*args, **kwargs, out_val=result)
            self.bytes += 2 * sum(x.numel() * x.element_size() for x in given + made)
            self.products += 1
        for tensor in made:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.held += size
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


def work_of(experiment: Experiment) -> Work:
    """Count a training step of an experiment, in mixed precision if it trains so; no data are needed.

    Raises:
        WeightsError: there are no weights of its teacher.
        ExperimentError: these can teach it nothing.
    """
    teacher = teacher_of(experiment) if experiment.training.teacher else None
    fake = FakeTensorMode()  # shapes and precisions are those of the CPU, numbers there are none
    with FakeCopyMode(fake):
        teacher = deepcopy(teacher)
    with fake:
        torch.manual_seed(0)
        model = experiment.build_model()
        with _Meter() as meter:
            with torch.autocast("cpu", torch.bfloat16, enabled=experiment.training.bf16):
                loss = _loss(model, experiment, teacher)
            loss.backward()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    memory = max(meter.peak - 4 * parameters, 0) / COUNTED  # without the parameters' gradients
    return Work(meter.operations / COUNTED, meter.bytes / COUNTED, memory, meter.products, parameters)


def _loss(model: nn.Module, experiment: Experiment, teacher: Denoiser | None) -> Tensor:
    if isinstance(model, GrowingNCA):
        growing = experiment.growing
        steps = (growing.min_rollout + growing.max_rollout) // 2
        return rollout(model, model.seed(growing.size, COUNTED), steps).square().mean()
    assert isinstance(model, Denoiser | VNCA)
    size = experiment.data.get("size", arguments(DATASETS[experiment.data["kind"]])["size"].default)
    images = torch.zeros(COUNTED, model.image_channels, size, size)
    if isinstance(model, VNCA):
        return model.loss(images)
    if model.context_channels:
        told = torch.zeros(COUNTED, model.context_channels, size, size)
        model, teacher = model.given(told), teacher and teacher.given(told)
    if teacher:  # not by the loss: without gradients an automaton asks whether all times are alike
        teacher.network(images, torch.zeros(COUNTED))
    return model.loss(images, torch.zeros(COUNTED, dtype=torch.long), images)


@dataclass(frozen=True)
class Cost:
    """A training on a device, as predicted.

    Attributes:
        name: of the experiment.
        device: where it would run.
        seconds_per_step: of the training, data and files not counted.
        images_per_second: likewise.
        hours: of all steps, or what the experiment says by the clock.
        memory: bytes on the device at once, beside what the driver itself takes (half a gigabyte).
        dollars: of these hours.
    """

    name: str
    device: Device
    seconds_per_step: float
    images_per_second: float
    hours: float
    memory: float
    dollars: float | None


@cache
def _counted(toml: str) -> Work:
    import tomllib

    return work_of(Experiment.from_dict(tomllib.loads(toml)))


def predict(experiment: Experiment, device: Device) -> Cost:
    """What training an experiment on a device would cost."""
    options, work = experiment.training, _counted(experiment.to_toml())
    arithmetic = work.operations / device.products + work.bytes / device.bandwidth
    host = 2 * work.products * options.accumulate * device.launch
    # The host starts kernels while the device computes. Optimiser and average move ten numbers a weight.
    step = max(options.batch * arithmetic, host) + 40 * work.parameters / device.bandwidth
    hours = options.minutes / 60 if options.minutes is not None else options.steps * step / 3600
    # Weights, gradients, two moments and the average, four bytes each.
    memory = 20 * work.parameters + math.ceil(options.batch / options.accumulate) * work.memory
    dollars = None if device.dollars is None else hours * device.dollars
    return Cost(experiment.name, device, step, options.batch / step, hours, memory, dollars)


def device_named(name: str) -> Device:
    """The device of that name; `"here"` measures the CPU.

    Raises:
        UsageError: there is none.
    """
    if name == "here":
        return measured()
    if name not in DEVICES:
        raise UsageError(f"device {name!r} is unknown; choose one of {', '.join(DEVICES)}, or here")
    return DEVICES[name]


def table(costs: Sequence[Cost]) -> str:
    """Costs as text, a line each, and what they rest on."""
    lines = [f"{'predicted':28} {'hours':>8} {'memory':>9} {'images/s':>9} {'dollars':>8}"]
    for cost in costs:
        dollars = "" if cost.dollars is None else f"{cost.dollars:8.2f}"
        memory = f"{cost.memory / 2**30:5.1f} GiB"
        if cost.device.memory and cost.memory > cost.device.memory:
            memory += " (too much: raise training.accumulate)"
        lines.append(f"{cost.name:28} {cost.hours:8.1f} {memory} {cost.images_per_second:9,.0f} {dollars}")
    for device in dict.fromkeys(cost.device for cost in costs):
        lines.append(f"{device.name}: {device.basis}")
    return "\n".join(lines)
