"""Metrics: closed forms of every distance, precision and recall by hand, spectra of waves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nca_lib.evaluation.extractors.extractor import Extractor
from nca_lib.evaluation.metrics import (
    Comparison,
    PrecisionRecall,
    SpectrumDistance,
    frechet_distance,
    log_spectra,
)


class Features(Extractor):
    """An image's features are the image."""

    name, sha256, resize = "features", "none", "none"

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        return images


def whitened(count: int, dimensions: int, seed: int) -> Tensor:
    """Features whose mean is exactly 0 and covariance exactly the identity."""
    x = torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T


def comparison(real: Tensor, other: Tensor, subset_size: int) -> dict[str, Any]:
    extractor = Features(real.shape[1])
    found = Comparison([extractor], subset_size, 2)
    for features, is_real in ((real, True), (other, False)):
        found.update({extractor.name: features, "spectra": torch.zeros(len(features), 2)}, real=is_real)
    return found.compute(0)["extractors"][extractor.name]


def test_frechet_distance_of_two_normal_distributions() -> None:
    d, shift, scale = 5, 3.0, 0.25
    real, other = whitened(400, d, 0), whitened(300, d, 1) * scale + shift
    exact = d * shift**2 + d * (1 - scale) ** 2  # |m|^2 + tr(I + s^2 I - 2 s I)
    assert frechet_distance(real, other) == pytest.approx(exact, rel=1e-9)
    assert comparison(real, other, 50)["frechet_distance"] == pytest.approx(exact, rel=1e-9)
    assert abs(frechet_distance(real, real[torch.randperm(400)])) < 1e-6


def test_frechet_distance_of_correlated_features() -> None:
    # Covariances that commute: (sum of squared differences of the roots of their eigenvalues).
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    real, other = whitened(200, 3, 2) * a.sqrt() @ turn.T, whitened(200, 3, 3) * b.sqrt() @ turn.T
    assert frechet_distance(real, other) == pytest.approx(float(((a.sqrt() - b.sqrt()) ** 2).sum()), rel=1e-9)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    n, d = 24, 3
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / d + 1) ** 3)

    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (n * (n - 1))
    across = sum(k(x[i], y[j]) for i, j in pairs) / n**2
    found = comparison(x, y, n)  # every subset is the whole
    assert found["kernel_distance"] == pytest.approx(within - 2 * across, rel=1e-9)
    assert found["kernel_distance_std"] < 1e-9


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 3, generator=generator) for _ in range(30)]
    found = torch.tensor([comparison(x, y, 50)["kernel_distance"] for x, y in draws])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(30)
    assert found.min() < 0 < found.max()


def test_the_subsets_of_the_kernel_distance_are_drawn_from_the_seed_alone() -> None:
    x, y = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(comparison(x, y, 50)["kernel_distance"])
    assert found[0] == found[1]


def precision_recall(real: Tensor, other: Tensor) -> tuple[float, float]:
    metric = PrecisionRecall()
    for part in real.split(40):
        metric.update(part, real=True)
    metric.update(other, real=False)
    return metric.compute()


def test_precision_and_recall_of_simple_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 150, 2, generator=generator)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, b + 100) == (0, 0)
    both = torch.cat([a, b + 100])
    precision, recall = precision_recall(both, a + 0.01)
    assert precision > 0.9 and 0.4 < recall <= 0.5  # half of the modes dropped
    precision, recall = precision_recall(a + 0.01, both)
    assert 0.4 < precision <= 0.5 and recall > 0.9  # half of what is made is nonsense


def test_precision_and_recall_by_hand() -> None:
    # Third nearest neighbours on a line: 0, 1, 2, 3 and 10 have radii 3, 2, 2, 3 and 9.
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    other = torch.tensor([[-2.9], [-3.1], [18.9], [19.1]])
    # Others within: -2.9 (of 0), 18.9 (of 10). Their radii: 21.8, 22, 22, 22.2, which cover every real one.
    assert precision_recall(real, other) == (0.5, 1)


def test_copies_lie_within_balls_of_radius_0() -> None:
    twofold = torch.tensor([[0.0]] * 4 + [[5.0]] * 4)
    assert precision_recall(twofold, twofold[:4]) == (1, 0.5)


def test_a_wave_has_its_power_at_its_own_radius() -> None:
    x = torch.arange(32) / 32
    wave = torch.cos(2 * math.pi * (3 * x[:, None] + 4 * x)).expand(1, 1, 32, 32)
    spectrum = log_spectra(wave)[0]
    assert spectrum.argmax() == 4  # radius 5
    ring = sum(round(math.hypot(u, v)) == 5 for u in range(-16, 16) for v in range(-16, 16))
    # Parseval: the mean power 1/2 of 1,024 pixels, spread over the ring.
    assert spectrum[4] == pytest.approx(10 * math.log10(512 / ring), abs=1e-3)
    assert (spectrum[torch.arange(16) != 4] < -40).all()


def test_the_darkest_spectrum_is_that_of_rounding_to_eight_bits() -> None:
    floor = 10 * math.log10((2 / 255) ** 2 / 12)  # the variance of what is rounded off, levels 2/255 apart
    assert log_spectra(torch.full((1, 3, 16, 16), 0.3))[0].tolist() == pytest.approx([floor] * 8, abs=1e-3)


def test_spectrum_distance_of_scaled_images_is_the_gain() -> None:
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    metric = SpectrumDistance(8)
    for part in images.split(7):
        metric.update(log_spectra(part), real=True)
    metric.update(log_spectra(images * 2), real=False)
    assert metric.compute() == pytest.approx(20 * math.log10(2), rel=1e-3)  # every radius, every image


def test_spectrum_distance_counts_the_difference_of_deviations() -> None:
    metric = SpectrumDistance(1)
    metric.update(torch.tensor([[-1.0], [1.0]]), real=True)
    metric.update(torch.tensor([[-1.5], [4.5]]), real=False)  # a mean of 1.5, a deviation of 3
    assert metric.compute() == pytest.approx(math.hypot(1.5, 2))


def test_a_spectrum_is_the_mean_over_channels() -> None:
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(log_spectra(wave.expand(1, 3, 16, 16)), log_spectra(wave))
