"""Evaluation: closed forms of every distance, exact resuming, processes, recipes and refusals."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from nca_lib.cascade import Cascade
from nca_lib.data.conditional import DigitsByClass
from nca_lib.data.digits import Digits
from nca_lib.data.tissue import Tissue, TissueScales
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.evaluation.distortions import blurred, noisy
from nca_lib.evaluation.evaluate import (
    PROTOCOLS,
    EvaluationError,
    evaluate,
    evaluate_model,
    generator,
)
from nca_lib.evaluation.extractors.extractor import Extractor, to_pixels
from nca_lib.evaluation.metrics import (
    measurements,
    through_jpeg,
)
from nca_lib.evaluation.real import RealImages
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import SAMPLERS, sample


class Quadrants(Extractor):
    """The mean colours of an image's quarters, and of its middle: 12 features without weights."""

    name, sha256, num_features, resize = "quadrants", "none", 12, "none"

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        return avg_pool2d(x, x.shape[-1] // 2).flatten(1)


class Waves:
    """Endless smooth random images, 16x16: held-out ones are of the same kind."""

    channels, size = 3, 16

    def __init__(self, salt: int):
        self.salt = salt

    def __len__(self) -> int:
        return 10_000

    def image(self, index: int, rng: np.random.Generator) -> Tensor:
        own = torch.Generator().manual_seed(self.salt * 100_003 + index)
        coarse = torch.randn(1, 3, 4, 4, generator=own) * 0.5
        return interpolate(coarse, (16, 16), mode="bicubic")[0].clamp(-1, 1)

    def fingerprint(self) -> str:
        return f"waves-{self.salt}"


TRAIN, TEST = Waves(0), Waves(1)
NEITHER = np.random.default_rng(0)


def new_waves(first: int, count: int) -> Tensor:
    """A perfect model: images of the same kind as the data's."""
    return torch.stack([Waves(2).image(i, NEITHER) for i in range(first, first + count)])


def seen(metrics: dict[str, Any]) -> dict[str, Any]:
    """The distances of the only extractor, and the other metrics."""
    (distances,) = metrics["extractors"].values()
    return distances | metrics


def evaluate_waves(generate: Callable[[int, int], Tensor] = new_waves, **options: Any) -> dict[str, Any]:
    return evaluate(generate, TRAIN, TEST, **{"extractors": [Quadrants()], "count": 120} | options)


@pytest.fixture(scope="module")
def perfect() -> dict[str, Any]:
    return evaluate_waves(count=200)


def test_a_perfect_model_is_at_the_floor(perfect: dict[str, Any]) -> None:
    metrics, floor = seen(perfect["metrics"]), seen(perfect["floor"])
    assert metrics["frechet_distance"] < 2 * floor["frechet_distance"]
    assert abs(metrics["kernel_distance"]) < 3 * floor["kernel_distance_std"]
    assert metrics["precision"] == pytest.approx(floor["precision"], abs=0.1)
    assert metrics["recall"] == pytest.approx(floor["recall"], abs=0.1)


@pytest.mark.parametrize(
    ("damage", "metric"),
    [
        (lambda x: (x + 0.3).clamp(-1, 1), "frechet_distance"),
        (lambda x: (x + 0.3).clamp(-1, 1), "kernel_distance"),
        (lambda x: noisy(x, 0.2), "spectrum_distance"),
        (lambda x: blurred(x, 6.0), "spectrum_distance"),
    ],
    ids=["shift", "shift-kernel", "noise", "blur"],
)
def test_damage_is_above_the_floor(
    perfect: dict[str, Any], damage: Callable[[Tensor], Tensor], metric: str
) -> None:
    damaged = evaluate_waves(lambda first, count: damage(new_waves(first, count)), count=200)
    assert damaged["floor"] == perfect["floor"]
    found, floor, best = (seen(m)[metric] for m in (damaged["metrics"], damaged["floor"], perfect["metrics"]))
    assert found > 3 * max(floor, best)


def test_the_recipe_says_how_the_numbers_were_made() -> None:
    result = evaluate_waves(seed=5, recipe={"sampler": "none"})
    assert json.loads(json.dumps(result)) == result
    recipe = result["recipe"]
    assert recipe["protocol"] == {
        "name": "quick", "count": 120, "split": "test", "subset_size": 100, "published": False,
    }  # fmt: skip
    assert recipe["extractors"] == {"quadrants": {"sha256": "none", "resize": "none"}}
    assert recipe["counts"] == {"generated": 120, "real": 120, "floor": 120}
    assert recipe["real"] == {"split": "test", "first": 0, "fingerprint": "waves-1"}
    assert recipe["floor"] == {"split": "test", "first": 120, "fingerprint": "waves-1"}
    assert (recipe["seed"], recipe["sampler"]) == (5, "none")
    assert set(result["metrics"]) == {"extractors", "spectrum_distance"}
    assert set(result["metrics"]["extractors"]["quadrants"]) == {
        "frechet_distance", "kernel_distance", "kernel_distance_std", "precision", "recall"
    }  # fmt: skip


class Few(Waves):
    """Too few held-out images for a floor of their own, which is then of training images."""

    def __len__(self) -> int:
        return 120


class BrightnessJudge:
    name, columns = "brightness", 1

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None]

    def summary(self, means: Tensor) -> dict[str, Any]:
        return {"mean": float(means)}


