"""Automata: Life's known patterns, exact perception, and the locality of a learned rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nca_lib.automaton import (
    ALPHA,
    FixedPerception,
    GrowingNCA,
    LearnedPerception,
    SamplePool,
    damage,
    life,
    rollout,
    states,
    to_rgb,
)
from nca_lib.noise import CounterNoise, TorchNoise


def board(*rows: str, size: int = 8) -> Tensor:
    cells = torch.zeros(1, 1, size, size)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            cells[0, 0, y, x] = cell == "#"
    return cells


def restless(**options: object) -> GrowingNCA:
    """An automaton whose weights are random and whose cells live everywhere."""
    torch.manual_seed(0)
    automaton = GrowingNCA(8, 16, **options)
    torch.nn.init.normal_(automaton.narrow.weight, std=0.05)
    return automaton


def raising(opacity: float) -> GrowingNCA:
    """An automaton whose every step adds as much opacity to every cell, and changes nothing else."""
    automaton = GrowingNCA(8, 16, update_probability=1.0)
    with torch.no_grad():
        automaton.widen.weight.zero_()
        automaton.widen.bias.fill_(1.0)
        automaton.narrow.weight[ALPHA] = opacity / 16
    return automaton


def test_a_block_stays() -> None:
    block = board("", " ##", " ##")
    assert torch.equal(life(block), block)


def test_a_blinker_turns_and_turns_back() -> None:
    lying, standing = board("", "", " ###"), board("", "  #", "  #", "  #")
    assert torch.equal(life(lying), standing)
    assert torch.equal(life(standing), lying)


def test_a_glider_moves_one_cell_diagonally_in_four_steps_and_around_the_torus() -> None:
    glider = board(" #", "  #", "###")
    moved = glider
    for _ in range(4):
        moved = life(moved)
    assert torch.equal(moved, glider.roll((1, 1), dims=(2, 3)))
    for _ in range(4 * 7):
        moved = life(moved)
    assert torch.equal(moved, glider)


@pytest.mark.parametrize(("neighbours", "lives"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (8, 0)])
def test_a_living_cell_survives_with_two_or_three_neighbours(neighbours: int, lives: int) -> None:
    cells = torch.zeros(9)
    cells[4] = 1
    cells[[0, 1, 2, 3, 5, 6, 7, 8][:neighbours]] = 1
    padded = torch.zeros(1, 1, 8, 8)
    padded[0, 0, 2:5, 2:5] = cells.view(3, 3)
    assert life(padded)[0, 0, 3, 3] == lives


def test_sobel_of_a_ramp_is_its_slope_and_of_a_constant_zero() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    state = torch.stack([2 * x - 3 * y + 1, torch.full_like(x, 5.0)])[None]
    perceived = FixedPerception(2)(state)
    assert torch.equal(perceived[:, [0, 3]], state)
    interior = perceived[0, :, 1:-1, 1:-1]
    for channel, expected in ((1, 2.0), (2, -3.0), (4, 0.0), (5, 0.0)):
        torch.testing.assert_close(interior[channel], torch.full_like(interior[channel], expected))


def test_a_learned_perception_can_be_the_fixed_one() -> None:
    channels = 4
    fixed, learned = FixedPerception(channels), LearnedPerception(channels)
    with torch.no_grad():
        learned.weight.zero_()
        learned.bias.zero_()
        for output in range(3 * channels):
            learned.weight[output, output // 3] = fixed.filters[output, 0]
    state = torch.randn(2, channels, 6, 5)
    torch.testing.assert_close(learned(state), fixed(state))


@pytest.mark.parametrize("perception", ["fixed", "learned"])
def test_an_untrained_automaton_does_nothing(perception: str) -> None:
    automaton = GrowingNCA(8, 16, perception=perception)
    seed = automaton.seed(9)
    assert torch.equal(rollout(automaton, seed, 5), seed)


def test_the_seed_is_one_opaque_black_cell_in_the_middle() -> None:
    seed = GrowingNCA(8, 16).seed((7, 10), batch=2)
    assert seed.shape == (2, 8, 7, 10)
    assert seed.sum() == 2 * 5
    assert torch.equal(seed[:, :, 3, 5], torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 1]] * 2))


@pytest.mark.parametrize("steps", [1, 3])
def test_information_travels_exactly_one_cell_a_step(steps: int) -> None:
    automaton = restless(update_probability=1.0)
    state = torch.rand(1, 8, 15, 15) * 0.1
    state[:, ALPHA] = 1
    poked = state.clone()
    poked[:, :, 7, 7] += 0.5
    difference = (rollout(automaton, poked, steps) - rollout(automaton, state, steps)).abs().amax(dim=(0, 1))
    y, x = torch.meshgrid(torch.arange(15) - 7, torch.arange(15) - 7, indexing="ij")
    distance = torch.maximum(y.abs(), x.abs())
    assert torch.equal(difference > 0, distance <= steps)


def test_dead_cells_away_from_life_stay_dead() -> None:
    automaton = restless(update_probability=1.0)
    with torch.no_grad():
        automaton.widen.bias.fill_(1.0)  # would write everywhere if death did not forbid it
    grown = automaton(automaton.seed(9))
    assert grown[:, :, 3:6, 3:6].abs().sum() > 0
    grown[:, :, 3:6, 3:6] = 0
    assert torch.count_nonzero(grown) == 0


def test_a_pattern_that_turns_transparent_dies() -> None:
    state = torch.rand(1, 8, 6, 6)
    state[:, ALPHA] = 0.1
    assert torch.count_nonzero(GrowingNCA(8, 16)(state)) == 0


@pytest.mark.parametrize(("opacity", "lives"), [(0.11, True), (0.09, False)])
def test_cells_live_above_an_opacity_of_a_tenth(opacity: float, lives: bool) -> None:
    state = torch.rand(1, 8, 6, 6)
    state[:, ALPHA] = opacity
    assert torch.equal(GrowingNCA(8, 16)(state), state if lives else torch.zeros_like(state))


def test_cells_that_a_step_kills_are_empty_after_it() -> None:
    state = torch.rand(1, 8, 6, 6)
    state[:, ALPHA] = 1
    assert torch.count_nonzero(raising(-1)(state)) == 0


def test_cells_that_were_not_alive_before_a_step_are_empty_after_it() -> None:
    automaton = raising(1)
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[3:6, 3:6] = True
    assert torch.equal(automaton(automaton.seed(9))[0, ALPHA] > 0, near)


def test_cells_fire_with_the_probability_asked_for() -> None:
    torch.manual_seed(0)
    state = torch.empty(4, 8, 100, 100)
    for probability in (0.25, 0.9):
        mask = TorchNoise().firing_mask(state, probability, 0, 0)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert (
            abs(float(mask.mean()) - probability)
            < 5 * (probability * (1 - probability) / mask.numel()) ** 0.5
        )
    assert TorchNoise().firing_mask(state, 1.0, 0, 0).all()


def test_cells_that_do_not_fire_keep_their_state() -> None:
    automaton = restless(update_probability=0.5)
    automaton.firing = CounterNoise(0)
    state = torch.rand(1, 8, 12, 12)
    state[:, ALPHA] = 1
    mask = CounterNoise(0).firing_mask(state, 0.5, 0, 3)[0, 0].bool()
    changed = (automaton(state, 3) != state).any(dim=1)[0]
    assert torch.equal(changed, mask)


def test_a_seeded_source_makes_a_rollout_reproducible() -> None:
    automaton = restless(update_probability=0.5)
    state = automaton.seed(12)
    automaton.firing = CounterNoise(1)
    first, again = rollout(automaton, state, 8), rollout(automaton, state, 8)
    automaton.firing = CounterNoise(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, rollout(automaton, state, 8))


def test_damage_erases_exactly_the_disc() -> None:
    state = torch.ones(2, 5, 11, 13)
    damaged = damage(state, torch.tensor([[5.0, 6.0], [0.0, 12.0]]), radius=3.0)
    for image, (cy, cx) in zip(damaged, ((5, 6), (0, 12)), strict=True):
        for y in range(11):
            for x in range(13):
                inside = (y - cy) ** 2 + (x - cx) ** 2 <= 9
                assert (image[:, y, x] == (0.0 if inside else 1.0)).all()


def test_the_pool_gives_distinct_states_and_keeps_what_is_put_back_without_its_graph() -> None:
    pool = SamplePool(torch.zeros(1, 4, 3, 3), 16)
    indices, _ = pool.sample(16)
    assert sorted(indices.tolist()) == list(range(16))
    indices, batch = pool.sample(4)
    batch += 1  # a copy: the pool must not see this
    assert torch.count_nonzero(pool.states) == 0
    weight = torch.ones(1, requires_grad=True)
    pool.replace(indices, (torch.arange(4.0) + 1).view(4, 1, 1, 1) * weight.expand(4, 4, 3, 3))
    assert not pool.states.requires_grad
    assert torch.equal(pool.states[indices][:, 0, 0, 0], torch.arange(4.0) + 1)
    assert torch.count_nonzero(pool.states) == 4 * 4 * 9


def test_a_rollout_ends_in_the_last_of_its_states() -> None:
    automaton = restless(update_probability=1.0)
    seed = automaton.seed(9)
    visited = list(states(automaton, seed, 4))
    assert len(visited) == 4
    assert torch.equal(visited[0], automaton(seed))
    assert torch.equal(rollout(automaton, seed, 4), visited[-1])
    assert torch.equal(rollout(automaton, seed, 0), seed)


def test_to_rgb_lays_premultiplied_colour_over_the_background() -> None:
    state = torch.tensor([0.2, 0.1, 0.4, 0.5, 9.0]).view(1, 5, 1, 1)
    torch.testing.assert_close(to_rgb(state).flatten(), torch.tensor([0.7, 0.6, 0.9]))
    torch.testing.assert_close(to_rgb(state, background=0.0).flatten(), torch.tensor([0.2, 0.1, 0.4]))
    assert to_rgb(torch.full((1, 4, 1, 1), 7.0)).max() == 1
