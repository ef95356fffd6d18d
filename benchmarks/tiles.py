"""Tiles of many sides against the whole, in one process: which are faster (chapter 7).

    python benchmarks/tiles.py [--sizes 256 512 1024] [--sides 64 96 128 192 256 512] [--ways eager compiled]

Processor seconds of a call on one thread, each tile and the whole in turn, the least of some rounds. Of sides
that do not divide the size the last tiles overlap others: that is a tile's price too. Equal says whether the
result is that of the whole, bit for bit. Rows go to `canvas-tiles.jsonl` among the library's results, which
chapter 7 reads; those of the same model, way and size are replaced.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

import nca_lib
from nca_lib.canvas.tiles import TiledDenoiser
from nca_lib.devices import compile_step

OUT = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "canvas-tiles.jsonl"
WAYS = ("literal", "eager", "eager bf16", "compiled", "compiled bf16")


def compare(name: str, way: str, size: int, sides: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for the whole, one for each side."""
    model: Any = nca_lib.load(name)
    model.network.fast = way != "literal"
    if way.startswith("compiled"):
        compile_step(model, torch.device("cpu"))
    sides = [side for side in sides if side < size]
    denoisers: dict[int, Any] = {size: model, **{side: TiledDenoiser(model, side) for side in sides}}
    noisy, t = torch.randn(1, 3, size, size), torch.tensor([100])
    seconds: dict[int, float] = {}
    images: dict[int, torch.Tensor] = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=way.endswith("bf16")):
        for turn in range(rounds + way.startswith("compiled")):
            for side, denoiser in denoisers.items():
                before = time.process_time()
                images[side] = denoiser(noisy, t)
                spent = time.process_time() - before
                if turn or not way.startswith("compiled"):  # the first call compiles
                    seconds[side] = min(seconds.get(side, math.inf), spent)
    return [
        {
            "model": name,
            "way": way,
            "size": size,
            "side": side,
            "window": next(iter(denoiser.network.tiles((size, size))))[0].size if side < size else size,
            "cpu_seconds": seconds[side],
            "ratio": seconds[size] / seconds[side],
            "equal": torch.equal(images[side], images[size]),
            "rounds": rounds,
            "load": os.getloadavg()[0],
        }
        for side, denoiser in denoisers.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["tissue-diff-nca"])
    parser.add_argument("--ways", nargs="+", default=["eager", "compiled"], choices=WAYS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--sides", nargs="*", type=int, default=[64, 96, 128, 192, 256, 512])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default=OUT, type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        for way in options.ways:
            for size in options.sizes:
                rows = compare(model, way, size, options.sides, options.rounds)
                for row in rows:
                    print({key: row[key] for key in ("way", "size", "side", "ratio", "equal")}, flush=True)
                kept = options.out.read_text().splitlines() if options.out.exists() else []
                made = {"model": model, "way": way, "size": size}
                lines = [line for line in kept if not made.items() <= json.loads(line).items()]
                options.out.write_text("\n".join([*lines, *map(json.dumps, rows)]) + "\n")


if __name__ == "__main__":
    main()
