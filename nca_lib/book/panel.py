"""A panel of controls over a picture: what the `explorers` are made of.

In Jupyter a change of a control starts the computation anew in a background thread, and stops the one before
it, so that the kernel stays free. A [`Player`][] shows something that lives on. While the book is built
(environment variable `NCA_LIB_BOOK`) there is no panel, but the picture that the initial settings give.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nca_lib.book.painting import Brush, png_bytes
from nca_lib.book.players import LivingAutomaton
from nca_lib.extras import extra

with extra("book"):
    import ipywidgets as ipw
    from IPython.display import HTML

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
        shown = ipw.HBox(
            [*brushes, ipw.VBox([self._picture, self._caption])], layout={"flex_flow": "row wrap"}
        )
        super().__init__(
            [ipw.HBox(plain, layout={"flex_flow": "row wrap"}), ipw.HBox([stop, self._message]), shown]
        )
        for control in controls.values():
            control.observe(lambda _: self.restart(), "value")
        self.restart()

    def restart(self) -> None:
        """Stop what is being computed and begin with the current settings."""
        self.stop()
        before, self._stop = self._thread, threading.Event()
        values = {name: control.value for name, control in self._controls.items()}
        self._thread = threading.Thread(target=self._run, args=(self._stop, values, before), daemon=True)
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

    def _run(self, stop: threading.Event, values: dict[str, Any], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # one computation at a time
        if stop.is_set():
            return
        self._message.value = "computing ..."
        try:
            for number, frame in enumerate(self._frames(**values), 1):
                if stop.is_set():
                    break
                image, caption = _captioned(frame)
                self._picture.value = png_bytes(image, self._width)
                self._caption.value = caption
                self._message.value = f"frame {number}"
                if stop.wait(self._interval):
                    break
        except ValueError as error:
            self._message.value = str(error)
            return
        self._message.value = "stopped" if stop.is_set() else "done"


class Player(ipw.VBox):
    """A picture that lives on and on, and is erased where it is painted on.

    It lives in a background thread, and only while a page shows it: each picture waits until the one before
    it was drawn.

    Args:
        living: what is played.
        steps: between two pictures.
        interval: seconds between two pictures, at least.
    """

    def __init__(self, living: LivingAutomaton, steps: int = 2, interval: float = 0.05):
        self._living, self._steps, self._interval = living, steps, interval
        self._stop, self._running = threading.Event(), threading.Event()
        self._running.set()
        picture = living.picture()
        self._brush = Brush(picture, fleeting=True, on_change=self._erase, label="a growing automaton")
        self._pause = ipw.Button(description="Pause", icon="pause")
        restart = ipw.Button(description="Restart", icon="refresh")
        self._message = ipw.Label("step 0")
        self._pause.on_click(lambda _: self.pause() if self._running.is_set() else self.play())
        restart.on_click(lambda _: self.restart())
        super().__init__([ipw.HBox([self._pause, restart, self._message]), self._brush])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def play(self) -> None:
        """Live on."""
        self._running.set()
        self._pause.description, self._pause.icon = "Pause", "pause"

    def pause(self) -> None:
        """Stand still; the brush still erases."""
        self._running.clear()
        self._pause.description, self._pause.icon = "Play", "play"

    def restart(self) -> None:
        """Begin again with the seed."""
        self._living.restart()
        self._show()

    def close(self) -> None:
        """End the thread, and free the widgets."""
        self._stop.set()
        self._running.set()
        self._brush.drawn.set()
        _close_inside(self)
        super().close()

    def _erase(self, cells: Tensor) -> None:
        self._living.erase(cells)
        if not self._running.is_set():
            self._show()

    def _show(self) -> None:
        self._brush.picture = png_bytes(self._living.picture(), 0)
        self._message.value = f"step {self._living.age}"

    def _run(self) -> None:
        while not self._stop.is_set():
            self._brush.drawn.wait()
            self._running.wait()
            self._brush.drawn.clear()
            if self._stop.is_set():
                return
            self._living.live(self._steps)
            self._show()
            self._stop.wait(self._interval)


def _captioned(frame: Frame) -> tuple[Tensor, str]:
    return frame if isinstance(frame, tuple) else (frame, "")


def _close_inside(widget: Any) -> None:
    """Close what a widget is made of: its children, and its layout and style, which are widgets too."""
    for child in getattr(widget, "children", ()):
        _close_inside(child)
        child.close()
    for part in ("layout", "style"):
        if hasattr(widget, part):
            getattr(widget, part).close()


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
    return still_picture(frame, alt, width, [control.description for control in controls.values()])


def still_picture(frame: Frame, alt: str, width: int, settings: list[str]) -> HTML:
    """What a page without a kernel shows: a picture, and what could be set if there were one."""
    image, caption = _captioned(frame)
    picture = base64.b64encode(png_bytes(image, width)).decode()
    enlarged = ' class="pixelated"' if image.shape[2] < width else ""
    return HTML(
        f'<img{enlarged} alt="{alt}" src="data:image/png;base64,{picture}">'
        f'<p class="run-to-explore">{caption} A still picture: run this notebook to explore '
        f"({', '.join(settings)}).</p>"
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
