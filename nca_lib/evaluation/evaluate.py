"""How good are the generated images? Numbers, each with its recipe and its floor (chapter 5).

A distance between two sets of images means nothing without the protocol that it was measured by, and little
without its *floor*: the same distance, at the same counts, between real images and other real images.
[`evaluate`][] returns all three. [`PROTOCOLS`][] names the protocols: `reference` repeats what the paper's
numbers were measured by, `sound` is what to report, `quick` fits into minutes on two cores.

Each image is drawn once and seen by several extractors ([`default_extractors`][]): an order of models that
only one of them finds may be its own taste. Only with Inception's features are the distances called `fid` and
`kid`; as `frechet_distance` and `kernel_distance` they cannot be compared with published ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from tqdm import tqdm

from nca_lib.cascade import Cascade
from nca_lib.data.images import Images, Split
from nca_lib.devices import device_of
from nca_lib.diffusion import Denoiser, check_images
from nca_lib.errors import EvaluationError
from nca_lib.evaluation.extractors.choose import default_extractors
from nca_lib.evaluation.extractors.extractor import Extractor
from nca_lib.evaluation.judges import Judge, judge_of
from nca_lib.evaluation.metrics import KID_SUBSETS, NEIGHBOURS, Comparison, Measure
from nca_lib.evaluation.real import RealImages, real_and_floor
from nca_lib.experiments.settings import Experiment
from nca_lib.files import write_atomically
from nca_lib.memory import check_memory
from nca_lib.processes import agreed, leads, rank_and_size
from nca_lib.samplers import SAMPLERS, sample
from nca_lib.weights import digest


@dataclass(frozen=True)
class EvaluationProtocol:
    """How images are compared.

    Attributes:
        count: how many generated images, and how many real ones where there are as many.
        split: which real images.
        subset_size: images in each of KID's 100 subsets.
        published: both sides re-read from JPEG (quality 75) and transposed, as the authors' scripts do, and
            models sampled by all timesteps of ancestral sampling unless one says otherwise.
    """

    count: int
    split: Split
    subset_size: int
    published: bool = False


PROTOCOLS = {
    "reference": EvaluationProtocol(2048, "train", 10, published=True),
    "sound": EvaluationProtocol(10_000, "test", 1000),
    "quick": EvaluationProtocol(512, "test", 100),
}


class Pieces:
    """The measurements of an unfinished evaluation, one file per batch, so that it can be resumed."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def get(
        self, name: str, measure: Measure, make: Callable[[int, int], Tensor], first: int, count: int
    ) -> dict[str, Tensor]:
        """The measurements of the images `make(first, count)`: those kept as `name`, else new, and kept."""
        path = self.folder / f"{name}.safetensors" if self.folder else None
        if path and path.is_file():
            return parse_safetensors(path.read_bytes())
        images = make(first, count)
        check_images(images, f"images {name}", EvaluationError)
        fresh = measure(images)
        if path:
            write_atomically(path, to_safetensors({key: value.contiguous() for key, value in fresh.items()}))
        return fresh


def _rules(protocol: str) -> EvaluationProtocol:
    if protocol not in PROTOCOLS:
        raise EvaluationError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise EvaluationError(f"seed is {seed}; from 0 to 2^63 - 1")


def _check_counts(counts: dict[str, int], protocol: str, extractors: Sequence[Extractor]) -> None:
    subset_size = PROTOCOLS[protocol].subset_size
    widest = max(extractors, key=lambda extractor: extractor.num_features)
    needed = widest.num_features + 1
    for what, count in counts.items():
        if count < needed:
            raise EvaluationError(
                f"{count} {what} images are too few: the covariance of {widest.name}'s {needed - 1} features "
                f"needs at least {needed}"
            )
        if count < subset_size:
            raise EvaluationError(
                f"{count} {what} images are too few: the protocol {protocol!r} draws subsets of "
                f"{subset_size} for the kernel distance"
            )


