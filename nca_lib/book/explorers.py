"""Live explorers for the notebooks (chapters 1 to 6).

Each function returns something to put last in a cell: in Jupyter a panel of controls over a picture, in the
built book the picture that the initial settings give, with an invitation to run the notebook.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.automaton import GrowingNCA
from nca_lib.book.painting import Brush, image_of_waves, log_spectrum, mask_bytes, wave_mask
from nca_lib.book.panel import Control, Explorer, Frame, Player, choice, explore, slider, still_picture
from nca_lib.book.players import (
    LivingAutomaton,
    Shape,
    grown_and_damaged,
    message_states,
    shape_mask,
    sharing_weights,
)
from nca_lib.book.plots import COSTS, results_scatter, schedule_curve
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.editing import Inpainting, KnownPixels, enlarge, shaped_canvas
from nca_lib.errors import UsageError
from nca_lib.evaluation.metrics import measurements, numbers
from nca_lib.extras import extra
from nca_lib.noise import CounterNoise, Purpose, firing_from
from nca_lib.samplers import SAMPLERS, ddpm

with extra("book"):
    import ipywidgets as ipw
    from IPython.display import HTML


def noise_explorer(images: Tensor, timesteps: int = 300) -> Explorer | HTML:
    """See images sink into noise, and where on the schedule: choose schedule, timestep and image.

    Args:
        images: (N, C, H, W) in [-1, 1].
        timesteps: T of the schedules.
    """

    def frames(schedule: str, t: int, index: int, seed: int) -> Iterator[Frame]:
        table, clean = noise_schedule(schedule, timesteps), images[index][None]  # type: ignore[arg-type]
        noise = CounterNoise(seed).normal(clean, Purpose.START, 0)
        noisy = table.add_noise(clean, torch.tensor([t]), noise)
        pair = torch.cat([clean[0], noisy[0].clamp(-1, 1)], dim=2).expand(3, -1, -1)
        pair = enlarge(pair[None], max(1, 200 // images.shape[2]))[0]
        curve = schedule_curve(table, t, 360, pair.shape[1])
        signal = float(table.alpha_bar[t])
        words = f"At t = {t} the signal counts {signal**0.5:.3f}, the noise {(1 - signal) ** 0.5:.3f}."
        yield torch.cat([pair, curve], dim=2), words

    controls = {
        "schedule": choice("schedule", ["cosine", "linear", "sigmoid"], "cosine"),
        "t": slider("timestep t", timesteps // 3, 0, timesteps - 1),
        "index": slider("image", 0, 0, len(images) - 1),
        "seed": slider("seed", 0, 0, 99),
    }
    alt = "an image, the same image with noise, and the curves of signal and noise over the timesteps"
    return explore(controls, frames, alt, 0)


def sampler_explorer(model: Denoiser, size: tuple[int, int]) -> Explorer | HTML:
    """Watch a sampler at work: the noisy image on the left, the denoiser's clean estimate on the right.

    Args:
        model: a trained denoiser.
        size: (height, width) of the images.
    """

    def frames(sampler: str, steps: int, seed: int) -> Iterator[Tensor]:
        noise = CounterNoise(seed)
        start = noise.normal(torch.empty(1, model.image_channels, *size), Purpose.START, 0)
        own = sharing_weights(model)
        with firing_from(own, noise):
            for state in SAMPLERS[sampler](own, start, steps=steps, noise=noise):
                yield torch.cat([state.image[0].clamp(-1, 1), state.clean_estimate[0]], dim=2)

    controls = {
        "sampler": choice("sampler", list(SAMPLERS), "ddim"),
        "steps": slider("steps", 20, 1, model.schedule.timesteps),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "a sample, and the clean estimate beside it", 480)


def size_explorer(model: Denoiser) -> Explorer | HTML:
    """Sample canvases of any height, width and shape from the same weights, watching the clean estimate.

    Args:
        model: a trained denoiser that takes all sizes.
    """
    channels = model.image_channels

    def frames(shape: Shape, height: int, width: int, steps: int, seed: int) -> Iterator[Tensor]:
        noise, inside = CounterNoise(seed), shape_mask(shape, height, width)
        canvas = None if shape == "rectangle" else shaped_canvas(inside[None, None], channels=channels)
        start = noise.normal(torch.empty(1, channels, height, width), Purpose.START, 0)
        own = sharing_weights(model)
        with firing_from(own, noise):
            for state in SAMPLERS["ddim"](own, start, steps=steps, noise=noise, constraint=canvas):
                yield state.clean_estimate[0].where(inside, torch.ones(()))

    controls = {
        "shape": choice("shape", list(get_args(Shape)), "rectangle"),
        "height": slider("height", 48, 16, 256, 8),
        "width": slider("width", 96, 16, 256, 8),
        "steps": slider("steps", 20, 2, 100),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "a sample on a canvas of the chosen size and shape", 480)


def inpainting_painter(model: Denoiser, image: Tensor) -> Explorer | HTML:
    """Paint a hole into an image, and watch it being filled: the clean estimate, within the image.

    Args:
        model: a trained denoiser that takes this size.
        image: (C, H, W) in [-1, 1].
    """
    height, width = image.shape[1:]
    first = torch.zeros(height, width, dtype=torch.bool)
    first[height * 3 // 8 : height * 5 // 8, width // 5 : -(width // 5)] = True
    in_book = "NCA_LIB_BOOK" in os.environ  # no brush that shows the hole

    def frames(hole: Tensor, method: Inpainting, steps: int, seed: int) -> Iterator[Frame]:
        shown = [torch.where(hole, torch.tensor(0.0), image)] if in_book else []
        noise, constraint = CounterNoise(seed), KnownPixels(image[None], ~hole[None, None], method)
        start = noise.normal(image[None], Purpose.START, 0)
        own = sharing_weights(model)
        with firing_from(own, noise):
            for state in ddpm(own, start, steps=steps, noise=noise, constraint=constraint):
                filled = torch.where(hole, state.clean_estimate[0], image)
                yield torch.cat([*shown, filled], dim=2), f"{state.step} denoiser calls."

    def brush() -> Brush:
        made = Brush(image, label="an image with a hole")
        made.mask = mask_bytes(first)
        return made

    controls = {
        "hole": Control("brush on the image", first, brush),
        "method": choice("method", list(get_args(Inpainting)), "repaint"),
        "steps": slider("steps", 10, 2, min(100, model.schedule.timesteps)),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(
        controls, frames, "an image with a hole, and the image with the hole filled", 640 if in_book else 320
    )


def growing_player(automaton: GrowingNCA, size: int = 36, steps: int = 240) -> Player | HTML:
    """Watch an automaton grow from the seed and live on; what is painted on it is erased.

    Args:
        automaton: a trained growing automaton.
        size: height and width of the grid.
        steps: of the still picture in the book; a disc is erased after a third of them.
    """
    if "NCA_LIB_BOOK" not in os.environ:
        return Player(LivingAutomaton(automaton, size))
    picture = grown_and_damaged(automaton, size, steps)
    return still_picture(
        picture, "a growing automaton after growth and damage", 320, ["an erase brush", "pause", "restart"]
    )


def message_player(size: int = 33) -> Explorer | HTML:
    """See how far one message has travelled after k steps: in image space, and by way of the spectrum.

    Args:
        size: height and width of the grid.
    """
    paper, ink = torch.tensor([0.9, 0.9, 0.92]), torch.tensor([0.52, -0.32, -0.8])

    def picture(message: Tensor) -> tuple[Tensor, int]:
        heard = message > 0
        strength = heard * (0.25 + 0.75 * (message / message.max()).clamp(min=0) ** 0.3)
        return torch.lerp(paper[:, None, None], ink[:, None, None], strength.float()), int(heard.sum())

    def frames(y: int, x: int, steps: int) -> Iterator[Frame]:
        gap = torch.ones(3, size, 1)
        for k, (local, everywhere) in enumerate(message_states(y, x, size, steps)):
            (left, reached), (right, all_reached) = picture(local), picture(everywhere)
            words = f"After {k} steps: {reached} cells in image space, {all_reached} in frequency space."
            yield torch.cat([left, gap, right], dim=2), words

    controls = {
        "y": slider("source y", size // 2, 0, size - 1),
        "x": slider("source x", size // 2, 0, size - 1),
        "steps": slider("steps k", size // 4, 0, size - 1),
    }
    alt = "cells that a message has reached: a square in image space, the whole image in frequency space"
    return explore(controls, frames, alt, 480, interval=0.25)


def spectrum_painter(image: Tensor, frequencies: int = 16) -> Explorer | HTML:
    """Paint on the spectrum of an image, frequency 0 in the middle, and see what the painted waves make.

    What is painted at a frequency is painted at its negative too: both belong to the same wave. Waves outside
    of the spectrum shown are always left out.

    Args:
        image: (C, H, W) in [-1, 1].
        frequencies: how many per axis are shown, 0 included.

    Raises:
        UsageError: an image smaller than `2 * frequencies`.
    """
    if min(image.shape[1:]) < 2 * frequencies:
        raise UsageError(
            f"the image is {image.shape[2]}x{image.shape[1]} (width x height); {frequencies} frequencies "
            f"need at least {2 * frequencies}x{2 * frequencies}"
        )
    spectrum, low = log_spectrum(image, frequencies), frequencies // 2
    first = wave_mask("half_plane", low, frequencies)

    def frames(painted: Tensor, mode: str) -> Iterator[Frame]:
        kept = painted if mode == "keep painted" else ~painted
        pictures = [image, image_of_waves(image, kept)]
        if "NCA_LIB_BOOK" in os.environ:  # no brush that shows it
            shown = torch.where(painted, spectrum, spectrum / 2 - 0.5)
            pictures.insert(0, F.interpolate(shown[None], image.shape[1:])[0].expand(len(image), -1, -1))
        yield torch.cat(pictures, dim=2), f"{int(kept.sum())} of {kept.numel()} coefficients kept."

    def brush() -> Brush:
        made = Brush(spectrum, mirror=True, label="the spectrum of an image")
        made.mask = mask_bytes(first)
        return made

    controls = {
        "painted": Control("brush on the spectrum", first, brush),
        "mode": choice("painted waves", ["keep painted", "remove painted"], "keep painted"),
    }
    alt = "an image, and the image that is rebuilt from some of its waves"
    shown = explore(controls, frames, alt, 512)
    if isinstance(shown, Explorer):
        preset = choice("begin with", ["quadrant", "half_plane", "all"], "half_plane").make()
        n = slider("frequencies n", low, 1, frequencies).make()

        def begin(_: Any) -> None:
            shown._controls["painted"].mask = mask_bytes(wave_mask(preset.value, n.value, frequencies))

        preset.observe(begin, "value")
        n.observe(begin, "value")
        shown.children = (ipw.HBox([preset, n]), *shown.children)
    return shown


def results_explorer(rows: list[dict[str, Any]]) -> Explorer | HTML:
    """Plot any measured quantity of the results table against any other, one data set at a time.

    A dashed line is the floor: what real images score against real images.

    Args:
        rows: of the results table that `python -m nca_lib run` writes.

    Raises:
        UsageError: no row has a metric.
    """
    measured = [(row, numbers({c: row.get(c) for c in COSTS}) | measurements(row["metrics"])) for row in rows]
    metrics = list(dict.fromkeys(name for row in rows for name in measurements(row["metrics"])))
    if not metrics:
        raise UsageError("no results to show: `python -m nca_lib run MATRIX.toml` makes some")
    axes = [*COSTS, *metrics]
    kinds = list(dict.fromkeys(row["experiment"]["data"]["kind"] for row in rows))

    def frames(data: str, x: str, y: str) -> Iterator[Frame]:
        chosen = [
            (row, found)
            for row, found in measured
            if row["experiment"]["data"]["kind"] == data and x in found and y in found
        ]
        if not chosen:
            raise UsageError(f"no result on {data} has both {x} and {y}")
        yield results_scatter(chosen, x, y)

    controls = {
        "data": choice("data", kinds, kinds[0]),
        "x": choice("x axis", axes, "parameters"),
        "y": choice("y axis", axes, metrics[0]),
    }
    alt = f"models on {kinds[0]}: {metrics[0]} against parameters"
    return explore(controls, frames, alt, 0)
