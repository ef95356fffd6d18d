"""Measure the edits of chapter 6: `python benchmarks/editing.py [inpaint upscale size] [--count 512]`.

Writes one JSON line a measurement into the results' `editing.jsonl`, which the chapter reads, in place of
that of other weights. What is there of the same weights is skipped; `--again` measures it anew. Images are
held-out ones; distances are Frechet distances to 1,024 other held-out images, one for each extractor that so
many images allow.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

import nca_lib
from nca_lib.data.faces import Faces
from nca_lib.data.images import Images
from nca_lib.data.tissue import Tissue
from nca_lib.devices import compile_step, computes_bf16
from nca_lib.editing import KnownPixels, enlarge, inpaint, upscale
from nca_lib.evaluation.coherence import coherence
from nca_lib.evaluation.extractors.choose import default_extractors
from nca_lib.evaluation.metrics import Measure, frechet_distance
from nca_lib.experiments.matrix import rows
from nca_lib.samplers import ddpm, dpm_solver, timestep_array

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "editing.jsonl"
STEPS, SIZE = 20, 32
JUMP, REPEATS = 5, 3  # RePaint's
CALLS = 10  # of DPM-Solver++ where nothing is edited
MODELS = {"tissue": "tissue-diff-nca", "faces": "faces-fourier"}
HOLES = {
    "tissue": {"middle": (10, 22, 10, 22)},
    "faces": {"half": (0, 32, 16, 32), "eye": (11, 19, 17, 27)},
}
FACTORS = (2, 4, 8)
SIDES = {"tissue": (32, 64, 128, 256, 512), "faces": (32, 48, 64, 96, 128)}
LPIPS = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
Row = dict[str, Any]


def held_out(kind: str) -> Images:
    """The test split that the model of this kind never saw."""
    if kind == "tissue":
        return Tissue(SIZE, downscale=2, split="test")
    return Faces(SIZE, split="test")


def images(data: Images, count: int, seed: int) -> Tensor:
    """The first `count` images, (count, 3, 32, 32) in [-1, 1]; `seed` draws crops."""
    drawn = [data.image(n % len(data), np.random.default_rng([seed, n])) for n in range(count)]
    return torch.stack(drawn)


class Distances:
    """Frechet distances of `count` images of 32x32 to 1,024 held-out ones, by each extractor's name."""

    def __init__(self, data: Images, count: int):
        self.measure = Measure(default_extractors(count))
        offset = len(data) // 2  # other images than those that are edited
        rng = np.random.default_rng
        many = [data.image((offset + n) % len(data), rng([2, n])) for n in range(1024)]
        self.real = self._read(torch.stack(many))

    def _read(self, batch: Tensor) -> dict[str, Tensor]:
        parts = [self.measure(part) for part in batch.split(64)]
        return {e.name: torch.cat([part[e.name] for part in parts]) for e in self.measure.extractors}

    def __call__(self, batch: Tensor) -> dict[str, float]:
        found = self._read(batch)
        return {name: round(frechet_distance(self.real[name], found[name]), 2) for name in found}


def load(kind: str) -> nca_lib.diffusion.Denoiser:
    """The shipped model, compiled."""
    torch._dynamo.config.recompile_limit = 64  # one for each size and batch
    model = nca_lib.load(MODELS[kind])
    compile_step(model, torch.device("cpu"))
    return model


def at_once(height: int, width: int) -> int:
    """How many images the processor's cache holds, a power of two."""
    return 2 ** int(np.log2(max(1, 16 * SIZE**2 / (height * width))))


def in_parts(edit: Callable[..., Tensor], batch: Tensor, **options: Any) -> Tensor:
    """Edit some images at a time, each part with a seed of its own."""
    parts = batch.split(at_once(SIZE, SIZE))
    return torch.cat([edit(part, seed=n, **options) for n, part in enumerate(parts)])


