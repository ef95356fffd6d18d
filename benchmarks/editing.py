"""Measure the edits of chapter 6: `python benchmarks/editing.py [inpaint upscale size]`.

Writes one JSON line a measurement into the results' `editing.jsonl`, which the chapter reads, and begins anew
the parts that are named. Images are held-out ones; distances are Frechet distances of `nca-features-1`.
"""

import json
import sys
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
from nca_lib.editing import enlarge, inpaint, upscale
from nca_lib.evaluation.coherence import coherence
from nca_lib.evaluation.extractors.extractor import to_pixels
from nca_lib.evaluation.extractors.small import SmallFeatures
from nca_lib.evaluation.metrics import frechet_distance
from nca_lib.samplers import ddpm

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "editing.jsonl"
COUNT, STEPS, SIZE = 64, 25, 32
PART = 8  # images at a time, which the processor's cache holds
MODELS = {"tissue": "tissue-diff-nca", "faces": "faces-fourier"}
HOLES = {
    "tissue": {"middle": (10, 22, 10, 22)},
    "faces": {"eye": (11, 19, 17, 27), "half": (0, 32, 16, 32)},
}
LPIPS = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"


def held_out(kind: str) -> Images:
    """The test split that the model of this kind never saw."""
    if kind == "tissue":
        return Tissue(SIZE, downscale=2, split="test")
    return Faces(SIZE, split="test")


def images(data: Images, count: int, seed: int) -> Tensor:
    """The first `count` images, (count, 3, 32, 32) in [-1, 1]; `seed` draws crops."""
    drawn = [data.image(n % len(data), np.random.default_rng([seed, n])) for n in range(count)]
    return torch.stack(drawn)


class Distance:
    """Frechet distance of images to 1,024 held-out ones, cut into 32x32 if they are larger."""

    def __init__(self, data: Images):
        self.features = SmallFeatures.shipped().eval()
        offset = len(data) // 2  # other images than those that are edited
        rng = np.random.default_rng
        many = [data.image((offset + n) % len(data), rng([2, n])) for n in range(1024)]
        self.real = self._read(torch.stack(many))

    def _read(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.features(to_pixels(part)).float() for part in batch.split(64)])

    def __call__(self, batch: Tensor) -> float:
        return round(frechet_distance(self.real, self._read(batch)), 2)


def load(kind: str) -> nca_lib.diffusion.Denoiser:
    """The shipped model, compiled."""
    torch._dynamo.config.recompile_limit = 64  # one for each size and batch
    model = nca_lib.load(MODELS[kind])
    compile_step(model, torch.device("cpu"))
    return model


def in_parts(edit: Callable[..., Tensor], batch: Tensor, **options: Any) -> Tensor:
    """Edit a few images at a time, each part with a seed of its own."""
    return torch.cat([edit(part, seed=n, **options) for n, part in enumerate(batch.split(PART))])


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


def inpainting(kind: str) -> Iterator[dict[str, Any]]:
    """Fill holes: plainly, the published way, by RePaint."""
    data, model = held_out(kind), load(kind)
    distance = Distance(data)
    real, other = images(data, COUNT, 7), images(data, 2 * COUNT, 8)[COUNT:]
    for name, box in HOLES[kind].items():
        mask = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
        mask[..., box[0] : box[1], box[2] : box[3]] = False
        hole = ~mask.expand_as(real)
        fill = partial(in_parts, partial(inpaint, model, mask=mask, sampler=ddpm), real)
        edits: dict[str, Callable[[], Tensor]] = {
            "the image itself": real.clone,
            "another image's pixels": partial(torch.where, mask, real, other),
            "biharmonic": partial(biharmonic, real, ~mask[0, 0]),
            "published": partial(fill, steps=STEPS, method="published"),
            "published, 4x the steps": partial(fill, steps=4 * STEPS, method="published"),
            "noised, no jumps": partial(fill, steps=STEPS, repeats=1),
            "RePaint, 4 times": partial(fill, steps=STEPS, jump=5, repeats=4),
        }
        for method, edit in edits.items():
            filled, seconds = timed(edit)
            row = {
                "edit": "inpaint",
                "data": kind,
                "hole": name,
                "method": method,
                "seam": round(seam(filled, box) / seam(real, box), 3),
                "rmse": round(float((filled - real)[hole].square().mean().sqrt()), 4),
                "distance": distance(filled),
                "seconds": seconds,
            }
            yield row | ({"coherence": rules_kept(filled)} if kind == "faces" else {})


