"""Tasks: which timesteps a denoiser is asked about, which states a growing automaton goes on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_training import diffusing, growing
from torch import Tensor, nn

from nca_lib.experiments import growing as growing_module
from nca_lib.experiments.growing import GrowingTask
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.tasks import DiffusionTask, task_of

CPU = torch.device("cpu")


def vnca() -> Experiment:
    model = {"kind": "vnca", "size": 8, "image_channels": 1, "latent": 12, "hidden": 8}
    return Experiment.from_dict({"name": "tiny", "model": model, "data": {"kind": "digits", "size": 8}})


@pytest.mark.parametrize("experiment", [diffusing(), growing("grow"), vnca()], ids=["nca", "growing", "vnca"])
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


def ordered_pool(regime: str, monkeypatch: pytest.MonkeyPatch) -> tuple[GrowingTask, Tensor]:
    """A task that has taken one step, and its pool before: 8 states, the first the best, the last the worst.

    The automaton does nothing, so that the pool shows what the rollout began with.
    """
    experiment = growing(regime, batch=8).to_dict()
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
