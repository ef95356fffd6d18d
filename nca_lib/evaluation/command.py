"""`python -m nca_lib evaluate`: compare a model's images with its data (chapter 5)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from nca_lib import weights
from nca_lib.errors import UsageError
from nca_lib.experiments import files
from nca_lib.experiments.kinds import DATASETS
from nca_lib.experiments.kinds import arguments as arguments_of
from nca_lib.experiments.settings import Experiment
from nca_lib.processes import leads
from nca_lib.samplers import SAMPLERS

PROTOCOL = (
    "quick: 512 images and held-out ones, minutes of a CPU (default); sound: 10,000, to report; "
    "reference: 2,048 and training images, as published"
)
PLACES = ("path", "root")  # what data sets call where their images are


def add_arguments(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the command to a parser; `positive` reads a count."""
    evaluate = commands.add_parser("evaluate", help="compare a model's images with its data")
    evaluate.add_argument("model", help=f"a .safetensors file, or one of: {', '.join(weights.names())}")
    evaluate.add_argument("--protocol", default="quick", help=PROTOCOL)
    evaluate.add_argument("--count", type=positive, help="images, instead of the protocol's number")
    evaluate.add_argument("--inception", help="weights-inception-2015-12-05-6726825d.pth, for FID and KID")
    evaluate.add_argument("--sampler", choices=SAMPLERS, help="default ddim; reference: ddpm")
    evaluate.add_argument(
        "--steps", type=positive, help="denoiser calls (default 50; reference: all timesteps)"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the images (default 0)")
    evaluate.add_argument("--bf16", action="store_true", help="draw in mixed precision, as run does")
    evaluate.add_argument(
        "--stained",
        action="store_true",
        help="a folder's images are stained tissue: count stains and nuclei",
    )
    evaluate.add_argument("--folder", help="keep what is measured here, and go on from it")
    evaluate.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    evaluate.set_defaults(run=_evaluate, overrides=True)


def _evaluate(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from nca_lib.evaluation.evaluate import evaluate_model
    from nca_lib.evaluation.extractors.choose import default_extractors

    experiment = _experiment(arguments.model, overrides)
    result = evaluate_model(
        weights.load(arguments.model),
        experiment,
        protocol=arguments.protocol,
        count=arguments.count,
        extractors=default_extractors(inception=arguments.inception) if arguments.inception else None,
        sampler=arguments.sampler,
        steps=arguments.steps,
        seed=arguments.seed,
        bf16=arguments.bf16,
        stained=arguments.stained,
        folder=arguments.folder,
        device=arguments.device,
        progress=True,
    )
    if leads():
        print(json.dumps(result, indent=2))


def _experiment(model: str, overrides: dict[str, Any]) -> Experiment:
    """A record's experiment. It is a stranger's word, so it opens no folder and downloads nothing."""
    for key in overrides:
        if not key.startswith("data."):
            raise UsageError(f"--{key}: unknown argument; --data.KEY says where one's own images are")
    recorded = Experiment.from_dict(weights.record(model)["experiment"]).to_dict()
    said = {key.removeprefix("data.") for key in overrides}
    together = files.merged([("record", recorded), ("arguments", files.nested(overrides))])
    data = dict(together["data"])
    build = DATASETS.get(str(data["kind"]))
    places = [key for key in PLACES if build and key in arguments_of(build)]
    if not said >= set(places):
        raise UsageError(
            f"{model} was trained on {data['kind']}; say where yours is: --data.{places[0]} FOLDER"
        )
    if "download" not in said:
        data.pop("download", None)
    return Experiment.from_dict(together | {"data": data})
