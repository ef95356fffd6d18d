"""Draw the slide of the deep-zoom page, and cut it up: `make slide`, or `python book/make_slide.py`.

The picture is what `python -m nca_lib canvas` gives for the settings below, and is kept in `build/` until
it is finished: what was stopped goes on. The tiles, JPEG, replace those in `_static/slide`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import zarr
from PIL import Image

from nca_lib.__main__ import main as nca_lib

ROOT = Path(__file__).parents[1]
SLIDE = ROOT / "book" / "_static" / "slide"
TILE, QUALITY = 512, 50  # of the page's files
STILL = 1024  # pixels of the picture for paper, at most


def draw(model: str, size: int, steps: int) -> tuple[Path, str]:
    """An OME-Zarr of the slide, and the command that makes it."""
    out = ROOT / "build" / "slide.zarr"
    out.parent.mkdir(exist_ok=True)
    options = f"canvas {model} --size {size}x{size} --steps {steps} --bf16"
    again = ["--resume", "--force"]  # half a slide goes on, a whole one goes
    if code := nca_lib([*options.split(), "--out", str(out), *again]):
        raise SystemExit(code)
    options = options.replace(model, Path(model).stem)
    return out, f"python -m nca_lib {options} --out slide.zarr"


def cut(pyramid: Path, command: str) -> None:
    """Write the levels of an OME-Zarr as tiles, level 0 the smallest, and what the page must know."""
    group = zarr.open_group(pyramid, mode="r")
    levels = sorted(map(int, group.array_keys()), reverse=True)
    shutil.rmtree(SLIDE, ignore_errors=True)
    for number, name in enumerate(levels):
        level = group[str(name)]
        folder = SLIDE / str(number)
        folder.mkdir(parents=True)
        grid = (range(-(-length // TILE)) for length in level.shape[1:])
        for y, x in product(*grid):
            part = level[
                :, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE
            ]
            save(part, folder / f"{x}_{y}.jpg")
        if max(level.shape) <= STILL:
            save(level[:], SLIDE / "overview.jpg")
    _, height, width = group["0"].shape
    about = {
        "width": width,
        "height": height,
        "tile": TILE,
        "levels": len(levels),
        "command": command,
    }
    (SLIDE / "about.js").write_text(
        f"window.slide = {json.dumps(about, indent=2)};\n"
    )
    total = sum(path.stat().st_size for path in SLIDE.rglob("*.*"))
    print(f"{SLIDE}: {width}x{height}, {total / 1e6:.1f} MB")


def save(pixels: np.ndarray, path: Path) -> None:
    """Write a part of the slide, (3, h, w) uint8."""
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(
        path, quality=QUALITY, optimize=True
    )


def main() -> None:
    """Draw and cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tissue-diff-nca")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    cut(*draw(options.model, options.size, options.steps))


if __name__ == "__main__":
    main()
