"""Live explorers for the notebooks (chapters 1 to 3).

Each function returns something to put last in a cell. In Jupyter it is a panel of controls over a picture:
a change of a control starts the computation anew in a background thread, and stops the one before it, so
that the kernel stays free. While the book is built (environment variable `NCA_LIB_BOOK`) it is the picture
that the initial settings give, with an invitation to run the notebook.
"""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipw
import torch
from IPython.display import HTML
from PIL import Image
from torch import Tensor

from nca_lib.automaton import GrowingNCA, damage, states, to_rgb
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.figures import to_uint8
from nca_lib.noise import CounterNoise, Purpose, firing_from
from nca_lib.samplers import SAMPLERS

Frames = Callable[..., Iterator[Tensor]]


def _png(image: Tensor, width: int) -> bytes:
    picture = Image.fromarray(to_uint8(image))
    scale = max(1, width // picture.width)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Explorer(ipw.VBox):
    """Controls over a picture that is computed in the background.

    Args:
        controls: the widgets by the argument name of `frames` that each sets.
        frames: called with the controls' values; yields images (C, H, W) in [-1, 1], shown one by one.
        width: the picture is enlarged to about this many pixels.
    """

    def __init__(self, controls: dict[str, Any], frames: Frames, width: int):
        self._controls, self._frames, self._width = controls, frames, width
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._picture = ipw.Image(format="png")
        stop = ipw.Button(description="Stop", icon="stop")
        stop.on_click(lambda _: self.stop())
        self._message = ipw.Label()
        super().__init__([*controls.values(), ipw.HBox([stop, self._message]), self._picture])
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
        super().close()

    def _run(self, stop: threading.Event, values: dict[str, Any]) -> None:
        self._message.value = "computing ..."
        try:
            for number, frame in enumerate(self._frames(**values), 1):
                if stop.is_set():
                    return
                self._picture.value = _png(frame, self._width)
                self._message.value = f"frame {number}"
        except ValueError as error:
            self._message.value = str(error)
            return
        self._message.value = "done"


@dataclass(frozen=True)
class _Control:
    """A setting; its widget is made only where it is shown, so that book pages carry none."""

    description: str
    value: Any
    make: Callable[[], Any]


def _explore(controls: dict[str, _Control], frames: Frames, alt: str, width: int = 320) -> Explorer | HTML:
    if "NCA_LIB_BOOK" not in os.environ:
        return Explorer({name: control.make() for name, control in controls.items()}, frames, width)
    for frame in frames(**{name: control.value for name, control in controls.items()}):  # noqa: B007
        pass
    picture = base64.b64encode(_png(frame, width)).decode()
    names = ", ".join(control.description for control in controls.values())
    return HTML(
        f'<img class="pixelated" alt="{alt}" src="data:image/png;base64,{picture}">'
        f'<p class="run-to-explore">A still picture: run this notebook to explore ({names}).</p>'
    )


_STYLE = {"description_width": "7em"}


def _slider(description: str, value: int, low: int, high: int, step: int = 1) -> _Control:
    def make() -> Any:
        return ipw.IntSlider(
            value, low, high, step, description=description, continuous_update=False, style=_STYLE
        )

    return _Control(description, value, make)


def _choice(description: str, options: list[str], value: str) -> _Control:
    def make() -> Any:
        return ipw.Dropdown(options=options, value=value, description=description, style=_STYLE)

    return _Control(description, value, make)


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
        "schedule": _choice("schedule", ["cosine", "linear", "sigmoid"], "cosine"),
        "t": _slider("timestep t", timesteps // 3, 0, timesteps - 1),
        "index": _slider("image", 0, 0, len(images) - 1),
        "seed": _slider("seed", 0, 0, 99),
    }
    return _explore(controls, frames, "an image beside the same image with noise", 480)


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
        "sampler": _choice("sampler", list(SAMPLERS), "ddim"),
        "steps": _slider("steps", 20, 1, model.schedule.timesteps),
        "seed": _slider("seed", 0, 0, 99),
    }
    return _explore(controls, frames, "a sample, and the clean estimate beside it", 480)


def size_explorer(model: Denoiser, channels: int = 3) -> Explorer | HTML:
    """Sample canvases of any height and width from the same weights, watching the clean estimate."""

    def frames(height: int, width: int, steps: int, seed: int) -> Iterator[Tensor]:
        noise = CounterNoise(seed)
        start = noise.normal(torch.empty(1, channels, height, width), Purpose.START, 0)
        with firing_from(model, noise):
            for state in SAMPLERS["ddim"](model, start, model.schedule, steps=steps, noise=noise):
                yield state.clean_estimate[0]

    controls = {
        "height": _slider("height", 48, 16, 256, 8),
        "width": _slider("width", 96, 16, 256, 8),
        "steps": _slider("steps", 20, 2, 100),
        "seed": _slider("seed", 0, 0, 99),
    }
    return _explore(controls, frames, "a sample on a canvas of the chosen size", 480)


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
        "moment": _slider("damage at step", 80, 0, steps, 10),
        "y": _slider("centre y", size // 2, 0, size - 1),
        "x": _slider("centre x", size // 3, 0, size - 1),
        "radius": _slider("radius", size // 5, 0, size // 2),
        "seed": _slider("seed", 0, 0, 99),
    }
    return _explore(controls, frames, "a growing automaton after growth and damage")
