"""A cascade's canvas on disk equals its sample in memory, bit for bit."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nca_lib import load, sample, weights
from nca_lib.__main__ import main
from nca_lib.canvas.outofcore import Canvas, Plan, create, run
from nca_lib.data import files
from nca_lib.errors import CanvasError, DataError
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import SAMPLERS

ALL = slice(None)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three levels, 1/8, 1/2 and 1, whose weights are drawn by chance; so are the updates of the finest."""
    folder = tmp_path_factory.mktemp("cascade")
    paths = []
    for number, context in enumerate(({}, {"factor": 4}, {"factor": 2})):
        model = {"kind": "diff-nca", "channels": 12, "hidden": 16, "steps": 2, "position": False}
        model |= {"context_channels": 4 if context else 0, "update_probability": 0.9 if number == 2 else 1.0}
        chosen = {"name": f"level-{number}", "model": model}
        experiment = Experiment.from_dict(chosen | ({"context": context} if context else {}))
        torch.manual_seed(number)
        network = experiment.build_model()
        paths.append(str(folder / f"{number}.safetensors"))
        weights.save(
            network, paths[-1], {"experiment": experiment.to_dict(), "steps": 1, "images_seen": 1, "seed": 0}
        )
    assert main(["join", *paths, "--out", str(folder / "cascade.safetensors")]) == 0
    return str(folder / "cascade.safetensors")


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sketch") / "sketch.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)).save(path)
    return str(path)


def in_memory(plan: Plan) -> np.ndarray:
    model = load(plan.model)
    if plan.layout:
        model = model.laid_out(files.read(plan.layout)[0][None], plan.layout_strength)
    size, sampler = (plan.height, plan.width), SAMPLERS[plan.sampler]
    return sample(model, size, sampler=sampler, steps=plan.steps, seed=plan.seed)[0].numpy()


@pytest.mark.parametrize(("sampler", "steps"), [("dpm_solver", 3), ("ddpm", 2), ("heun", 4)])
def test_a_cascade_on_disk_equals_the_one_in_memory(
    cascade: str, tmp_path: Path, sampler: str, steps: int
) -> None:
    plan = Plan(cascade, 77, 101, tile=24, sampler=sampler, steps=steps, seed=5)
    canvas = create(tmp_path / "canvas", plan)
    seen: list[tuple[float, float]] = []
    run(canvas, progress=lambda made, total: seen.append((made, total)))
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))
    assert canvas.below and canvas.below.below and canvas.below.below.below is None
    assert canvas.below.below.size == (10, 13)
    pixels = 77 * 101 + 39 * 51 + 10 * 13
    assert seen[-1] == (pytest.approx(pixels / 1e6), pytest.approx(pixels / 1e6))
    assert all(made < later for (made, _), (later, _) in pairwise(seen))


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_layout_stands_in_for_the_coarsest_level(
    cascade: str, sketch: str, tmp_path: Path, strength: float
) -> None:
    plan = Plan(cascade, 50, 61, tile=24, steps=4, seed=3, layout=sketch, layout_strength=strength)
    canvas = create(tmp_path / "canvas", plan)
    run(canvas)
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def test_what_was_stopped_in_any_level_goes_on_to_the_same_bytes(cascade: str, tmp_path: Path) -> None:
    plan = Plan(cascade, 60, 70, tile=24, steps=2, seed=8)
    create(tmp_path / "canvas", plan)

    def stop_after(count: int) -> None:
        def progress(made: float, total: float) -> None:
            nonlocal count
            count -= 1
            if count < 0:
                raise KeyboardInterrupt

        run(Canvas(tmp_path / "canvas"), progress=progress)

    for count in (1, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            stop_after(count)
    canvas = Canvas(tmp_path / "canvas")
    run(canvas)
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def test_workers_draw_a_cascade_too(cascade: str, tmp_path: Path) -> None:
    plan = Plan(cascade, 40, 50, tile=24, steps=2, seed=1)
    canvas = create(tmp_path / "canvas", plan)
    run(canvas, workers=2)
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def test_the_command_draws_what_sample_draws(cascade: str, sketch: str, tmp_path: Path) -> None:
    options = ["--size", "61x50", "--steps", "3", "--layout", sketch, "--layout-strength", "0.3"]
    for command in ("sample", "canvas"):
        assert main([command, cascade, *options, "--out", str(tmp_path / f"{command}.png")]) == 0
    drawn = [np.asarray(Image.open(tmp_path / f"{command}.png")) for command in ("sample", "canvas")]
    assert np.array_equal(*drawn)


def test_what_cannot_be_is_refused_before_anything_is_written(
    cascade: str, sketch: str, tmp_path: Path
) -> None:
    for plan, word in (
        (Plan(cascade, 40, 40, wrap=True), "a cascade does not wrap"),
        (Plan(cascade, 40, 8), "a level would be 1x5"),
        (Plan("tissue-diff-nca", 40, 40, layout=sketch), "is no cascade"),
        (Plan("digits-by-class", 40, 40), "FourierDiffNCA"),
    ):
        with pytest.raises(CanvasError, match=word):
            create(tmp_path / "canvas", plan)
        assert not (tmp_path / "canvas").exists()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable"):
        create(tmp_path / "canvas", Plan(cascade, 40, 40, layout=str(tmp_path / "broken.png")))
    assert not (tmp_path / "canvas").exists()
