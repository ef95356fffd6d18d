"""Draw the slide of the deep-zoom page, and cut it up: `make slide`, or `python book/make_slide.py`.

The picture is what `python -m nca_lib canvas` gives for the settings below, and is kept in `build/`: what was
stopped goes on, and what is finished is not drawn again. The tiles, JPEG, replace those in `_static/slide`,
in the best quality whose files together stay within a budget: the repository carries them.
"""

from __future__ import annotations

import argparse
import io
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
TILE = 512  # of the page's files
QUALITIES = range(80, 15, -5)  # of JPEG
STILL = 1024  # pixels of the picture for paper, at most


def draw(model: str, size: int, steps: int, seed: int) -> tuple[Path, str]:
    """An OME-Zarr of the slide, and the command that makes it."""
    out = ROOT / "build" / "slide.zarr"
    drawn = out.with_suffix(".json")  # which command made it
    out.parent.mkdir(exist_ok=True)
    options = f"canvas {model} --size {size}x{size} --steps {steps}"
    options += f" --seed {seed} --bf16"
    command = options.replace(model, Path(model).stem)
    command = f"python -m nca_lib {command} --out slide.zarr"
    if out.exists() and drawn.exists() and drawn.read_text() == command:
        return out, command
    drawn.unlink(missing_ok=True)
    again = ["--resume", "--force"]  # half a slide goes on, a whole one goes
    if code := nca_lib([*options.split(), "--out", str(out), *again]):
        raise SystemExit(code)
    drawn.write_text(command)
    return out, command


def cut(pyramid: Path, command: str, budget: float = 5.0) -> None:
    """Write the levels of an OME-Zarr as tiles, level 0 the smallest, and what the page must know.

    Args:
        pyramid: the OME-Zarr.
        command: what made it.
        budget: megabytes of all files.
    """
    parts, (height, width) = tiles_of(pyramid)
    for quality in QUALITIES:
        files = {name: jpeg(part, quality) for name, part in parts.items()}
        total = sum(map(len, files.values())) / 1e6
        if total <= budget:
            break
    else:
        raise SystemExit(
            f"{total:.1f} MB at a quality of {quality}, and the budget is "
            f"{budget:g}; draw a smaller slide, or allow more by --budget"
        )
    shutil.rmtree(SLIDE, ignore_errors=True)
    for name, blob in files.items():
        (SLIDE / name).parent.mkdir(parents=True, exist_ok=True)
        (SLIDE / name).write_bytes(blob)
    about = {
        "width": width,
        "height": height,
        "tile": TILE,
        "levels": len({Path(name).parent for name in parts} - {Path()}),
        "command": command,
    }
    (SLIDE / "about.js").write_text(
        f"window.slide = {json.dumps(about, indent=2)};\n"
    )
    print(f"{SLIDE}: {width}x{height}, {total:.1f} MB, quality {quality}")


def tiles_of(
    pyramid: Path,
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """The page's pictures by name, (3, h, w) uint8, and the slide's size."""
    group = zarr.open_group(pyramid, mode="r")
    names = sorted(map(int, group.array_keys()), reverse=True)
    parts: dict[str, np.ndarray] = {}
    for number, name in enumerate(names):
        level = group[str(name)][:]
        grid = (range(-(-length // TILE)) for length in level.shape[1:])
        for y, x in product(*grid):
            rows = slice(y * TILE, (y + 1) * TILE)
            columns = slice(x * TILE, (x + 1) * TILE)
            parts[f"{number}/{x}_{y}.jpg"] = level[:, rows, columns]
        if max(level.shape) <= STILL:
            parts["overview.jpg"] = level
    return parts, level.shape[1:]


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """A picture, (3, h, w) uint8, as a file."""
    blob = io.BytesIO()
    image = Image.fromarray(np.moveaxis(pixels, 0, -1))
    image.save(blob, "JPEG", quality=quality, optimize=True)
    return blob.getvalue()


def main() -> None:
    """Draw and cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tissue-cascade")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--budget", type=float, default=5.0, help="megabytes")
    options = parser.parse_args()
    drawn = draw(options.model, options.size, options.steps, options.seed)
    cut(*drawn, options.budget)


if __name__ == "__main__":
    main()
