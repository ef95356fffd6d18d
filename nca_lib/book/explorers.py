"""Live explorers for the notebooks (chapters 1 to 6).

Each function returns something to put last in a cell: in Jupyter a panel of controls over a film, in the
built book a film of what the initial settings give. What a page can compute itself is in
[`demo`][nca_lib.book.demo].
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from nca_lib.automaton import GrowingNCA
from nca_lib.book.film import View, film_page
from nca_lib.book.painting import Brush, mask_bytes
from nca_lib.book.panel import Control, Explorer, Player, choice, explore, slider, upload
from nca_lib.book.players import LivingAutomaton, Shape, grown_and_damaged, shape_mask
from nca_lib.book.subjects import (
    Subject,
    heat,
    level_words,
    power_chart,
    schedule_chart,
    states,
    which,
)
from nca_lib.editing import Inpainting, KnownPixels, shaped_canvas
from nca_lib.errors import NCAError
from nca_lib.extras import extra
from nca_lib.samplers import SAMPLERS, SamplerState

with extra("book"):
    from IPython.display import HTML

SEED = "of all noise: the same seed, the same picture"
CALLS = "denoiser calls"


def sampler_explorer(*subjects: Subject, steps: int = 20) -> Explorer | HTML:
    """A sample's trajectory, call by call: the noisy image, the clean estimate in it, and their spectra.

    Args:
        subjects: what may be sampled.
        steps: denoiser calls to begin with.
    """

    def views(subject: int, sampler: str, steps: int, seed: int) -> Iterator[View]:
        chosen = subjects[subject]
        model, schedule = chosen.model, chosen.model.schedule
        for state in states(model, chosen.size, sampler=sampler, steps=steps, seed=seed):
            t = state.timestep
            pictures = {"noisy image": state.image[0], "clean estimate": state.clean_estimate[0]}
            charts = [schedule_chart(schedule, t), power_chart(pictures)]
            yield View(pictures, f"Call {state.step}, {level_words(schedule, t)}.", charts, steps)

    def code(subject: int, sampler: str, steps: int, seed: int) -> str:
        height, width = subjects[subject].size
        return (
            f"{subjects[subject].code}from nca_lib.samplers import {sampler}\n\nimage = nca_lib.sample(\n"
            f"    model, ({height}, {width}), sampler={sampler}, steps={steps}, seed={seed}\n)"
        )

    most = min(subject.model.schedule.timesteps for subject in subjects)
    controls = which(subjects) | {
        "sampler": choice("sampler", list(SAMPLERS), "ddim", "how to step from noise to image"),
        "steps": slider("steps", steps, 1, most, 1, CALLS),
        "seed": slider("seed", 0, 0, 99, 1, SEED),
    }
    return explore(controls, views, "a sample and its clean estimate", "call", code)


def compare_explorer(*subjects: Subject, steps: tuple[int, int] = (20, 5)) -> Explorer | HTML:
    """Two ways from the same noise, side by side, and where their clean estimates differ.

    Where a subject has contexts, what is asked for and two strengths of guidance can be set too.

    Args:
        subjects: what may be sampled; both ways start from the same numbers if the images are alike in size.
        steps: denoiser calls of A and of B to begin with.
    """

    def views(
        subject: int,
        a: str,
        steps_a: int,
        other: int,
        b: str,
        steps_b: int,
        seed: int,
        wish: str = "",
        guidance_a: int = 1,
        guidance_b: int = 1,
    ) -> Iterator[View]:
        one, two = subjects[subject], subjects[other]
        left_model, right_model = one.guided(wish, guidance_a), two.guided(wish, guidance_b)
        ways = [
            states(left_model, one.size, sampler=a, steps=steps_a, seed=seed),
            states(right_model, two.size, sampler=b, steps=steps_b, seed=seed),
        ]
        reached, most = [next(way) for way in ways], max(steps_a, steps_b)
        for number in range(1, most + 1):
            for side, calls in enumerate((steps_a, steps_b)):
                while reached[side].step < -(-number * calls // most):
                    reached[side] = next(ways[side])
            yield _compared(reached[0], reached[1], most)

    def code(**values: Any) -> str:
        return _compared_code(subjects, **values)

    most = min(subject.model.schedule.timesteps for subject in subjects)
    controls = {
        **which(subjects, "subject", "A: model"),
        "a": choice("A: sampler", list(SAMPLERS), "ddim", "of the left picture"),
        "steps_a": slider("A: steps", steps[0], 1, most, 1, CALLS),
        **which(subjects, "other", "B: model"),
        "b": choice("B: sampler", list(SAMPLERS), "dpm_solver", "of the right picture"),
        "steps_b": slider("B: steps", steps[1], 1, most, 1, CALLS),
        "seed": slider("seed", 0, 0, 99, 1, SEED),
        **_guidance(subjects),
    }
    return explore(controls, views, "two samples from the same noise", "frame", code)


def _guidance(subjects: tuple[Subject, ...]) -> dict[str, Control]:
    """What is asked for, and how strongly; nothing where no model reads a context."""
    wishes = list(dict.fromkeys(wish for subject in subjects for wish in subject.contexts))
    if not wishes:
        return {}
    told = "1: the model as it is, 0: told nothing, more: further from what it draws untold"
    return {
        "wish": choice("asked for", wishes, wishes[0], "what both are told, by their context"),
        "guidance_a": slider("A: guidance", 1, 0, 8, 1, told),
        "guidance_b": slider("B: guidance", 4, 0, 8, 1, told),
    }


def _compared_code(subjects: tuple[Subject, ...], **values: Any) -> str:
    one, two = subjects[values["subject"]], subjects[values["other"]]
    names = ", ".join(sorted({values["a"], values["b"]}))
    lines = [one.code + f"from nca_lib.samplers import {names}\n"]
    if two is not one:
        lines.append(f'other = nca_lib.load("{two.weights}")')
    if one.contexts or two.contexts:
        lines.insert(0, "from nca_lib.cascade import Guided\n")
    ways = (("a", "model", one), ("b", "model" if two is one else "other", two))
    for name, model, subject in ways:
        if subject.contexts:
            context = f'contexts["{values["wish"]}"]'  # the names that the explorer was given
            model = f"Guided({model}, {context}, {values[f'guidance_{name}']})"
        sampler, calls = values[name], values[f"steps_{name}"]
        lines.append(
            f"{name} = nca_lib.sample(\n    {model}, {subject.size}, sampler={sampler}, "
            f"steps={calls}, seed={values['seed']}\n)"
        )
    return "\n".join(lines)


def _compared(left: SamplerState, right: SamplerState, most: int) -> View:
    a, b = left.clean_estimate[0], right.clean_estimate[0]
    pictures = {"A: clean estimate": a, "B: clean estimate": b}
    words = f"A: {left.step} calls; B: {right.step} calls"
    if a.shape != b.shape:
        return View(pictures, f"{words}. Images of other sizes or channels have no difference.", of=most)
    difference = (a - b).abs().mean(0)
    pictures["difference"] = heat(difference, 1.0)
    error = float((a - b).square().mean().sqrt())
    return View(pictures, f"{words}. Difference (root mean square) {error:.3f}.", of=most)


def size_explorer(
    subject: Subject, shape: Shape = "rectangle", size: tuple[int, int] = (48, 96)
) -> Explorer | HTML:
    """Sample canvases of any height, width and shape from the same weights, watching the clean estimate.

    Args:
        subject: a denoiser that takes all sizes.
        shape: to begin with.
        size: (height, width) to begin with.
    """
    model, channels = subject.model, subject.model.image_channels

    def views(shape: Shape, height: int, width: int, steps: int, seed: int) -> Iterator[View]:
        inside = shape_mask(shape, height, width)
        canvas = None if shape == "rectangle" else shaped_canvas(inside[None, None], channels=channels)
        for state in states(model, (height, width), steps=steps, seed=seed, constraint=canvas):
            clean = state.clean_estimate[0].where(inside, torch.ones(()))
            words = f"Call {state.step}: {width}x{height} cells (width x height)."
            yield View({"clean estimate": clean}, words, of=steps)

    def code(shape: Shape, height: int, width: int, steps: int, seed: int) -> str:
        plain = f"image = nca_lib.sample(\n    model, ({height}, {width}), steps={steps}, seed={seed}"
        if shape == "rectangle":
            return f"{subject.code}{plain}\n)"
        return (
            f"{subject.code}from nca_lib.book.players import shape_mask\n"
            "from nca_lib.editing import shaped_canvas\n\n"
            f'inside = shape_mask("{shape}", {height}, {width})\n'
            f"canvas = shaped_canvas(inside[None, None], channels={channels})\n"
            f"{plain}, constraint=canvas\n)"
        )

    controls = {
        "shape": choice("shape", list(get_args(Shape)), shape, "of the canvas; outside is white"),
        "height": slider("height", size[0], 16, 256, 8, "of the canvas in cells"),
        "width": slider("width", size[1], 16, 256, 8, "of the canvas in cells"),
        "steps": slider("steps", 20, 2, 100, 1, CALLS),
        "seed": slider("seed", 0, 0, 99, 1, SEED),
    }
    return explore(controls, views, f"a sample of {subject.name} on a canvas of a shape", "call", code)


def inpainting_painter(*subjects: Subject) -> Explorer | HTML:
    """Paint a hole into an image, and watch it being filled, beside the truth and what chance would fill in.

    Args:
        subjects: denoisers with images.
    """

    def views(
        subject: int,
        image: int,
        own: bytes,
        hole: Tensor,
        method: Inpainting,
        steps: int,
        jump: int,
        repeats: int,
        seed: int,
    ) -> Iterator[View]:
        chosen = subjects[subject]
        truth = chosen.image(image, own)
        if not hole.any():
            yield View({"the image": truth}, "No hole: nothing to fill, no denoiser call.")
            return
        holed = torch.where(hole, torch.tensor(0.0), truth)
        known = KnownPixels(truth[None], ~hole[None, None], method, jump=jump, repeats=repeats)
        settings: dict[str, Any] = {"sampler": "ddpm", "steps": steps, "seed": seed}
        by_chance = float((chosen.images - truth)[..., hole].square().mean(dim=(1, 2)).sqrt().mean())
        for state in states(chosen.model, chosen.size, constraint=known, **settings):
            filled = torch.where(hole, state.clean_estimate[0], truth)
            error = float((filled - truth)[:, hole].square().mean().sqrt())
            pictures = {"what is known": holed, "filled": filled, "the truth": truth}
            words = f"{state.step} denoiser calls. In the hole, distance to the truth {error:.2f}; of other "
            yield View(pictures, f"{words}images of its kind {by_chance:.2f}.")

    def code(
        subject: int, image: int, own: bytes, hole: Tensor, method: str, jump: int, repeats: int, **rest: int
    ) -> str:
        rows, columns = hole.nonzero(as_tuple=True)
        box = "..., :0, :0" if not len(rows) else f"..., {int(rows.min())}:{int(rows.max()) + 1}, "
        box += "" if not len(rows) else f"{int(columns.min())}:{int(columns.max()) + 1}"
        chosen = subjects[subject]
        return (
            f"{chosen.code}import torch\nfrom nca_lib.editing import inpaint\n"
            f"{chosen.image_code(image, own)}\n"
            "known = torch.ones(1, 1, *image.shape[2:], dtype=torch.bool)\n"
            f"known[{box}] = False  # the hole's box\n"
            f'filled = inpaint(\n    model, image, known, method="{method}", jump={jump},\n'
            f"    repeats={repeats}, steps={rest['steps']}, seed={rest['seed']}\n)"
        )

    height, width = subjects[0].size
    first = torch.zeros(height, width, dtype=torch.bool)
    first[height * 3 // 8 : height * 5 // 8, width // 5 : -(width // 5)] = True

    def brush() -> Brush:
        made = Brush(subjects[0].images[0], label="an image with a hole")
        made.mask = mask_bytes(first)
        return made

    most = min(subject.model.schedule.timesteps for subject in subjects)
    controls = which(subjects) | {
        "image": slider("image", 0, 0, 15, 1, "in which a hole is painted"),
        "method": choice("method", list(get_args(Inpainting)), "repaint", "how known pixels are put back"),
        "steps": slider("steps", 10, 2, min(100, most), 1, "timesteps to visit"),
        "jump": slider("jump", 5, 1, 20, 1, "RePaint: how many steps it goes back"),
        "repeats": slider("repeats", 5, 1, 10, 1, "RePaint: how often it goes each stretch; 1: never back"),
        "seed": slider("seed", 0, 0, 99, 1, SEED),
        "own": upload(),
        "hole": Control("a brush on the image", first, brush),
    }
    made = explore(controls, views, "an image with a hole, and the hole filled", "call", code)
    if isinstance(made, Explorer):
        _paint_on_the_image(made, subjects)
    return made


def _paint_on_the_image(explorer: Explorer, subjects: tuple[Subject, ...]) -> None:
    """The brush shows the image that is chosen."""
    subject, image, own, brush = (explorer.controls[name] for name in ("subject", "image", "own", "hole"))

    def show(_: Any) -> None:
        with contextlib.suppress(NCAError):  # which the panel tells
            brush.show(subjects[subject.value].image(image.value, own.value))

    for control in (subject, image, own):
        control.observe(show, "value")


def growing_player(automaton: GrowingNCA, size: int = 36, steps: int = 240) -> Player | HTML:
    """Watch an automaton grow from the seed and live on; what is painted on it is erased.

    Args:
        automaton: a trained growing automaton.
        size: height and width of the grid.
        steps: of the film in the book; a disc is erased after a third of them.
    """
    if "NCA_LIB_BOOK" not in os.environ:
        return Player(LivingAutomaton(automaton, size))
    views = [View({f"step {k}": picture}) for k, picture in grown_and_damaged(automaton, size, steps)]
    note = "What can be done in the live one (make lab): erase with a brush, pause, restart."
    return film_page(views, "a growing automaton after growth and damage", "moment", note)
