"""Diagrams that the explorers draw as images (chapters 2 and 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nca_lib.book.figures import STYLE
from nca_lib.diffusion import NoiseSchedule
from nca_lib.evaluation.metrics import measurements
from nca_lib.extras import extra

with extra("book"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

COSTS = ("parameters", "operations", "training_seconds", "images_seen")


def _axes(width: int, height: int) -> tuple[FigureCanvasAgg, Axes]:
    # Not pyplot's: those live until they are closed, and belong to the main thread.
    # On white, since an image has no transparency.
    size = (width / 110, height / 110)
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    return FigureCanvasAgg(figure), figure.add_subplot()


def _image(canvas: FigureCanvasAgg) -> Tensor:
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def schedule_curve(schedule: NoiseSchedule, t: int, width: int, height: int) -> Tensor:
    """How much signal and how much noise there is at every timestep, t marked.

    Returns:
        (3, height, width) in [-1, 1].
    """
    canvas, axis = _axes(width, height)
    axis.set_prop_cycle(STYLE["axes.prop_cycle"])
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    for name, values in (("signal", signal), ("noise", noise)):
        (line,) = axis.plot(values.numpy(), label=name)
        axis.plot([t], [float(values[t])], "o", color=line.get_color())
    axis.axvline(t, color="0.5", linestyle="--", linewidth=1)
    axis.set_xlabel("timestep t")
    axis.set_ylim(-0.03, 1.03)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, frameon=False)
    return _image(canvas)


def results_scatter(chosen: list[tuple[dict[str, Any], dict[str, float]]], x: str, y: str) -> Tensor:
    """One number of results against another, with the floor as a dashed line.

    Args:
        chosen: rows of the results table, each with its numbers, which have both x and y.
        x: name of a number.
        y: name of another.

    Returns:
        (3, height, width) in [-1, 1].
    """
    canvas, axis = _axes(726, 462)
    kinds = list(dict.fromkeys(row["experiment"]["model"]["kind"] for row, _ in chosen))
    for kind in kinds:
        points = [found for row, found in chosen if row["experiment"]["model"]["kind"] == kind]
        axis.scatter([p[x] for p in points], [p[y] for p in points], label=kind, zorder=3)
    for row, found in chosen:
        axis.annotate(row["name"], (found[x], found[y]), (5, 4), textcoords="offset points", fontsize=8)
    for floor in {found[y] for row, _ in chosen if y in (found := measurements(row["floor"]))}:
        axis.axhline(floor, color="0.5", linestyle="--", linewidth=1)
    for name, scale in ((x, axis.set_xscale), (y, axis.set_yscale)):
        values = [found[name] for _, found in chosen]
        if min(values) > 0 and (name in COSTS or max(values) > 20 * min(values)):
            scale("log")
    axis.set_xlabel(x.replace("_", " "))
    axis.set_ylabel(y.replace("_", " "))
    axis.legend(fontsize=8)
    return _image(canvas)
