"""Noise sources: published generator vectors, addressing, and statistics."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from nca_lib import noise
from nca_lib.automaton import GrowingNCA
from nca_lib.diff_nca import DiffNCA
from nca_lib.noise import (
    CounterNoise,
    ExpectedUpdates,
    FixedMasks,
    Noise,
    Purpose,
    TorchNoise,
    firing_from,
    philox,
)

LIKE = torch.empty(2, 3, 12, 10)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    words = tuple(torch.tensor(int(word, 16)) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word):08x}" for word in philox(words, (k0, k1))) == expected


def words_at(seed: int, sample: int, purpose: int, step: int, block: int, y: int, x: int) -> list[int]:
    """Philox's answer to an address as the counter is laid out: x, y, step, purpose and block."""
    counter = tuple(torch.tensor(word) for word in (x, y, step, purpose << 24 | block))
    return [int(word) for word in philox(counter, (seed, sample))]


def test_every_address_has_its_own_place_in_the_counter() -> None:
    source, like = CounterNoise(11, first_sample=3, origin=(20, 50)), torch.empty(2, 6, 8, 9)
    words = words_at(11, 4, purpose=2, step=300, block=1, y=25, x=57)  # row 1, cell (5, 7)
    assert [f"{word:08x}" for word in words] == ["7665cc15", "682d1071", "44fd5c03", "997f7d1c"]
    for k, word in enumerate(words):  # substeps 4 to 7
        mask = source.uniform(like, Purpose.FIRING, 300, 4 + k)
        assert float(mask[1, 0, 5, 7]) == (word >> 8) / 2**24

    drawn = source.normal(like.double(), Purpose.SAMPLER, 300)[1, :, 5, 7]
    expected = []
    for block in (0, 1):
        words = words_at(11, 4, purpose=1, step=300, block=block, y=25, x=57)
        for radius, angle in (words[:2], words[2:]):  # Box & Muller (1958)
            length = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
            turn = 2 * math.pi * (angle + 0.5) / 2**32
            expected += [length * math.cos(turn), length * math.sin(turn)]
    assert drawn.tolist() == pytest.approx(expected[:6], abs=1e-6)