def evaluate(
    generate: Callable[[int, int], Tensor],
    train: Images,
    test: Images,
    *,
    protocol: str = "quick",
    count: int | None = None,
    extractors: Sequence[Extractor] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    batch: int = 64,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    recipe: dict[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare generated images with real ones.

    Images pass through in batches; what stays in memory are sums, and the features of all images for the
    kernel distance, precision and recall (4 bytes a number: 80 MB for 10,000 of Inception's). Where
    `torch.distributed` is initialised, each process takes its share of the images and all return the result;
    the process group must gather CPU tensors, as gloo and the default group do.

    Args:
        generate: `generate(first, count)` gives the generated images first ... first + count - 1,
            (count, C, H, W) in [-1, 1]; image i must not depend on the others of its batch.
        train: the training split.
        test: the held-out split.
        protocol: a key of [`PROTOCOLS`][].
        count: how many images, instead of the protocol's number.
        extractors: what sees them; by default [`default_extractors`][], those that so many images allow.
        judge: reads a property of single images, see [`judges`][nca_lib.evaluation.judges].
        seed: of the real images' crops and of KID's subsets.
        batch: images at a time.
        device: where the extractors compute; they are moved there.
        folder: where the state is kept batch by batch, so that an interrupted evaluation goes on where it was
            and ends in the same result, which is written here and returned at once the next time.
        recipe: what else made the images; it is stored, and another recipe never resumes this one's state.
        progress: show a progress bar.

    Returns:
        `{"metrics": {"extractors": {NAME: {...}}, ...}, "floor": {...}, "recipe": {...}}`, ready for JSON.
        The floor is every metric with other real images in place of the generated ones; the judge's numbers
        in it are of held-out images where either set is held out.

    Raises:
        EvaluationError: an unknown protocol, too few images, a negative seed, or images that are none (not
            finite, or outside of [-1, 1]). TooLargeError: too many for memory.
    """
    rules = _rules(protocol)
    _check_seed(seed)
    count = rules.count if count is None else count
    real, floor = real_and_floor({"train": train, "test": test}, rules.split, count, seed)
    counts = {"generated": count, "real": real.count, "floor": floor.count}
    extractors = extractors or default_extractors(min(counts.values()))
    _check_counts(counts, protocol, extractors)
    full = _comparison_recipe(protocol, extractors, real, floor, counts, judge) | (recipe or {})
    key = hashlib.sha256(json.dumps([full, batch], sort_keys=True).encode()).hexdigest()
    name = f"evaluation-{protocol}-{key[:12]}"
    finished = Path(folder) / f"{name}.json" if folder else None
    pieces = Pieces(Path(folder) / name if folder else None)
    if finished and agreed(finished.is_file()):
        if leads():
            shutil.rmtree(str(pieces.folder), ignore_errors=True)  # what a kill has left
        return json.loads(finished.read_text())
    features = 8 * sum(counts.values()) * sum(extractor.num_features for extractor in extractors)
    check_memory(features, f"the features of {sum(counts.values()):,} images", "evaluate fewer")
    measure = Measure([e.to(device) for e in extractors], judge, rules.published)
    sources = {"real": real.batch, "floor": floor.batch, "generated": generate}
    measured = _measure_all(sources, counts, measure, pieces, batch, progress)
    metrics, floor_metrics = (
        Comparison(extractors, rules.subset_size, real.data.size // 2, judge) for _ in range(2)
    )
    held_out = "real" if real.split == "test" else "floor"  # what is judged beside the generated images
    for source, values in measured:
        if source != "floor":
            metrics.update(values, real=source == "real")
        if source != "generated":
            floor_metrics.update(values, real=source == "real")
        if judge and source in ("generated", held_out):
            (metrics if source == "generated" else floor_metrics).judged(values["judged"])
    result = {"metrics": metrics.compute(seed), "floor": floor_metrics.compute(seed), "recipe": full}
    if finished and leads():
        write_atomically(finished, json.dumps(result, indent=2).encode() + b"\n")
        shutil.rmtree(Path(str(pieces.folder)))
    return result


def _comparison_recipe(
    protocol: str,
    extractors: Sequence[Extractor],
    real: RealImages,
    floor: RealImages,
    counts: dict[str, int],
    judge: Judge | None,
) -> dict[str, Any]:
    from nca_lib import __version__

    rules = PROTOCOLS[protocol]
    return {
        "protocol": {"name": protocol, **asdict(rules), "count": counts["generated"]},
        "extractors": {e.name: {"sha256": e.sha256, "resize": e.resize} for e in extractors},
        "counts": counts,
        "real": {"split": real.split, "first": 0, "fingerprint": real.data.fingerprint()},
        "floor": {"split": floor.split, "first": floor.first, "fingerprint": floor.data.fingerprint()},
        "kernel_distance": {"subsets": KID_SUBSETS, "subset_size": rules.subset_size},
        "precision_recall": {"neighbours": NEIGHBOURS},
        "image": {"channels": real.data.channels, "size": real.data.size},
        "judge": judge.name if judge else None,
        "seed": real.seed,
        "library_version": __version__,
        "torch_version": torch.__version__,
    }


def _measure_all(
    sources: dict[str, Callable[[int, int], Tensor]],
    counts: dict[str, int],
    measure: Measure,
    pieces: Pieces,
    batch: int,
    progress: bool,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every batch's source and measurements; of several processes, each yields consecutive batches."""
    rank, processes = rank_and_size()
    with tqdm(total=sum(counts.values()) // processes, disable=not progress or rank > 0, unit="image") as bar:
        for source, make in sources.items():
            starts = range(0, counts[source], batch)
            if len(starts) < processes:
                raise EvaluationError(
                    f"{processes} processes are too many for {counts[source]} {source} images in batches of "
                    f"{batch}; use at most {len(starts)}, or a smaller batch"
                )
            for start in starts[len(starts) * rank // processes : len(starts) * (rank + 1) // processes]:
                size = min(batch, counts[source] - start)
                yield source, pieces.get(f"{source}-{start:07d}", measure, make, start, size)
                bar.update(size)


def evaluate_model(
    model: nn.Module,
    experiment: Experiment,
    *,
    protocol: str = "quick",
    count: int | None = None,
    extractors: Sequence[Extractor] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 64,
    bf16: bool = False,
    stained: bool = False,
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a trained model on its experiment's data by [`evaluate`][].

    Its images have the size of the split that the protocol compares them with; a model that reads a context
    is told that split's.

    Args:
        model: a [`Denoiser`][nca_lib.diffusion.Denoiser] or a [`VNCA`][nca_lib.baselines.VNCA].
        experiment: what it was trained by.
        protocol: a key of [`PROTOCOLS`][].
        count: how many images, instead of the protocol's number.
        extractors: as for [`evaluate`][].
        sampler: a key of `SAMPLERS`, DDIM by default and DDPM for the published protocol; like `steps`,
            unused by a VNCA, which samples from its prior.
        steps: denoiser calls per image, 50 by default and all timesteps for the published protocol.
        seed: also of the generated images.
        batch: images at a time; image i is the same whatever the batch.
        bf16: draw the images in mixed precision; they are measured in float32 either way.
        stained: the images are stained tissue: count stains and nuclei too, as for the kinds of data that
            always are.
        folder: where the state and the result are kept.
        device: by default the best that is there.
        progress: show a progress bar.

    Raises:
        EvaluationError: as [`evaluate`][]; or an unknown sampler, or a model that draws no images.
    """
    device = device_of(device)
    model = model.to(device).eval()
    if isinstance(model, Cascade) and experiment.data["kind"] == "tissue-scales":
        experiment = _at_the_finest_scale(experiment)
    train, test = experiment.build_data("train"), experiment.build_data("test")
    rules = _rules(protocol)
    compared = {"train": train, "test": test}[rules.split]
    sampler = sampler or ("ddpm" if rules.published else "ddim")
    if steps is None:
        steps = model.schedule.timesteps if rules.published and isinstance(model, Denoiser) else 50
    return evaluate(
        generator(model, compared, sampler, steps, seed, bf16),
        train,
        test,
        protocol=protocol,
        count=count,
        extractors=extractors,
        judge=judge_of(experiment.data["kind"], train, stained),
        seed=seed,
        batch=batch,
        device=device,
        folder=folder,
        recipe=_model_recipe(model, experiment, sampler, steps, bf16),
        progress=progress,
    )


def _at_the_finest_scale(experiment: Experiment) -> Experiment:
    """The experiment on the scale that a cascade draws at, whatever scales its rule was trained on."""
    scales = experiment.spelt_out()["data"]
    data = {"kind": "tissue", "size": scales["size"], "downscale": 1, "test_size": scales["test_size"]}
    return replace(experiment, data=data)


def generator(
    model: nn.Module,
    like: Images,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    bf16: bool = False,
) -> Callable[[int, int], Tensor]:
    """`generate(first, count)` for a model, images of the size and channels of the data set `like`.

    With `bf16` matrix products are done in that precision; the images are float32. A model that reads a
    context is told, for image i, what lies behind the channels of the i-th image of `like`.

    Raises:
        EvaluationError: an unknown sampler, a negative seed, a model that draws no images, or one whose
            context is not in the data.
    """
    _check_seed(seed)
    if sampler not in SAMPLERS:
        raise EvaluationError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if not isinstance(model, Denoiser) and not hasattr(model, "sample"):
        raise EvaluationError(f"a {type(model).__name__} draws no images; a denoiser or a VNCA does")
    size, device = (like.size, like.size), next(model.parameters()).device
    told = RealImages(like, "train", 0, len(like), seed) if _reads(model) else None
    if told and told.whole(0, 1).shape[1] - like.channels != _reads(model):
        raise EvaluationError(
            f"this model reads {_reads(model)} channels of context, which its data do not hold; "
            "a level of a cascade is evaluated as a part of it"
        )

    def generate(first: int, count: int) -> Tensor:
        asked = model
        if told and isinstance(model, Denoiser):
            asked = model.given(told.whole(first, count)[:, like.channels :].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            images = sample(
                asked,
                size,
                count=count,
                sampler=SAMPLERS[sampler],
                steps=steps,
                seed=seed,
                first_sample=first,
            )
        return images.float()

    return generate


def _reads(model: nn.Module) -> int:
    """The channels of context that a model waits for; of a cascade none, for it makes its own."""
    return model.context_channels if type(model) is Denoiser else 0


def _model_recipe(
    model: nn.Module, experiment: Experiment, sampler: str, steps: int, bf16: bool
) -> dict[str, Any]:
    prior = not isinstance(model, Denoiser)
    return {
        "experiment": experiment.name,
        "data": dict(experiment.data),
        "model": dict(experiment.model),
        "model_sha256": digest(model.state_dict()),
        "sampler": "prior" if prior else sampler,
        "steps": None if prior else steps,
        "precision": "bf16" if bf16 else "float32",
    }
