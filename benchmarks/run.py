"""`make bench`: how fast everything is, as ratios within one run; `DEVICE=cuda make bench` on a GPU.

Each variant is timed in turn, round after round, so that a drift of the machine's speed hits all alike. The
first variant of each table is the literal one (`literal.py`): the published method, eager, in float32. Beside
each ratio stands which part of the measured rate of matrix products it reaches. Peak memory is taken in a
process of its own. Results go to benchmarks/results/, with the machine described; `roofline.py` says where
the limit lies.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import literal
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nca_lib
from nca_lib.devices import best_device, compile_step, computes_bf16, hardware
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, mse_l1, noise_schedule
from nca_lib.evaluation.extractors.extractor import to_pixels
from nca_lib.evaluation.extractors.small import SmallFeatures
from nca_lib.fourier import FourierDiffNCA
from nca_lib.samplers import SAMPLERS

ROUNDS = 5
# The second is the library's code in the authors' order: place and time embedded in each step, at each cell.
WAYS = ("literal", "authors' order", "eager", "eager bf16", "compiled", "compiled bf16")
Work = Callable[[], object]


def timed(work: Work, device: torch.device) -> float:
    """Seconds that `work` takes, device included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(works: dict[str, Work], device: torch.device, rounds: int = ROUNDS) -> dict[str, dict[str, Any]]:
    """Median seconds of each, and how many times as fast as the first it is, with the spread over rounds."""
    for work in works.values():
        work(), work()  # warm up, and compile
    measured = [{name: timed(work, device) for name, work in works.items()} for _ in range(rounds)]
    first = next(iter(works))
    table = {}
    for name in works:
        ratios = sorted(row[first] / row[name] for row in measured)
        table[name] = {
            "seconds": statistics.median(row[name] for row in measured),
            "ratio": statistics.median(ratios),
            "spread": [ratios[0], ratios[-1]],
        }
    return table


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product, in GFLOP/s: as near to the machine's peak as anything gets."""
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / min(timed(lambda: a @ b, device) for _ in range(9)) / 1e9


def model_of(kind: str, device: torch.device, **options: Any) -> DiffNCA:
    """The published sizes: Diff-NCA 336k or FourierDiff-NCA 1.1m, K = 20."""
    torch.manual_seed(0)
    network = (FourierDiffNCA if kind == "fourier" else DiffNCA)(96, 512, 20, **options)
    return network.to(device)