@pytest.mark.parametrize(("word", "radius"), [(0, math.sqrt(66 * math.log(2))), (2**32 - 1, 2**0.5 * 2**-12)])
def test_the_largest_and_the_smallest_normal_numbers(
    monkeypatch: pytest.MonkeyPatch, word: int, radius: float
) -> None:
    # The angle is almost 0; u is 2^-33 at least, and at most the float32 before 1.
    words = tuple(torch.full((1, 1, 1, 1), w) for w in (word, 0, word, 0))
    monkeypatch.setattr(noise, "philox", lambda counter, key: words)
    drawn = CounterNoise(0).normal(torch.empty(1, 4, 1, 1), Purpose.START, 0).flatten()
    assert drawn[::2].tolist() == pytest.approx([radius] * 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_tile_holds_its_part_of_the_whole_bit_for_bit(kind: str) -> None:
    whole_source = CounterNoise(7)
    tile_source = whole_source.at(5, 3)
    tile_like = LIKE[:, :, 5:11, 3:9]
    if kind == "normal":
        whole = whole_source.normal(LIKE, Purpose.SAMPLER, 4)
        tile = tile_source.normal(tile_like, Purpose.SAMPLER, 4)
    else:
        whole = whole_source.uniform(LIKE, Purpose.FIRING, 4, 6)
        tile = tile_source.uniform(tile_like, Purpose.FIRING, 4, 6)
    assert torch.equal(tile, whole[:, :, 5:11, 3:9])


def test_a_tile_may_begin_left_of_and_above_the_canvas() -> None:
    halo = CounterNoise(7).at(-2, -3).normal(torch.empty(1, 3, 10, 10), Purpose.START, 0)
    inside = CounterNoise(7).normal(torch.empty(1, 3, 8, 7), Purpose.START, 0)
    assert torch.equal(halo[:, :, 2:, 3:], inside)


def test_a_part_of_what_wraps_wraps_after_as_many_cells() -> None:
    torus = CounterNoise(7, period=(8, 9))
    whole = torus.uniform(torch.empty(1, 3, 8, 9), Purpose.FIRING, 0, 0)
    part = torus.at(5, 3).uniform(torch.empty(1, 3, 6, 10), Purpose.FIRING, 0, 0)
    y, x = torch.arange(5, 11) % 8, torch.arange(3, 13) % 9
    assert torch.equal(part, whole[:, :, y][..., x])


def test_a_later_batch_continues_the_samples_of_a_larger_one() -> None:
    whole = CounterNoise(1).normal(torch.empty(5, 3, 4, 4), Purpose.START, 0)
    later = CounterNoise(1, first_sample=3).normal(torch.empty(2, 3, 4, 4), Purpose.START, 0)
    assert torch.equal(later, whole[3:])


def test_channels_do_not_depend_on_how_many_are_asked_for() -> None:
    many = CounterNoise(1).normal(torch.empty(1, 9, 4, 4), Purpose.START, 0)
    few = CounterNoise(1).normal(torch.empty(1, 3, 4, 4), Purpose.START, 0)
    assert many.shape == (1, 9, 4, 4)
    assert torch.equal(few, many[:, :3])


def test_purposes_steps_substeps_samples_and_seeds_are_uncorrelated() -> None:
    like = torch.empty(2, 1, 100, 100)

    def uniform(seed: int, purpose: Purpose, step: int, substep: int) -> torch.Tensor:
        return CounterNoise(seed).uniform(like, purpose, step, substep)

    first = uniform(0, Purpose.FIRING, 0, 0)
    columns = [first[0], first[1]]
    columns += [uniform(*address)[0] for address in _other_addresses()]
    correlation = torch.corrcoef(torch.stack([column.flatten() for column in columns]))
    off_diagonal = correlation - torch.eye(len(columns))
    assert off_diagonal.abs().max() < 0.05  # five standard errors of 10,000 pairs


def _other_addresses() -> list[tuple[int, Purpose, int, int]]:
    firing = Purpose.FIRING
    return [
        (1, firing, 0, 0),
        (-1, firing, 0, 0),
        (0, Purpose.START, 0, 0),
        (0, Purpose.SAMPLER, 0, 0),
        (0, firing, 1, 0),
        (0, firing, 0, 1),
        (0, firing, 0, 4),
        (0, firing, 0, 5),
    ]


def test_neighbouring_cells_and_channels_are_uncorrelated() -> None:
    field = CounterNoise(3).normal(torch.empty(1, 8, 128, 128), Purpose.START, 0)[0]
    pairs = [(field[:, :, 1:], field[:, :, :-1]), (field[:, 1:], field[:, :-1]), (field[1:], field[:-1])]
    for a, b in pairs:
        assert abs(float((a * b).mean())) < 5 / b.numel() ** 0.5


def test_normal_numbers_are_standard_normal() -> None:
    numbers = CounterNoise(5).normal(torch.empty(1, 4, 150, 150), Purpose.START, 0).flatten().double()
    n = len(numbers)
    assert abs(float(numbers.mean())) < 4 / n**0.5
    assert abs(float(numbers.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((numbers**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = CounterNoise(5).uniform(torch.empty(2, 1, 200, 200), Purpose.FIRING, 0, 3).flatten()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32 - 2, -(2**31)])
def test_any_integer_is_a_seed(seed: int) -> None:
    first = CounterNoise(seed).normal(LIKE, Purpose.START, 0)
    assert first.isfinite().all()
    assert torch.equal(first, CounterNoise(seed).normal(LIKE, Purpose.START, 0))
    assert not torch.equal(first, CounterNoise(seed + 1).normal(LIKE, Purpose.START, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_take_the_dtype_of_the_tensor_they_are_for(dtype: torch.dtype) -> None:
    assert CounterNoise(0).normal(LIKE.to(dtype), Purpose.START, 0).dtype == dtype
    assert CounterNoise(0).uniform(LIKE.to(dtype), Purpose.FIRING, 0, 0).dtype == torch.float32


def test_torch_noise_follows_the_generator_of_torch() -> None:
    torch.manual_seed(3)
    drawn = TorchNoise().normal(LIKE, Purpose.START, 0), TorchNoise().uniform(LIKE, Purpose.FIRING, 0, 0)
    torch.manual_seed(3)
    assert torch.equal(drawn[0], torch.randn(2, 3, 12, 10))
    assert torch.equal(drawn[1], torch.rand(2, 1, 12, 10))


def test_unknown_ways_to_fire_are_refused() -> None:
    with pytest.raises(ValueError, match="firing is 'none'; choose fresh, fixed or expected"):
        noise.firing_masks_of(CounterNoise(1), "none")


def test_firing_from_reaches_nested_automata_and_restores_their_source_after_an_error() -> None:
    automaton = GrowingNCA(8, 16)
    before, counter = automaton.firing, CounterNoise(1)
    with pytest.raises(RuntimeError, match="stop"), firing_from(torch.nn.Sequential(automaton), counter):
        assert automaton.firing is counter
        raise RuntimeError("stop")
    assert automaton.firing is before


def one_step(noise: Noise, time: float, batch: int = 3) -> torch.Tensor:
    """What one step predicts for `batch` equal images: its update where a cell fires, else 0."""
    torch.manual_seed(0)
    automaton = DiffNCA(8, 16, 1, update_probability=0.7)
    image = torch.rand(1, 3, 6, 5).expand(batch, -1, -1, -1)
    with torch.no_grad(), firing_from(automaton, noise):
        return automaton(image, torch.full((batch,), time))


def test_fixed_masks_are_those_of_every_call_and_of_one_sample_only() -> None:
    fixed, fresh = FixedMasks(CounterNoise(2)), CounterNoise(2)
    early, late = one_step(fixed, 0.25) != 0, one_step(fixed, 0.75) != 0
    assert torch.equal(early, late)
    assert not torch.equal(one_step(fresh, 0.25) != 0, one_step(fresh, 0.75) != 0)
    assert not torch.equal(early[0], early[1])
    for k in range(6):  # but each NCA step has its own: those of step 0
        mask = fixed.uniform(LIKE, Purpose.FIRING, 5, k)
        assert torch.equal(mask, fresh.uniform(LIKE, Purpose.FIRING, 0, k))
    later = FixedMasks(CounterNoise(2, first_sample=1))
    assert torch.equal(one_step(later, 0.5, batch=2) != 0, early[1:])


@pytest.mark.parametrize("kind", [FixedMasks, ExpectedUpdates])
def test_without_fresh_masks_all_other_noise_is_as_it_was(kind: type[FixedMasks | ExpectedUpdates]) -> None:
    source = CounterNoise(2)
    for step in (0, 4):
        drawn = kind(source).normal(LIKE, Purpose.SAMPLER, step)
        assert torch.equal(drawn, source.normal(LIKE, Purpose.SAMPLER, step))
    numbers = ExpectedUpdates(source).uniform(LIKE, Purpose.FIRING, 4, 6)
    assert torch.equal(numbers, source.uniform(LIKE, Purpose.FIRING, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cell_fires_if_its_number_is_below_the_probability(dtype: torch.dtype) -> None:
    class Given(TorchNoise):
        def uniform(self, like: torch.Tensor, purpose: Purpose, step: int, substep: int) -> torch.Tensor:
            return torch.tensor([0, 0.25 - 2**-24, 0.25, 0.75]).view(1, 1, 1, 4)

    mask = Given().firing_mask(torch.empty(1, 3, 1, 4, dtype=dtype), 0.25, 0, 0)
    assert mask.dtype == dtype
    assert mask.flatten().tolist() == [1, 1, 0, 0]


def test_the_expected_update_is_the_mean_over_all_masks() -> None:
    masked, expected = one_step(CounterNoise(0), 0.5, 4000), one_step(ExpectedUpdates(CounterNoise(0)), 0.5)
    assert torch.equal(expected[0], expected[1])
    ratio = (
        masked.mean(0) / expected[0]
    )  # of 4000 masks: 1 with a deviation of sqrt(0.3 / 0.7 / 4000) = 0.0104
    assert ratio.sub(1).abs().max() < 4.5 * 0.0104
    assert ratio.mean().item() == pytest.approx(1, abs=4 * 0.0104 / 30**0.5)


def test_expected_updates_of_cells_that_always_update_change_nothing() -> None:
    torch.manual_seed(0)
    automaton = DiffNCA(8, 16, 4, update_probability=1.0)
    image, time = torch.rand(1, 3, 6, 5), torch.full((1,), 0.5)
    plain = automaton(image, time)
    with firing_from(automaton, ExpectedUpdates(CounterNoise(0))):
        assert torch.equal(automaton(image, time), plain)