def super_resolution(kind: str) -> Iterator[dict[str, Any]]:
    """Enlarge: by interpolation, the published way, by DDNM."""
    data, model = held_out(kind), load(kind)
    distance, real = Distance(data), images(data, COUNT // 2, 7)
    for factor in (2, 4, 8):
        low = F.avg_pool2d(real, factor)
        enlarged = partial(in_parts, partial(upscale, model, factor=factor, sampler=ddpm, steps=STEPS), low)
        edits: dict[str, Callable[[], Tensor]] = {
            "pixels copied": partial(enlarge, low, factor),
            "bicubic": partial(F.interpolate, low, scale_factor=factor, mode="bicubic"),
            "published, T/14": partial(enlarged, method="published", strength=1 / 14),
            "published, T/10": partial(enlarged, method="published", strength=1 / 10),
            "DDNM": partial(enlarged, method="ddnm"),
        }
        for method, edit in edits.items():
            result, seconds = timed(edit)
            result = result.clamp(-1, 1)
            yield {
                "edit": "upscale",
                "data": kind,
                "factor": factor,
                "method": method,
                **quality(result, real),
                "consistency": float(f"{(F.avg_pool2d(result, factor) - low).abs().max():.2g}"),
                "distance": distance(result),
                "seconds": seconds,
            }


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


def sizes(kind: str) -> Iterator[dict[str, Any]]:
    """Sample canvases that depart from the trained size.

    Tissue is judged by pieces of 32x32, faces by the rules that they keep, reduced to 32x32.
    """
    model, distance = load(kind), Distance(held_out(kind))
    shapes = [(32, 32), (40, 40), (48, 48), (64, 64), (32, 64), (64, 32), (96, 96), (128, 128)]
    shapes += [(256, 256), (512, 512), (128, 512)]
    for height, width in shapes:
        if kind == "tissue":
            count = -(-64 // ((height // SIZE) * (width // SIZE)))
        else:
            count = max(1, min(32, 256 * SIZE**2 // (height * width)))
        draw = partial(nca_lib.sample, model, (height, width), steps=STEPS)
        result, seconds = timed(lambda: torch.cat([draw(seed=3, first_sample=n) for n in range(count)]))  # noqa: B023
        row = {"edit": "size", "data": kind, "height": height, "width": width, "count": count}
        row["seconds"] = seconds
        if kind == "tissue":
            pieces = result.unfold(2, SIZE, SIZE).unfold(3, SIZE, SIZE)
            pieces = pieces.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            some = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:64]
            yield row | {"distance": distance(pieces[some])}
        else:
            yield row | {"coherence": rules_kept(result)}


def rules_kept(faces: Tensor) -> dict[str, float]:
    """The share of faces that keep each rule."""
    return {rule: round(float(held.float().mean()), 3) for rule, held in coherence(faces).items()}


PARTS = {"inpaint": inpainting, "upscale": super_resolution, "size": sizes}


def main() -> None:
    """Measure the parts that are named, or all."""
    parts = sys.argv[1:] or list(PARTS)
    lines = TABLE.read_text().splitlines() if TABLE.is_file() else []
    kept = [line for line in lines if json.loads(line)["edit"] not in parts]
    TABLE.write_text("".join(f"{line}\n" for line in kept))
    for part in parts:
        for kind in MODELS:
            for row in PARTS[part](kind):
                print(json.dumps(row), flush=True)
                with TABLE.open("a") as table:
                    table.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
