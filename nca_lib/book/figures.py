"""Pictures for the book: grids of images, line charts in one style, animations small enough for a page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nca_lib.evaluation.copying import Neighbours
from nca_lib.extras import extra

with extra("book"):
    import matplotlib.pyplot as plt
    from IPython.display import Image as DisplayedImage
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Reads equally well on white and on near-black: figures have no ground of their own. Not quite grey, so that
# the book's pages find it and show the ink of their theme (`book/_extensions/nca_pages.py`).
INK = "#79797d"
STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": plt.cycler(color=["#4a80b8", "#c9622a", "#4f963e", "#a06bb8", "#808080"]),
    "legend.frameon": False,
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Give every later figure of the notebook the book's style."""
    settings: Any = plt.rcParams
    settings.update(STYLE)


def to_uint8(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in [-1, 1], C 1 or 3, as (H, W, 3) bytes; values outside are clipped."""
    bytes_ = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return bytes_.expand(3, -1, -1).permute(1, 2, 0).numpy()


def image_bytes(image: Tensor, kind: Literal["png", "webp"] = "png") -> bytes:
    """An image (C, H, W) in [-1, 1] as a file: PNG, or WebP of a quality that noise survives."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, kind, quality=85)
    return buffer.getvalue()


def show_images(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    inches: float = 1.4,
) -> Figure:
    """Draw images (each (C, H, W) in [-1, 1]) side by side, with titles above if given."""
    count = len(images)
    columns = min(columns, count)
    rows = -(-count // columns)
    aspect = images[0].shape[1] / images[0].shape[2]
    height = inches * aspect + (0.25 if titles else 0.0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * inches, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (image, axis) in enumerate(zip(images, axes.flat, strict=False)):
        axis.imshow(to_uint8(image))
        if titles:
            axis.set_title(titles[index], fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def show_neighbours(images: Tensor, found: Neighbours, *, inches: float = 1.2) -> Figure:
    """Draw images (N, C, H, W), below each its nearest training image, titled with distance and ratio."""
    numbers = zip(found.distance.tolist(), found.ratio.tolist(), strict=True)
    titles = [""] * len(images) + [f"{distance:.2f} / {ratio:.2f}" for distance, ratio in numbers]
    return show_images([*images, *found.images], titles, columns=len(images), inches=inches)


def show_curve(values: Sequence[float], label: str = "loss", axis: Axes | None = None) -> Axes:
    """Draw a training curve on a logarithmic axis."""
    axis = axis or plt.figure(figsize=(5, 2.6)).gca()
    axis.semilogy(values, linewidth=1.2)
    axis.set_xlabel("training step")
    axis.set_ylabel(label)
    return axis


def encode_gif(frames: Iterable[Tensor], *, scale: int = 1, fps: float = 15, colors: int = 128) -> bytes:
    """Images (C, H, W) in [-1, 1] as a looping GIF, enlarged `scale` times with crisp pixels."""
    pictures = []
    for frame in frames:
        enlarged = F.interpolate(frame[None].float(), scale_factor=scale, mode="nearest")[0]
        pictures.append(Image.fromarray(to_uint8(enlarged)).quantize(colors, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


def animate(frames: Iterable[Tensor], alt: str, *, scale: int = 1, fps: float = 15, colors: int = 128) -> Any:
    """Show frames as an animation in a notebook or page; `alt` tells what it shows without it being seen.

    It begins with its last frame, which is what paper shows of it, and goes round.
    """
    *others, last = frames
    shown = encode_gif([last, *others], scale=scale, fps=fps, colors=colors)
    return DisplayedImage(shown, format="gif", alt=alt)
