"""Tasks: which timesteps a denoiser is asked about, which states a growing automaton goes on from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import diffusing, growing
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from nca_lib.cascade import Cascade
from nca_lib.data.conditional import DigitsByClass, FacesByAttributes, attribute_planes
from nca_lib.data.faces import GLASSES, HAIR_COLOURS, SKINS, Faces
from nca_lib.diffusion import Denoiser
from nca_lib.errors import DataError, ExperimentError
from nca_lib.experiments import files, matrix
from nca_lib.experiments import growing as growing_module
from nca_lib.experiments.growing import GrowingTask
from nca_lib.experiments.kinds import DATASETS
from nca_lib.experiments.parallel import Part
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.tasks import DiffusionTask, check_fits, task_of
from nca_lib.noise import CounterNoise

CPU = torch.device("cpu")


def vnca() -> Experiment:
    model = {"kind": "vnca", "size": 8, "image_channels": 1, "latent": 12, "hidden": 8}
    return Experiment.from_dict({"name": "tiny", "model": model, "data": {"kind": "digits", "size": 8}})


def told(model: dict[str, Any], **options: Any) -> Experiment:
    """A level of a cascade, or a model of digits that is told their class."""
    plain = diffusing().to_dict()
    model = plain["model"] | {"channels": 24, "context_channels": 4} | model
    return Experiment.from_dict(plain | options | {"model": model})


LEVEL = told({}, context={"factor": 4})
BY_CLASS = told(
    {"image_channels": 1, "context_channels": 10},
    data={"kind": "digits-by-class", "size": 8},
    context={"dropout": 0.25},
)


@pytest.mark.parametrize(
    "experiment",
    [diffusing(), growing("grow"), vnca(), LEVEL, BY_CLASS],
    ids=["nca", "growing", "vnca", "level", "by-class"],
)
def test_evaluations_and_previews_repeat_and_leave_the_random_state_alone(experiment: Experiment) -> None:
    torch.manual_seed(0)
    task = task_of(experiment, CPU)
    for parameter in task.model.parameters():  # so that those that start with updates of zero do something
        nn.init.normal_(parameter, std=0.1)
    for look in (task.evaluate, task.preview):
        seen = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            seen.append(torch.as_tensor(look(task.model)))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*seen)
    images = seen[0]
    assert len(images) == 8
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("tissue-diff-nca", {"data.kind": "digits"}, "model.image_channels is 3; .*digits have 1"),
        ("digits-fourier", {"data.kind": "faces"}, "model.image_channels is 1; .*faces have 3"),
        ("faces-vnca", {"data.kind": "digits"}, "model.image_channels is 3; .*digits have 1"),
        ("digits-mlp", {"data.kind": "tissue"}, "model.channels is 1; .*tissue have 3"),
        ("digits-mlp", {"data.size": 16}, "model.size is 8; the images are 16x16"),
        ("digits-vnca", {"data.size": 16}, "model.size is 32; the images are 16x16"),
        ("tissue-vnca", {"data.test_size": 16}, "model.size is 32; the images are 16x16"),
        ("digits-vnca", {"data.kind": "digits-by-class"}, "context_channels is 0 for vnca; .* none tell 10"),
        ("digits-mlp", {"context.factor": 2}, "context_channels is 0 for mlp; .*context.factor 2 tell 2"),
        ("digits-by-class", {"data.kind": "digits"}, "context_channels is 10; .*context.factor none tell 0"),
        ("tissue-half", {"context.factor": "none"}, "context_channels is 4; .*context.factor none tell 0"),
        ("tissue-scales", {"model.context_channels": 4}, "context_channels is 4; .*context.factor 2 tell 5"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused_by_key(
    name: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExperimentError, match=said):
        task_of(Experiment.read(name, changes | {"training.batch": 1}), CPU)


PLANES = {"digits-by-class": 10, "faces-by-attributes": 18, "tissue-scales": 1}


def test_all_shipped_models_fit_their_data() -> None:
    entries = [entry for name in files.matrices() for entry in matrix.read(name).entries]
    checked = 0
    for experiment in [Experiment.read(name) for name in files.names()] + entries:
        kind = experiment.data["kind"]
        if experiment.model["kind"] == "growing-nca":
            continue
        with torch.device("meta"):
            model: Any = experiment.build_model()
        channels, size = DATASETS[kind].channels, experiment.spelt_out()["data"]["size"]
        image = torch.zeros(channels + PLANES.get(kind, 0), size, size)
        data: Any = SimpleNamespace(channels=channels, size=size, image=lambda index, rng, image=image: image)
        check_fits(experiment, model, data)
        checked += 1
    assert checked > 80


def test_the_held_out_loss_is_of_held_out_images_at_timesteps_from_all_strata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, shown, asked = DiffusionTask(BY_CLASS, CPU), [], []

    def remember(model: Denoiser, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        shown.append(clean)
        asked.append(t)
        return clean.sum()

    monkeypatch.setattr(Denoiser, "loss", remember)
    task.evaluate(task.model)
    assert isinstance(task.data, DigitsByClass) and isinstance(task.held_out, DigitsByClass)
    held_out, training = (
        (torch.cat(shown)[:, None] == data.images).flatten(2).all(2).any(1)
        for data in (task.held_out, task.data)
    )
    assert held_out.all() and not training.any()
    assert torch.equal(torch.cat(asked).sort().values, torch.arange(512) * 30 // 512)


def test_each_batch_has_a_timestep_from_every_stratum_and_all_timesteps_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = DiffusionTask(diffusing(batch=5), CPU)
    asked: list[Tensor] = []

    def remember(clean: Tensor, t: Tensor, *_: Any) -> Tensor:
        asked.append(t)
        return clean.sum()

    monkeypatch.setattr(task.model, "loss", remember)
    monkeypatch.setattr(task, "_next", lambda: torch.zeros(5, 3, 8, 8))
    torch.manual_seed(0)
    for _ in range(200):
        task.loss()
    timesteps = torch.stack(asked)  # of 30: strata of 6
    assert torch.equal(timesteps // 6, torch.arange(5).expand(200, 5))
    # Each of 6 places within the stratum, 200 / 6 times on average; the binomial's deviation is 5.3.
    assert torch.bincount(timesteps[:, 0], minlength=6).sub(200 / 6).abs().max() < 4 * 5.3


def test_the_last_stratum_does_not_reach_past_the_last_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    task, most = DiffusionTask(diffusing(), CPU), 1 - 2**-24  # the largest number that torch.rand draws
    asked: list[Tensor] = []

    def remember(clean: Tensor, t: Tensor, *_: Any) -> Tensor:
        asked.append(t)
        return clean.sum()

    monkeypatch.setattr(task.model, "loss", remember)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, most))
    for batch in range(1, 129):
        monkeypatch.setattr(task, "_next", lambda batch=batch: torch.zeros(batch, 3, 8, 8))
        task.loss()
    assert [int(t.max()) for t in asked] == [29] * 128


def ordered_pool(regime: str, monkeypatch: pytest.MonkeyPatch, batch: int = 8) -> tuple[GrowingTask, Tensor]:
    """A task that has taken one step, and its pool before: 8 states, the first the best, the last the worst.

    The automaton does nothing, so that the pool shows what the rollout began with.
    """
    experiment = growing(regime, batch=batch).to_dict()
    experiment["growing"]["size"] = 40
    task = GrowingTask(Experiment.from_dict(experiment), CPU)
    before = torch.ones(8, 6, 40, 40)
    before[:, :4] = task.target + 0.1 * torch.arange(1, 9).view(8, 1, 1, 1)
    task.pool.states = before.clone()
    monkeypatch.setattr(growing_module, "rollout", lambda automaton, state, steps: state)
    torch.manual_seed(0)
    task.loss()
    return task, before


def test_the_worst_state_of_the_pool_gives_way_to_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    task, before = ordered_pool("persist", monkeypatch)
    assert torch.equal(task.pool.states[7:], task.model.seed(40))
    assert torch.equal(task.pool.states[:7], before[:7])


def test_of_eight_states_the_three_best_are_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    task, before = ordered_pool("regenerate", monkeypatch)
    assert torch.equal(task.pool.states[7:], task.model.seed(40))
    assert torch.equal(task.pool.states[3:7], before[3:7])
    holes = (task.pool.states[:3] == 0).all(1)
    assert torch.equal(task.pool.states[:3], before[:3] * ~holes[:, None])
    centres = torch.stack([hole.nonzero().double().mean(0) for hole in holes])
    radii = (holes.sum((1, 2)) / torch.pi).sqrt()
    assert ((centres > 9.5) & (centres < 30.5)).all()  # in the middle half of 40 cells
    assert torch.pdist(centres).min() > 1  # each has its own
    assert ((radii > 3.8) & (radii < 8.2)).all()  # a tenth to a fifth of the size


@pytest.mark.parametrize(("batch", "hurt"), [(1, 0), (2, 1)])
def test_the_seed_is_never_damaged_however_small_the_batch(
    batch: int, hurt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrowingTask, "_damaged", lambda task, state: torch.zeros_like(state))
    task, _ = ordered_pool("regenerate", monkeypatch, batch)
    states = task.pool.states
    assert sum(torch.equal(state[None], task.model.seed(40)) for state in states) == 1
    assert (states == 0).all((1, 2, 3)).sum() == hurt


def test_growing_begins_with_seeds_whatever_the_pool_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = ordered_pool("grow", monkeypatch)
    assert torch.equal(task.pool.states, task.model.seed(40, 8))


def test_growing_rolls_out_for_as_long_as_told_and_previews_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, lengths = GrowingTask(growing("persist"), CPU), []
    monkeypatch.setattr(
        growing_module, "rollout", lambda automaton, state, steps: lengths.append(steps) or state
    )
    torch.manual_seed(0)
    for _ in range(60):
        task.loss()
    assert set(lengths) == {3, 4, 5}
    task.evaluate(task.model), task.preview(task.model)
    assert lengths[-2:] == [5, 10]


def test_a_level_is_told_its_image_at_a_coarser_scale_and_how_much_noise_is_in_that() -> None:
    task = DiffusionTask(LEVEL, CPU)
    torch.manual_seed(0)
    clean = torch.randn(500, 3, 8, 8)
    told = task._context(clean, Part())
    assert told is not None
    amount = told[:, 3]
    assert torch.equal(amount, amount[:, :1, :1].expand(-1, 8, 8))
    assert 0 <= amount.min() < 0.01 < 0.39 < amount.max() < 0.4
    coarse = interpolate(avg_pool2d(clean, 4), scale_factor=4, mode="bilinear")
    off = told[:, :3] - (1 - amount[:, None] ** 2).sqrt() * coarse
    nearest = off[:, :, 0, 0] / amount[:, :1, 0]  # a corner's pixel is its block's value
    assert nearest.std().item() == pytest.approx(1, abs=0.05)


def test_a_rule_of_several_scales_is_told_in_training_what_its_cascade_tells_it() -> None:
    data = {"kind": "tissue-scales", "size": 8, "coarsest": 2}
    task = DiffusionTask(told({"context_channels": 5}, context={"factor": 2, "noise": 0.0}, data=data), CPU)
    images = torch.stack([task.data.image(n, np.random.default_rng(n)) for n in range(6)])
    in_training = task._context(images, Part())
    assert in_training is not None
    for n, image in enumerate(images):
        level = Cascade(task.model, task.model, 2, noise=0.0, scale=float(image[3, 0, 0]))
        coarse = avg_pool2d(image[None, :3], 2)
        assert torch.equal(level.context_of(coarse, CounterNoise(0), (8, 8)), in_training[n : n + 1])


def test_parts_of_a_batch_are_told_what_the_whole_batch_is() -> None:
    task, images = DiffusionTask(LEVEL, CPU), torch.randn(6, 3, 8, 8)
    torch.manual_seed(0)
    whole = task._context(images, Part())
    parts = []
    for index in range(2):
        torch.manual_seed(0)
        parts.append(task._context(images[3 * index : 3 * index + 3], Part(index, 2)))
    assert torch.equal(torch.cat(parts), whole)  # type: ignore[arg-type]


def test_digits_are_told_their_class_but_one_in_four_is_told_nothing() -> None:
    task = DiffusionTask(BY_CLASS, CPU)
    data = task.data
    assert isinstance(data, DigitsByClass)
    images = torch.stack([data.image(i, np.random.default_rng(0)) for i in range(400)])
    assert torch.equal(images[:, :1], data.images[:400])
    torch.manual_seed(0)
    told = task._context(images, Part())
    assert told is not None
    classes = told[:, :, 3, 5]
    assert torch.equal(told, classes[:, :, None, None].expand_as(told))
    left = classes.sum(1) > 0
    assert left.float().mean().item() == pytest.approx(0.75, abs=0.06)
    assert torch.equal(classes[left].argmax(1), data.labels[:400][left])


def test_portraits_are_told_their_attributes() -> None:
    data, plain = FacesByAttributes(8), Faces(8)
    for index in range(6):
        image, face = data.image(index, np.random.default_rng(0)), plain.attributes(index)
        assert torch.equal(image[:3], plain.image(index, np.random.default_rng(0)))
        asked = {"hair_colour": face.hair_colour, "skin": face.skin, "glasses": face.glasses}
        assert torch.equal(image[3:], attribute_planes((8, 8), **asked)[0])
        assert image[3:, 0, 0].nonzero().flatten().tolist() == [
            tuple(HAIR_COLOURS).index(face.hair_colour),
            8 + tuple(SKINS).index(face.skin),
            15 + GLASSES.index(face.glasses),
        ]
    with pytest.raises(
        DataError, match="glasses = 'blue' is no attribute of a portrait; known are none, round"
    ):
        attribute_planes((8, 8), glasses="blue")
    assert attribute_planes((8, 8)).sum() == 0
