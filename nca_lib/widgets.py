"""Live explorers for the notebooks (chapters 1 to 5).

Each function returns something to put last in a cell: in Jupyter a panel of controls over a picture, in the
built book the picture that the initial settings give, with an invitation to run the notebook.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from nca_lib.automaton import GrowingNCA, damage, states, to_rgb
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.explorer import Control, Explorer, Frame, choice, explore, slider
from nca_lib.noise import CounterNoise, Purpose, firing_from
from nca_lib.painting import Brush, image_of_waves, log_spectrum, mask_bytes, wave_mask
from nca_lib.samplers import SAMPLERS


def noise_explorer(images: Tensor, timesteps: int = 300) -> Explorer | HTML:
    """See images sink into noise: choose the schedule, the timestep and the image.

    Args:
        images: (N, C, H, W) in [-1, 1].
        timesteps: T of the schedules.
    """

    def frames(schedule: str, t: int, index: int, seed: int) -> Iterator[Tensor]:
        clean = images[index][None]
        noise = CounterNoise(seed).normal(clean, Purpose.START, 0)
        noisy = noise_schedule(schedule, timesteps).add_noise(clean, torch.tensor([t]), noise)  # type: ignore[arg-type]
        yield torch.cat([clean[0], noisy[0].clamp(-1, 1)], dim=2)

    controls = {
        "schedule": choice("schedule", ["cosine", "linear", "sigmoid"], "cosine"),
        "t": slider("timestep t", timesteps // 3, 0, timesteps - 1),
        "index": slider("image", 0, 0, len(images) - 1),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "an image beside the same image with noise", 480)


def sampler_explorer(model: Denoiser, size: tuple[int, int], channels: int = 3) -> Explorer | HTML:
    """Watch a sampler at work: the noisy image on the left, the denoiser's clean estimate on the right.

    Args:
        model: a trained denoiser.
        size: (height, width) of the images.
        channels: of the images.
    """

    def frames(sampler: str, steps: int, seed: int) -> Iterator[Tensor]:
        noise = CounterNoise(seed)
        start = noise.normal(torch.empty(1, channels, *size), Purpose.START, 0)
        with firing_from(model, noise):
            for state in SAMPLERS[sampler](model, start, model.schedule, steps=steps, noise=noise):
                yield torch.cat([state.image[0].clamp(-1, 1), state.clean_estimate[0]], dim=2)

    controls = {
        "sampler": choice("sampler", list(SAMPLERS), "ddim"),
        "steps": slider("steps", 20, 1, model.schedule.timesteps),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "a sample, and the clean estimate beside it", 480)


def size_explorer(model: Denoiser, channels: int = 3) -> Explorer | HTML:
    """Sample canvases of any height and width from the same weights, watching the clean estimate."""

    def frames(height: int, width: int, steps: int, seed: int) -> Iterator[Tensor]:
        noise = CounterNoise(seed)
        start = noise.normal(torch.empty(1, channels, height, width), Purpose.START, 0)
        with firing_from(model, noise):
            for state in SAMPLERS["ddim"](model, start, model.schedule, steps=steps, noise=noise):
                yield state.clean_estimate[0]

    controls = {
        "height": slider("height", 48, 16, 256, 8),
        "width": slider("width", 96, 16, 256, 8),
        "steps": slider("steps", 20, 2, 100),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "a sample on a canvas of the chosen size", 480)


def growing_player(automaton: GrowingNCA, size: int = 36, steps: int = 240) -> Explorer | HTML:
    """Grow from the seed, erase a disc on the way, and watch what happens next.

    Args:
        automaton: a trained growing automaton.
        size: height and width of the grid.
        steps: automaton steps to play.
    """

    def frames(moment: int, y: int, x: int, radius: int, seed: int) -> Iterator[Tensor]:
        with firing_from(automaton, CounterNoise(seed)), torch.no_grad():
            state = automaton.seed(size)
            for part, length in enumerate((moment, steps - moment)):
                for k, state in enumerate(states(automaton, state, length)):  # noqa: B020 - goes on
                    if k % 2 == 1 or k == length - 1:
                        yield to_rgb(state)[0] * 2 - 1
                if part == 0:
                    state = damage(state, torch.tensor([[y, x]]), radius)
                    yield to_rgb(state)[0] * 2 - 1

    controls = {
        "moment": slider("damage at step", 80, 0, steps, 10),
        "y": slider("centre y", size // 2, 0, size - 1),
        "x": slider("centre x", size // 3, 0, size - 1),
        "radius": slider("radius", size // 5, 0, size // 2),
        "seed": slider("seed", 0, 0, 99),
    }
    return explore(controls, frames, "a growing automaton after growth and damage")


def _blur(state: Tensor, mode: str) -> Tensor:
    """The mean of the 3x3 neighbourhood of a grid (H, W), the nearest counting most."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=state.dtype)
    padded = F.pad(state[None, None], (1, 1, 1, 1), mode)
    return F.conv2d(padded, torch.outer(row, row)[None, None])[0, 0]


