import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nca_lib.baselines import VNCA
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.fourier import FourierDiffNCA, Window, image_of_window, spectrum_window
from nca_lib.samplers import sample
from nca_lib.weights import WeightsError, from_reference

GOLDEN = Path(__file__).parent / "golden" / "reference_c8_h16.npz"
V1 = {"weight_norm": False, "norm": "group", "modulation": False}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: DiffNCA(96, 396, **V1), 208_792),
        (lambda: FourierDiffNCA(96, 512, **V1), 885_960),
        (lambda: DiffNCA(96, 512), 336_528),
        (lambda: FourierDiffNCA(48, 512, norm="group"), 524_768),
        (lambda: FourierDiffNCA(96, 512), 1_098_144),
        (lambda: FourierDiffNCA(), 1_098_144),
        (lambda: FourierDiffNCA(128, 640), 1_845_792),
        (lambda: VNCA(), 9_732_416),
    ],
)
def test_every_published_preset_has_its_published_number_of_parameters(build, count: int) -> None:
    assert parameters(build()) == count


def golden_model(data: np.lib.npyio.NpzFile, case: int, dtype: torch.dtype) -> FourierDiffNCA:
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(data[name])
        for name in data.files
        if name.startswith("weights/")
    }
    model = from_reference(weights, steps=int(data[f"case{case}/steps"]), update_probability=1.0)
    assert isinstance(model, FourierDiffNCA)
    return model.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_public_implementation_is_reproduced(case: int, dtype: torch.dtype) -> None:
    data = np.load(GOLDEN)
    model = golden_model(data, case, dtype)
    image = torch.from_numpy(data[f"case{case}/image"]).permute(0, 3, 1, 2).to(dtype)
    time = torch.from_numpy(data[f"case{case}/t"]).to(dtype)
    state = model.initial_state(image, time)
    for state in model.rollout(state, time):  # noqa: B007, B020 - goes on
        pass
    expected = torch.from_numpy(data[f"case{case}/fourier_state"]).permute(0, 3, 1, 2).to(dtype)
    assert float((state - expected).norm() / expected.norm()) < 1e-6
    assert float((state - expected).abs().max() / expected.abs().max()) < 1e-6
    torch.testing.assert_close(model(image, time), state[:, 3:6])


def test_a_checkpoint_that_lacks_part_of_the_spectrum_stage_is_refused() -> None:
    data = np.load(GOLDEN)
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(data[name])
        for name in data.files
        if "weights" in name
    }
    del weights["fc1_fourier.bias"]
    with pytest.raises(WeightsError, match=r"missing \['fc1_fourier.bias'\]"):
        from_reference(weights, steps=1, update_probability=1.0)


