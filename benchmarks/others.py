"""Other ways to draw in pieces, side by side with exact tiles: seams, difference, work (chapter 7).

    pip install --no-deps infinite-tensor   # without it its two rows are left out
    python benchmarks/others.py

All ways of a kind make the same calls of the same model from the same noise. A seam is the jump of the
pixels across the edges of the pieces, in multiples of the mean jump: about 1 where nothing was cut. Ways of a
*canvas* are compared with the canvas made as a whole, ways of an endless *plane* with the window of it that
`sample_region` gives. Work is cells computed for each pixel and call. Results go to `canvas-others.json`
among the library's results, which chapter 7 reads.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
from torch import Tensor, nn

import nca_lib
from nca_lib.canvas.tiles import TiledDenoiser, sample_region
from nca_lib.diff_nca import DiffNCA
from nca_lib.noise import CounterNoise, Purpose
from nca_lib.samplers import SamplerState, ddim

OUT = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "canvas-others.json"
SEED, SIZE, SIDE = 1, (96, 192), 48
CALLS = {"canvas": 10, "plane": 4}  # windows of a plane grow with each call that they need


class Cells:
    """Counts the cells that an automaton computes, as long as it lives."""

    def __init__(self, network: DiffNCA):
        self.count, stage = 0, network.image_stage

        def counted(state: Tensor, time: Tensor) -> Tensor:
            self.count += state.shape[2] * state.shape[3]
            return stage(state, time)

        network.image_stage = counted  # type: ignore[method-assign]


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


def infinite_tensor(model: Any, steps: int, overlap: int, halo: int) -> Tensor:
    """A window of the plane by InfiniteDiffusion's package (Goslin 2025): one infinite tensor for each step.

    Windows of `SIDE` that overlap are blended with weights that fall towards their edges, as in the paper;
    or, without an overlap, each reads `halo` more around itself, and throws it away.
    """
    from infinite_tensor import InfiniteTensor, MemoryTileStore, TensorWindow

    channels, stride, store = model.image_channels, SIDE - overlap, MemoryTileStore()
    ramp = torch.minimum(torch.arange(1, SIDE + 1), torch.arange(SIDE, 0, -1)) / (SIDE / 2)
    weight = (ramp[:, None] * ramp)[None] if overlap else torch.ones(1, SIDE, SIDE)
    depth, step_ = (channels + 1, stride, stride), SIDE + 2 * halo
    own = slice(halo, halo + SIDE)

    def noise(place: tuple[int, ...]) -> Tensor:
        source = CounterNoise(SEED).at(place[1] * SIDE, place[2] * SIDE)
        drawn = source.normal(torch.empty(1, channels, SIDE, SIDE), Purpose.START, 0)[0]
        return torch.cat([drawn, torch.ones(1, SIDE, SIDE)])

    def advance(made: int) -> Callable[..., Tensor]:
        def made_one(place: tuple[int, ...], before: Tensor) -> Tensor:
            image = (before[:channels] / before[channels:])[None]
            after = SamplerState(math.nan, image, image, made, -1) if made else None
            image = next(ddim(model, image, steps=steps, after=after)).image[0, :, own, own]
            return torch.cat([image * weight, weight])

        return made_one

    size = (channels + 1, SIDE, SIDE)
    tensor = InfiniteTensor((channels + 1, None, None), noise, TensorWindow(size), tile_store=store)
    for made in range(steps):
        tensor = InfiniteTensor(
            (channels + 1, None, None),
            advance(made),
            TensorWindow(size, depth),
            args=(tensor,),
            args_windows=(TensorWindow((channels + 1, step_, step_), depth, (0, -halo, -halo)),),
            tile_store=store,
        )
    found = tensor[:, 0 : SIZE[0], 0 : SIZE[1]]
    return (found[:channels] / found[channels:])[None]


def seam(image: Tensor, edges: list[int]) -> float:
    """The mean jump across columns `edges` - 1 and `edges`, in multiples of the mean jump."""
    jumps = image.diff(dim=3).abs().mean(dim=(0, 1, 2))
    return float(jumps[[edge - 1 for edge in edges]].mean() / jumps.mean())


def ways(model: Any, calls: dict[str, int]) -> dict[str, tuple[str, Callable[[], Tensor], list[int]]]:
    """Of each way: what it draws, how, and where its pieces meet. The first of a kind is the reference."""
    halo, cuts = model.network.steps, list(range(SIDE, SIZE[1], SIDE))
    start = CounterNoise(SEED).normal(torch.empty(1, 3, *SIZE), Purpose.START, 0)

    def draw(denoiser: Any) -> Tensor:
        *_, last = ddim(denoiser, start, steps=calls["canvas"])
        return last.image

    found: dict[str, tuple[str, Callable[[], Tensor], list[int]]] = {
        "whole": ("canvas", lambda: draw(model), cuts),
        "cut and pasted": ("canvas", lambda: draw(Windows(model, SIDE, 0)), cuts),
        "exact tiles": ("canvas", lambda: draw(TiledDenoiser(model, SIDE)), cuts),
        "dask map_overlap": ("canvas", lambda: draw(MapOverlap(model, SIDE, halo)), cuts),
    }
    for overlap in (8, 16, 24):
        edges = list(range(SIDE - overlap, SIZE[1] - SIDE + 1, SIDE - overlap))
        found[f"overlapping by {overlap}, averaged"] = (
            "canvas",
            lambda o=overlap: draw(Windows(model, SIDE, o)),
            edges,
        )
    found["sample_region"] = (
        "plane",
        lambda: sample_region(model, 0, 0, *SIZE, SEED, steps=calls["plane"]),
        cuts,
    )
    if importlib.util.find_spec("infinite_tensor"):
        for overlap in (16, 24):
            edges = list(range(SIDE - overlap, SIZE[1], SIDE - overlap))
            found[f"infinite-tensor, overlapping by {overlap}"] = (
                "plane",
                lambda o=overlap: infinite_tensor(model, calls["plane"], o, 0),
                edges,
            )
        found["infinite-tensor, with a halo"] = (
            "plane",
            lambda: infinite_tensor(model, calls["plane"], 0, halo),
            cuts,
        )
    else:
        print("infinite-tensor is not installed; its rows are left out")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default=OUT, type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = nca_lib.load("web-tissue")
    cells = Cells(model.network)
    found: dict[str, Any] = {}
    references: dict[str, Tensor] = {}
    for name, (drawn, draw, edges) in ways(model, CALLS).items():
        before, cells.count = time.process_time(), 0
        image = draw()
        reference = references.setdefault(drawn, image)
        found[name] = {
            "draws": drawn,
            "calls": CALLS[drawn],
            "seam": seam(image, edges),
            "mean_difference": float((image - reference).abs().mean()),
            "equal": torch.equal(image, reference),
            "work": cells.count / (CALLS[drawn] * SIZE[0] * SIZE[1]),
            "cpu_seconds": time.process_time() - before,
        }
        print(name, found[name], flush=True)
    settings: dict[str, Any] = {"model": "web-tissue", "size": SIZE, "side": SIDE}
    if importlib.util.find_spec("infinite_tensor"):
        settings["infinite-tensor"] = metadata.version("infinite-tensor")
    options.out.write_text(json.dumps({**settings, "ways": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
