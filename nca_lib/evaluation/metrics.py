"""Distances between two sets of images, as torchmetrics: fed in batches, summed over processes (chapter 5).

FID and KID are torchmetrics' own; precision and recall and the distance of spectra are written here in its
form. None of them looks at images: they take features and spectra, so that each image passes through the
extractor once. Judges read single images instead: the rules of drawn faces, the classes of digits.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nca_lib.evaluation.extractors.extractor import Extractor, to_pixels
from nca_lib.evaluation.judges import Judge
from nca_lib.extras import extra

with extra("evaluation"):
    from torchmetrics import Metric
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.utilities.data import dim_zero_cat

NEIGHBOURS, KID_SUBSETS = 3, 100


class Given(nn.Module):
    """Hands torchmetrics the features that were computed before."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves, (B, num_features)."""
        return features


class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 and 2), k = 3 nearest neighbours.

    A set's manifold is the union of balls around its features, each as large as the distance to the k-th
    nearest other feature. Precision is the fraction of generated features within the real manifold, recall
    the fraction of real ones within the generated manifold.
    """

    full_state_update = False
    real: list[Tensor]
    other: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("other", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Take the features (B, d) of some images."""
        (self.real if real else self.other).append(features)

    def compute(self) -> tuple[float, float]:
        """Precision and recall."""
        real, other = (dim_zero_cat(part).double() for part in (self.real, self.other))
        return _inside(other, real), _inside(real, other)


def _inside(points: Tensor, manifold: Tensor) -> float:
    chunks = manifold.split(512)
    # The nearest to each is itself, so the k-th nearest other is the (k+1)-th.
    radii = [torch.cdist(part, manifold).kthvalue(NEIGHBOURS + 1, dim=1).values for part in chunks]
    covered = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for part, radius in zip(chunks, radii, strict=True):
        covered |= (torch.cdist(points, part) <= radius).any(1)
    return float(covered.double().mean())


class SpectrumDistance(Metric):
    """How far the images' power spectra are from the real ones', in decibels.

    Each image has a spectrum ([`log_spectra`][]); at each radius, the real and the generated images' decibels
    are each taken as a normal distribution; their 2-Wasserstein distance is the root of (difference of
    means)^2 + (difference of standard deviations)^2. The result is the root mean square over the radii.
    (Durall et al. 2020 show that radial spectra tell generated images apart; the distance is ours.)
    """

    full_state_update = False
    real_sums: Tensor
    other_sums: Tensor

    def __init__(self, radii: int):
        super().__init__()
        for name in ("real_sums", "other_sums"):  # of one, of the decibels, and of their squares
            self.add_state(name, torch.zeros(3, radii, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, spectra: Tensor, real: bool) -> None:
        """Take the spectra (B, radii) of some images."""
        spectra = spectra.double()
        sums = torch.stack([torch.ones_like(spectra), spectra, spectra**2]).sum(1)
        setattr(self, name := "real_sums" if real else "other_sums", getattr(self, name) + sums)

    def compute(self) -> float:
        """The distance, decibels."""
        moments = []
        for number, total, squares in (self.real_sums, self.other_sums):
            mean = total / number
            moments.append((mean, (squares / number - mean**2).clamp(min=0).sqrt()))
        (mean, spread), (other_mean, other_spread) = moments
        return float(((mean - other_mean) ** 2 + (spread - other_spread) ** 2).mean().sqrt())


def log_spectra(images: Tensor) -> Tensor:
    """Radially averaged power spectra: (B, C, H, W) in [-1, 1] to (B, min(H, W) // 2), decibels.

    Entry r - 1 is the mean power of the frequencies whose distance from DC rounds to r, in cycles per image,
    over all channels. The power of rounding to 8 bits is added, below which there is nothing to see.
    """
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images.double(), norm="ortho").abs().square().mean(1)
    ky = torch.fft.fftfreq(height, 1 / height)
    kx = torch.fft.fftfreq(width, 1 / width)
    radius = (ky[:, None] ** 2 + kx**2).sqrt().round().long().flatten()
    bins = min(height, width) // 2
    ring = nn.functional.one_hot(radius, int(radius.max()) + 1)[:, 1 : bins + 1].to(power)
    average = power.flatten(1) @ ring / ring.sum(0)
    return 10 * torch.log10(average + (2 / 255) ** 2 / 12)


