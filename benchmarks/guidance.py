"""What is asked for and what is drawn, by strength of guidance (chapter 9): digits, portraits.

    python benchmarks/guidance.py [MODEL ...] [--count 256]

Each image is asked for what a held-out one shows, so that all together should be distributed as those are.
What is drawn is read by classifiers of real training images; how well they read held-out ones stands in the
row of strength null. Strength 0 is the model that is told nothing. Writes one JSON line a measurement into
the results' `guidance.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC
from torch import Tensor

from nca_lib import weights
from nca_lib.cascade import Guided
from nca_lib.data.conditional import ATTRIBUTES, DigitsByClass, FacesByAttributes
from nca_lib.data.digits import Digits
from nca_lib.data.faces import Faces
from nca_lib.data.images import Images
from nca_lib.devices import best_device, compile_step, computes_bf16
from nca_lib.evaluation.evaluate import evaluate
from nca_lib.evaluation.judges import judge_of
from nca_lib.experiments.matrix import rows
from nca_lib.samplers import dpm_solver, sample

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "guidance.jsonl"
SIZE, STEPS, SEED = 32, 20, 0  # as in the results table
STRENGTHS = (0.0, 1.0, 2.0, 4.0)
LESSONS = 3000  # images, at most, that a classifier learns from
MODELS: dict[str, tuple[type[Images], type[Images], dict[str, int]]] = {
    "digits-by-class": (DigitsByClass, Digits, {"class": 10}),
    "faces-by-attributes": (
        FacesByAttributes,
        Faces,
        {name: len(values) for name, values in ATTRIBUTES.items()},
    ),
}


def shown(data: Images, count: int) -> Tensor:
    """The first `count` images, what they show behind their channels; after the last again the first."""
    return torch.stack([data.image(n % len(data), np.random.default_rng(n)) for n in range(count)])


class Readers:
    """Classifiers of pixels, one for each thing that can be asked for."""

    def __init__(self, images: Tensor, told: Tensor, kinds: dict[str, int]):
        self.kinds = kinds
        self.readers: dict[str, Pipeline] = {
            name: make_pipeline(PCA(64, random_state=0), SVC(C=10)).fit(images.flatten(1).numpy(), answer)
            for name, answer in self.answers(told).items()
        }

    def answers(self, told: Tensor) -> dict[str, np.ndarray]:
        """The number of what each context asks for."""
        parts = told[:, :, 0, 0].split(list(self.kinds.values()), dim=1)
        return {name: part.argmax(1).numpy() for name, part in zip(self.kinds, parts, strict=True)}

    def heeded(self, images: Tensor, told: Tensor) -> dict[str, float]:
        """The share of images in which each thing is read as it was asked for."""
        seen, asked = images.flatten(1).numpy(), self.answers(told)
        return {
            name: float((reader.predict(seen) == asked[name]).mean()) for name, reader in self.readers.items()
        }


def measure(name: str, count: int) -> list[dict[str, Any]]:
    """The rows of a model: held-out images, then each strength of guidance."""
    device = best_device()
    with_context, plain, kinds = MODELS[name]
    model: Any = weights.load(name, device)
    digest = weights.digest(model.state_dict())
    compile_step(model, device)
    train, test = plain(SIZE, split="train"), plain(SIZE, split="test")
    lessons = with_context(SIZE, split="train")
    real = shown(lessons, min(LESSONS, len(lessons)))
    channels = test.channels
    readers = Readers(real[:, :channels], real[:, channels:], kinds)
    held = shown(with_context(SIZE, split="test"), count)
    told = held[:, channels:]
    judge = judge_of(name.split("-")[0], train)
    about = {"model": name, "weights": digest, "count": count, "steps": STEPS, "seed": SEED}
    found = [about | {"strength": None, "heeded": readers.heeded(held[:, :channels], told)}]
    for strength in STRENGTHS:
        drawn: list[Tensor] = []

        def generate(
            first: int, number: int, strength: float = strength, drawn: list[Tensor] = drawn
        ) -> Tensor:
            asked = Guided(model, told[first : first + number].to(device), strength)
            settings: dict[str, Any] = {"sampler": dpm_solver, "steps": STEPS, "seed": SEED}
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
                images = sample(asked, (SIZE, SIZE), count=number, first_sample=first, **settings).float()
            drawn.append(images.cpu())
            return images

        measured = evaluate(generate, train, test, count=count, judge=judge, batch=32)
        heeded = readers.heeded(torch.cat(drawn), told)
        found.append(
            about | {"strength": strength, "heeded": heeded, **{k: measured[k] for k in ("metrics", "floor")}}
        )
        print(name, strength, heeded, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"by default {', '.join(MODELS)}")
    parser.add_argument("--count", type=int, default=256, help="images of each strength")
    options = parser.parse_args()
    for name in options.models:
        new = measure(name, options.count)
        kept = [old for old in rows(TABLE) if old["model"] != name]
        TABLE.write_text("".join(json.dumps(row) + "\n" for row in kept + new))


if __name__ == "__main__":
    main()
