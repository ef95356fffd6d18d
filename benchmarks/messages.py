"""What does the frequency stage tell its cells: news, or only where they are? (Chapter 4.)

    python benchmarks/messages.py [MODEL ...]

Draws samples as the results table's rows do, but with the frequency stage's message replaced in every call:
by the mean over all samples (which still says where a cell is, and nothing of its image), by that about
another sample, or by nothing. Writes one JSON line a measurement into the results' `messages.jsonl`; the
unchanged model is the table's row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nca_lib import weights
from nca_lib.devices import best_device, compile_step, computes_bf16
from nca_lib.evaluation.evaluate import evaluate, judge_of
from nca_lib.experiments.matrix import rows
from nca_lib.experiments.settings import Experiment
from nca_lib.fourier import FourierDiffNCA
from nca_lib.samplers import dpm_solver, sample

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "messages.jsonl"
MODELS = ("faces-fourier", "digits-fourier")
COUNT, STEPS, SEED = 512, 20, 0  # as in the results table
# A message is (B, channels beside the image's, H, W).
MESSAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda message: message.mean(0, keepdim=True).expand_as(message),
    "another's": lambda message: message.roll(1, 0),
    "nothing": torch.zeros_like,
}


def tell(network: FourierDiffNCA, change: Callable[[Tensor], Tensor]) -> None:
    """Let the image stage start from a changed message; all samples must be drawn in one batch."""
    initial_state = network.initial_state

    def changed(noisy: Tensor, time: Tensor) -> Tensor:
        image, message = initial_state(noisy, time).tensor_split([network.image_channels], dim=1)
        return torch.cat([image, change(message)], dim=1)

    network.initial_state = changed  # type: ignore[method-assign]


def measure(name: str, message: str) -> dict[str, Any]:
    """One row: a model whose cells are told `message`."""
    device = best_device()
    model: Any = weights.load(name, device)
    row = {"model": name, "message": message, "weights": weights.digest(model.state_dict())}
    experiment = Experiment.from_dict(weights.record(name)["experiment"])
    train, test = experiment.build_data("train"), experiment.build_data("test")
    compile_step(model, device)
    tell(model.network, MESSAGES[message])
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
        images = sample(
            model, (test.size, test.size), count=COUNT, sampler=dpm_solver, steps=STEPS, seed=SEED
        ).float()
    judge = judge_of(experiment.data["kind"], train)
    found = evaluate(
        lambda first, count: images[first : first + count], train, test, count=COUNT, judge=judge
    )
    return row | {"steps": STEPS, "seed": SEED} | {key: found[key] for key in ("metrics", "floor")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, help=f"by default {', '.join(MODELS)}")
    kept = rows(TABLE)
    for name in parser.parse_args().models:
        for message in MESSAGES:
            row = measure(name, message)
            kept = [old for old in kept if (old["model"], old["message"]) != (name, message)] + [row]
            TABLE.write_text("".join(json.dumps(old) + "\n" for old in kept))
            eyes = row["metrics"]["extractors"].items()
            print(name, message, {eye: round(found["frechet_distance"], 1) for eye, found in eyes})


if __name__ == "__main__":
    main()
