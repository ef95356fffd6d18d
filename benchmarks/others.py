"""Other ways to draw in pieces, side by side with exact tiles: seams, difference, work (chapter 7).

    python benchmarks/others.py

All ways make the same calls of the same model from the same noise. A seam is the jump of the pixels across
the edges of the pieces, in multiples of the mean jump: about 1 where nothing was cut. Results go to
benchmarks/results/canvas-others.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
from torch import Tensor, nn

import nca_lib
from nca_lib.canvas.tiles import TiledDenoiser
from nca_lib.diffusion import Denoiser
from nca_lib.noise import CounterNoise, Purpose
from nca_lib.samplers import ddim


class Counted(nn.Module):
    """A denoiser that counts the cells that it computes."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model, self.schedule, self.cells = model, model.schedule, 0

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        self.cells += noisy.shape[2] * noisy.shape[3]
        return self.model(noisy, t)


class Windows(nn.Module):
    """Windows that overlap, averaged in each call (MultiDiffusion, Bar-Tal et al. 2023)."""

    def __init__(self, model: nn.Module, side: int, overlap: int):
        super().__init__()
        self.model, self.schedule, self.side, self.stride = model, model.schedule, side, side - overlap

    def places(self, length: int) -> list[int]:
        last = length - self.side
        return [*range(0, last, self.stride), last]

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        total, count = torch.zeros_like(noisy), torch.zeros_like(noisy)
        for y, x in itertools.product(*map(self.places, noisy.shape[2:])):
            part = (..., slice(y, y + self.side), slice(x, x + self.side))
            total[part] += self.model(noisy[part], t)
            count[part] += 1
        return total / count


class MapOverlap(nn.Module):
    """`dask.array.map_overlap` of the call; without a boundary, for the model reflects at its own."""

    def __init__(self, model: nn.Module, side: int, halo: int):
        super().__init__()
        self.model, self.schedule, self.side, self.halo = model, model.schedule, side, halo

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        blocks = da.from_array(noisy.numpy(), chunks=(1, noisy.shape[1], self.side, self.side))
        depth = {0: 0, 1: 0, 2: self.halo, 3: self.halo}
        call = da.map_overlap(
            lambda block: self.model(torch.from_numpy(np.ascontiguousarray(block)), t).numpy(),
            blocks,
            depth=depth,
            boundary="none",
            dtype=np.float32,
            meta=np.empty((0, 0, 0, 0), np.float32),
        )
        return torch.from_numpy(call.compute(scheduler="synchronous"))


def seam(image: Tensor, edges: list[int]) -> float:
    """The mean jump across columns `edges` - 1 and `edges`, in multiples of the mean jump."""
    jumps = image.diff(dim=3).abs().mean(dim=(0, 1, 2))
    return float(jumps[[edge - 1 for edge in edges]].mean() / jumps.mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "canvas-others.json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = nca_lib.load("web-tissue")
    height, width, side, halo = 96, 192, 48, model.network.steps
    start = CounterNoise(1).normal(torch.empty(1, 3, height, width), Purpose.START, 0)
    cuts = list(range(side, width, side))
    ways: dict[str, tuple[Any, list[int]]] = {
        "whole": (lambda m: m, cuts),
        "cut and pasted": (lambda m: Windows(m, side, 0), cuts),
        "exact tiles": (None, cuts),
        "dask map_overlap": (lambda m: MapOverlap(m, side, halo), cuts),
    }
    for overlap in (8, 16, 24):
        edges = [place for place in range(side - overlap, width - side + 1, side - overlap)]
        ways[f"overlapping by {overlap}, averaged"] = (lambda m, o=overlap: Windows(m, side, o), edges)
    found: dict[str, Any] = {}
    images: dict[str, Tensor] = {}
    for name, (wrap, edges) in ways.items():
        counted = Counted(model)
        denoiser = TiledDenoiser(model, side) if wrap is None else wrap(counted)
        before = time.process_time()
        *_, last = ddim(denoiser, start, steps=options.steps)
        images[name] = last.image
        cells = counted.cells
        if wrap is None:
            cells = options.steps * sum(r.size * c.size for r, c in denoiser.network.tiles((height, width)))
        found[name] = {
            "seam": seam(last.image, edges),
            "mean_difference": float((last.image - images["whole"]).abs().mean()),
            "equal": torch.equal(last.image, images["whole"]),
            "work": cells / (options.steps * height * width),
            "cpu_seconds": time.process_time() - before,
        }
        print(name, found[name], flush=True)
    settings = {"model": "web-tissue", "size": [height, width], "side": side, "calls": options.steps}
    options.out.write_text(json.dumps({**settings, "ways": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
