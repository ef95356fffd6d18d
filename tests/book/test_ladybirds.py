"""What chapter 1 says of its three automata is so of the weights that ship."""

import pytest
import torch
from torch import Tensor

import nca_lib
from nca_lib.automaton import GrowingNCA, damage, rollout
from nca_lib.experiments.growing import picture
from nca_lib.experiments.settings import Experiment
from nca_lib.noise import CounterNoise, firing_from

TARGET = picture("ladybird", 32)[None]


def error(state: Tensor) -> Tensor:
    return (state[:, :4].clamp(0, 1) - TARGET).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def lived(model: GrowingNCA, state: Tensor, steps: int) -> Tensor:
    with firing_from(model, CounterNoise(5)):
        return rollout(model, state, steps)


@pytest.fixture(scope="module")
def grown() -> dict[str, tuple[GrowingNCA, Tensor]]:
    """Each automaton and what it is after 60 steps."""
    models = {name: nca_lib.load(f"growing-{name}") for name in ("grow", "persist", "regenerate")}
    return {name: (model, lived(model, model.seed(32), 60)) for name, model in models.items()}


@pytest.mark.parametrize("name", ["persist", "regenerate"])
def test_what_learned_to_stay_is_at_rest_for_a_thousand_steps(name: str, grown: dict) -> None:
    model, state = grown[name]
    early = lived(model, state, 180)
    late = lived(model, early, 760)
    assert error(late) < 1e-4 and error(late) < 1.5 * error(early)


def test_what_learned_to_grow_does_not_stay(grown: dict) -> None:
    model, state = grown["grow"]
    assert error(state) < 0.01 and error(lived(model, state, 180)) > 0.1


def test_only_what_was_hurt_in_training_mends(grown: dict) -> None:
    centres = torch.tensor([[float(y), float(x)] for y in (11, 16, 21) for x in (11, 16, 21)])
    left = {}
    for name in ("persist", "regenerate"):
        model, state = grown[name]
        hurt = damage(state.repeat(9, 1, 1, 1), centres, radius=5)
        assert error(hurt).min() > 0.01
        left[name] = error(lived(model, hurt, 240))
    assert left["regenerate"].max() < 1e-4
    assert left["persist"].mean() > 0.01


def test_damage_is_the_only_difference_between_the_two() -> None:
    persist, regenerate = (Experiment.read(f"growing-{name}").to_dict() for name in ("persist", "regenerate"))
    assert {key for key in persist if persist[key] != regenerate[key]} == {"name", "growing"}
    ours, theirs = persist["growing"], regenerate["growing"]
    assert {key for key in ours if ours[key] != theirs[key]} == {"regime"}
    assert ours["regime"] == "persist" and theirs["regime"] == "regenerate"
