"""Take a hand: stop a sample on its way, paint on the noisy image, go on, keep the branches (chapter 6)."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nca_lib.book.explorers import sampler_explorer
from nca_lib.book.film import Film, View
from nca_lib.book.painting import Brush
from nca_lib.book.panel import Explorer, close_inside
from nca_lib.book.subjects import Subject, level_words, states, timestep
from nca_lib.diffusion import NoiseSchedule
from nca_lib.extras import extra
from nca_lib.samplers import Constraint, SamplerState

with extra("book"):
    import ipywidgets as ipw
    from IPython.display import HTML

Way = list[tuple[int, Tensor, Tensor]]  # after each call: t, the noisy image, the clean estimate
COLOURS = {"black": -1.0, "grey": 0.0, "white": 1.0}
BRANCHES = 8  # that are kept; an older one makes room


@dataclass(frozen=True)
class Onward(Constraint):
    """Begin with an image that is already at timestep t: what is left of the way.

    Args:
        image: (B, C, H, W), as noisy as timestep t says.
        t: of the timesteps that the sampler visits; those above it are left out.
    """

    image: Tensor
    t: int

    def path(self, visited: list[int]) -> list[int]:
        """The timesteps from t on."""
        return [step for step in visited if step <= self.t]

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The image."""
        return self.image


class Branches(ipw.VBox):
    """A sample that can be stopped, painted on and led elsewhere; its branches' ends stand below.

    What is painted becomes the colour, as noisy as the image is there; `noise` puts fresh noise. Choosing an
    end returns to its branch.

    Args:
        subject: what is sampled.
        steps: denoiser calls of a whole way.
    """

    def __init__(self, subject: Subject, steps: int = 15):
        self._subject, self._steps, self._thread = subject, steps, threading.Thread()
        self.ways: list[Way] = []  # of each branch
        self._now = 0
        blank = torch.zeros(subject.model.image_channels, *subject.size)
        self._brush = Brush(blank, fleeting=True, on_change=self._paint, label="the noisy image")
        self._call = ipw.IntSlider(0, 0, steps, description="after call")
        self._colour = ipw.Dropdown(options=[*COLOURS, "noise"], value="black", description="brush")
        go = ipw.Button(description="Go on from here", tooltip="finish from the painted image")
        again = ipw.Button(
            description="Branch: other noise", tooltip="the same place, another seed on the rest (DDPM)"
        )
        new = ipw.Button(description="New sample", tooltip="another seed from the beginning")
        self._film, self._ends = Film("clean estimate"), Film("branches", on_cell=self._choose)
        self.message, self._seed = ipw.Label(), 0
        go.on_click(lambda _: self.branch("ddim"))
        again.on_click(lambda _: self.branch("ddpm"))
        new.on_click(lambda _: self.begin())
        self._call.observe(lambda _: self._show(), "value")
        super().__init__(
            [
                ipw.HBox([new, go, again, self.message], layout={"flex_flow": "row wrap"}),
                ipw.HBox([self._call, self._colour], layout={"flex_flow": "row wrap"}),
                ipw.HBox([self._brush, self._film], layout={"flex_flow": "row wrap"}),
                self._ends,
            ]
        )
        self.begin()

    def begin(self) -> None:
        """A sample from noise, of the next seed; all branches are forgotten."""
        self._seed += 1
        self.ways = []
        self._start(None, "ddim")

    def branch(self, sampler: str) -> None:
        """Finish from the shown image, as another branch."""
        if self.ways and self._call.value < self._steps:
            self._seed += sampler == "ddpm"
            self._start(self._call.value, sampler)

    def wait(self, seconds: float | None = None) -> None:
        """Block until the computation has ended (for tests)."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Free the widgets."""
        close_inside(self)
        super().close()

    def _start(self, call: int | None, sampler: str) -> None:
        if self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._run, args=(call, sampler), daemon=True)
        self._thread.start()

    def _run(self, call: int | None, sampler: str) -> None:
        model, edit = self._subject.model, None
        way: Way = []
        if call is not None:
            way = list(self.ways[self._now][: call + 1])
            edit = Onward(way[-1][1][None], way[-1][0])
        self.message.value = "computing ..."
        settings: dict[str, Any] = {"sampler": sampler, "steps": self._steps, "seed": self._seed}
        for state in states(model, self._subject.size, constraint=edit or _Begun(way), **settings):
            way.append(self._entry(state))
        self.ways = [*self.ways, way][-BRANCHES:]
        self._now = len(self.ways) - 1
        self.message.value = f"branch {len(self.ways)}"
        self._show()
        self._ends.begin()
        ends = {f"branch {number}": one[-1][1] for number, one in enumerate(self.ways, 1)}
        self._ends.add(View(ends, "The branches' ends: click one to return to it."))

    def _entry(self, state: SamplerState) -> tuple[int, Tensor, Tensor]:
        return timestep(self._subject.model, state), state.image[0], state.clean_estimate[0]

    def _choose(self, number: int, _: int, __: int) -> None:
        self._now = number
        self._show()

    def _show(self) -> None:
        if not self.ways:
            return
        t, image, clean = self.ways[self._now][self._call.value]
        self._brush.show(image)
        self._film.begin()
        words = level_words(self._subject.model.schedule, t)
        self._film.add(
            View({"noisy image": image, "clean estimate": clean}, f"Branch {self._now + 1}, {words}.")
        )

    def _paint(self, cells: Tensor) -> None:
        if not self.ways or not cells.any():
            return
        t, image, clean = self.ways[self._now][self._call.value]
        signal, sigma = self._subject.model.schedule.levels(t)
        fresh = torch.randn_like(image)
        if self._colour.value != "noise":
            fresh = signal * COLOURS[self._colour.value] + sigma * fresh
        self.ways[self._now][self._call.value] = (t, torch.where(cells, fresh, image), clean)
        self._show()


@dataclass(frozen=True)
class _Begun(Constraint):
    """Notes the noise that a sample begins with: where the way's call 0 is."""

    way: Way

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        self.way.append((schedule.timesteps - 1, start[0], torch.zeros_like(start[0])))
        return start


def branch_painter(subject: Subject, steps: int = 15) -> Branches | Explorer | HTML:
    """Take a hand in a sample on its way; in the book a film of an untouched one.

    Args:
        subject: what is sampled.
        steps: denoiser calls of a whole way.
    """
    if "NCA_LIB_BOOK" in os.environ:
        return sampler_explorer(subject, steps=steps)
    return Branches(subject, steps)
