"""Diff-NCA: parameter counts, locality, and what must not change its values."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nca_lib import devices, diff_nca
from nca_lib import fast as fast_path
from nca_lib.baselines import VNCA
from nca_lib.devices import compile_step
from nca_lib.diff_nca import Cell, CellNorm, DiffNCA, lift
from nca_lib.diffusion import MLP, Denoiser, noise_schedule
from nca_lib.fast import CellWeights, fast_step
from nca_lib.fourier import FourierDiffNCA
from nca_lib.noise import CounterNoise, Purpose, firing_from


def model(steps: int = 3, **options: object) -> DiffNCA:
    torch.manual_seed(0)
    options.setdefault("update_probability", 1.0)
    return DiffNCA(10, 16, steps, **options).double()


def inputs(batch: int = 2, height: int = 12, width: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    return noisy, torch.linspace(0.2, 0.8, batch, dtype=torch.float64)


def parameters(network: DiffNCA) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_configurations_have_their_published_parameter_counts() -> None:
    assert parameters(DiffNCA()) == parameters(DiffNCA(96, 512)) == 336_528
    assert DiffNCA().steps == 20
    assert parameters(DiffNCA(96, 512, weight_norm=False)) == 334_600
    assert parameters(DiffNCA(96, 396, weight_norm=False, norm="group", modulation=False)) == 208_792


@pytest.mark.parametrize(
    ("scalar", "cosines_and_sines"),
    [
        (0, [1, 1, 0, 0]),
        (1, [math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)]),
        (3, [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]),
    ],
)
def test_the_reference_encoding_is_the_published_formula(scalar: int, cosines_and_sines: list[float]) -> None:
    scalars = torch.rand(2, 4, 3, 5, dtype=torch.float64)
    lifted = lift(scalars, "reference")
    for wave, factor in enumerate(cosines_and_sines):
        torch.testing.assert_close(lifted[:, 4 * scalar + wave], scalars[:, scalar] * factor)


def test_the_reference_encoding_is_linear_and_the_sinusoidal_one_is_not() -> None:
    a, b = torch.rand(2, 1, 4, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(lift(2 * a + b, "reference"), 2 * lift(a, "reference") + lift(b, "reference"))
    assert not torch.allclose(lift(2 * a, "sinusoidal"), 2 * lift(a, "sinusoidal"), atol=0.1)


def test_the_sinusoidal_encoding_is_cosine_and_sine_of_each_scalar() -> None:
    lifted = lift(torch.tensor([0.5, 1.0]).view(1, 2, 1, 1), "sinusoidal").view(2, 4)
    quarter, full = math.pi / 4, 4 * math.pi
    expected = [
        [math.cos(quarter), math.cos(2 * math.pi), math.sin(quarter), math.sin(2 * math.pi)],
        [math.cos(2 * quarter), math.cos(full), math.sin(2 * quarter), math.sin(full)],
    ]
    torch.testing.assert_close(lifted, torch.tensor(expected), atol=1e-5, rtol=0)


def test_the_cell_norm_gives_each_cell_mean_zero_and_variance_one_by_itself() -> None:
    x = torch.randn(2, 32, 3, 4) * torch.rand(2, 1, 3, 4) * 10 + torch.randn(2, 1, 3, 4)
    normal = CellNorm()(x)
    torch.testing.assert_close(normal.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(1, correction=0), torch.ones(2, 3, 4), atol=5e-3, rtol=0)
    torch.testing.assert_close(CellNorm()(x[..., 1:2, 2:3]), normal[..., 1:2, 2:3])
    a = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1) * 1e-3
    torch.testing.assert_close(CellNorm()(a), a / math.sqrt(1e-6 + 1e-5))


@pytest.mark.parametrize(
    "options", [{}, {"norm": "group"}, {"update_probability": 0.7}, {"weight_norm": False}]
)
def test_the_image_channels_never_change(options: dict[str, object]) -> None:
    network = model(**options)
    noisy, time = inputs()
    visited = list(network.rollout(network.seed(noisy), time))
    assert all(torch.equal(state[:, :3], noisy) for state in visited)
    assert all(state[:, 3:].abs().max() > 1e-3 for state in visited)
    assert torch.equal(network.seed(noisy)[:, 3:], torch.zeros(2, 7, 12, 13, dtype=torch.float64))


@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_of_grey_images_one_channel_is_read_only_and_the_next_is_the_prediction(kind: type[DiffNCA]) -> None:
    torch.manual_seed(0)
    options = {"frequencies": 3} if kind is FourierDiffNCA else {}
    network = kind(8, 16, 2, image_channels=1, update_probability=1.0, **options)
    noisy, time = torch.randn(2, 1, 9, 8), torch.tensor([0.2, 0.7])
    start = network.initial_state(noisy, time)
    last = list(network.rollout(start, time))[-1]
    assert torch.equal(last[:, :1], noisy)
    assert (last != start).flatten(2).any(2).all(0).tolist() == [False] + [True] * 7
    torch.testing.assert_close(network(noisy, time), last[:, 1:2])
    if kind is FourierDiffNCA:
        seed = network.spectrum_seed(noisy)
        changed = list(network.spectrum_rollout(seed, time))[-1] != seed
        assert changed.flatten(2).any(2).all(0).tolist() == ([False] + [True] * 7) * 2


@pytest.mark.parametrize("kind", [DiffNCA, FourierDiffNCA])
def test_every_cell_is_told_place_and_time_as_the_model_is_asked_to(kind: type[DiffNCA]) -> None:
    for encoding in ("reference", "sinusoidal"):
        cells = [m for m in kind(8, 16, 1, encoding=encoding).modules() if isinstance(m, Cell)]
        assert {cell.encoding for cell in cells} == {encoding}
    blind = kind(8, 16, 1, position=False)
    assert not blind.cell.position
    assert all(cell.position for cell in blind.modules() if isinstance(cell, Cell) and cell is not blind.cell)
    assert kind(8, 16, 1).cell.position


@pytest.mark.parametrize("weight_norm", [True, False])
def test_zero_init_predicts_zero_but_can_learn(weight_norm: bool) -> None:
    network = model(zero_init=True, weight_norm=weight_norm)
    output = network(*inputs())
    assert torch.count_nonzero(output) == 0
    (output - 1).square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_cell_sees_exactly_as_far_as_the_automaton_has_steps(steps: int) -> None:
    network = model(steps)
    noisy, time = inputs(1, 15, 15)
    noisy.requires_grad_()
    network(noisy, time)[0, :, 7, 7].sum().backward()
    seen = noisy.grad.abs().sum(dim=(0, 1)) > 0
    y, x = torch.meshgrid(torch.arange(15) - 7, torch.arange(15) - 7, indexing="ij")
    assert torch.equal(seen, torch.maximum(y.abs(), x.abs()) <= steps)


def test_group_norm_sees_everything() -> None:
    network = model(1, norm="group")
    noisy, time = inputs(1, 15, 15)
    noisy.requires_grad_()
    network(noisy, time)[0, :, 7, 7].sum().backward()
    assert (noisy.grad.abs().sum(dim=(0, 1)) > 0).all()


def test_group_norm_makes_one_group_of_all_channels() -> None:
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64) * torch.logspace(-1, 1, 16).view(1, 16, 1, 1)
    centred = x - x.mean((1, 2, 3), keepdim=True)
    variance = centred.square().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(model(norm="group").cell.norm(x), centred / (variance + 1e-5).sqrt())


def test_without_position_a_shifted_image_has_a_shifted_output() -> None:
    noisy, time = inputs(1, 16, 17)
    shifted = noisy.roll((2, 3), dims=(2, 3))

    def mismatch(network: DiffNCA) -> float:
        inner = (slice(None), slice(None), slice(5, -3), slice(6, -3))  # clear of border and wrap by K = 3
        difference = network(shifted, time)[inner] - network(noisy, time).roll((2, 3), dims=(2, 3))[inner]
        return float(difference.detach().abs().max())

    assert mismatch(model(position=False)) < 1e-12
    assert mismatch(model(position=True)) > 1e-6


def test_a_tile_with_a_halo_equals_the_whole_but_not_under_group_norm() -> None:
    noisy, time = inputs(1, 20, 22)

    def mismatch(network: DiffNCA) -> float:
        whole = network(noisy, time)[:, :, 8:12, 7:13]
        tile = network(noisy[:, :, 5:15, 4:16], time)[:, :, 3:-3, 3:-3]
        return float((whole - tile).detach().abs().max())

    assert mismatch(model(position=False)) < 1e-12
    assert mismatch(model(position=False, norm="group")) > 1e-6


def test_a_tile_fires_like_the_whole_under_a_counter_source() -> None:
    noisy, time = inputs(1, 20, 22)
    network = model(position=False, update_probability=0.6)
    with firing_from(network, CounterNoise(4)):
        whole = network(noisy, time)[:, :, 8:12, 7:13]
    with firing_from(network, CounterNoise(4).at(5, 4)):
        tile = network(noisy[:, :, 5:15, 4:16], time)[:, :, 3:-3, 3:-3]
    torch.testing.assert_close(tile, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("probability", [1.0, 0.6])
def test_checkpointing_changes_neither_values_nor_gradients(probability: float) -> None:
    results = []
    for checkpointing in (False, True):
        network = model(4, update_probability=probability, checkpointing=checkpointing)
        noisy, time = inputs()
        noisy.requires_grad_()
        torch.manual_seed(5)
        output = network(noisy, time)
        output.square().sum().backward()
        results.append([output.detach(), noisy.grad, *(p.grad for p in network.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("fast", [True, False])
def test_only_checkpointing_under_gradients_recomputes(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    calls = []

    def counting(cell: Any, *inputs: Any, **options: Any) -> Any:
        calls.append(cell)
        return checkpoint(cell, *inputs, **options)

    checkpoint = diff_nca.checkpoint
    for module in (diff_nca, fast_path):
        monkeypatch.setattr(module, "checkpoint", counting)
    noisy, time = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.7])
    for options, count in ({}, 0), ({"checkpointing": True}, 3 + 5):
        network = FourierDiffNCA(8, 16, 3, frequencies=3, spectrum_steps=5, **options)
        network.fast = fast
        network(noisy, time)
        assert len(calls) == count
        with torch.no_grad():
            network(noisy, time)
        assert len(calls) == count


def test_masks_are_asked_for_by_time_and_step_and_not_at_all_where_every_cell_fires() -> None:
    class Recording(CounterNoise):
        def uniforms(self, like: Tensor, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
            asked.append((purpose, step, count))
            return super().uniforms(like, purpose, step, count)

    asked: list[tuple[Purpose, int, int]] = []
    noisy, _ = inputs()
    time = torch.tensor([0.25, 0.25], dtype=torch.float64)  # as an address, in parts of 2^20
    for probability in (0.6, 1.0):
        with firing_from(network := model(update_probability=probability), Recording(0)):
            network(noisy, time)
    assert asked == [(Purpose.FIRING, 2**18, 3)]


def test_a_batch_of_one_equals_its_row_of_a_batch() -> None:
    noisy, _ = inputs(3)
    time = torch.full((3,), 0.4, dtype=torch.float64)
    network = model(update_probability=0.6)
    with firing_from(network, CounterNoise(4)):
        together = network(noisy, time)
    with firing_from(network, CounterNoise(4, first_sample=2)):
        alone = network(noisy[2:], time[2:])
    torch.testing.assert_close(alone, together[2:], atol=1e-12, rtol=0)


def test_rows_do_not_depend_on_the_times_of_other_rows() -> None:
    noisy, time = inputs(2)
    network = model()
    torch.testing.assert_close(network(noisy[1:], time[1:]), network(noisy, time)[1:], atol=1e-12, rtol=0)
    assert (network(noisy, time) - network(noisy, time.flip(0))).abs().max() > 1e-6


def test_modulation_multiplies_and_its_absence_removes_both_nets() -> None:
    plain, full = model(modulation=False), model()
    assert plain.cell.modulate_seen is None
    assert plain.cell.modulate_hidden is None
    assert parameters(full) > parameters(plain)
    # The hidden conditioner at zero leaves only the bias of the last layer: a cell then adds a constant.
    state, embedding = torch.randn(1, 10, 4, 4).double(), torch.randn(1, 4, 1, 1).double()
    with torch.no_grad():
        last = full.cell.modulate_hidden[2]
        last.parametrizations.weight.original0.zero_()
        last.bias.zero_()
        update = full.cell(state, embedding) - state
    expected = (full.cell.narrow.bias * full.cell.writable.view(-1)).view(1, -1, 1, 1).expand_as(update)
    torch.testing.assert_close(update, expected)


def test_position_runs_from_one_to_zero_along_each_axis_and_the_clock_is_t_and_k() -> None:
    network = model()
    seen: list[Tensor] = []
    network.cell.embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.cell.condition(torch.tensor([0.25, 0.5], dtype=torch.float64), 0.75, 5, 3)
    scalars = seen[0].view(2, 4, 4, 5, 3)[:, :, 1]  # times cos(i / 100)
    for i, expected in enumerate(
        (torch.linspace(1, 0, 5).view(1, 5, 1), torch.linspace(1, 0, 3).view(1, 1, 3))
    ):
        torch.testing.assert_close(scalars[:, i], (expected.double() * math.cos(i / 100)).expand(2, 5, 3))
    torch.testing.assert_close(scalars[:, 2, 0, 0], torch.tensor([0.25, 0.5]).double() * math.cos(0.02))
    torch.testing.assert_close(scalars[:, 3, 4, 2], torch.tensor([0.75, 0.75]).double() * math.cos(0.03))


def test_cells_update_with_the_probability_asked_for() -> None:
    torch.manual_seed(0)
    network = DiffNCA(8, 8, 1, update_probability=0.8)
    noisy = torch.randn(4, 3, 50, 50)
    output = network(noisy, torch.full((4,), 0.5))
    fired = float((output != 0).any(dim=1).float().mean())
    assert abs(fired - 0.8) < 5 * math.sqrt(0.8 * 0.2 / 10_000)


def test_impossible_automata_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels is 6.*at least 7"):
        DiffNCA(6, 16)
    for probability in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match=f"update_probability is {probability}"):
            DiffNCA(8, 16, update_probability=probability)
    with pytest.raises(ValueError, match="steps is 0; at least 1"):
        DiffNCA(8, 16, 0)
    with pytest.raises(ValueError, match="encoding is 'sinus'; choose reference or sinusoidal"):
        DiffNCA(8, 16, encoding="sinus")
    with pytest.raises(ValueError, match="norm is 'layer'; choose cell or group"):
        DiffNCA(8, 16, norm="layer")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused(channels: int, fast: bool) -> None:
    for model in (DiffNCA(8, 16, 1), FourierDiffNCA(8, 16, 1, frequencies=2)):
        model.fast = fast
        with pytest.raises(ValueError, match=f"images have {channels} channels; this model reads 3"):
            model(torch.zeros(2, channels, 8, 8), torch.tensor([0.5]))


def test_mixed_precision_tells_all_timesteps_apart() -> None:
    # By the literal path too: eight bits of t/T would not name 1,000 timesteps.
    cell = Cell(8, 16, norm="group", position=False)
    time = torch.arange(1000) / 1000
    exact = cell.condition(time, 0.25, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cell.condition(time, 0.25, 8, 8), exact)


VARIANTS: list[dict[str, Any]] = [
    {"position": False},
    {"position": False, "encoding": "sinusoidal", "weight_norm": False},
    {"position": False, "modulation": False},
    {"position": False, "norm": "group"},
    {"position": True},
    {"position": True, "modulation": False},
    {"frequencies": 5},
    {"frequencies": 5, "position": False, "window": "half_plane"},
]


@pytest.mark.parametrize("probability", [1.0, 0.7])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_fast_path_equals_the_literal_one(options: dict[str, Any], probability: float) -> None:
    torch.manual_seed(0)
    kind = FourierDiffNCA if "frequencies" in options else DiffNCA
    network = kind(16, 32, 4, update_probability=probability, **options)
    noisy, time = torch.randn(3, 3, 12, 14), torch.full((3,), 0.4)
    with torch.no_grad(), firing_from(network, CounterNoise(1)):
        fast = network(noisy, time)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(noisy, time)
        network.fast = False
        literal = network(noisy, time)
    assert float((fast - literal).norm() / literal.norm()) < 1e-5
    assert float((low - literal).norm() / literal.norm()) < 2e-2  # bf16 keeps 8 bits, over 4 steps


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_learning_on_the_fast_path_equals_learning_on_the_literal_one(
    options: dict[str, Any], checkpointing: bool
) -> None:
    """Each image with a time of its own: values and all gradients, in float64."""
    torch.manual_seed(0)
    kind = FourierDiffNCA if "frequencies" in options else DiffNCA
    network = kind(10, 16, 3, update_probability=0.7, checkpointing=checkpointing, **options).double()
    noisy, time = torch.randn(3, 3, 11, 12).double(), torch.tensor([0.1, 0.4, 0.9]).double()
    found = []
    for fast in (True, False):
        network.fast = fast
        network.zero_grad()
        with firing_from(network, CounterNoise(1)):
            output = network(noisy, time)
        output.square().sum().backward()
        found.append([output.detach(), *(parameter.grad for parameter in network.parameters())])
    for fast_value, literal in zip(*found, strict=True):
        torch.testing.assert_close(fast_value, literal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "folds"),
    [({"position": False}, True), ({"position": True}, False), ({"norm": "group"}, None)],
)
def test_weights_are_folded_where_all_cells_are_told_the_same_and_once_where_all_images_are(
    options: dict[str, Any], folds: bool | None
) -> None:
    torch.manual_seed(0)
    network, seen = DiffNCA(10, 16, 3, update_probability=1.0, **options), []

    def watched(state: Tensor, told: Tensor | None, by: CellWeights, *rest: Any) -> Tensor:
        seen.append((told is None, by.widen.ndim))
        return fast_step(state, told, by, *rest)

    network.fast_step = watched
    noisy, shared, apart = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.7])
    network(noisy, apart)
    assert seen == ([] if folds is None else [(folds, 3 if folds else 2)] * 3)
    seen.clear()
    with torch.no_grad():
        network(noisy, shared)
    assert seen == ([] if folds is None else [(folds, 2)] * 3)


@pytest.mark.parametrize(
    ("device", "there", "reason"),
    [("cpu", "", "no C++ compiler found"), ("mps", "g++ clang++", "unsupported on mps")],
)
def test_where_nothing_is_compiled_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    there: str,
    reason: str,
) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: name if name in there.split() else None)
    network = DiffNCA(8, 16, 2)
    compile_step(network, torch.device(device))
    assert capsys.readouterr().out == f"not compiling: {reason}\n"
    assert network.fast_step is fast_step


def test_of_each_model_the_part_that_repeats_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    automaton, plain, vnca = FourierDiffNCA(8, 16, 2), MLP(4), VNCA(8, latent=12, hidden=8)
    diffusing = [Denoiser(network, noise_schedule()) for network in (automaton, plain)]
    for compiler in ("g++", "clang++", "cl"):
        monkeypatch.setattr(devices.shutil, "which", {compiler: compiler}.get)
        for module in (*diffusing, vnca, plain):
            compile_step(module, torch.device("cpu"))
        assert compiled == [automaton.cell, automaton.spectrum_cell, plain, vnca.update, plain]
        compiled.clear()


def test_on_a_gpu_kernels_are_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def compiled(step: Any, mode: str | None = None, **_: Any) -> Any:
        if step is fast_step:
            modes.append(mode)
        return step

    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", compiled)
    for device in ("cuda", "cpu"):
        compile_step(DiffNCA(8, 16, 2), torch.device(device))
    assert modes == ["max-autotune-no-cudagraphs", None]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_the_compiled_step_equals_the_literal_one() -> None:
    torch.manual_seed(0)
    network = FourierDiffNCA(12, 16, 3, frequencies=4, update_probability=1.0)
    noisy, time = torch.randn(2, 3, 8, 10), torch.full((2,), 0.4)
    with torch.no_grad():
        network.fast = False
        literal = network(noisy, time)
        network.fast = True
        compile_step(network, torch.device("cpu"))
        torch.testing.assert_close(network(noisy, time), literal, rtol=1e-4, atol=1e-5)
