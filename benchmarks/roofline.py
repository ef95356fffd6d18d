"""`make bench`, its second half: where the limit of a training step lies, on one thread.

Ways to compute the same step are timed in turn, round after round, with a large matrix product in each round:
the fraction of its rate that a way reaches stands beside its ratio. Seconds are those of this process, whose
clock stands still while other programs have the core. Results go to benchmarks/results/roofline-cpu.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from nca_lib.data.images import Stream
from nca_lib.devices import compile_step, computes_bf16, hardware
from nca_lib.experiments.cost import work_of
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.training import Average

CPU = torch.device("cpu")
EXPERIMENTS = ("tissue-diff-nca", "faces-fourier")
# The first embeds place and time in each step, at each cell, as the authors' code does; eager, in float32.
WAYS = ("authors' order", "eager", "eager bf16", "compiled bf16")
SIDE, ROUNDS, PROFILED = 1024, 5, 5
Work = Callable[[], object]


class Step:
    """A training step on a given batch, in one of the ways: `gradients`, then `update`."""

    def __init__(self, experiment: Experiment, way: str):
        torch.manual_seed(0)
        self.model: Any = experiment.build_model()
        self.options, self.way = experiment.training, way
        self.average = Average(self.model, self.options.ema)
        self.optimizers = optimizers_of(self.model, self.options)
        self.model.network.fast = way != "authors' order"
        if way.startswith("compiled"):
            compile_step(self.model, CPU)
        batch, size = self.options.batch, experiment.data["size"]
        self.clean = torch.rand(batch, self.model.image_channels, size, size) * 2 - 1
        self.noise = torch.randn_like(self.clean)
        self.t = torch.arange(batch) * experiment.diffusion.timesteps // batch

    def gradients(self) -> None:
        """Forward and backward."""
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.way.endswith("bf16")):
            loss = self.model.loss(self.clean, self.t, self.noise)
        loss.backward()

    def update(self) -> None:
        """Clipping, optimisers, averaged weights."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)

    def __call__(self) -> None:
        """The whole of it."""
        self.gradients(), self.update()


def seconds_of(work: Work) -> float:
    """Processor seconds, of one thread."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rates() -> dict[str, tuple[Work, float]]:
    """What measures the machine in a round, by precision: a product, and its operations."""
    found: dict[str, tuple[Work, float]] = {}
    for dtype in [torch.float32] + [torch.bfloat16] * computes_bf16(CPU):
        a, b = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
        found[str(dtype).removeprefix("torch.")] = (lambda a=a, b=b: a @ b, 2.0 * SIDE**3)
    return found


def operations_of(experiment: Experiment) -> dict[str, float]:
    """Floating-point operations of a step's products and convolutions, those that have to be done."""
    step = Step(experiment, "eager")
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    found = {"matrix products": 0.0, "convolutions": 0.0}
    for operation, count in counter.get_flop_counts()["Global"].items():
        found["convolutions" if "convolution" in str(operation) else "matrix products"] += count
    return found


def parts_of(
    step: Step, operations: dict[str, float], images: Work, rate: float
) -> dict[str, dict[str, float]]:
    """Seconds of the parts of a step; of the products, which part of the matrix rate they reach."""
    seconds = {
        name: statistics.median(seconds_of(work) for _ in range(PROFILED))
        for name, work in (
            ("gradients", step.gradients),
            ("optimiser, average, clipping", step.update),
            ("data", images),
        )
    }
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            step.gradients()
    booked = {"matrix products": 0.0, "convolutions": 0.0, "all else: loops, copies": 0.0}
    for row in seen.key_averages():
        if "convolution" in row.key:
            kind = "convolutions"
        elif any(row.key.endswith(name) for name in ("mm", "linear", "linear_pointwise", "matmul")):
            kind = "matrix products"
        else:
            kind = "all else: loops, copies"
        booked[kind] += row.self_cpu_time_total
    whole = seconds.pop("gradients")
    # The profiler's clock runs on while others have the core; its shares hold.
    parts = {kind: whole * amount / sum(booked.values()) for kind, amount in booked.items()} | seconds
    return {
        name: {"seconds": amount, "share": amount / sum(parts.values())}
        | ({"of_matrix_rate": operations[name] / amount / rate} if name in operations else {})
        for name, amount in parts.items()
    }


def measure(name: str, ways: tuple[str, ...]) -> dict[str, Any]:
    """All that is said of one experiment."""
    torch.compiler.reset()
    experiment = Experiment.read(name)
    operations, batch = operations_of(experiment), experiment.training.batch
    steps, machine = {way: Step(experiment, way) for way in ways}, rates()
    loop = torch.randn(2**22, dtype=torch.bfloat16)
    for step in steps.values():
        step(), step()  # warm up, and compile
    rounds = []
    for _ in range(ROUNDS):
        found = {way: seconds_of(step) for way, step in steps.items()}
        found |= {
            key: count / min(seconds_of(work) for _ in range(5)) for key, (work, count) in machine.items()
        }
        found["loop"] = 4 * len(loop) / min(seconds_of(lambda: F.silu(loop)) for _ in range(5))
        rounds.append(found)
    middle = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    rows = {}
    for way in ways:
        ratios = sorted(row[ways[0]] / row[way] for row in rounds)
        rate = middle["bfloat16" if way.endswith("bf16") else "float32"]
        rows[way] = {
            "seconds": middle[way],
            "ratio": statistics.median(ratios),
            "spread": [ratios[0], ratios[-1]],
            "images_per_second": batch / middle[way],
            "of_matrix_rate": sum(operations.values()) / middle[way] / rate,
        }
    stream, low = Stream(experiment.build_data("train"), 0), middle.get("bfloat16", middle["float32"])
    parts = parts_of(steps[ways[-1]], operations, lambda: [stream[n] for n in range(batch)], low)
    products, moved = sum(operations.values()) / low, batch * work_of(experiment).bytes / middle["loop"]
    return {
        "batch": batch,
        "matrix_gflops": {key: middle[key] / 1e9 for key in machine},
        "loop_gb_per_second": middle["loop"] / 1e9,
        "ways": rows,
        "parts": parts,
        "limit": {"products at the matrix rate": products, "loops at the rate of a loop": moved},
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print both tables."""
    print(f"\n{name}, batch {result['batch']}: {result['matrix_gflops']}")
    for way, row in result["ways"].items():
        reached = f"{row['of_matrix_rate']:7.0%} of the rate"
        print(f"{way:32}{row['seconds']:8.3f} s{row['ratio']:7.2f} times{reached}")
    for part, row in result["parts"].items():
        reached = f"{row['of_matrix_rate']:7.0%} of the rate" if "of_matrix_rate" in row else ""
        print(f"  {part:30}{row['seconds']:8.3f} s{row['share']:7.0%}      {reached}")
    print({key: round(value, 3) for key, value in result["limit"].items()}, flush=True)


def main() -> None:
    """Measure, print, write the results."""
    torch.set_num_threads(1)
    ways = tuple(way for way in WAYS if computes_bf16(CPU) or not way.endswith("bf16"))
    result: dict[str, Any] = {
        "hardware": hardware(CPU),
        "torch": torch.__version__,
        "measured": f"one thread, by the processor's clock, ways in turn in {ROUNDS} rounds; medians",
    }
    for name in EXPERIMENTS:
        result[name] = measure(name, ways)
        show(name, result[name])
    # Programs that wanted a core meanwhile: they share its caches.
    result["load_average"] = round(os.getloadavg()[2], 1)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "roofline-cpu.json")
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
