"""Take a hand: stop a sample on its way, paint on the noisy image, go on; a tree of branches (chapter 6)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nca_lib.book.explorers import sampler_explorer
from nca_lib.book.film import Film, View, encoded
from nca_lib.book.pages import bundle
from nca_lib.book.painting import Brush
from nca_lib.book.panel import Explorer, close_inside, in_one_line
from nca_lib.book.subjects import Subject, level_words, states
from nca_lib.diffusion import NoiseSchedule
from nca_lib.extras import extra
from nca_lib.noise import CounterNoise, Purpose
from nca_lib.samplers import Constraint

with extra("book"):
    import anywidget
    import ipywidgets as ipw
    import traitlets
    from IPython.display import HTML

Way = list[tuple[int, Tensor, Tensor]]  # after each call: t, the noisy image, the clean estimate
BRANCHES = 16  # that a tree holds
THUMBS = 6  # pictures along a branch


@dataclass
class Branch:
    """One way to an image, and where it left another.

    Args:
        parent: number of the branch that it left; None for the first.
        call: after which call of the parent.
        words: how.
        way: what it has come to; until it leaves, its parent's.
    """

    parent: int | None
    call: int
    words: str
    way: Way = field(default_factory=list)


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
        return self.image.to(start)


class Tree(anywidget.AnyWidget):
    """Branches as rows of thumbnails, each row beginning where it left another.

    Args:
        on_choose: called with the number of a branch and a call, whose thumbnail was chosen.
    """

    _esm = bundle("tree.js")
    branches: Any = traitlets.List().tag(sync=True)
    steps = traitlets.Int().tag(sync=True)
    chosen: Any = traitlets.List().tag(sync=True)

    def __init__(self, steps: int, on_choose: Callable[[int, int], None]):
        super().__init__(steps=steps)
        self.on_msg(lambda _, content, __: on_choose(content["branch"], content["call"]))

    def add(self, branch: Branch) -> None:
        """One branch more."""
        every = -(-self.steps // (THUMBS - 1))
        ends = {branch.call, len(branch.way) - 1}
        calls = [k for k in range(branch.call, len(branch.way)) if k % every == 0 or k in ends]
        shown = {k: branch.way[k][2] if k else branch.way[k][1] for k in calls}
        thumbs = [{"call": k, "src": encoded(image)} for k, image in shown.items()]
        row = {"parent": branch.parent, "call": branch.call, "words": branch.words, "thumbs": thumbs}
        self.branches = [*self.branches, row]


class Branches(ipw.VBox):
    """A sample that can be stopped, painted on and led elsewhere; all its branches stand below as a tree.

    What is painted becomes the colour, or a part of an image or of another branch, as noisy as the image is
    there; `noise` erases. Choosing a thumbnail of the tree goes there.

    Args:
        subject: what is sampled.
        steps: denoiser calls of a whole way.
    """

    def __init__(self, subject: Subject, steps: int = 15):
        self._subject, self._steps, self._thread = subject, steps, threading.Thread()
        self._halt = threading.Event()
        self.branches: list[Branch] = []
        self._now, self._seed, self._fresh = 0, 0, torch.Generator().manual_seed(0)
        self._hand: Tensor | None = None  # the shown image, painted
        blank = torch.zeros(subject.model.image_channels, *subject.size)
        self._brush = Brush(blank, fleeting=True, on_change=self._paint, label="the noisy image")
        self._call = ipw.IntSlider(0, 0, steps, description="after call", tooltip="where on this branch")
        self._tool = ipw.Dropdown(options=["colour", "noise", "image"], description="brush")
        self._tool.tooltip = "noise erases; image and branch paste a part of it"
        self._colour = ipw.ColorPicker(value="#ffffff", description="colour", concise=True)
        self._image = ipw.IntSlider(0, 0, len(subject.images) - 1, description="image")
        self._image.tooltip = "which image the brush pastes"
        self._many = ipw.BoundedIntText(1, 1, 4, description="branches", layout={"width": "10em"})
        self._many.tooltip = "how many, one seed each"
        self._film, self.tree = Film("clean estimate"), Tree(steps, self.choose)
        self.message = ipw.Label()
        self._call.observe(lambda _: self._move(), "value")
        super().__init__(
            [
                ipw.HBox([*self._buttons(), self._many, self.message], layout=_WRAP),
                ipw.HBox([self._call, self._tool, self._colour, self._image], layout=_WRAP),
                ipw.HBox([self._brush, self._film], layout=_WRAP),
                self.tree,
            ]
        )
        self.begin()

    def _buttons(self) -> list[ipw.Button]:
        def made(words: str, tooltip: str, act: Callable[[], None]) -> ipw.Button:
            button = ipw.Button(description=words, tooltip=tooltip)
            button.on_click(lambda _: act())
            return button

        return [
            made("New sample", "another seed from the beginning; the tree is forgotten", self.begin),
            made("Stop", "pause here", self.stop),
            made("Go on", "from the shown image, without noise (DDIM)", self.go_on),
            made("Other noise", "from the shown image, another seed on the rest (DDPM)", self.other_noise),
            made(
                "Noise the end again", "this branch's end, noised to this call by another seed", self.renoise
            ),
        ]

    def begin(self) -> None:
        """A sample from noise, of the next seed; all branches are forgotten."""
        self.stop()
        self.wait()
        self._seed += 1
        self.branches, self._now, self.tree.branches = [], 0, []
        self._start([Branch(None, 0, f"seed {self._seed}")], [_Begun()], "ddim")

    def go_on(self) -> None:
        """Finish from the shown image, as another branch."""
        self._leave("ddim", "went on", 1)

    def other_noise(self) -> None:
        """Finish from the shown image by DDPM, other noise for each branch."""
        self._leave("ddpm", "other noise", self._many.value)

    def renoise(self) -> None:
        """Noise the branch's end to the timestep of the shown call, and finish from there."""
        way, call = self.branches[self._now].way, self._call.value
        t, end = way[call][0], way[-1][1]
        signal, sigma = self._subject.model.schedule.levels(t)
        entries = []
        for number in range(self._many.value):
            noise = CounterNoise(self._seed + 1 + number).normal(end[None], Purpose.START, 1)[0]
            entries.append((t, signal * end + sigma * noise, end))
        self._leave("ddim", "noised again", self._many.value, entries)

    def stop(self) -> None:
        """Pause after the call that is being computed."""
        self._halt.set()

    def choose(self, number: int, call: int) -> None:
        """Go to a call of a branch."""
        self._now = number
        self._call.max = len(self.branches[number].way) - 1
        self._call.value = call
        self._move()

    def wait(self, seconds: float | None = None) -> None:
        """Block until the computation has ended."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def close(self) -> None:
        """Stop, and free the widgets."""
        self.stop()
        close_inside(self)
        super().close()

    def _leave(self, sampler: str, words: str, count: int, entries: Way | None = None) -> None:
        call, way = self._call.value, self.branches[self._now].way
        if way[call][0] < 0:
            self.message.value = "this image is finished: go back to an earlier call"
        elif self._thread.is_alive():
            self.message.value = "stop first"
        elif len(self.branches) + count > BRANCHES:
            self.message.value = f"{BRANCHES} branches are a tree; New sample begins another"
        else:
            t, image, clean = way[call]
            if self._hand is not None:
                image, words = self._hand, f"painted, {words}"
            starts = entries or [(t, image, clean)] * count
            grown = [Branch(self._now, call, words, [*way[:call], start]) for start in starts]
            self._start(grown, [Onward(start[1][None], start[0]) for start in starts], sampler)

    def _start(self, grown: list[Branch], edits: Sequence[Constraint], sampler: str) -> None:
        self._halt = threading.Event()
        arguments = (self._halt, grown, edits, sampler)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()

    def _run(
        self, halt: threading.Event, grown: list[Branch], edits: Sequence[Constraint], sampler: str
    ) -> None:
        model = self._subject.model
        self.message.value = "computing ..."
        try:
            for branch, edit in zip(grown, edits, strict=True):
                self._seed += sampler == "ddpm" or branch.words == "noised again"
                settings: dict[str, Any] = {"sampler": sampler, "steps": self._steps, "seed": self._seed}
                for state in states(model, self._subject.size, constraint=edit, **settings):
                    if isinstance(edit, _Begun) and not branch.way:
                        start = edit.noise[0].cpu()
                        branch.way.append((model.schedule.timesteps - 1, start, torch.zeros_like(start)))
                    clean = state.clean_estimate[0]
                    branch.way.append((state.timestep, state.image[0], clean))
                    if halt.is_set():
                        break
                self.branches.append(branch)
                self.tree.add(branch)
                self._tool.options = ["colour", "noise", "image", *map(_named, range(len(self.branches)))]
                self.choose(len(self.branches) - 1, len(branch.way) - 1)
                if halt.is_set():
                    break
        except Exception as error:  # whatever it is: the reader sees one line
            self.message.value = in_one_line(error)
        else:
            self.message.value = f"{_named(self._now)}{' stopped' if halt.is_set() else ''}"

    def _move(self) -> None:
        """Show another place; what was painted and not led on is forgotten."""
        self._hand = None
        self._show()

    def _show(self) -> None:
        if not self.branches:
            return
        way = self.branches[self._now].way
        t, image, clean = way[min(self._call.value, len(way) - 1)]
        self._brush.show(image if self._hand is None else self._hand)
        self._film.begin()
        words = level_words(self._subject.model.schedule, t)
        pictures = {"clean estimate": clean, "this branch's end": way[-1][1]}
        self._film.add(View(pictures, f"{_named(self._now).capitalize()}, {words}."))
        self.tree.chosen = [self._now, self._call.value]

    def _paint(self, cells: Tensor) -> None:
        if not self.branches or not cells.any() or self._thread.is_alive():
            return
        t, image, _ = self.branches[self._now].way[self._call.value]
        signal, sigma = self._subject.model.schedule.levels(t)
        fresh = torch.randn(image.shape, generator=self._fresh)
        tool = self._tool.value
        if tool.startswith("branch"):
            other = self.branches[int(tool.split()[1]) - 1].way
            fresh = signal * other[-1][1] + sigma * fresh
        elif tool == "image":
            fresh = signal * self._subject.images[self._image.value] + sigma * fresh
        elif tool == "colour":
            fresh = signal * self._painted(image) + sigma * fresh
        self._hand = torch.where(cells, fresh, image if self._hand is None else self._hand)
        self._show()

    def _painted(self, image: Tensor) -> Tensor:
        red_green_blue = [int(self._colour.value[place : place + 2], 16) / 127.5 - 1 for place in (1, 3, 5)]
        colour = torch.tensor(red_green_blue)[:, None, None]
        return colour if len(image) == 3 else colour.mean(0, keepdim=True)


class _Begun(Constraint):
    """Notes the noise that a sample begins with."""

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        self.noise = start
        return start


_WRAP = {"flex_flow": "row wrap"}


def _named(number: int) -> str:
    return f"branch {number + 1}"


def branch_painter(subject: Subject, steps: int = 15) -> Branches | Explorer | HTML:
    """Take a hand in a sample on its way; in the book a film of an untouched one.

    Args:
        subject: what is sampled.
        steps: denoiser calls of a whole way.
    """
    if "NCA_LIB_BOOK" in os.environ:
        return sampler_explorer(subject, steps=steps)
    return Branches(subject, steps)
