"""What is explored: a denoiser with images of its kind, its samples on the way, and charts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nca_lib.book.film import line_chart
from nca_lib.book.painting import own_image
from nca_lib.book.panel import Control, choice
from nca_lib.book.players import sharing_weights
from nca_lib.cascade import Guided
from nca_lib.diffusion import Denoiser, NoiseSchedule
from nca_lib.samplers import SAMPLERS, Sampler, SamplerState, trajectory

CURVE_POINTS = 60


@dataclass(frozen=True)
class Subject:
    """A denoiser, and images like those that it was trained on.

    Args:
        name: what a reader calls it.
        model: a trained denoiser.
        images: (N, C, H, W) in [-1, 1]; their size is what is sampled.
        weights: what `nca_lib.load` calls it, for the lines of code that an explorer hands out.
        contexts: of a model that reads a context: what may be asked for, (1, G, H, W), by its name; the same
            names for all that are compared.
    """

    name: str
    model: Denoiser
    images: Tensor
    weights: str = ""
    contexts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return cast(tuple[int, int], tuple(self.images.shape[2:]))

    def guided(self, wish: str, strength: float) -> Denoiser:
        """The model asked for `wish`, by so much guidance; one that reads no context is as it is."""
        return Guided(self.model, self.contexts[wish], strength) if self.contexts else self.model

    def image(self, number: int, own: bytes = b"") -> Tensor:
        """An image by number, after the last again the first; or the picture whose file is `own`."""
        if own:
            return own_image(own, self.size, self.model.image_channels)
        return self.images[number % len(self.images)]

    def image_code(self, number: int, own: bytes) -> str:
        """The lines that make the image, (1, C, H, W), beside the model."""
        if not own:
            return (
                f"image = images[{number % len(self.images)} :][:1]  # of those that the explorer was given\n"
            )
        return (
            "from pathlib import Path\n\nfrom nca_lib.book.painting import own_image\n\n"
            'content = Path("path/to/picture.png").read_bytes()\n'
            f"image = own_image(content, {self.size}, {self.model.image_channels})[None]\n"
        )

    @property
    def code(self) -> str:
        """The lines that load the model."""
        return f'import nca_lib\n\nmodel = nca_lib.load("{self.weights or "path/to/model.safetensors"}")\n'


def shipped() -> list[Subject]:
    """Digits, tissue and faces: the shipped models, each with sixteen images of its kind."""
    from nca_lib import load
    from nca_lib.data.digits import Digits
    from nca_lib.data.faces import Faces
    from nca_lib.data.tissue import Tissue

    rng = np.random.default_rng(0)
    faces, tissue = Faces(32, split="test"), Tissue(32, downscale=2)
    sources: list[tuple[str, str, Tensor]] = [
        ("digits", "digits-fourier", Digits(32, split="test").images[:16]),
        ("tissue", "tissue-diff-nca", torch.stack([tissue.image(n, rng) for n in range(16)])),
        ("faces", "faces-fourier", torch.stack([faces.image(n, rng) for n in range(16)])),
    ]
    return [Subject(name, cast(Denoiser, load(kind)), images, kind) for name, kind, images in sources]


def digits_by_class(weights: str = "digits-by-class") -> Subject:
    """A model of the recipe `digits-by-class`: ask it for a digit.

    Args:
        weights: the shipped name, or a file that training wrote.
    """
    from nca_lib import load
    from nca_lib.data.conditional import asked_for
    from nca_lib.data.digits import Digits

    images = Digits(32, split="test").images[:16]
    wishes = {digit: asked_for("digits-by-class", [digit], (32, 32)) for digit in "0123456789"}
    return Subject("digits by class", cast(Denoiser, load(weights)), images, weights, wishes)


def faces_by_attributes(weights: str = "faces-by-attributes") -> Subject:
    """A model of the recipe `faces-by-attributes`: ask it for a hair colour, a skin, or glasses.

    Args:
        weights: the shipped name, or a file that training wrote.
    """
    from nca_lib import load
    from nca_lib.data.conditional import ATTRIBUTES, asked_for
    from nca_lib.data.faces import Faces

    faces, rng = Faces(32, split="test"), np.random.default_rng(0)
    images = torch.stack([faces.image(n, rng) for n in range(16)])
    wishes = [f"{name}={value}" for name, values in ATTRIBUTES.items() for value in values]
    contexts = {wish: asked_for("faces-by-attributes", [wish], (32, 32)) for wish in wishes}
    return Subject("faces by attributes", cast(Denoiser, load(weights)), images, weights, contexts)


def which(subjects: tuple[Subject, ...], name: str = "subject", words: str = "model") -> dict[str, Control]:
    """The control `name`, called `words`: which of the subjects, by number."""
    named = [(subject.name, number) for number, subject in enumerate(subjects)]
    return {name: choice(words, named, 0, "which trained model")}


def states(
    model: Denoiser,
    size: tuple[int, int],
    *,
    sampler: str | Sampler = "ddim",
    steps: int = 20,
    **settings: Any,
) -> Iterator[SamplerState]:
    """A [`trajectory`][nca_lib.samplers.trajectory]; a second thread may sample from the model too.

    What it yields lies on the CPU, as images and pictures do, wherever the model is.

    Args:
        model: a trained denoiser.
        size: (height, width).
        sampler: one, or its name in [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: denoiser calls.
        settings: further ones of a trajectory.
    """
    way = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    for state in trajectory(sharing_weights(model), size, sampler=way, steps=steps, **settings):
        yield replace(state, image=state.image.cpu(), clean_estimate=state.clean_estimate.cpu())


def level_words(schedule: NoiseSchedule, t: int) -> str:
    """A noise level in words."""
    if t < 0:
        return "finished"
    signal, sigma = schedule.levels(t)
    ratio = 2 * float(np.log(signal / sigma))
    return f"t = {t}: signal {signal:.3f}, noise {sigma:.3f}, log-SNR {ratio:z.1f}"


def schedule_chart(schedule: NoiseSchedule, t: int) -> dict[str, Any]:
    """Signal and noise over the timesteps, the nearest drawn one to t marked."""
    places = torch.linspace(0, schedule.timesteps - 1, CURVE_POINTS).round().long()
    signal, sigma = schedule.alpha_bar[places].sqrt(), (1 - schedule.alpha_bar[places]).sqrt()
    return line_chart(
        places.tolist(),
        {"signal": signal.tolist(), "noise": sigma.tolist()},
        "timestep t",
        int((places - max(t, 0)).abs().argmin()),
        range=[0, 1],
    )


def radial_power(image: Tensor) -> list[float]:
    """The mean power of an image's waves at each whole frequency, (C, H, W) to min(H, W) / 2 numbers.

    Frequencies count periods over the shorter side; the power of white noise of variance 1 is 1.
    """
    _, height, width = image.shape
    power = torch.fft.fft2(image - image.mean((1, 2), keepdim=True), norm="ortho").abs().square().mean(0)
    shorter = min(height, width)
    ky = torch.fft.fftfreq(height)[:, None] * shorter
    kx = torch.fft.fftfreq(width)[None] * shorter
    radius = (ky.square() + kx.square()).sqrt().round().long()
    return [float(power[radius == r].mean()) for r in range(1, shorter // 2 + 1)]


def power_chart(pictures: dict[str, Tensor]) -> dict[str, Any]:
    """The radial power of images over frequency, logarithmic."""
    series = {name: radial_power(image) for name, image in pictures.items()}
    frequencies = list(range(1, len(next(iter(series.values()))) + 1))
    return line_chart(
        frequencies, series, "frequency (waves over the image)", range=[1e-4, 1e2], logarithmic=True
    )


def heat(values: Tensor, most: float | None = None) -> Tensor:
    """Numbers (H, W) from 0 as a picture (3, H, W): pale is none, dark red `most` (or the largest)."""
    part = (values / max(float(values.max()) if most is None else most, 1e-9)).clamp(0, 1)
    pale, dark = torch.tensor([0.92, 0.92, 0.94]), torch.tensor([0.55, -0.85, -0.75])
    return torch.lerp(pale[:, None, None], dark[:, None, None], part.float())