def test_held_out_images_are_judged_beside_the_generated_ones() -> None:
    test = Few(1)
    found = evaluate(new_waves, TRAIN, test, extractors=[Quadrants()], count=120, judge=BrightnessJudge())
    assert found["recipe"]["floor"]["split"] == "train"
    held_out = torch.stack([test.image(i, NEITHER) for i in range(120)])
    for part, images in (("floor", held_out), ("metrics", new_waves(0, 120))):
        assert found[part]["brightness"]["mean"] == pytest.approx(float(images.mean()), abs=1e-3)


class Projection(Extractor):
    """Weighted sums of all pixels: a matrix product, which autocast would do in bf16."""

    name, sha256, num_features, resize = "projection", "none", 5, "none"

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.randn(3 * 16 * 16, 5, generator=torch.Generator().manual_seed(0))
        return (images.float() / 255).flatten(1) @ weights


class ProjectionJudge:
    """The mean of such sums."""

    name, columns = "sums", 5

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.linspace(0, 1, 3 * 16 * 16 * 5).view(-1, 5)

    def summary(self, means: Tensor) -> dict[str, Any]:
        return {"sums": means.tolist()}


def test_several_extractors_see_images_that_are_drawn_once() -> None:
    drawn: list[int] = []

    def counts(first: int, count: int) -> Tensor:
        drawn.extend(range(first, first + count))
        return new_waves(first, count)

    both = evaluate_waves(counts, extractors=[Quadrants(), Projection()])
    assert drawn == list(range(120))
    assert list(both["recipe"]["extractors"]) == ["quadrants", "projection"]
    for extractor in (Quadrants(), Projection()):
        alone = evaluate_waves(extractors=[extractor])
        for part in ("metrics", "floor"):
            assert both[part]["extractors"][extractor.name] == alone[part]["extractors"][extractor.name]
            assert both[part]["spectrum_distance"] == alone[part]["spectrum_distance"]


def test_only_inceptions_distances_are_called_fid_and_kid() -> None:
    inception = Projection()
    inception.is_inception = True
    found = evaluate_waves(extractors=[Quadrants(), inception])["metrics"]["extractors"]
    assert set(found["projection"]) == {"fid", "kid", "kid_std", "precision", "recall"}
    assert not {"fid", "kid"} & set(found["quadrants"])


def test_extractors_and_judges_see_in_float32_whatever_surrounds_them() -> None:
    options = {"extractors": [Projection()], "judge": ProjectionJudge()}
    plain = evaluate_waves(**options)
    with torch.autocast("cpu", torch.bfloat16):
        assert Projection()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).dtype == torch.bfloat16
        mixed = evaluate_waves(**options)
    assert mixed == plain


def test_results_do_not_depend_on_the_batch() -> None:
    a, b = evaluate_waves(batch=64), evaluate_waves(batch=17)
    assert measurements(a["metrics"]) == pytest.approx(measurements(b["metrics"]), rel=1e-6)


