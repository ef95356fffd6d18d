"""Frames that can be gone through: labelled pictures with a caption and charts, in notebooks and in pages."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from nca_lib.book.figures import image_bytes
from nca_lib.book.pages import bundle, page
from nca_lib.extras import extra

with extra("book"):
    import anywidget
    import traitlets
    from IPython.display import HTML

PAGE_FRAMES, PAGE_BYTES = 20, 300_000  # of a film in a page, at most


@dataclass(frozen=True)
class View:
    """What an explorer shows at one moment.

    Args:
        pictures: images by label, each (C, H, W) in [-1, 1], C 1 or 3.
        caption: one line.
        charts: see [`line_chart`][].
        of: how many frames there will be, if known.
    """

    pictures: dict[str, Tensor]
    caption: str = ""
    charts: Sequence[dict[str, Any]] = field(default=())
    of: int = 0


def line_chart(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    label: str,
    mark: int | None = None,
    **looks: Any,
) -> dict[str, Any]:
    """Lines over `x`, as `web/chart.js` draws them.

    Args:
        x: places, ascending.
        series: the lines' heights by their names.
        label: of the x axis.
        mark: which place to mark.
        looks: `logarithmic` (the heights) or `range`, the lowest and the highest.
    """
    lines = {name: [_short(value) for value in values] for name, values in series.items()}
    return {"x": [_short(value) for value in x], "series": lines, "label": label, "mark": mark, **looks}


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def encoded(image: Tensor, kind: Literal["png", "webp"] = "png") -> str:
    """An image (C, H, W) in [-1, 1] as a data address."""
    return f"data:image/{kind};base64,{base64.b64encode(image_bytes(image, kind)).decode()}"


def stills(pictures: Mapping[str, str]) -> str:
    """HTML of pictures, data addresses by what they show."""
    return "".join(
        f'<img class="pixelated" alt="{label}" src="{address}">' for label, address in pictures.items()
    )


def frame_of(view: View, kind: Literal["png", "webp"] = "png") -> dict[str, Any]:
    """A view as `web/film.js` takes it."""
    shown = [{"label": label, "src": encoded(image, kind)} for label, image in view.pictures.items()]
    return {"pictures": shown, "caption": view.caption, "charts": list(view.charts), "of": view.of}


class Film(anywidget.AnyWidget):
    """Frames with a scrubber. It keeps them, so that a page that comes later sees them too.

    Args:
        label: says to those who cannot see it what is shown.
        axis: what the scrubber counts.
        on_cell: called with the number of a picture and a cell (y, x) that was chosen in it.
    """

    _esm = bundle("film.js")
    label = traitlets.Unicode().tag(sync=True)
    axis = traitlets.Unicode("frame").tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    choosing = traitlets.Bool().tag(sync=True)

    def __init__(
        self, label: str, axis: str = "frame", on_cell: Callable[[int, int, int], None] | None = None
    ):
        super().__init__(label=label, axis=axis, choosing=on_cell is not None)
        self.frames: list[dict[str, Any]] = []
        self._on_cell = on_cell
        self._fresh = True
        self.on_msg(self._hear)

    def begin(self) -> None:
        """The next frame is the first of new ones; until it comes, the old ones stay."""
        self._fresh = True
        self.send({"event": "begin"})

    def add(self, view: View) -> None:
        """One frame more."""
        frame = frame_of(view)
        if self._fresh:
            self.frames = []
        self._fresh = False
        self.frames.append(frame)
        self.send({"event": "frame", "frame": frame})

    def clear(self) -> None:
        """Show nothing."""
        self.frames = []
        self.send({"event": "clear"})

    def _hear(self, _: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        if content["event"] == "ready" and self.frames:
            self.send({"event": "all", "frames": self.frames})
        elif content["event"] == "cell" and self._on_cell:
            self._on_cell(content["picture"], content["y"], content["x"])


def film_page(views: list[View], label: str, axis: str, note: str, code: str = "") -> HTML:
    """A film in a page without a kernel: about 20 of the views, the last one among them, at most 300 kB.

    Without JavaScript, and before it runs, the last view is a still picture.
    """
    count = min(PAGE_FRAMES, len(views))
    while True:
        chosen = [views[round(i * (len(views) - 1) / max(1, count - 1))] for i in range(count)]
        frames = [frame_of(view, "webp") for view in (chosen if count > 1 else views[-1:])]
        for frame in frames:
            frame["of"] = len(frames)
        weight = sum(len(picture["src"]) for frame in frames for picture in frame["pictures"])
        if weight <= PAGE_BYTES or count == 1:
            break
        count -= 1
    axis = axis if count == len(views) else "moment"  # of more that there were
    traits = {"label": label, "axis": axis, "code": code, "note": note, "frames": frames, "choosing": False}
    last = {f"{label}: {picture['label']}": picture["src"] for picture in frames[-1]["pictures"]}
    return page("film.js", traits, f"{stills(last)}<p>{frames[-1]['caption']}</p>")
