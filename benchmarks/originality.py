"""Are the shipped models' samples copies, and is their tissue like real tissue? (Chapter 5.)

    python benchmarks/originality.py [--images 64] [MODEL ...]

Draws samples of each model, measures how near they lie to the training data (`evaluation/copying.py`), how
much is stained and how many nuclei there are (`evaluation/histology.py`), beside held-out images and beside
controls that must be told apart: copies, also with a little noise, and blurred images. Writes one JSON line a
measurement into the results' `originality.jsonl`, anew for the models that are named. Intervals are 95%, by
bootstrap over canvases.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

import nca_lib
from nca_lib.data.faces import Faces, draw
from nca_lib.data.images import Split
from nca_lib.data.tissue import Tissue
from nca_lib.devices import best_device, compile_step, computes_bf16
from nca_lib.evaluation.copying import Neighbours, compare, grid, nearest_images, nearest_patches
from nca_lib.evaluation.histology import fit_thresholds, tissue_statistics
from nca_lib.samplers import ddim

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "originality.jsonl"
SIZE, PATCHES, STEPS, SEED = 32, (8, 16, 32), 50, 11
NOISE, BLUR = 0.1, 1.0  # of the controls: standard deviations, the blur's in pixels
MODELS = {
    "tissue-diff-nca": (32, 128),
    "faces-fourier": (32,),
    "faces-diff-nca": (32,),
}  # and the sizes of their canvases
Row = dict[str, Any]


def samples(name: str, size: int, count: int) -> Tensor:
    """Images of a shipped model, (count, 3, size, size)."""
    device = best_device()
    model = nca_lib.load(name).to(device)
    compile_step(model, device)
    part = max(1, 8 * SIZE**2 // size**2)  # images at a time, which the processor's cache holds
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
        drawn = [
            nca_lib.sample(
                model,
                (size, size),
                count=min(part, count - first),
                sampler=ddim,
                steps=STEPS,
                seed=SEED,
                first_sample=first,
            )
            for first in range(0, count, part)
        ]
    return torch.cat(drawn).float().cpu().clamp(-1, 1)


def noised(images: Tensor) -> Tensor:
    return images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))


def blurred(images: Tensor) -> Tensor:
    return gaussian_blur(images.reshape(-1, SIZE, SIZE), [7, 7], [BLUR, BLUR]).view_as(images)


class TissueParts:
    """The photograph as the model trained on it, and as it did not; blocks are (N, 1, 3, 32, 32)."""

    def __init__(self) -> None:
        self.photo = Tissue(SIZE, downscale=2).photo
        self.training, self.held_out = self._blocks("train"), self._blocks("test")

    def _blocks(self, split: Split) -> Tensor:
        whole = Tissue(SIZE, downscale=2, split=split).allowed[::SIZE, ::SIZE]
        return grid(self.photo[None], SIZE)[0][whole.flatten()][:, None]

    def allowed(self, size: int) -> Tensor:
        """The patches of this size that are for training, by their top left corners."""
        return Tissue(size, downscale=2).allowed

    def crops(self, count: int) -> Tensor:
        """Training crops in all orientations: what a copyist draws."""
        data = Tissue(SIZE, downscale=2)
        crops = [data.image(0, np.random.default_rng([SEED, i])) for i in range(count)]
        return torch.stack(crops)[:, None]


def tissue_copying(parts: TissueParts, drawn: Tensor, count: int) -> Iterator[Row]:
    """How near patches are to the photograph; `drawn` is (canvases, pieces of each, 3, 32, 32)."""
    copies = parts.crops(count)
    sets = {"samples": drawn, **controls(parts.held_out, copies)}
    for size in PATCHES:
        found = {}
        for name, images in sets.items():
            patches = some_patches(images.flatten(0, 1), size)
            nearest = nearest_patches(patches.flatten(0, 1), parts.photo, parts.allowed(size))
            found[name] = numbers(nearest, len(images))
        yield from ({"patch": size, **row} for row in compared(found))


def controls(held_out: Tensor, copies: Tensor) -> dict[str, Tensor]:
    return {
        "held-out": held_out,
        "held-out, blurred": blurred(held_out),
        "copies": copies,
        "copies, noised": noised(copies),
        "copies, blurred": blurred(copies),
    }


def some_patches(images: Tensor, size: int) -> Tensor:
    """At most four patches of each image, evenly spread, (N, patches, C, size, size)."""
    patches = grid(images, size)
    return patches[:, torch.linspace(0, patches.shape[1] - 1, min(4, patches.shape[1])).round().long()]


def numbers(found: Neighbours, rows: int) -> dict[str, Tensor]:
    """Distances and ratios, a row a canvas."""
    return {"distance": found.distance.view(rows, -1), "ratio": found.ratio.view(rows, -1)}


def faces_copying(drawn: Tensor, count: int, training: int) -> Iterator[Row]:
    """How near whole faces are to the training faces."""
    data = Faces(SIZE)

    def faces(source: Faces, first: int, number: int) -> Tensor:
        return draw([source.attributes(i) for i in range(first, first + number)], SIZE)

    copies = faces(data, training // 2, count).flip(3)
    sets = {"samples": drawn, **controls(faces(Faces(SIZE, "test"), 0, count), copies)}
    batches = (faces(data, first, min(512, training - first)) for first in range(0, training, 512))
    every = numbers(nearest_images(torch.cat(list(sets.values())), batches), len(sets) * count)
    parts = {key: values.split(count) for key, values in every.items()}
    found = {name: {key: values[i] for key, values in parts.items()} for i, name in enumerate(sets)}
    yield from ({"training_images": training, **row} for row in compared(found))


def compared(found: dict[str, dict[str, Tensor]]) -> Iterator[Row]:
    """Each set against the held-out images; of these, a random half against the other."""
    for name, ours in found.items():
        theirs = found["held-out"]
        if name == "held-out":
            halves = torch.randperm(len(ours["ratio"]), generator=torch.Generator().manual_seed(SEED)).chunk(
                2
            )
            ours, theirs = ({key: x[half] for key, x in ours.items()} for half in halves)
        row: Row = {
            "measure": "copying",
            "images": name,
            "count": len(ours["ratio"]),
            "patches": ours["ratio"].numel(),
        }
        for key in ("distance", "ratio"):
            found_here = compare(ours[key], theirs[key], seed=SEED)
            row[key] = {
                "median": round(float(ours[key].median()), 4),
                "nearer": round(found_here.nearer, 3),
                "nearer_interval": rounded(found_here.nearer_interval),
                "tail": round(found_here.tail, 3),
                "tail_interval": rounded(found_here.tail_interval),
            }
        yield row


def rounded(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def tissue_histology(parts: TissueParts, drawn: Tensor) -> Iterator[Row]:
    """Stains and nuclei, always of images of 32x32; thresholds are those of the training photograph."""
    thresholds = fit_thresholds(parts.photo[None])
    sets = {"samples": drawn, "training": parts.training, "held-out": parts.held_out}
    sets["training, blurred"] = blurred(parts.training)
    for name, canvases in sets.items():
        each = [tissue_statistics(pieces, thresholds) for pieces in canvases]
        rng = np.random.default_rng(SEED)
        resampled = [rng.integers(len(each), size=len(each)) for _ in range(1000)]
        row: Row = {"measure": "histology", "images": name, "count": len(each)}
        for key in ("haematoxylin", "dab", "nuclei"):
            values = np.array([float(found[key].mean()) for found in each])
            row[key] = spread(values.mean(), [values[rows].mean() for rows in resampled])
        areas = [found["nucleus_area"].numpy() for found in each]
        medians = [np.median(np.concatenate([areas[i] for i in rows])) for rows in resampled]
        every = np.concatenate(areas)
        row["nucleus_area"] = spread(np.median(every), medians)
        row["nucleus_area"] |= {"quartiles": rounded(np.percentile(every, [25, 75])), "nuclei": len(every)}
        yield row


def spread(value: float, resampled: list[float]) -> Row:
    return {"value": float(f"{value:.4g}"), "interval": rounded(np.percentile(resampled, [2.5, 97.5]))}


def measure(name: str, count: int, training: int) -> Iterator[Row]:
    """All rows of one model."""
    for size in MODELS[name]:
        begin = time.time()
        canvases = samples(name, size, max(1, count * SIZE**2 // size**2))
        common = {"model": name, "canvas": size, "canvases": len(canvases), "seed": SEED}
        common |= {"sampler": "ddim", "steps": STEPS, "sampling_seconds": round(time.time() - begin, 1)}
        if name.startswith("faces"):
            rows = faces_copying(canvases, count, training)
        else:
            parts = TissueParts()
            pieces = grid(canvases, SIZE)
            rows = iter([*tissue_copying(parts, pieces, count), *tissue_histology(parts, pieces)])
        first = size == MODELS[name][0]  # all other rows are the same for each size
        yield from (common | row for row in rows if first or row["images"] == "samples")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--images", type=int, default=64, help="of 32x32, from each model")
    parser.add_argument("--faces", type=int, default=65536, help="training faces to search")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(MODELS)}")
    lines = options.table.read_text().splitlines() if options.table.is_file() else []
    kept = [line for line in lines if json.loads(line)["model"] not in options.models]
    options.table.write_text("".join(f"{line}\n" for line in kept))
    for name in options.models:
        for row in measure(name, options.images, options.faces):
            print(json.dumps(row), flush=True)
            with options.table.open("a") as table:
                table.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
