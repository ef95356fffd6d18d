"""`make gpu`, its second half: how fast a GPU trains and samples, against targets, as ratios in one run.

Ways are timed in turn as in `run.py`; the literal one is the published method, eager, in float32. Results go
to benchmarks/results/. `python benchmarks/gpu.py --device cpu` rehearses all of it in a small setting, which
says nothing of speed and writes to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from run import Work, add_shares, compare, in_way, matrix_rate, operations_of, show, timed, ways

import nca_lib
from nca_lib.devices import compile_step, computes_bf16, hardware
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import mse_l1
from nca_lib.experiments.cost import DEVICES, predict
from nca_lib.experiments.settings import Experiment
from nca_lib.fourier import FourierDiffNCA
from nca_lib.samplers import SAMPLERS


@dataclass(frozen=True)
class Setting:
    """How large everything is."""

    size: int
    batch: int
    faces: int
    calls: int
    rounds: int
    network: tuple[int, int, int]  # channels, hidden, steps


PUBLISHED = Setting(64, 16, 64, 20, 5, (96, 512, 20))
SMALL = Setting(32, 2, 2, 2, 1, (8, 16, 2))

TRAINING, FACES, MEMORY = 5.0, 1.0, 4.0  # times the literal images/s; seconds of 64 faces; GiB


def rates(device: torch.device) -> dict[str, float]:
    """What the device does in a second, for `nca_lib.experiments.cost`: GFLOP/s by precision, GB/s."""
    found = {}
    low = [torch.bfloat16] * computes_bf16(device) + [torch.float16] * (device.type == "cuda")
    for dtype in (torch.float32, *low):
        found[str(dtype).removeprefix("torch.")] = matrix_rate(device, dtype)
    here, there = (torch.empty(2**26, device=device) for _ in range(2))
    seconds = min(timed(lambda: there.copy_(here), device) for _ in range(9))
    return found | {"bandwidth": 8 * 2**26 / seconds / 1e9}


def training(kind: str, setting: Setting, device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    """Images a second of a training step (loss, gradients, Adam), literal and ours; and memory."""
    try:
        return _training(kind, setting, device, rates)
    except torch.OutOfMemoryError:
        half = replace(setting, batch=setting.batch // 2)
        print(f"too little memory for {setting.batch} images at a time; trying {half.batch}")
    return training(kind, half, device, rates)


def _training(kind: str, setting: Setting, device: torch.device, rates: dict[str, float]) -> dict[str, Any]:
    torch._dynamo.reset()
    best = ways(device)[-1]
    chosen = {way: (way, False) for way in ("literal", "authors' order", best)}
    chosen[f"{best}, checkpointed"] = (best, True)
    steps = {name: _step(kind, way, recompute, setting, device) for name, (way, recompute) in chosen.items()}
    table = compare(steps, device, rounds=setting.rounds)
    for name, step in steps.items():
        table[name]["images_per_second"] = setting.batch / table[name]["seconds"]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            table[name]["peak_memory_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    add_shares(table, operations_of(_step(kind, "eager", False, setting, device)), rates)
    show(f"training step, {kind}, {setting.size}x{setting.size}, batch {setting.batch}", table)
    return table


def _step(kind: str, way: str, checkpointing: bool, setting: Setting, device: torch.device) -> Work:
    torch.manual_seed(0)
    network = FourierDiffNCA if kind == "fourier" else DiffNCA
    model = network(*setting.network, checkpointing=checkpointing).to(device)
    call = in_way(way, model, device)
    adam = torch.optim.Adam(model.parameters(), fused=True if way != "literal" else None)
    noisy = torch.randn(setting.batch, 3, setting.size, setting.size, device=device)
    t = torch.rand(setting.batch, device=device)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        mse_l1(call(noisy, t).float(), noisy).backward()
        adam.step()

    return step


def faces(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Seconds of a sheet of faces by DPM-Solver++, for each way to compile."""
    found: dict[str, Callable[[], object]] = {}
    for mode in ("eager", "compiled", "compiled, CUDA graphs"):
        model = nca_lib.load("faces-fourier", device)
        if mode == "compiled":
            compile_step(model, device)
        elif mode != "eager":
            if device.type != "cuda":
                continue
            model.compile_step("max-autotune")

        def draw(model: torch.nn.Module = model) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
                sampler, count = SAMPLERS["dpm_solver"], setting.faces
                nca_lib.sample(model, (32, 32), count=count, sampler=sampler, steps=setting.calls)

        found[mode] = draw
    torch._dynamo.reset()
    table = compare(found, device, rounds=setting.rounds)
    show(f"{setting.faces} faces, 32x32, {setting.calls} calls", table)
    return table


def targets(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was wanted, what was found, and whether that will do."""
    found = {}
    for kind in ("diff-nca", "fourier"):
        rows = list(result[f"training, {kind}"].values())
        best = max(row["ratio"] for row in rows[1:])
        found[f"training, {kind}, times the literal images/s"] = {
            "wanted": TRAINING,
            "found": best,
            "met": best >= TRAINING,
        }
        if "peak_memory_mb" in rows[-1]:
            memory = rows[-1]["peak_memory_mb"] * 1e6 / 2**30
            found[f"memory, {kind}, checkpointed, GiB"] = {
                "wanted": MEMORY,
                "found": memory,
                "met": memory <= MEMORY,
            }
    seconds = min(row["seconds"] for row in result["faces"].values())
    found["seconds of a sheet of faces"] = {"wanted": FACES, "found": seconds, "met": seconds < FACES}
    return found


def predicted(device: torch.device) -> dict[str, Any]:
    """What the cost model says of the same trainings on this GPU, if it knows it."""
    known = [d for key, d in DEVICES.items() if key in hardware(device).lower()]
    names = ("celeba-diff-nca-336k", "celeba-fourier-1.1m")
    return {
        name: {"images_per_second": cost.images_per_second, "memory_mb": cost.memory / 1e6}
        for name in names
        for cost in [predict(Experiment.read(name), d) for d in known[:1]]
    }


def measure(device: torch.device, setting: Setting, folder: Path) -> dict[str, dict[str, Any]]:
    """Run everything, print, write the results into the folder; returns the targets."""
    result: dict[str, Any] = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rates": rates(device),
    }
    print(
        f"{result['hardware']}: " + ", ".join(f"{key} {rate:,.0f}" for key, rate in result["rates"].items())
    )
    for kind in ("diff-nca", "fourier"):
        result[f"training, {kind}"] = training(kind, setting, device, result["rates"])
    result["faces"] = faces(setting, device)
    result["predicted"] = predicted(device)
    result["targets"] = targets(result)
    for name, target in result["targets"].items():
        print(f"{'met' if target['met'] else 'MISSED':8} {name}: {target['found']:.2f} ({target['wanted']})")
    out = folder / f"gpu-{hardware(device).replace(' ', '-').lower()}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    return result["targets"]


def main() -> int:
    """Exit status 1 where a target is missed on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu rehearses in a small setting")
    device = torch.device(parser.parse_args().device)
    if device.type != "cuda":
        with tempfile.TemporaryDirectory() as folder:
            measure(device, SMALL, Path(folder))
        return 0
    if not torch.cuda.is_available():
        print("no GPU here; --device cpu rehearses", file=sys.stderr)
        return 2
    found = measure(device, PUBLISHED, Path(__file__).parent / "results")
    return 0 if all(target["met"] for target in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
