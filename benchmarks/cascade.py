"""What context is worth: a cascade beside models of a single level, seen from near and afar (chapter 9).

    python benchmarks/cascade.py [MODEL ...] [--seeds 3] [--count 128]

Each model draws pictures of 256x256 pixels of the photograph, at its own scale. From near and afar means
reduced to 1, 1/2, 1/4 and 1/8 of the photograph's: from each reduced picture one piece of 32x32 pixels is
compared with pieces of the photograph, taken anywhere in it, in all orientations. (At 1/8 a held-out block
is 16 pixels wide, so that the whole photograph is all there is to compare with. Whether a model copies it is
measured elsewhere.) The floor is the same distance of other such pieces.

Apart from distances, architecture: four larger pictures, as large as the photograph, are read for how far
brightness is correlated, and for the size of stained areas and the length of their outlines. The photograph
stands in a row of its own, with seed null. Writes one JSON line a model and seed into the results'
`cascade.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, perimeter_crofton
from torch import Tensor

from nca_lib import weights
from nca_lib.cascade import Cascade
from nca_lib.data.tissue import Tissue
from nca_lib.devices import best_device, compile_step, computes_bf16
from nca_lib.diffusion import Denoiser
from nca_lib.evaluation.evaluate import evaluate
from nca_lib.evaluation.histology import stain_amounts
from nca_lib.experiments.matrix import rows
from nca_lib.samplers import dpm_solver, sample

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "cascade.jsonl"
SIDE, PIECE = 256, 32  # of pictures in the photograph's pixels; of pieces in reduced ones
LARGE = 4  # pictures as large as the photograph
STEPS, BATCH = 12, 8
DISTANCES = (8, 16, 32, 48, 64)  # in the photograph's pixels
COARSE = 4  # how far pictures are reduced before architecture is read
SPECK = 16  # stained areas of fewer reduced pixels are none: 16x16 in the photograph
MODELS = {
    "plain, 1/2": ("tissue-diff-nca", 2),
    "cascade, 1/2": ("tissue-cascade", 2),
    "plain, 1": ("runs/tissue-full-untold/model.safetensors", 1),
    "cascade, 1": ("tissue-cascade", 1),
}
"""The weights of each, and the scale at which it draws: of a cascade, all levels down to that one."""


class Anywhere(Tissue):
    """Crops of the whole photograph, no matter what is held out."""

    def _allowed(self, guard: int, split: str) -> Tensor:
        return torch.ones([side - self.extent + 1 for side in self.source.shape[1:]], dtype=torch.bool)


def load(name: str) -> Denoiser:
    """A model by its name in `MODELS`."""
    path, scale = MODELS[name]
    model: Any = weights.load(path, best_device())
    return model.below if isinstance(model, Cascade) and scale == model.factor else model


def correlation(pictures: Tensor) -> dict[int, float]:
    """Of brightness at some distances, over all pictures (N, 3, H, W) that are reduced by `COARSE`."""
    light = pictures.mean(dim=1)
    light = light - light.mean()
    found = {}
    for distance in DISTANCES:
        d = distance // COARSE
        across, down = (light[:, :, d:] * light[:, :, :-d]).mean(), (light[:, d:] * light[:, :-d]).mean()
        found[distance] = float((across + down) / 2 / light.square().mean())
    return found


def stained(pictures: Tensor) -> np.ndarray:
    """The amount of the brown stain, blurred by one reduced pixel, (N, H, W)."""
    return gaussian(stain_amounts(pictures.clamp(-1, 1))[:, 1].numpy(), (0, 1, 1))


def glands(pictures: Tensor, threshold: float) -> dict[str, float]:
    """Of stained areas, in the photograph's pixels: their share, size and outline.

    - `share`: of all pixels.
    - `area`: of the one in which a stained pixel lies, on average; specks hardly count.
    - `outline`: the length of all edges, lumens' included, for each pixel of area; frayed ones are long.
    """
    share, sizes, length = [], [], 0.0
    for amounts in stained(pictures):
        mask = amounts > threshold
        areas = np.bincount(label(mask, connectivity=1).flat)[1:]
        share.append(mask.mean())
        sizes += [area for area in areas if area >= SPECK]
        length += float(perimeter_crofton(mask))
    area = np.array(sizes, dtype=float)
    whole = sum(share) * pictures.shape[2] * pictures.shape[3]
    return {
        "share": float(np.mean(share)),
        "area": float((area**2).sum() / area.sum()) * COARSE**2,
        "outline": float(length / whole / COARSE),
    }


def architecture(pictures: Tensor, scale: int, threshold: float) -> dict[str, Any]:
    """Correlation and glands of pictures that were drawn at 1/`scale`."""
    reduced = F.avg_pool2d(pictures, COARSE // scale)
    return {"correlation": correlation(reduced), "glands": glands(reduced, threshold)}


def draw(model: Denoiser, side: int, count: int, seed: int, first: int = 0) -> Tensor:
    """Pictures `first` ... `first + count - 1` of a seed, (count, 3, side, side)."""
    device, drawn = best_device(), []
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
        for start in range(first, first + count, BATCH):
            number = min(BATCH, first + count - start)
            settings: dict[str, Any] = {"sampler": dpm_solver, "steps": STEPS, "seed": seed}
            images = sample(model, (side, side), count=number, first_sample=start, **settings)
            drawn.append(images.float().clamp(-1, 1).cpu())
    return torch.cat(drawn)


def pieces_of(pictures: Tensor, seed: int) -> Tensor:
    """One piece of each picture, anywhere in it: (N, 3, PIECE, PIECE)."""
    places = np.random.default_rng(seed).integers(pictures.shape[2] - PIECE + 1, size=(len(pictures), 2))
    cut = [p[:, y : y + PIECE, x : x + PIECE] for p, (y, x) in zip(pictures, places, strict=True)]
    return torch.stack(cut)


def measure(name: str, seed: int, count: int, threshold: float) -> dict[str, Any]:
    """The row of a model and a seed."""
    model, scale = load(name), MODELS[name][1]
    digest = weights.digest(model.state_dict())
    compile_step(model, best_device())
    draw(model, SIDE // scale, BATCH, seed)  # compiles
    begin = time.process_time()
    pictures = draw(model, SIDE // scale, count, seed)
    seconds = time.process_time() - begin
    found: dict[str, Any] = {}
    for reduction in (r for r in (1, 2, 4, 8) if r >= scale):
        pieces = pieces_of(F.avg_pool2d(pictures, reduction // scale), seed)
        real = Anywhere(PIECE, downscale=reduction, offsets=True)
        generate = lambda first, number, pieces=pieces: pieces[first : first + number]  # noqa: E731
        measured = evaluate(generate, real, real, count=count)
        found[str(reduction)] = {key: measured[key] for key in ("metrics", "floor")}
    large = draw(model, 512 // scale, LARGE, seed, first=count)
    return {
        "model": name,
        "weights": digest,
        "scale": scale,
        "seed": seed,
        "count": count,
        "steps": STEPS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds_per_megapixel": seconds / (count * (SIDE // scale) ** 2 / 1e6),
        **architecture(large, scale, threshold),
        "reductions": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"by default {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=128, help="pictures of each model and seed")
    options = parser.parse_args()
    photo = Tissue().photo[None]
    threshold = float(threshold_otsu(stained(F.avg_pool2d(photo, COARSE))))
    real = {"model": "photograph", "scale": 1, "seed": None, **architecture(photo, 1, threshold)}
    _keep([real])
    for name in options.models:
        for seed in range(options.seeds):
            row = measure(name, seed, options.count, threshold)
            _keep([row])
            print(name, seed, row["correlation"], row["glands"], flush=True)


def _keep(new: list[dict[str, Any]]) -> None:
    """Write rows in place of older ones of the same model and seed."""
    keys = {(row["model"], row["seed"]) for row in new}
    kept = [old for old in rows(TABLE) if (old["model"], old["seed"]) not in keys]
    TABLE.write_text("".join(json.dumps(row) + "\n" for row in kept + new))


if __name__ == "__main__":
    main()
