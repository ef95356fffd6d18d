"""Canvases on disk: memory, time, workers and files, as ratios in one run (chapter 7).

    python benchmarks/canvas.py [--model tissue-diff-nca] [--largest 8192] [--compiled] [--bf16] [--workers 2]

Each canvas is made in a process of its own, whose peak memory and processor time the system counts: time on
the clock says little where others work too. Sizes double; a line through the small ones predicts the largest.
Several workers are timed against one on a canvas that takes minutes, where the machine has a core idle for
each; the load is written down in any case. Results go to `canvas.json` among the library's results, which
chapter 7 reads.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nca_lib
from nca_lib.canvas.outofcore import Plan, create, run
from nca_lib.diff_nca import DiffNCA
from nca_lib.experiments.cost import DEVICES, Device, measured

OUT = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "canvas.json"


def make(plan: Plan, workers: int = 1) -> dict[str, Any]:
    """Seconds and peak memory of a canvas on disk, measured in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_make, plan, workers).result()


def _make(plan: Plan, workers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        side = plan.tile + 64  # room for a whole window, so that what is compiled serves the canvas too
        run(create(Path(folder) / "warm", replace(plan, height=side, width=side, steps=1)))
        canvas = create(Path(folder) / "canvas", plan)
        start, busy = time.perf_counter(), time.process_time()
        run(canvas, workers=workers)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    pixels = plan.height * plan.width
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "megapixels": pixels / 1e6,
        "seconds": seconds,
        "cpu_seconds": busy,  # of this process, not of workers
        "cpu_per_megapixel": busy / pixels * 1e6,
        "peak_mib": peak,
    }


def halo(side: int, steps: int) -> float:
    """The part of the work that is thrown away, counted."""
    return (side + 2 * steps) ** 2 / side**2 - 1


def prediction(rows: list[dict[str, Any]]) -> float:
    """The largest canvas's processor time over what a line through the smaller ones says."""
    *small, largest = rows
    x, y = (torch.tensor([row[key] for row in small]) for key in ("megapixels", "cpu_seconds"))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return largest["cpu_seconds"] / float(y.mean() + slope * (largest["megapixels"] - x.mean()))


def several(plan: Plan, workers: int) -> dict[str, Any]:
    """How many times as fast so many workers are as one, with their start; None where cores are lacking."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    found: dict[str, Any] = {"workers": workers, "load before": load, "cores": cores, "speed": None}
    if cores - load < workers - 0.5:
        return found
    seconds = [make(plan, number)["seconds"] for number in (workers, 1)]
    about = {"megapixels": plan.height * plan.width / 1e6, "calls": plan.steps}
    return found | about | {"seconds": seconds, "speed": seconds[1] / seconds[0]}


def of_cell(network: DiffNCA) -> tuple[float, float]:
    """Operations and bytes of one step of one cell, counted as `nca_lib.experiments.cost` counts a training.

    Operations are those of the products (what depends on time only is computed once for all cells); bytes are
    twice those of what these read and write, 16 bits a number.
    """
    cell: Any = network.cell
    layers = (cell.perception, cell.widen, cell.narrow)
    width, hidden = network.channels, network.hidden
    numbers = 2 * width + (2 * width + hidden) + (hidden + width)
    return 2.0 * sum(layer.weight.numel() for layer in layers), 2.0 * 2 * numbers


def seconds_per_pixel(network: DiffNCA, tile: int, device: Device) -> float:
    """Of one denoiser call: the cells' steps, halo included, on a device."""
    operations, moved = of_cell(network)
    step = operations / device.products + moved / device.bandwidth
    return (1 + halo(tile, network.steps)) * network.steps * step


def costs(model: str, tile: int, steps: int = 20) -> dict[str, Any]:
    """What large canvases take on GPUs: predicted and not measured.

    For DPM-Solver++, which keeps two arrays; a window is read with its halo, a tile is written, in each step.
    """
    network: Any = nca_lib.load(model).network
    array = 2 * network.image_channels * 4  # bytes of a pixel: image and clean estimate
    found: dict[str, Any] = {}
    for name in ("a100", "h100"):
        device = DEVICES[name]
        found[name] = {"basis": device.basis}
        for side in (32_768, 1_000_000):
            hours = steps * seconds_per_pixel(network, tile, device) * side**2 / 3600
            found[name][f"{side}x{side}"] = {
                "hours": {gpus: hours / gpus for gpus in (1, 8, 64)},
                "state on disk, bytes": 2 * array * side**2,
                "read and written, bytes": steps * array * (2 + halo(tile, network.steps)) * side**2,
            }
    return {"model": model, "tile": tile, "steps": steps, "sampler": "dpm_solver", "devices": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tissue-diff-nca")
    parser.add_argument("--smallest", type=int, default=1024)
    parser.add_argument("--largest", type=int, default=8192)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=OUT, type=Path)
    options = parser.parse_args()
    ways = {"tile": options.tile, "steps": options.steps, "compiled": options.compiled, "bf16": options.bf16}
    plan = partial(Plan, options.model, sampler="ddim", **ways)
    sizes = [options.smallest * 2**k for k in range(int(math.log2(options.largest / options.smallest)) + 1)]
    network: Any = nca_lib.load(options.model).network
    # First, before what follows is itself the machine's load.
    team = several(replace(plan(4096, 4096), steps=3), options.workers)
    rows = []
    for size in sizes:
        rows.append({"size": size, "load": os.getloadavg()[0], **make(plan(size, size))})
        print(rows[-1], flush=True)
    torch.set_num_threads(1)
    counted = options.steps * seconds_per_pixel(network, options.tile, measured()) * 1e6
    found = {
        "model": options.model,
        "settings": {"sampler": "ddim", **ways},
        "canvases": rows,
        "memory, largest over smallest": rows[-1]["peak_mib"] / rows[0]["peak_mib"],
        "time per pixel, largest over smallest": rows[-1]["cpu_per_megapixel"] / rows[0]["cpu_per_megapixel"],
        "largest over a line's prediction": prediction(rows) if len(rows) > 2 else None,
        "largest over what is counted": rows[-1]["cpu_per_megapixel"] / counted,
        "several workers": team,
        "halo": {side: halo(side, network.steps) for side in (64, 128, 256, 512, 1024)},
        "predicted": costs("tissue-diff-nca", 512),
    }
    print(json.dumps(found, indent=2))
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