def in_way(way: str, model: DiffNCA, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser call, computed in one of `WAYS`."""
    if way == "literal":
        return partial(literal.call, model)
    model.fast = way != "authors' order"
    if way.startswith("compiled"):
        compile_step(model, device)

    def call(noisy: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=way.endswith("bf16")):
            return model(noisy, t)

    return call


def ways(device: torch.device) -> list[str]:
    """Those that this machine has."""
    return [way for way in WAYS if computes_bf16(device) or not way.endswith("bf16")]


def denoiser_calls(device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    """A call of FourierDiff-NCA 1.1m at 64x64; and of its variant whose cells do not know their place."""
    found = {}
    for name, options, batch in (
        ("as published, batch 1", {}, 1),
        ("as published, batch 4", {}, 4),
        ("without position, batch 1", {"position": False}, 1),
        ("without position, batch 4", {"position": False}, 4),
    ):
        torch._dynamo.reset()
        noisy = torch.randn(batch, 3, 64, 64, device=device)
        t = torch.full((batch,), 0.4, device=device)
        calls = {
            way: in_way(way, model_of("fourier", device, **options).eval(), device) for way in ways(device)
        }

        def once(call: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, t: Tensor) -> None:
            with torch.no_grad():
                call(noisy, t)

        works: dict[str, Work] = {way: partial(once, call, noisy, t) for way, call in calls.items()}
        found[name] = compare(works, device, rounds=3)
        add_shares(found[name], operations_of(works["eager"]), rates)
        show(f"denoiser call 64x64, {name}", found[name])
    return found


def training_step(way: str, checkpointing: bool, device: torch.device) -> Work:
    """A step of Diff-NCA 336k on 32x32 images, batch 4: forward, loss, backward."""
    model = model_of("diff-nca", device, checkpointing=checkpointing)
    call = in_way(way, model, device)
    noisy, t = torch.randn(4, 3, 32, 32, device=device), torch.rand(4, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        mse_l1(call(noisy, t).float(), noisy).backward()

    return step


def training_steps(device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    """Time of a training step, and its peak memory above that of the loaded program."""
    torch._dynamo.reset()
    chosen = {way: (way, False) for way in ("literal", "authors' order", "eager")}
    best = ways(device)[-1]
    chosen |= {best: (best, False), f"{best}, checkpointed": (best, True)}
    works = {name: training_step(way, checkpointing, device) for name, (way, checkpointing) in chosen.items()}
    table = compare(works, device)
    for name, (way, checkpointing) in chosen.items():
        table[name]["images_per_second"] = 4 / table[name]["seconds"]
        table[name]["peak_memory_mb"] = peak_memory(way, checkpointing, device)
    add_shares(table, operations_of(works["eager"]), rates)
    show("training step, Diff-NCA 336k, 32x32, batch 4", table)
    return table


def peak_memory(way: str, checkpointing: bool, device: torch.device) -> float:
    """Megabytes that two training steps need, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory", way, str(int(checkpointing)), str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def report_memory(way: str, checkpointing: bool, device: torch.device) -> None:
    """What that process prints."""
    step = training_step(way, checkpointing, device)
    step()  # compiles, which needs memory of its own
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        step()
    print(peak_of(seen) / 1e6)


def peak_of(seen: Any) -> float:
    """The largest number of bytes allocated at once, from the profiler's record of allocations."""
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return float(peak)


def samples(device: torch.device) -> dict[str, Any]:
    """A 32x32 face of `faces-fourier`: 300 calls of DDPM, literal, against 10 of DPM-Solver++, fast.

    Chapter 8 measures that both are as near to the data, within 5%.
    """
    torch._dynamo.reset()
    slow, fast = (nca_lib.load("faces-fourier", device) for _ in range(2))
    for module in slow.modules():
        if isinstance(module, DiffNCA):
            module.fast = False
    compile_step(fast, device)

    def draw(model: Any, sampler: str, steps: int, bf16: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            nca_lib.sample(model, (32, 32), sampler=SAMPLERS[sampler], steps=steps)

    bf16 = computes_bf16(device)
    table = compare(
        {
            "DDPM, 300 calls, literal": partial(draw, slow, "ddpm", 300, False),
            "DDPM, 300 calls": partial(draw, fast, "ddpm", 300, bf16),
            "DPM-Solver++, 10 calls": partial(draw, fast, "dpm_solver", 10, bf16),
        },
        device,
        rounds=3,
    )
    show("a sample, 32x32", table)
    return table


def published_sample(device: torch.device) -> dict[str, float]:
    """Seconds of a 64x64 image by FourierDiff-NCA 1.1m (of random weights) in 10 calls of DPM-Solver++."""
    torch._dynamo.reset()
    model = Denoiser(model_of("fourier", device).eval(), noise_schedule("linear"))
    compile_step(model, device)

    def draw() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
            nca_lib.sample(model, (64, 64), sampler=SAMPLERS["dpm_solver"], steps=10)

    seconds = compare({"64x64": draw}, device, rounds=3)["64x64"]["seconds"]
    print(f"\na 64x64 image of the published size, 10 calls: {seconds:.2f} s")
    return {"seconds": seconds}


def evaluation(device: torch.device) -> dict[str, Any]:
    """Images a second through the small extractor of features."""
    extractor = SmallFeatures.shipped().to(device).eval()
    pixels = to_pixels(torch.rand(64, 3, 32, 32) * 2 - 1).to(device)

    def extract() -> None:
        with torch.no_grad():
            extractor(pixels)

    seconds = compare({"features": extract}, device)["features"]["seconds"]
    print(f"\nevaluation: {64 / seconds:.0f} images/s through nca-features-1")
    return {"images_per_second": 64 / seconds}


def import_time() -> dict[str, float]:
    """Seconds that `import nca_lib` adds to `import torch`, median of five."""
    code = "import time, torch; a = time.perf_counter(); import nca_lib; print(time.perf_counter() - a)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    seconds = statistics.median(float(run.stdout) for run in runs)
    print(f"\nimport nca_lib adds {seconds:.2f} s to import torch")
    return {"seconds": seconds}


def share_of_peak(calls: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    """Which part of the matrix rate the fastest call reaches, counted in the products that it has to do."""
    # Without position, modulations are folded into the weights: three products a cell and step are left.
    channels, hidden, steps = 96, 512, 20
    image = 2 * 64 * 64 * steps * (9 * channels**2 + 2 * channels * hidden + hidden * (channels - 3))
    spectrum = (
        2
        * 16
        * 16
        * 32
        * (9 * (2 * channels + 4) * 2 * channels + (4 * channels + 4) * hidden + hidden * 2 * channels)
    )
    rate = rates.get("bfloat16", rates["float32"])
    return {
        name: batch * (image + spectrum) / calls[name][list(calls[name])[-1]]["seconds"] / 1e9 / rate
        for name, batch in (("without position, batch 1", 1), ("without position, batch 4", 4))
    }


def add_shares(table: dict[str, dict[str, Any]], operations: float, rates: dict[str, float]) -> None:
    """Note beside each way which part of the matrix rate of its precision it reaches."""
    for way, row in table.items():
        rate = rates["bfloat16" if "bf16" in way else "float32"]
        row["of_matrix_rate"] = operations / row["seconds"] / 1e9 / rate


def operations_of(work: Work) -> float:
    """Floating-point operations of the products in an eager, fast call: those that have to be done."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def show(title: str, table: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    print(f"\n{title:44} {'median ms':>10} {'times as fast (min to max)':>30}", flush=True)
    for name, row in table.items():
        spread = f"{row['ratio']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})"
        rate = f"{row['of_matrix_rate']:5.0%} of the rate" if "of_matrix_rate" in row else ""
        memory = f"   {row['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in row else ""
        print(f"{name:44} {1000 * row['seconds']:10.1f} {spread:>30}{rate:>18}{memory}", flush=True)


def main() -> None:
    """Run everything, print tables, write the results."""
    if "--memory" in sys.argv:
        way, checkpointing, name = sys.argv[2:]
        report_memory(way, checkpointing == "1", torch.device(name))
        return
    device = torch.device(os.environ["DEVICE"]) if os.environ.get("DEVICE") else best_device()
    dtypes = [torch.float32] + [torch.bfloat16] * computes_bf16(device)
    rates = {str(dtype).removeprefix("torch."): matrix_rate(device, dtype) for dtype in dtypes}
    print(f"{hardware(device)}: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    calls = denoiser_calls(device, rates)
    result = {
        "hardware": hardware(device),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "matrix_gflops": rates,
        "denoiser call, FourierDiff-NCA 1.1m, 64x64": calls,
        "share of the matrix rate": share_of_peak(calls, rates),
        "training step, Diff-NCA 336k, 32x32, batch 4": training_steps(device, rates),
        "sample, faces-fourier, 32x32": samples(device),
        "sample, FourierDiff-NCA 1.1m, 64x64, 10 calls": published_sample(device),
        "evaluation": evaluation(device),
        "import": import_time(),
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    out = folder / f"{platform.system().lower()}-{device.type}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