def test_an_interrupted_evaluation_ends_in_the_same_result(tmp_path: Path) -> None:
    asked: list[int] = []

    def fails(first: int, count: int) -> Tensor:
        if first >= 60:
            raise KeyboardInterrupt
        return new_waves(first, count)

    def counts(first: int, count: int) -> Tensor:
        asked.append(first)
        return new_waves(first, count)

    with pytest.raises(KeyboardInterrupt):
        evaluate_waves(fails, folder=tmp_path, batch=20)
    resumed = evaluate_waves(counts, folder=tmp_path, batch=20)
    assert asked == [60, 80, 100]
    assert resumed == evaluate_waves(batch=20)
    assert evaluate_waves(fails, folder=tmp_path, batch=20) == resumed  # finished: nothing is done again
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_another_recipe_does_not_go_on_from_this_one(tmp_path: Path) -> None:
    first = evaluate_waves(folder=tmp_path, recipe={"model": "a"})
    other = evaluate_waves(lambda f, n: -new_waves(f, n).abs(), folder=tmp_path, recipe={"model": "b"})
    near, far = (seen(found["metrics"])["frechet_distance"] for found in (first, other))
    assert far > 2 * near


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = evaluate_waves(count=130, batch=16, folder=folder)
    Path(folder, f"rank-{rank}").write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(["nca_lib.evaluation.evaluate"])  # imported once, not by each
    mp.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="forkserver")
    alone = evaluate_waves(count=130, batch=16)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}").read_text())
        for part in ("metrics", "floor"):
            assert measurements(found[part]) == pytest.approx(measurements(alone[part]), rel=1e-6)
        assert found["recipe"] == alone["recipe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 12, "protocol": "reference"}, "12 generated images.*12 features needs at least 13"),
        ({"count": 99}, "99 generated images.*'quick' draws subsets of 100"),
        ({"count": 500, "protocol": "sound"}, "subsets of 1000"),
        ({"protocol": "best"}, "'best' is unknown; choose one of reference, sound, quick"),
    ],
)
def test_meaningless_evaluations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate_waves(**options)


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, 1.5])
def test_images_that_are_none_are_refused(wrong: float) -> None:
    def spoilt(first: int, count: int) -> Tensor:
        images = new_waves(first, count)
        if first == 64:
            images[3, 0, 5, 7] = wrong
        return images

    with pytest.raises(EvaluationError, match=r"generated-0000064: values from .* finite, and lie in"):
        evaluate_waves(spoilt)
    with pytest.raises(EvaluationError, match="images are floats of shape"):
        evaluate_waves(lambda first, count: new_waves(first, count)[0])


def test_a_model_of_nan_is_refused() -> None:
    experiment = Experiment.read("digits-mlp")
    model = experiment.build_model()
    next(model.parameters()).data.fill_(math.nan)
    with pytest.raises(EvaluationError, match="generated-0000000: values from nan to nan"):
        evaluate_model(model, experiment, count=120, steps=1, device="cpu")


def test_what_a_kill_leaves_while_tidying_is_tidied(tmp_path: Path) -> None:
    first = evaluate_waves(folder=tmp_path)
    [finished] = tmp_path.iterdir()
    left = tmp_path / finished.stem
    left.mkdir()
    (left / "real-0000000.safetensors").write_bytes(b"")
    assert evaluate_waves(folder=tmp_path) == first
    assert [*tmp_path.iterdir()] == [finished]


def test_too_few_real_images_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"297 real images.*subsets of 1000"):
        evaluate(new_waves, Digits(16), Digits(16, "test"), protocol="sound", extractors=[Quadrants()])


def test_protocols_are_the_specified_ones() -> None:
    reference, sound = PROTOCOLS["reference"], PROTOCOLS["sound"]
    assert (reference.count, reference.split, reference.subset_size) == (2048, "train", 10)
    assert (sound.count, sound.split, sound.subset_size) == (10_000, "test", 1000)


