"""A panel of controls over a picture: what the explorers of `widgets` are made of.

In Jupyter a change of a control starts the computation anew in a background thread, and stops the one before
it, so that the kernel stays free. While the book is built (environment variable `NCA_LIB_BOOK`) there is no
panel, but the picture that the initial settings give.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipw
from IPython.display import HTML
from torch import Tensor

from nca_lib.painting import Brush, png_bytes

Frame = Tensor | tuple[Tensor, str]  # an image (C, H, W) in [-1, 1], with a caption or without
Frames = Callable[..., Iterator[Frame]]


class Explorer(ipw.VBox):
    """Controls over a picture that is computed in the background.

    Args:
        controls: the widgets by the argument name of `frames` that each sets. A [`Brush`][] is put beside the
            picture.
        frames: called with the controls' values; yields images (C, H, W) in [-1, 1], or pairs of image and
            caption, shown one by one.
        width: the picture is enlarged to about this many pixels.
        interval: seconds that a frame stays, at least.
    """

    def __init__(self, controls: dict[str, Any], frames: Frames, width: int, interval: float = 0.0):
        self._controls, self._frames, self._width, self._interval = controls, frames, width, interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._picture, self._caption = ipw.Image(format="png"), ipw.Label()
        stop = ipw.Button(description="Stop", icon="stop")
        stop.on_click(lambda _: self.stop())
        self._message = ipw.Label()
        brushes = [control for control in controls.values() if isinstance(control, Brush)]
        plain = [control for control in controls.values() if not isinstance(control, Brush)]
        shown = ipw.HBox([*brushes, self._picture])
        super().__init__([*plain, ipw.HBox([stop, self._message]), shown, self._caption])
        for control in controls.values():
            control.observe(lambda _: self.restart(), "value")
        self.restart()

    def restart(self) -> None:
        """Stop what is being computed and begin with the current settings."""
        self.stop()
        self._stop = threading.Event()
        values = {name: control.value for name, control in self._controls.items()}
        self._thread = threading.Thread(target=self._run, args=(self._stop, values), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the frame that is being computed."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Block until the current computation has ended (for tests)."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Stop, and free the widgets."""
        self.stop()
        _close_inside(self)
        super().close()

    def _run(self, stop: threading.Event, values: dict[str, Any]) -> None:
        self._message.value = "computing ..."
        try:
            for number, frame in enumerate(self._frames(**values), 1):
                if stop.is_set():
                    return
                image, caption = _captioned(frame)
                self._picture.value = png_bytes(image, self._width)
                self._caption.value = caption
                self._message.value = f"frame {number}"
                if stop.wait(self._interval):
                    return
        except ValueError as error:
            self._message.value = str(error)
            return
        self._message.value = "done"


def _captioned(frame: Frame) -> tuple[Tensor, str]:
    return frame if isinstance(frame, tuple) else (frame, "")


def _close_inside(box: ipw.Box) -> None:
    for child in box.children:
        if isinstance(child, ipw.Box):
            _close_inside(child)
        child.close()


@dataclass(frozen=True)
class Control:
    """A setting; its widget is made only where it is shown, so that book pages carry none."""

    description: str
    value: Any
    make: Callable[[], Any]


def explore(
    controls: dict[str, Control], frames: Frames, alt: str, width: int = 320, interval: float = 0.0
) -> Explorer | HTML:
    """An [`Explorer`][]; or, while the book is built, the last frame of the first settings, with words."""
    if "NCA_LIB_BOOK" not in os.environ:
        made = {name: control.make() for name, control in controls.items()}
        return Explorer(made, frames, width, interval)
    for frame in frames(**{name: control.value for name, control in controls.items()}):  # noqa: B007
        pass
    image, caption = _captioned(frame)
    picture = base64.b64encode(png_bytes(image, width)).decode()
    names = ", ".join(control.description for control in controls.values())
    enlarged = ' class="pixelated"' if image.shape[2] < width else ""
    return HTML(
        f'<img{enlarged} alt="{alt}" src="data:image/png;base64,{picture}">'
        f'<p class="run-to-explore">{caption} A still picture: run this notebook to explore ({names}).</p>'
    )


_STYLE = {"description_width": "7em"}


def slider(description: str, value: int, low: int, high: int, step: int = 1) -> Control:
    """A slider over whole numbers; a value counts when the handle is let go."""

    def make() -> Any:
        return ipw.IntSlider(
            value, low, high, step, description=description, continuous_update=False, style=_STYLE
        )

    return Control(description, value, make)


def choice(description: str, options: list[str], value: str) -> Control:
    """One of some names."""

    def make() -> Any:
        return ipw.Dropdown(options=options, value=value, description=description, style=_STYLE)

    return Control(description, value, make)
