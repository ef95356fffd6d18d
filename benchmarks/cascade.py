"""What context is worth: a cascade beside models of a single level, seen from near and afar (chapter 9).

    python benchmarks/cascade.py [MODEL ...] [--seeds 0 1 2] [--trainings 0] [--count 128]

Each model draws pictures of 256x256 pixels of the photograph, at its own scale. Seen from near and afar means
reduced to 1, 1/2, 1/4 and 1/8 of the photograph's: pieces of 32x32 pixels of the reduced pictures are
compared with pieces of the photograph, taken anywhere in it, in all orientations. That is likeness to this
one photograph, most of which the models have learned from. (At 1/8 a held-out block is 16 pixels wide; there
is nothing else to compare with. Copying is measured elsewhere.) The floor is the same distance of other such
pieces. At 1/8 a piece is a whole picture, borders included, at 1 most are inside.

Apart from distances, three numbers of architecture, which need no extractor; see `architecture`. The
photograph stands in a row of its own, read in nine windows of 256x256 (they overlap).

The others are trained first, by `python -m nca_lib`:

- `train tissue-full-untold`, a single level at the full scale.
- `train tissue-layout`, `train tissue-scales`, and of them a cascade of which one rule is three levels:
  `join --out runs/one-rule.safetensors LAYOUT SCALES SCALES SCALES`, each a `runs/NAME/model.safetensors`.
- `runs/three-levels.safetensors` (and `.json`) is what shipped before, without a level at a quarter: commit
  f3bce90 holds it as `nca_lib/pretrained/tissue-cascade.safetensors`.

Others than training 0 lie in `runs/seed-1/` and so on under the same names, `tissue-cascade.safetensors` for
the shipped one; each was trained with that `--training.seed` (all begin with the same `tissue-diff-nca`).

Writes one JSON line a model, training and seed of noise into the results' `cascade.jsonl`, in place of those
of other weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import structure_tensor
from skimage.filters import gaussian, threshold_otsu
from torch import Tensor

from nca_lib import weights
from nca_lib.cascade import Cascade
from nca_lib.data.tissue import Tissue
from nca_lib.devices import best_device, compile_step, computes_bf16
from nca_lib.diffusion import Denoiser
from nca_lib.evaluation.evaluate import evaluate
from nca_lib.evaluation.histology import stain_amounts
from nca_lib.experiments.matrix import rows
from nca_lib.files import write_atomically
from nca_lib.samplers import dpm_solver, sample

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "cascade.jsonl"
SIDE, PIECE = 256, 32  # of pictures in the photograph's pixels; of pieces in reduced ones
PIECES = {1: 2, 2: 2, 4: 2, 8: 1}  # of each picture, by how far it is reduced
STEPS, BATCH = 12, 8
DISTANCES = (8, 16, 32, 48)  # in the photograph's pixels
MODELS = {
    "plain, 1/2": ("tissue-diff-nca", 2),
    "three levels, 1/2": ("runs/three-levels.safetensors", 2),
    "cascade, 1/2": ("tissue-cascade", 2),
    "one rule, 1/2": ("runs/one-rule.safetensors", 2),
    "plain, 1": ("runs/tissue-full-untold/model.safetensors", 1),
    "cascade, 1": ("tissue-cascade", 1),
    "one rule, 1": ("runs/one-rule.safetensors", 1),
}
"""The weights of each, and the scale at which it draws: of a cascade, all levels down to that one."""


class Anywhere(Tissue):
    """Crops of the whole photograph, no matter what is held out."""

    def _allowed(self, guard: int, split: str) -> Tensor:
        return torch.ones([side - self.extent + 1 for side in self.source.shape[1:]], dtype=torch.bool)


def load(name: str, training: int = 0) -> Denoiser:
    """A model by its name in `MODELS`; another training of it lies elsewhere."""
    path, scale = MODELS[name]
    if training:
        shipped = not path.startswith("runs/")
        path = f"runs/seed-{training}/" + (f"{path}.safetensors" if shipped else path.removeprefix("runs/"))
    model: Any = weights.load(path, best_device())
    return model.below if isinstance(model, Cascade) and scale == model.factor else model


def correlation(pictures: Tensor) -> dict[int, float]:
    """Of brightness at some distances, over pictures (N, 3, h, w) at 1/8, about the mean of each."""
    light = pictures.mean(dim=1)
    light = light - light.mean(dim=(1, 2), keepdim=True)
    found = {}
    for distance in DISTANCES:
        d = distance // 8
        across, down = (light[:, :, d:] * light[:, :, :-d]).mean(), (light[:, d:] * light[:, :-d]).mean()
        found[distance] = float((across + down) / 2 / light.square().mean())
    return found


def stain(pictures: Tensor) -> np.ndarray:
    """The amount of the brown stain in pictures (N, 3, h, w), blurred by one pixel, (N, h, w)."""
    return gaussian(stain_amounts(pictures.clamp(-1, 1))[:, 1].numpy(), (0, 1, 1))


def chord(stained: np.ndarray) -> float:
    """The mean length of a straight line within what is stained, (N, h, w), across and down.

    Stained pixels for each place where a line leaves them, so that the pictures' borders do not matter.
    """
    left = (stained[:, :, :-1] & ~stained[:, :, 1:]).sum() + (stained[:, :-1] & ~stained[:, 1:]).sum()
    return float((stained[:, :, :-1].sum() + stained[:, :-1].sum()) / left)


def order(pictures: Tensor, stained: np.ndarray) -> float:
    """How parallel edges run within what is stained: coherence of the structure tensor, 0..1, at 1/2.

    (l1 - l2) / (l1 + l2) of its eigenvalues, over a neighbourhood of 16 pixels of the photograph: 1 where all
    edges run in one direction.
    """
    found = []
    for light, inside in zip(pictures.mean(dim=1).numpy(), stained, strict=True):
        a, b, c = structure_tensor(light, sigma=4, order="rc")
        coherence = np.sqrt((a - c) ** 2 + 4 * b**2) / np.maximum(a + c, 1e-9)
        found.append(coherence[np.kron(inside, np.ones((2, 2), dtype=bool))])
    return float(np.concatenate(found).mean())


def architecture(pictures: Tensor, scale: int, share: float) -> dict[str, Any]:
    """What has units: (N, 3, h, w), drawn at 1/`scale`.

    - `correlation` of brightness, by distance.
    - `chord`: of the stained `share` of all pixels, those with most stain, in the photograph's pixels. The
      same share for all, for more stain has longer chords.
    - `order` within that share.
    """
    quarter = F.avg_pool2d(pictures, 4 // scale)
    amounts = stain(quarter)
    stained = amounts > np.quantile(amounts, 1 - share)
    return {
        "correlation": correlation(F.avg_pool2d(pictures, 8 // scale)),
        "chord": 4 * chord(stained),
        "order": order(F.avg_pool2d(pictures, 2 // scale), stained),
    }


def parameters(model: Denoiser) -> int:
    """How many a model has; of a cascade those of each rule once, however many levels it is."""
    levels = [model]
    while isinstance(levels[-1], Cascade):
        levels.append(levels[-1].below)
    networks = [level.network for level in levels]
    rules = {weights.digest(n.state_dict()): sum(p.numel() for p in n.parameters()) for n in networks}
    return sum(rules.values())


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


def pieces_of(pictures: Tensor, number: int, seed: int) -> Tensor:
    """Pieces of each picture, anywhere in it: (number * N, 3, PIECE, PIECE)."""
    pictures = pictures.repeat(number, 1, 1, 1)
    places = np.random.default_rng(seed).integers(pictures.shape[2] - PIECE + 1, size=(len(pictures), 2))
    cut = [p[:, y : y + PIECE, x : x + PIECE] for p, (y, x) in zip(pictures, places, strict=True)]
    return torch.stack(cut)


def measure(name: str, training: int, seed: int, count: int, share: float) -> dict[str, Any]:
    """The row of a model, a training and a seed of noise."""
    model, scale = load(name, training), MODELS[name][1]
    digest = weights.digest(model.state_dict())
    compile_step(model, best_device())
    draw(model, SIDE // scale, BATCH, seed)  # compiles
    begin = time.process_time()
    pictures = draw(model, SIDE // scale, count, seed)
    seconds = time.process_time() - begin
    found: dict[str, Any] = {}
    for reduction in (r for r in PIECES if r >= scale):
        pieces = pieces_of(F.avg_pool2d(pictures, reduction // scale), PIECES[reduction], seed)
        real = Anywhere(PIECE, downscale=reduction, offsets=True)
        measured = evaluate(
            lambda first, number, pieces=pieces: pieces[first : first + number],
            real,
            real,
            count=len(pieces),
            seed=seed,
        )
        found[str(reduction)] = {key: measured[key] for key in ("metrics", "floor")}
    return {
        "model": name,
        "weights": digest,
        "training": training,
        "seed": seed,
        "count": count,
        "steps": STEPS,
        "parameters": parameters(model),
        "cpu_seconds_per_megapixel": seconds / (count * (SIDE // scale) ** 2 / 1e6),
        **architecture(pictures, scale, share),
        "reductions": found,
    }


def photograph() -> dict[str, Any]:
    """The row of the photograph, and the share of it that is stained by Otsu's threshold."""
    photo = Tissue().photo
    amounts = stain(F.avg_pool2d(photo[None], 4))
    share = float((amounts > threshold_otsu(amounts)).mean())
    windows = photo.unfold(1, SIDE, SIDE // 2).unfold(2, SIDE, SIDE // 2).permute(1, 2, 0, 3, 4).flatten(0, 1)
    about = {"model": "photograph", "weights": None, "training": None, "seed": None, "share": share}
    return about | architecture(windows, 1, share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"by default {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of noise")
    parser.add_argument("--trainings", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=128, help="pictures of each model and seed")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    real = photograph()
    _keep(options.out, real)
    for name in options.models:
        for training, seed in itertools.product(options.trainings, options.seeds):
            row = measure(name, training, seed, options.count, real["share"])
            _keep(options.out, row)
            print(
                name, training, seed, {key: row[key] for key in ("correlation", "chord", "order")}, flush=True
            )


def _keep(table: Path, new: dict[str, Any]) -> None:
    """Write a row in place of that of the same training and seed, and of those of other weights."""

    def replaced(old: dict[str, Any]) -> bool:
        same = all(old[key] == new[key] for key in ("model", "training"))
        return same and (old["weights"] != new["weights"] or old["seed"] == new["seed"])

    kept = [old for old in rows(table) if not replaced(old)]
    places = ["photograph", *MODELS]
    ordered = sorted(
        [*kept, new], key=lambda row: (places.index(row["model"]), row["training"] or 0, row["seed"] or 0)
    )
    write_atomically(table, "".join(json.dumps(row) + "\n" for row in ordered).encode())


if __name__ == "__main__":
    main()