def test_the_reference_protocol_treats_both_sides_alike() -> None:
    def training_images(first: int, count: int) -> Tensor:
        return RealImages(TRAIN, "train", 0, 60, 0).batch(first, count)

    found = seen(evaluate_waves(training_images, protocol="reference", count=60)["metrics"])
    assert abs(found["frechet_distance"]) < 1e-6
    assert found["spectrum_distance"] == 0 and found["precision"] == 1


def test_the_reference_protocol_reads_transposed_jpegs() -> None:
    shown: list[Tensor] = []

    class Records(Quadrants):
        def forward(self, images: Tensor) -> Tensor:
            shown.append(images)
            return super().forward(images)

    evaluate_waves(protocol="reference", count=60, extractors=[Records()])
    last = to_pixels(new_waves(0, 60))
    assert torch.equal(shown[-1], torch.stack([through_jpeg(image) for image in last]).transpose(2, 3))
    assert not torch.equal(shown[-1].transpose(2, 3), last)


def test_crops_of_real_images_depend_on_the_seed() -> None:
    data = Tissue(8, split="test")
    one, other = (RealImages(data, "test", 0, 4, seed).batch(0, 4) for seed in (0, 1))
    assert not torch.equal(one, other)


def tiny(kind: str) -> Experiment:
    models = {
        "diff-nca": {"kind": "diff-nca", "channels": 8, "hidden": 16, "steps": 2},
        "growing-nca": {"kind": "growing-nca"},
    }
    return Experiment.from_dict(
        {
            "name": "tiny",
            "model": models[kind],
            "data": {"kind": "digits", "size": 8},
            "diffusion": {"timesteps": 20},
        }
    )


def test_a_model_is_evaluated_on_its_own_data() -> None:
    experiment = tiny("diff-nca")
    torch.manual_seed(0)
    model = experiment.build_model()
    found = [evaluate_model(model, experiment, count=110, steps=2, batch=b, device="cpu") for b in (110, 50)]
    assert found[0]["metrics"]["digits"] == found[1]["metrics"]["digits"]  # image i is itself in any batch
    assert found[0]["floor"]["digits"]["classes"] == 10
    assert set(found[0]["metrics"]["extractors"]) >= {"nca-features-1", "efficientnet-lite0-block-7"}
    for name, made in found[0]["metrics"]["extractors"].items():
        assert made["frechet_distance"] > 3 * found[0]["floor"]["extractors"][name]["frechet_distance"]
    recipe = found[0]["recipe"]
    assert (recipe["sampler"], recipe["steps"], recipe["data"]["kind"]) == ("ddim", 2, "digits")
    other = experiment.build_model()
    assert (
        evaluate_model(other, experiment, count=110, steps=2, device="cpu")["recipe"]["model_sha256"]
        != (recipe["model_sha256"])
    )


@pytest.mark.parametrize(("protocol", "side"), [("quick", 16), ("reference", 24)])
def test_images_are_drawn_of_the_size_that_they_are_compared_at(
    protocol: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nca_lib.evaluation.evaluate.judge_of", lambda *_: None)  # counting nuclei is slow
    shown = set()

    class Records(Quadrants):
        def forward(self, images: Tensor) -> Tensor:
            shown.add(images.shape[1:])
            return super().forward(images)

    data = {"kind": "tissue", "size": 24, "downscale": 4, "test_size": 16}
    experiment = Experiment.from_dict(tiny("diff-nca").to_dict() | {"data": data})
    options = {"count": 100, "steps": 1, "extractors": [Records()], "device": "cpu"}
    found = evaluate_model(experiment.build_model(), experiment, protocol=protocol, **options)
    assert shown == {(3, side, side)}
    assert found["metrics"]["spectrum_distance"] > found["floor"]["spectrum_distance"]


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [
        ({"protocol": "quick"}, ("ddim", 50)),
        ({"protocol": "reference"}, ("ddpm", 60)),  # the published one: all timesteps
        ({"protocol": "reference", "sampler": "heun", "steps": 3}, ("heun", 3)),
    ],
)
def test_protocols_say_how_models_are_sampled(asked: dict[str, Any], recorded: tuple[str, int]) -> None:
    experiment = tiny("diff-nca")
    model = Denoiser(experiment.build_model().network, noise_schedule("linear", 60), "v")
    found = evaluate_model(model, experiment, count=100, extractors=[Quadrants()], device="cpu", **asked)
    assert (found["recipe"]["sampler"], found["recipe"]["steps"]) == recorded


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_drawn_by_the_sampler_asked_for(name: str) -> None:
    torch.manual_seed(0)
    model, options = tiny("diff-nca").build_model(), {"steps": 4, "seed": 7, "first_sample": 2}
    drawn = generator(model, Digits(8), name, 4, 7)(2, 3)
    images = {
        other: sample(model, (8, 8), count=3, sampler=sampler, **options)
        for other, sampler in SAMPLERS.items()
    }
    assert [other for other, image in images.items() if torch.equal(image, drawn)] == [name]