def timed(edit: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result, and the seconds it took."""
    begin = time.time()
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16(torch.device("cpu"))):
        result = edit()
    return result.float(), round(time.time() - begin, 1)


def seam(batch: Tensor, hole: tuple[int, int, int, int]) -> float:
    """Mean |difference| of the pixels on the two sides of the hole's edge, where it is not the image's."""
    top, bottom, left, right = hole
    inside = batch[:, :, top:bottom, left:right]
    edges = []
    if top > 0:
        edges.append(inside[:, :, 0] - batch[:, :, top - 1, left:right])
    if bottom < batch.shape[2]:
        edges.append(inside[:, :, -1] - batch[:, :, bottom, left:right])
    if left > 0:
        edges.append(inside[:, :, :, 0] - batch[:, :, top:bottom, left - 1])
    if right < batch.shape[3]:
        edges.append(inside[:, :, :, -1] - batch[:, :, top:bottom, right])
    return float(torch.cat([edge.flatten() for edge in edges]).abs().mean())


def biharmonic(batch: Tensor, hole: Tensor) -> Tensor:
    """The plain fill: scikit-image's."""
    arrays = batch.permute(0, 2, 3, 1).double().numpy()
    filled = [inpaint_biharmonic(array, hole.numpy(), channel_axis=-1) for array in arrays]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float()


def inpainting(kind: str, count: int, done: set[str]) -> Iterator[Row]:
    """Fill holes: plainly, the published way, by RePaint."""
    data, model = held_out(kind), load(kind)
    distances = Distances(data, count)
    real, other = images(data, count, 7), images(data, 2 * count, 8)[count:]
    for name, box in HOLES[kind].items():
        mask = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
        mask[..., box[0] : box[1], box[2] : box[3]] = False
        hole = ~mask.expand_as(real)
        fill = partial(in_parts, partial(inpaint, model, mask=mask, sampler=ddpm), real)
        repaint = {"jump": JUMP, "repeats": REPEATS}
        path = KnownPixels(real, mask, **repaint).path(timestep_array(model.schedule.timesteps, STEPS))
        calls = {"published": STEPS, "noised, no jumps": STEPS, "RePaint": int((np.diff(path) < 0).sum())}
        edits: dict[str, Callable[[], Tensor]] = {
            "the image itself": real.clone,
            "another image's pixels": partial(torch.where, mask, real, other),
            "biharmonic": partial(biharmonic, real, ~mask[0, 0]),
            "published": partial(fill, steps=STEPS, method="published"),
            "noised, no jumps": partial(fill, steps=STEPS, repeats=1),
            "RePaint": partial(fill, steps=STEPS, **repaint),
        }
        if name == "half":  # does more work help by itself?
            calls[more := "published, as many calls"] = calls["RePaint"]
            edits[more] = partial(fill, steps=calls[more], method="published")
        for method, edit in edits.items():
            if f"inpaint {kind} {name} {method}" in done:
                continue
            filled, seconds = timed(edit)
            row = {
                "edit": "inpaint",
                "data": kind,
                "weights": MODELS[kind],
                "hole": name,
                "method": method,
                "count": count,
                "calls": calls.get(method, 0),
                "seam": round(seam(filled, box) / seam(real, box), 3),
                "rmse": round(float((filled - real)[hole].square().mean().sqrt()), 4),
                "distances": distances(filled),
                "seconds": seconds,
            }
            yield row | ({"coherence": rules_kept(filled)} if kind == "faces" else {})


def super_resolution(kind: str, count: int, done: set[str]) -> Iterator[Row]:
    """Enlarge: by interpolation, the published way, by DDNM."""
    data, model = held_out(kind), load(kind)
    distances, real = Distances(data, count), images(data, count, 7)
    for factor in FACTORS:
        low = F.avg_pool2d(real, factor)
        enlarged = partial(in_parts, partial(upscale, model, factor=factor, sampler=ddpm), low)
        edits: dict[str, Callable[[], Tensor]] = {
            "pixels copied": partial(enlarge, low, factor),
            "bicubic": partial(F.interpolate, low, scale_factor=factor, mode="bicubic"),
            "published, T/14": partial(enlarged, method="published", strength=1 / 14, steps=STEPS // 2),
            "published, T/10": partial(enlarged, method="published", strength=1 / 10, steps=STEPS // 2),
            "DDNM": partial(enlarged, method="ddnm", steps=STEPS),
        }
        for method, edit in edits.items():
            if f"upscale {kind} {factor} {method}" in done:
                continue
            result, seconds = timed(edit)
            result = result.clamp(-1, 1)
            row = {
                "edit": "upscale",
                "data": kind,
                "weights": MODELS[kind],
                "factor": factor,
                "method": method,
                "count": count,
                **quality(result, real),
                "consistency": float(f"{(F.avg_pool2d(result, factor) - low).abs().max():.2g}"),
                "distances": distances(result),
                "seconds": seconds,
            }
            yield row | ({"coherence": rules_kept(result)} if kind == "faces" else {})


def quality(result: Tensor, real: Tensor) -> dict[str, float]:
    """PSNR and SSIM; LPIPS where the weights of its network are."""
    arrays = [[(x.permute(1, 2, 0).numpy() + 1) / 2 for x in batch] for batch in (real, result)]
    pairs = list(zip(*arrays, strict=True))
    ssim = partial(structural_similarity, data_range=1, channel_axis=-1)
    numbers = {
        "psnr": float(np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs])),
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if LPIPS.is_file():
        numbers["lpips"] = float(LearnedPerceptualImagePatchSimilarity(net_type="alex")(result, real))
    return {name: round(value, 4) for name, value in numbers.items()}


def sizes(kind: str, count: int, done: set[str]) -> Iterator[Row]:
    """Sample canvases of other sizes than the trained one.

    Faces are judged by the rules that they keep, reduced to 32x32. Tissue is judged by `count` pieces of
    32x32 from anywhere; then by as many from the edge of the canvas, where cells see nothing on one side, and
    from within, so that a large canvas is not called better because less of it is edge.
    """
    model = load(kind)
    distances = Distances(held_out(kind), count) if kind == "tissue" else None
    for side in SIDES[kind]:
        if f"size {kind} {side}" in done:
            continue
        if kind == "tissue":
            inner = int(inner_pieces(side).sum())
            there = ((side // SIZE) ** 2 - inner, inner)  # at the edge, and within
            number = max(-(-count // pieces) for pieces in there if pieces)
        else:
            number = count if side <= 64 else count // 2
        part = min(number, at_once(side, side))
        draw = partial(nca_lib.sample, model, (side, side), sampler=dpm_solver, steps=CALLS, seed=3)
        starts = range(0, number, part)
        result, seconds = timed(lambda: torch.cat([draw(count=part, first_sample=n) for n in starts]))  # noqa: B023
        row: Row = {"edit": "size", "data": kind, "weights": MODELS[kind], "side": side}
        row |= {"canvases": len(result), "seconds": seconds}
        if distances is None:
            yield row | {"coherence": rules_kept(result)}
            continue
        pieces = result.unfold(2, SIZE, SIZE).unfold(3, SIZE, SIZE).permute(2, 3, 0, 1, 4, 5)
        within = inner_pieces(side)
        row |= {"pieces": count, "anywhere": distances(some(pieces.flatten(0, 2), count))}
        row["edge"] = distances(some(pieces[~within].flatten(0, 1), count))
        if within.any():
            row["within"] = distances(some(pieces[within].flatten(0, 1), count))
        yield row


def inner_pieces(side: int) -> Tensor:
    """Which 32x32 pieces of a canvas touch no edge, (side / 32, side / 32)."""
    inner = torch.zeros(side // SIZE, side // SIZE, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return inner


def some(pieces: Tensor, count: int) -> Tensor:
    """As many of them, drawn by chance."""
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:count]]


def rules_kept(faces: Tensor) -> dict[str, float]:
    """The share of faces that keep each rule."""
    return {rule: round(float(held.float().mean()), 3) for rule, held in coherence(faces).items()}


PARTS = {"inpaint": inpainting, "upscale": super_resolution, "size": sizes}


def name_of(row: Row) -> str:
    """What a row measures."""
    return " ".join(
        str(row[key]) for key in ("edit", "data", "hole", "factor", "side", "method") if key in row
    )


def main() -> None:
    """Measure what is missing of the parts that are named, or of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=512, help="images or pieces of each")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    table = rows(TABLE)
    newest = [row for row in table if row["weights"] == MODELS[row["data"]]]
    done = set() if options.again else {name_of(row) for row in newest}
    for part in parts:
        for kind in MODELS:
            for row in PARTS[part](kind, options.count, done):
                print(json.dumps(row), flush=True)
                table = [old for old in table if name_of(old) != name_of(row)] + [row]
                TABLE.write_text("".join(f"{json.dumps(line)}\n" for line in table))


if __name__ == "__main__":
    main()
