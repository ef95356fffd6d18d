"""A panel of controls over a film: what the `explorers` are made of.

In Jupyter a change of a control starts the computation anew in a background thread, and stops the one before
it, so that the kernel stays free. A [`Player`][] shows something that lives on. While the book is built
(environment variable `NCA_LIB_BOOK`) there is no panel, but a film of what the initial settings give.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nca_lib.book.film import Film, View, film_page
from nca_lib.book.painting import Brush, Upload
from nca_lib.book.players import LivingAutomaton
from nca_lib.extras import extra

with extra("book"):
    import ipywidgets as ipw
    from IPython.display import HTML

Views = Callable[..., Iterator[View]]
Code = Callable[..., str]


class Explorer(ipw.VBox):
    """Controls over a film whose frames are computed in the background.

    Args:
        controls: the widgets by the argument name of `views` that each sets. A [`Brush`][] is put beside the
            pictures. If there are controls `y` and `x`, choosing a cell of a picture sets them.
        views: called with the controls' values; yields what is shown.
        label: says what is shown to those who cannot see it.
        axis: what the film's scrubber counts.
        code: called with the controls' values; the library's lines that do the same.
    """

    def __init__(
        self,
        controls: dict[str, Any],
        views: Views,
        label: str = "",
        axis: str = "frame",
        code: Code | None = None,
    ):
        self.controls, self._views, self._code = controls, views, code
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._held = False
        self.film = Film(label, axis, self._choose if {"y", "x"} <= controls.keys() else None)
        self._stopper = ipw.Button(description="Stop", icon="stop", tooltip="stop computing", disabled=True)
        self._stopper.on_click(lambda _: self.stop())
        self.message = ipw.Label()
        brushes = [control for control in controls.values() if isinstance(control, Brush)]
        plain = [control for control in controls.values() if not isinstance(control, Brush)]
        shown = ipw.HBox([*brushes, self.film], layout={"flex_flow": "row wrap"})
        super().__init__(
            [
                ipw.HBox(plain, layout={"flex_flow": "row wrap"}),
                ipw.HBox([self._stopper, self.message]),
                shown,
            ]
        )
        for control in controls.values():
            control.observe(lambda _: self.restart(), "value")
        self.restart()

    def restart(self) -> None:
        """Stop what is being computed and begin with the current settings."""
        if self._held:
            return
        with self._lock:
            self.stop()
            before, self._stop = self._thread, threading.Event()
            values = {name: control.value for name, control in self.controls.items()}
            self._thread = threading.Thread(target=self._run, args=(self._stop, values, before), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop after the frame that is being computed; what there is stays."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Block until the current computation has ended (for tests)."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Stop, and free the widgets."""
        self.stop()
        close_inside(self)
        super().close()

    def set(self, **values: Any) -> None:
        """Set several controls at once: one computation."""
        self._held = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._held = False
        self.restart()

    def _choose(self, _: int, y: int, x: int) -> None:
        self.set(y=y, x=x)

    def _run(self, stop: threading.Event, values: dict[str, Any], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # one computation at a time
        if stop.is_set():
            return
        self.message.value, self._stopper.disabled = "computing ...", False
        began, number = time.perf_counter(), 0
        try:
            self.film.code = self._code(**values) if self._code else ""
            self.film.begin()
            for number, view in enumerate(self._views(**values), 1):
                if stop.is_set():
                    break
                self.film.add(view)
                self.message.value = _progress(number, view.of, time.perf_counter() - began)
        except Exception as error:  # whatever it is: the reader sees one line, not an old picture
            self.film.clear()
            self.message.value = in_one_line(error)
        else:
            ended = "stopped" if stop.is_set() else "done"
            self.message.value = f"{ended}: {number} frames, {time.perf_counter() - began:.1f} s"
        self._stopper.disabled = True


def _progress(number: int, of: int, seconds: float) -> str:
    if not of:
        return f"frame {number}"
    return f"frame {number} of {of}, about {seconds / number * max(0, of - number):.0f} s to go"


def in_one_line(error: Exception) -> str:
    """What a reader is told about an error."""
    words = " ".join(str(error).split())
    if isinstance(error, ValueError):  # the library's own words for what cannot be
        return words
    return f"{type(error).__name__}: {words}"[:200]


class Player(ipw.VBox):
    """A picture that lives on and on, and is erased where it is painted on.

    It lives in a background thread, and only while a page shows it: each picture waits until the one before
    it was drawn where it can be seen.

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
        label = "a growing automaton; what is painted is erased"
        self._brush = Brush(picture, fleeting=True, on_change=self._erase, label=label)
        self._pause = ipw.Button(
            description="Pause", icon="pause", tooltip="stand still; the brush still erases"
        )
        restart = ipw.Button(description="Restart", icon="refresh", tooltip="begin again with the seed")
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
        close_inside(self)
        super().close()

    def _erase(self, cells: Tensor) -> None:
        self._living.erase(cells)
        if not self._running.is_set():
            self._show()

    def _show(self) -> None:
        self._brush.show(self._living.picture())
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


def close_inside(widget: Any) -> None:
    """Close what a widget is made of: its children, and its layout and style, which are widgets too."""
    for child in getattr(widget, "children", ()):
        close_inside(child)
        child.close()
    for part in ("layout", "style"):
        if hasattr(widget, part):
            getattr(widget, part).close()


@dataclass(frozen=True)
class Control:
    """A setting; its widget is made only where it is shown, so that book pages carry none.

    `said` is its value as a reader calls it; empty where there is nothing to say.
    """

    description: str
    value: Any
    make: Callable[[], Any]
    said: str = ""


def explore(
    controls: dict[str, Control], views: Views, label: str, axis: str = "frame", code: Code | None = None
) -> Explorer | HTML:
    """An [`Explorer`][]; or, while the book is built, a film of what the first settings give."""
    if "NCA_LIB_BOOK" not in os.environ:
        made = {name: control.make() for name, control in controls.items()}
        return Explorer(made, views, label, axis, code)
    values = {name: control.value for name, control in controls.items()}
    set_to = ", ".join(f"{control.description} {control.said}".strip() for control in controls.values())
    note = f"A film. In the live one (make lab) all of this can be set: {set_to}."
    return film_page(list(views(**values)), label, axis, note, code(**values) if code else "")


_STYLE = {"description_width": "8em"}
_WIDE = {"width": "22em"}


def slider(description: str, value: int, low: int, high: int, step: int = 1, tooltip: str = "") -> Control:
    """A slider over whole numbers; it acts while it is moved."""

    def make() -> Any:
        made = ipw.IntSlider(value, low, high, step, description=description, style=_STYLE, layout=_WIDE)
        made.tooltip = tooltip or description
        return made

    return Control(description, value, make, str(value))


def choice(description: str, options: list[Any], value: Any, tooltip: str = "") -> Control:
    """One of some names, or of some pairs (name, value)."""

    def make() -> Any:
        made = ipw.Dropdown(options=options, value=value, description=description, style=_STYLE, layout=_WIDE)
        made.tooltip = tooltip or description
        return made

    names = {pair[1]: pair[0] for pair in options if isinstance(pair, tuple)}
    return Control(description, value, make, names.get(value, str(value)))


def upload() -> Control:
    """A picture of the reader's own."""
    return Control("a picture of your own", b"", Upload)
