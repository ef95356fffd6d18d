"""Which layer of EfficientNet-Lite0 sees best, and at which size: `python benchmarks/extractors.py`.

The Frechet distance must rise with every kind of damage and lie well above its floor, on crops of tissue and
on drawn portraits, at the counts that our tables use. Writes one JSON line for each network, layer, size of
its input, data set, size of image and count into the results' `extractors.jsonl`: the curves of
`response_curves`; those that rise (a fall of 1% does not count: a blur of a quarter of a pixel changes
nothing); the distance of images glued from the halves of two, and of training images, which a model that
learned all there is to learn would reach; and the milliseconds that an image takes through all blocks.
Skips what is there. Half an hour on one core.
"""

import json
import time
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nca_lib.data.faces import HAIR_STYLES, Faces, draw
from nca_lib.data.images import Split
from nca_lib.data.tissue import Tissue
from nca_lib.devices import hardware
from nca_lib.evaluation.distortions import glued, response_curves
from nca_lib.evaluation.extractors.efficientnet import EfficientNetLite0
from nca_lib.evaluation.extractors.extractor import Extractor, to_pixels
from nca_lib.evaluation.extractors.small import SmallFeatures
from nca_lib.evaluation.metrics import frechet_distance
from nca_lib.experiments.matrix import rows

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "extractors.jsonl"
BLOCKS, SIZES, COUNTS = (4, 7, 10, 14, 15), (32, 64), (256, 512, 1024)
SIDES = (64, 96, 128)  # larger ones at the first count only: they cost two and four times as much


See = Callable[[Tensor], dict[str, Tensor]]


class Layers(Extractor):
    """Several layers that are computed together; what was seen before is not seen again."""

    def __init__(self, name: str, layers: list[str], counts: tuple[int, ...], see: See):
        super().__init__()
        self.name, self.layers, self.counts, self.see, self.layer = name, layers, counts, see, layers[0]
        self.seen: dict[bytes, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        key = images.numpy().tobytes()
        if key not in self.seen:
            self.seen[key] = self.see(images)
        return self.seen[key][self.layer]


def networks() -> list[Layers]:
    """What is compared."""
    lite, small = EfficientNetLite0(), SmallFeatures.shipped()

    def blocks(side: int) -> See:
        return lambda images: {f"block-{i}": m for i, m in enumerate(lite.block_means(images, side))}

    layers = [f"block-{i}" for i in BLOCKS]
    return [
        Layers("nca-features-1", ["all"], COUNTS, lambda images: {"all": small(images)}),
        Layers(f"efficientnet-lite0 at {SIDES[0]}", layers, COUNTS, blocks(SIDES[0])),
        *(Layers(f"efficientnet-lite0 at {s}", layers, COUNTS[:1], blocks(s)) for s in SIDES[1:]),
    ]


def pictures(kind: str, size: int, count: int, split: Split) -> tuple[Tensor, Tensor]:
    """Real images, (count, 3, size, size), and the modes that they differ by: hair styles, shades."""
    if kind == "faces":
        portraits = [Faces(split=split).attributes(index) for index in range(count)]
        images = torch.cat([draw(portraits[i : i + 64], size) for i in range(0, count, 64)])
        return images, torch.tensor([list(HAIR_STYLES).index(p.hair_style) for p in portraits])
    tissue = Tissue(size, split=split)
    images = torch.stack([tissue.image(0, np.random.default_rng(i)) for i in range(count)])
    return images, images.mean((1, 2, 3))


@torch.no_grad()
def measure(network: Layers, images: Tensor, modes: Tensor, training: Tensor) -> dict[str, object]:
    """The curves of the layer that is chosen, and how far training images and those glued of halves are."""
    real, other = images.chunk(2)
    sets = (real, other, glued(other), training)
    see = [torch.cat([network(part) for part in to_pixels(x).split(64)]) for x in sets]
    rise = {k: [round(d, 4) for _, d in v] for k, v in response_curves(network, images, modes).items()}
    return {
        "num_features": see[0].shape[1],
        "floor": round(frechet_distance(see[0], see[1]), 4),
        "glued": round(frechet_distance(see[0], see[2]), 4),
        "training": round(frechet_distance(see[0], see[3]), 4),
        "curves": rise,
        "rises": [k for k, v in rise.items() if all(b > 0.99 * a for a, b in pairwise(v))],
    }


def main() -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    keys = ("network", "layer", "data", "size", "count")
    done = {tuple(row[key] for key in keys) for row in rows(TABLE)}
    for network in networks():
        for count, kind, size in product(network.counts, ("faces", "tissue"), SIZES):
            found = [(network.name, layer, kind, size, count) for layer in network.layers]
            if done.issuperset(found):
                continue
            images, modes = pictures(kind, size, 2 * count, "test")
            training, _ = pictures(kind, size, count, "train")
            begin = time.perf_counter()
            network.see(to_pixels(images[:64]))
            milliseconds = round((time.perf_counter() - begin) / 64 * 1000, 1)
            network.seen.clear()
            for layer, key in zip(network.layers, found, strict=True):
                network.layer = layer
                row = dict(zip(keys, key, strict=True)) | measure(network, images, modes, training)
                row |= {"ms": milliseconds, "hardware": hardware(torch.device("cpu"))}
                with TABLE.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