def published_window(images: Tensor, frequencies: int) -> Tensor:
    """As the public code does it."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(images, norm="forward"), dim=(2, 3))
    top, left = images.shape[2] // 2, images.shape[3] // 2
    return spectrum[:, :, top : top + frequencies, left : left + frequencies]


def published_image(window: Tensor, height: int, width: int) -> Tensor:
    spectrum = torch.zeros(*window.shape[:2], height, width, dtype=window.dtype)
    frequencies = window.shape[-1]
    spectrum[:, :, height // 2 : height // 2 + frequencies, width // 2 : width // 2 + frequencies] = window
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(2, 3)), norm="forward").real


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (64, 35)])
def test_the_quadrant_is_that_of_the_public_code(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    window = spectrum_window(images, "quadrant", 16)
    torch.testing.assert_close(window, published_window(images, 16))
    # Coefficients that no real image has, as the automaton writes them.
    written = torch.randn(2, 3, 16, 16, dtype=torch.complex128)
    torch.testing.assert_close(image_of_window(written, "quadrant", *size), published_image(written, *size))


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (64, 35)])
@pytest.mark.parametrize("frequencies", [1, 5, 16])
def test_the_half_plane_holds_every_wave_up_to_its_limit(size: tuple[int, int], frequencies: int) -> None:
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    for ky in range(-frequencies + 1, frequencies):
        for kx in range(-frequencies + 1, frequencies):
            angle = 2 * math.pi * (ky * y[:, None] / size[0] + kx * x / size[1]) + ky + 0.3 * kx
            image += angle.cos() / (1 + ky**2 + kx**2)
    window = spectrum_window(image, "half_plane", frequencies)
    assert window.shape == (1, 1, 2 * frequencies - 1, frequencies)
    torch.testing.assert_close(image_of_window(window, "half_plane", *size), image)
    high = torch.cos(2 * math.pi * frequencies * x / size[1]).expand(1, 1, *size)
    assert spectrum_window(high, "half_plane", frequencies).abs().max() < 1e-12


def test_the_quadrant_is_blind_to_one_diagonal_and_the_half_plane_to_none() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for sign, kept in ((1, 0.5), (-1, 0.0)):
        stripes = torch.cos(2 * math.pi * 3 * (x + sign * y) / 32).expand(1, 1, 32, 32)
        assert spectrum_window(stripes, "quadrant", 8).abs().max() == pytest.approx(kept, abs=1e-6)
        assert spectrum_window(stripes, "half_plane", 8).abs().max() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("window", ["quadrant", "half_plane"])
def test_one_step_in_frequency_space_reaches_every_pixel_and_gradients_check(window: Window) -> None:
    torch.manual_seed(0)
    model = FourierDiffNCA(
        7, 8, 1, frequencies=3, window=window, spectrum_steps=1, update_probability=1
    ).double()
    noisy = torch.randn(1, 3, 13, 17, dtype=torch.float64, requires_grad=True)
    time = torch.tensor([0.4], dtype=torch.float64)
    model.initial_state(noisy, time)[0, 6:, 2, 3].sum().backward()
    assert (noisy.grad.abs().sum(dim=(0, 1)) > 0).all()
    assert torch.autograd.gradcheck(
        lambda x: model(x, time).sum(), (noisy.detach()[..., :7, :8].requires_grad_(),)
    )


@pytest.mark.parametrize("window", ["quadrant", "half_plane"])
def test_the_image_is_never_written(window: Window) -> None:
    torch.manual_seed(0)
    model = FourierDiffNCA(8, 8, 2, frequencies=4, window=window)
    noisy, time = torch.randn(2, 3, 19, 16), torch.tensor([0.1, 0.9])
    seed = model.spectrum_seed(noisy)
    last = list(model.spectrum_rollout(seed, time))[-1]
    image = [*range(3), *range(8, 11)]  # real and imaginary halves
    assert torch.equal(last[:, image], seed[:, image])
    assert (last[:, 3:8] != 0).any()
    assert torch.equal(model.initial_state(noisy, time)[:, :3], noisy)


def test_a_seed_scales_with_the_picture_and_not_with_its_size() -> None:
    model = FourierDiffNCA(8, 8, 1, frequencies=4)
    wave = torch.cos(2 * math.pi * torch.arange(16) / 16).expand(1, 3, 16, 16)
    larger = torch.cos(2 * math.pi * torch.arange(48) / 48).expand(1, 3, 40, 48)
    torch.testing.assert_close(model.spectrum_seed(larger), model.spectrum_seed(wave), atol=1e-6, rtol=0)


def test_there_are_two_steps_in_frequency_space_for_each_frequency_unless_told_otherwise() -> None:
    def steps(**options: int) -> int:
        model = FourierDiffNCA(8, 8, 1, **options)
        seed = model.spectrum_seed(torch.randn(1, 3, 32, 32))
        return len(list(model.spectrum_rollout(seed, torch.tensor([0.5]))))

    assert (steps(), steps(frequencies=4), steps(frequencies=4, spectrum_steps=3)) == (32, 8, 3)
    assert FourierDiffNCA().steps == 20


def test_sizes_below_the_window_are_refused_by_name() -> None:
    model = FourierDiffNCA(8, 8, 1, frequencies=8)
    with pytest.raises(ValueError, match=r"image is 40x15 .* 8 frequencies needs at least 16x16"):
        model(torch.randn(1, 3, 15, 40), torch.tensor([0.5]))


def test_windows_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="window is 'half'; choose quadrant or half_plane"):
        FourierDiffNCA(8, 8, 1, window="half")
    with pytest.raises(ValueError, match="frequencies is 0; at least 1"):
        FourierDiffNCA(8, 8, 1, frequencies=0)


def test_checkpointing_changes_neither_values_nor_gradients() -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = FourierDiffNCA(8, 8, 2, frequencies=4, checkpointing=checkpointing).double()
        noisy = torch.randn(2, 3, 9, 12, dtype=torch.float64)
        torch.manual_seed(2)
        output = model(noisy, torch.tensor([0.2, 0.7], dtype=torch.float64))
        output.square().sum().backward()
        results.append([output.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-12, rtol=1e-12)


def test_a_batch_of_one_equals_its_row_of_a_batch() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(FourierDiffNCA(8, 8, 2, frequencies=4), noise_schedule("cosine", 20), "v")
    together = sample(denoiser, (16, 24), count=3, steps=3, seed=5)
    alone = sample(denoiser, (16, 24), count=1, steps=3, seed=5, first_sample=2)
    torch.testing.assert_close(alone, together[2:], atol=1e-3, rtol=0)


def test_zero_initialised_updates_predict_nothing_but_can_learn() -> None:
    torch.manual_seed(0)
    model = FourierDiffNCA(8, 16, 2, frequencies=4, zero_init=True)
    noisy, time = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.6])
    output = model(noisy, time)
    assert torch.equal(output, torch.zeros_like(output))
    (output - noisy).square().mean().backward()
    for cell in (model.cell, model.spectrum_cell):
        assert cell.narrow.parametrizations.weight.original0.grad.abs().max() > 0