def message_states(y: int, x: int, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Send a message with the same rule in image space and in frequency space.

    The rule adds to each cell the weighted mean of its 3x3 neighbourhood. In image space it begins with a 1
    in cell (y, x). In frequency space the cells are the Fourier coefficients of that 1, and each counts in
    the image as strongly as the rule has reached it, beginning with frequency 0 in the first step.

    Yields:
        After each of 0 to `steps` steps what the message is in both spaces as images, (size, size).
    """
    source = torch.zeros(size, size, dtype=torch.float64)
    source[y, x] = 1
    coefficients = torch.fft.fft2(source)
    local, told = source, torch.zeros_like(source)
    yield source, source
    for k in range(steps):
        local = local + _blur(local, "constant")
        if k == 0:
            told[0, 0] = 1
        else:
            told = told + _blur(told, "circular")
        yield local, torch.fft.ifft2(coefficients * told).real


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
        ValueError: an image smaller than `2 * frequencies`.
    """
    if min(image.shape[1:]) < 2 * frequencies:
        raise ValueError(
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


def _numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric leaves of nested dictionaries, by their names joined with dots."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + name] = value
    return found


_COSTS = ("parameters", "operations", "training_seconds", "images_seen")


def results_explorer(rows: list[dict[str, Any]]) -> Explorer | HTML:
    """Plot any measured quantity of the results table against any other, one data set at a time.

    A dashed line is the floor: what real images score against real images.

    Args:
        rows: of the results table that `python -m nca_lib run` writes.

    Raises:
        ValueError: no row has a metric.
    """
    measured = [(row, _numbers({c: row.get(c) for c in _COSTS}) | _numbers(row["metrics"])) for row in rows]
    metrics = list(dict.fromkeys(name for row in rows for name in _numbers(row["metrics"])))
    if not metrics:
        raise ValueError("no results to show: `python -m nca_lib run MATRIX.toml` makes some")
    axes = [*_COSTS, *metrics]
    kinds = list(dict.fromkeys(row["experiment"]["data"]["kind"] for row in rows))

    def frames(data: str, x: str, y: str) -> Iterator[Frame]:
        chosen = [
            (row, numbers)
            for row, numbers in measured
            if row["experiment"]["data"]["kind"] == data and x in numbers and y in numbers
        ]
        if not chosen:
            raise ValueError(f"no result on {data} has both {x} and {y}")
        yield _scatter(chosen, x, y)

    controls = {
        "data": choice("data", kinds, kinds[0]),
        "x": choice("x axis", axes, "parameters"),
        "y": choice("y axis", axes, metrics[0]),
    }
    alt = f"models on {kinds[0]}: {metrics[0]} against parameters"
    return explore(controls, frames, alt, 0)


def _scatter(chosen: list[tuple[dict[str, Any], dict[str, float]]], x: str, y: str) -> Tensor:
    figure = Figure(figsize=(6.6, 4.2), dpi=110, layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), figure.add_subplot()
    kinds = list(dict.fromkeys(row["experiment"]["model"]["kind"] for row, _ in chosen))
    for kind in kinds:
        points = [numbers for row, numbers in chosen if row["experiment"]["model"]["kind"] == kind]
        axis.scatter([p[x] for p in points], [p[y] for p in points], label=kind, zorder=3)
    for row, numbers in chosen:
        axis.annotate(row["name"], (numbers[x], numbers[y]), (5, 4), textcoords="offset points", fontsize=8)
    for floor in {numbers[y] for row, _ in chosen if y in (numbers := _numbers(row["floor"]))}:
        axis.axhline(floor, color="0.4", linestyle="--", linewidth=1)
    for name, scale in ((x, axis.set_xscale), (y, axis.set_yscale)):
        values = [numbers[name] for _, numbers in chosen]
        if min(values) > 0 and (name in _COSTS or max(values) > 20 * min(values)):
            scale("log")
    axis.set_xlabel(x.replace("_", " "))
    axis.set_ylabel(y.replace("_", " "))
    axis.legend(fontsize=8)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
