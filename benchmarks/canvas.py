"""Canvases: memory, time, tiles, workers and files, as ratios in one run (chapter 7).

    python benchmarks/canvas.py [--largest 8192] [--workers 2]

Each canvas is made in a process of its own, whose peak memory and processor time the system counts: time on
the clock says little where others work too. Sizes double from 1024 up; a line through the small ones predicts
the largest. Two workers are timed where the machine is idle. Results go to benchmarks/results/canvas.json.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nca_lib
from nca_lib.canvas.outofcore import Plan, create, run
from nca_lib.canvas.tiles import TiledDenoiser

MODEL = "tissue-diff-nca"

GPU_FLOPS = 4e13  # a second; assumed and not measured: an eighth of what an A100 promises in bf16 (312e12)


def make(plan: Plan, workers: int = 1) -> dict[str, Any]:
    """Seconds and peak memory of a canvas on disk, measured in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_make, plan, workers).result()


def _make(plan: Plan, workers: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        warm = Plan(plan.model, 64, 64, tile=64, sampler="ddim", steps=1)
        run(create(Path(folder) / "warm", warm))
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


def tiles(name: str, size: int, sides: tuple[int, ...], rounds: int = 2) -> dict[str, Any]:
    """Processor seconds of a call on a canvas in memory: whole, and by tiles; the least of some rounds."""
    model = nca_lib.load(name)
    noisy, t = torch.randn(1, 3, size, size), torch.tensor([100])
    ways = {"whole": model, **{f"tile {side}": TiledDenoiser(model, side) for side in sides}}
    seconds: dict[str, float] = {}
    torch.set_num_threads(1)
    for _ in range(rounds):
        for way, denoiser in ways.items():
            before = time.process_time()
            with torch.no_grad():
                denoiser(noisy, t)
            seconds[way] = min(seconds.get(way, math.inf), time.process_time() - before)
    return {way: {"cpu_seconds": s, "ratio": seconds["whole"] / s} for way, s in seconds.items()}


def halo(side: int, steps: int) -> float:
    """The part of the work that is thrown away, counted."""
    return (side + 2 * steps) ** 2 / side**2 - 1


def prediction(rows: list[dict[str, Any]]) -> float:
    """The largest canvas's processor time over what a line through the smaller ones says."""
    *small, largest = rows
    x, y = (torch.tensor([row[key] for row in small]) for key in ("megapixels", "cpu_seconds"))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return largest["cpu_seconds"] / float(y.mean() + slope * (largest["megapixels"] - x.mean()))


def costs(model: str, tile: int, steps: int = 20) -> dict[str, Any]:
    """What large canvases take on GPUs, predicted and not measured: products counted, halo included.

    The basis is `GPU_FLOPS`; one image of the state is on disk twice, and is read and written in each step.
    """
    network = nca_lib.load(model).network
    work = (1 + halo(tile, network.steps)) * steps * network.steps * 2 * products(network.cell)
    return {
        f"{side}x{side}": {
            "operations": work * side**2,
            "state on disk, bytes": 2 * 2 * 3 * 4 * side**2,
            "read and written, bytes": 2 * 2 * 3 * 4 * side**2 * steps,
            "hours": {f"{gpus} GPUs": work * side**2 / GPU_FLOPS / gpus / 3600 for gpus in (1, 8, 64)},
        }
        for side in (32_768, 1_000_000)
    }


def products(cell: Any) -> int:
    """Multiplications of a cell's step: what depends on time only is computed once for all cells."""
    layers: tuple[nn.Conv2d, ...] = (cell.perception, cell.widen, cell.narrow)
    return sum(layer.weight.numel() for layer in layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--smallest", type=int, default=1024)
    parser.add_argument("--largest", type=int, default=8192)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "canvas.json", type=Path)
    options = parser.parse_args()
    plan = partial(Plan, options.model, tile=options.tile, sampler="ddim", steps=options.steps)
    sizes = [options.smallest * 2**k for k in range(int(math.log2(options.largest / options.smallest)) + 1)]
    rows, network = [], nca_lib.load(options.model).network
    for size in sizes:
        rows.append({"size": size, **make(plan(size, size))})
        print(rows[-1], flush=True)
    several = None
    if os.getloadavg()[0] < 0.5:  # workers of a busy machine are not faster
        several = rows[-1]["seconds"] / make(plan(sizes[-1], sizes[-1]), options.workers)["seconds"]
    found = {
        "model": options.model,
        "load": os.getloadavg()[0],
        "settings": {"tile": options.tile, "steps": options.steps, "sampler": "ddim"},
        "canvases": rows,
        "memory, largest over smallest": rows[-1]["peak_mib"] / rows[0]["peak_mib"],
        "time per pixel, largest over smallest": rows[-1]["cpu_per_megapixel"] / rows[0]["cpu_per_megapixel"],
        "largest over predicted": prediction(rows) if len(rows) > 2 else None,
        f"speed of {options.workers} workers": several,
        "halo": {side: halo(side, network.steps) for side in (64, 128, 256, 512, 1024)},
        "tiles at 512": tiles(options.model, 512, (64, 128, 256)),
        "predicted": {"operations a second of a GPU": GPU_FLOPS, **costs(options.model, options.tile)},
    }
    print(json.dumps(found, indent=2))
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
