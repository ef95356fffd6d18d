"""Canvases: memory, time, tiles, workers and files, as ratios in one run (chapter 7).

    python benchmarks/canvas.py [--largest 8192] [--workers 2]

Each canvas is made in a process of its own, whose peak memory the system counts. Sizes double from 1024 up;
a model fitted to the small ones predicts the largest. Results go to benchmarks/results/canvas.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from run import compare

import nca_lib
from nca_lib.canvas.outofcore import Plan, create, run
from nca_lib.canvas.tiles import TiledDenoiser
from nca_lib.diffusion import Denoiser

MODEL = "tissue-diff-nca"


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
        start = time.perf_counter()
        run(canvas, workers=workers)
        seconds = time.perf_counter() - start
    pixels = plan.height * plan.width
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "megapixels": pixels / 1e6,
        "seconds": seconds,
        "per_megapixel": seconds / pixels * 1e6,
        "peak_mib": peak,
    }


def tiles(size: int, sides: tuple[int, ...]) -> dict[str, Any]:
    """A denoiser call on a canvas in memory: whole, and by tiles of several sides."""
    model = nca_lib.load(MODEL)
    noisy, t = torch.randn(1, 3, size, size), torch.tensor([100])

    def call(denoiser: Denoiser) -> None:
        with torch.no_grad():
            denoiser(noisy, t)

    ways = {"whole": model, **{f"tile {side}": TiledDenoiser(model, side) for side in sides}}
    return compare({name: partial(call, way) for name, way in ways.items()}, torch.device("cpu"), rounds=3)


def halo(side: int, steps: int) -> float:
    """The part of the work that is thrown away, counted."""
    return (side + 2 * steps) ** 2 / side**2 - 1


def prediction(rows: list[dict[str, Any]]) -> float:
    """The largest canvas's time over what a line through the smaller ones says."""
    *small, largest = rows
    x, y = (torch.tensor([row[key] for row in small]) for key in ("megapixels", "seconds"))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return largest["seconds"] / float(y.mean() + slope * (largest["megapixels"] - x.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smallest", type=int, default=1024)
    parser.add_argument("--largest", type=int, default=8192)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "canvas.json", type=Path)
    options = parser.parse_args()
    plan = partial(Plan, MODEL, tile=options.tile, sampler="ddim", steps=options.steps)
    sizes = [options.smallest * 2**k for k in range(int(math.log2(options.largest / options.smallest)) + 1)]
    rows = []
    for size in sizes:
        rows.append({"size": size, **make(plan(size, size))})
        print(rows[-1], flush=True)
    several = make(plan(sizes[-1], sizes[-1]), options.workers)
    found = {
        "canvases": rows,
        "memory, largest over smallest": rows[-1]["peak_mib"] / rows[0]["peak_mib"],
        "time per pixel, largest over smallest": rows[-1]["per_megapixel"] / rows[0]["per_megapixel"],
        "largest over predicted": prediction(rows) if len(rows) > 2 else None,
        f"speed of {options.workers} workers": rows[-1]["seconds"] / several["seconds"],
        "halo": halo(options.tile, nca_lib.load(MODEL).network.steps),
        "tiles at 512": tiles(512, (64, 128, 192, 256, 384)),
    }
    print(json.dumps(found, indent=2))
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