class Means(Metric):
    """Means over all images of m numbers per image."""

    full_state_update = False
    total: Tensor
    number: Tensor

    def __init__(self, columns: int):
        super().__init__()
        self.add_state("total", torch.zeros(columns, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Take (B, m) numbers."""
        self.total = self.total + values.double().sum(0)
        self.number = self.number + len(values)

    def compute(self) -> Tensor:
        """The m means."""
        return self.total / self.number


class Distances:
    """The metrics of one extractor's features between the real images and one other set, fed by batches."""

    def __init__(self, extractor: Extractor, subset_size: int):
        given = Given(extractor.num_features)
        self.is_inception = extractor.is_inception
        self.frechet = FrechetInceptionDistance(given)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
            self.kernel = KernelInceptionDistance(given, subsets=KID_SUBSETS, subset_size=subset_size)
        self.manifold = PrecisionRecall()

    def update(self, features: Tensor, real: bool) -> None:
        """Take the features (B, d) of a batch."""
        self.frechet.update(features.double(), real=real)
        self.kernel.update(features, real=real)
        self.manifold.update(features, real=real)

    def compute(self, seed: int) -> dict[str, float]:
        """All of them, over the images of all processes; `seed` draws KID's subsets."""
        # One tensor a process: torchmetrics gathers lists entry by entry. In the processes' order, it gives
        # the images in theirs, so that KID's subsets are the same however many processes there are.
        for name in ("real_features", "fake_features"):
            setattr(self.kernel, name, [torch.cat(getattr(self.kernel, name)).double()])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kernel, spread = self.kernel.compute()
        precision, recall = self.manifold.compute()
        names = ("fid", "kid") if self.is_inception else ("frechet_distance", "kernel_distance")
        return {
            names[0]: float(self.frechet.compute()),
            names[1]: float(kernel),
            f"{names[1]}_std": float(spread),
            "precision": precision,
            "recall": recall,
        }


class Comparison:
    """Every metric between the real images and one other set, fed batch by batch with measurements."""

    def __init__(
        self, extractors: Sequence[Extractor], subset_size: int, radii: int, judge: Judge | None = None
    ):
        self.distances = {extractor.name: Distances(extractor, subset_size) for extractor in extractors}
        self.spectrum = SpectrumDistance(radii)
        self.judge, self.means = judge, Means(judge.columns if judge else 1)

    def update(self, measured: dict[str, Tensor], real: bool) -> None:
        """Take what [`Measure`][] keeps of a batch."""
        for name, distances in self.distances.items():
            distances.update(measured[name], real)
        self.spectrum.update(measured["spectra"], real=real)

    def judged(self, values: Tensor) -> None:
        """Take what the judge says of a batch, (B, columns)."""
        self.means.update(values)

    def compute(self, seed: int) -> dict[str, Any]:
        """All metrics, over the images of all processes: those of each extractor by its name, and the others.

        `seed` draws KID's subsets.
        """
        found: dict[str, Any] = {
            "extractors": {name: distances.compute(seed) for name, distances in self.distances.items()},
            "spectrum_distance": self.spectrum.compute(),
        }
        if self.judge:
            found[self.judge.name] = self.judge.summary(self.means.compute())
        return found


class Measure:
    """What is kept of a batch of images: features, spectra, and what a judge says; all small.

    Measured in float32, whatever precision the images were drawn in.

    `published`: read the images as the authors' scripts do, from JPEG and transposed (the judge does not).
    """

    def __init__(self, extractors: Sequence[Extractor], judge: Judge | None = None, published: bool = False):
        self.extractors, self.judge, self.published = extractors, judge, published

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in [-1, 1], rounded to 8 bits first as any stored image is.

        Returns:
            The features (B, d) of each extractor by its name, `spectra` (B, radii), `judged` (B, columns).
        """
        with torch.autocast("cpu", enabled=False), torch.autocast(self._device().type, enabled=False):
            pixels = to_pixels(images)
            measured = {"judged": self.judge(pixels.float() / 127.5 - 1)} if self.judge else {}
            if self.published:
                pixels = torch.stack([through_jpeg(image) for image in pixels]).transpose(2, 3)
            measured["spectra"] = log_spectra(pixels.float() / 127.5 - 1).float()
            on_device = pixels.to(self._device())
            return measured | {e.name: e(on_device).float().cpu() for e in self.extractors}

    def _device(self) -> torch.device:
        parameters = (p for extractor in self.extractors for p in extractor.parameters())
        return next((p.device for p in parameters), torch.device("cpu"))


def through_jpeg(pixels: Tensor) -> Tensor:
    """An image (3, H, W), uint8, as it is read back from a JPEG of PIL's default quality, 75."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG")
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """The Frechet distance of the normal distributions fitted to two sets of features, (N, d) each."""
    metric = FrechetInceptionDistance(Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(other.double(), real=False)
    return float(metric.compute())


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numeric leaves of nested dictionaries, by their names joined with dots."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + name] = value
    return found


def measurements(metrics: dict[str, Any]) -> dict[str, float]:
    """The [`numbers`][] of a row's metrics or floor; those of an extractor begin with its name."""
    others = {name: value for name, value in metrics.items() if name != "extractors"}
    return numbers(metrics["extractors"]) | numbers(others)