def test_a_cascade_of_a_rule_of_all_scales_is_compared_at_the_finest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by: dict[str, Any] = {}

    def recorded(generate: Any, train: Any, test: Any, **options: Any) -> dict[str, Any]:
        seen_by.update(options, train=train, test=test)
        return {}

    monkeypatch.setattr("nca_lib.evaluation.evaluate.evaluate", recorded)
    data = {"kind": "tissue-scales", "size": 24, "coarsest": 2, "test_size": 16}
    experiment = Experiment.from_dict(tiny("diff-nca").to_dict() | {"data": data})
    options = {"kind": "diff-nca", "channels": 12, "hidden": 8, "context_channels": 5}
    rule: Any = Experiment.from_dict({"name": "rule", "model": options}).build_model()
    layout: Any = experiment.build_model()
    evaluate_model(Cascade(layout, rule, 2, scale=1.0), experiment, device="cpu")
    assert seen_by["judge"].name == "tissue"
    assert seen_by["recipe"]["data"]["kind"] == "tissue"
    for split, size in (("train", 24), ("test", 16)):
        whole = Tissue(24, split=split, test_size=16)  # type: ignore[arg-type]
        assert seen_by[split].fingerprint() == whole.fingerprint()
        assert RealImages(seen_by[split], split, 0, 4, 0).whole(0, 4).shape == (4, 3, size, size)  # type: ignore[arg-type]
    evaluate_model(layout, experiment, device="cpu")  # what is no cascade draws all scales
    assert seen_by["judge"].name == "tissue" and isinstance(seen_by["test"], TissueScales)


def test_what_is_asked_for_is_what_the_images_show() -> None:
    torch.manual_seed(0)
    options = {"kind": "diff-nca", "image_channels": 1, "channels": 16, "hidden": 16, "steps": 2}
    options |= {"context_channels": 10, "zero_init": False}
    told = {"name": "told", "model": options, "data": {"kind": "digits-by-class", "size": 8}}
    model, data = Experiment.from_dict(told).build_model(), DigitsByClass(8)
    shown = torch.stack([data.image(n, np.random.default_rng(0))[1:] for n in (3, 4)])
    wanted = sample(model.given(shown), (8, 8), count=2, steps=3, seed=5, first_sample=3)
    assert torch.equal(generator(model, data, "ddim", 3, 5)(3, 2), wanted)
    assert not torch.equal(generator(model, data, "ddim", 3, 5)(4, 1), wanted[:1])
    real = RealImages(data, "train", 0, 4, 0).batch(1, 2)
    assert torch.equal(real[0], data.image(1, np.random.default_rng(0))[:1])
    with pytest.raises(EvaluationError, match="10 channels of context, which its data do not hold"):
        generator(model, Digits(8))


def test_what_draws_no_images_is_refused() -> None:
    experiment = tiny("growing-nca")
    with pytest.raises(EvaluationError, match="a GrowingNCA draws no images"):
        evaluate_model(experiment.build_model(), experiment, device="cpu")
    experiment = tiny("diff-nca")
    with pytest.raises(EvaluationError, match="protocol 'good' is unknown"):
        evaluate_model(experiment.build_model(), experiment, protocol="good", device="cpu")
    with pytest.raises(EvaluationError, match="sampler 'euler' is unknown"):
        evaluate_model(experiment.build_model(), experiment, sampler="euler", device="cpu")
