"""Quality against denoiser calls, for chapter 8: `python benchmarks/calls.py MODEL ... [--calls 5 10 20]`.

Appends one JSON line for each model, sampler, firing and number of calls to the results' `calls.jsonl`, and
skips those that are there. The numbers are Frechet distances between `--count` generated images and 512
held-out ones, one for each extractor that so many images allow. Firing matters only to models whose cells
rest (update probability below 1).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from nca_lib import weights
from nca_lib.data.images import Images
from nca_lib.devices import best_device, compile_step, computes_bf16, hardware
from nca_lib.diffusion import Denoiser
from nca_lib.evaluation.evaluate import PROTOCOLS
from nca_lib.evaluation.extractors.choose import default_extractors
from nca_lib.evaluation.metrics import Measure, frechet_distance
from nca_lib.evaluation.real import RealImages, real_and_floor
from nca_lib.experiments.matrix import rows
from nca_lib.experiments.settings import Experiment
from nca_lib.noise import Firing
from nca_lib.samplers import SAMPLERS, sample

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "calls.jsonl"
KEY = ("model", "sampler", "firing", "calls")
REAL, BATCH = 512, 16  # the images that the processor's cache holds
PARTS = 4  # a quarter of the images is left out in turn, which tells how much of a distance is chance
Features = dict[str, Tensor]  # (images, d) by the extractor's name


def features_of_real(measure: Measure, images: RealImages, count: int) -> Features:
    """The features of the first `count` of the real images."""
    return joined([measure(images.batch(first, BATCH)) for first in range(0, count, BATCH)], measure)


def features_of_samples(
    measure: Measure, model: Denoiser, like: Images, sampler: str, firing: Firing, calls: int, count: int
) -> Features:
    """The features of samples."""
    device = next(model.parameters()).device
    found = []
    for first in range(0, count, BATCH):
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
            images = sample(
                model,
                (like.size, like.size),
                count=BATCH,
                sampler=SAMPLERS[sampler],
                steps=calls,
                first_sample=first,
                firing=firing,
            )
        found.append(measure(images))
    return joined(found, measure)


def joined(parts: list[Features], measure: Measure) -> Features:
    return {e.name: torch.cat([part[e.name] for part in parts]) for e in measure.extractors}


def distance(real: Tensor, made: Tensor) -> dict[str, float]:
    """Frechet distance and its standard error, by the jackknife over quarters."""
    part = torch.arange(len(made)) % PARTS
    without = [frechet_distance(real, made[part != p]) for p in range(PARTS)]
    centre = statistics.mean(without)
    spread = ((PARTS - 1) / PARTS * sum((w - centre) ** 2 for w in without)) ** 0.5
    return {
        "frechet_distance": round(frechet_distance(real, made), 3),
        "standard_error": round(spread, 3),
    }


def measure_model(name: str, options: argparse.Namespace) -> None:
    """All that is missing of one model, few calls first."""
    device, count = best_device(), options.count
    experiment = Experiment.from_dict(weights.record(name)["experiment"])
    model = weights.load(name, device).eval()
    compile_step(model, device)
    train, test = experiment.build_data("train"), experiment.build_data("test")
    measure = Measure([e.to(device) for e in default_extractors(count)])
    real, floor = real_and_floor({"train": train, "test": test}, PROTOCOLS["quick"].split, REAL, seed=0)
    truth, others = features_of_real(measure, real, REAL), features_of_real(measure, floor, count)
    lowest = {e: round(frechet_distance(truth[e], others[e]), 3) for e in truth}
    done = {tuple(row[key] for key in KEY) for row in rows(TABLE)}
    rests = experiment.model.get("update_probability", 0.9) < 1
    for calls in sorted(options.calls):
        for firing in ("fresh", "fixed", "expected") if rests else ("fresh",):
            for sampler in options.samplers:
                key = (experiment.name, sampler, firing, calls)
                if key in done:
                    continue
                begin = time.perf_counter()
                made = features_of_samples(measure, model, test, sampler, firing, calls, count)
                row = dict(zip(KEY, key, strict=True)) | {
                    "count": count,
                    "extractors": {e: distance(truth[e], made[e]) | {"floor": lowest[e]} for e in truth},
                    "seconds": round(time.perf_counter() - begin, 1),
                    "hardware": hardware(device),
                }
                with TABLE.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="shipped names or .safetensors files")
    parser.add_argument("--samplers", nargs="+", default=["dpm_solver", "ddim", "ddpm"])
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10, 15, 20, 30, 50])
    parser.add_argument("--count", type=int, default=512, help="images of each, a multiple of 16")
    options = parser.parse_args()
    for name in options.models:
        measure_model(name, options)


if __name__ == "__main__":
    main()
