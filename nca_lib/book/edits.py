"""Many answers to one question: samples, variations, fillings, enlargements, one seed each (chapter 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.book.film import View
from nca_lib.book.panel import Explorer, choice, explore, slider, upload
from nca_lib.book.subjects import Subject, heat, level_words, states, which
from nca_lib.editing import FromImage, KnownPixels, LowResolution, enlarge, interpolate
from nca_lib.extras import extra
from nca_lib.samplers import Constraint, Sampler, ddim

with extra("book"):
    from IPython.display import HTML

Task = Literal["sample", "vary", "fill", "enlarge"]
TASKS: tuple[Task, ...] = ("sample", "vary", "fill", "enlarge")


@dataclass(frozen=True)
class _Asked:
    """The controls' values: what is asked, of which image."""

    task: Task
    image: int
    own: bytes
    strength: int
    eta: int
    jump: int
    repeats: int
    answers: int
    steps: int
    seed: int

    @property
    def sampler(self) -> Sampler:
        return partial(ddim, eta=self.eta / 100)

    @property
    def settings(self) -> str:
        """Sampler, steps and seed, as arguments in code."""
        return f"sampler=partial(ddim, eta={self.eta / 100}), steps={self.steps}, seed={self.seed}"


def answers_explorer(*subjects: Subject, task: Task = "vary") -> Explorer | HTML:
    """One question, several seeds: the answers side by side, where they differ, and how far the truth is.

    Args:
        subjects: denoisers with images.
        task: to begin with: a sample, variations of an image from `strength` T on, a hole in the middle
            filled, an image enlarged four times.
    """

    def views(subject: int, **values: Any) -> Iterator[View]:
        chosen, asked = subjects[subject], _Asked(**values)
        truth = chosen.image(asked.image, asked.own)
        constraint, given = _question(asked, truth, chosen)
        everywhere = torch.ones(chosen.size, dtype=torch.bool)
        way = states(
            chosen.model,
            chosen.size,
            sampler=asked.sampler,
            steps=asked.steps,
            seed=asked.seed,
            count=asked.answers,
            constraint=constraint,
        )
        for state in way:
            found = state.clean_estimate
            if asked.task == "fill":
                found = torch.where(middle_hole(*chosen.size), found, truth)
            spread = found.std(0, correction=0).mean(0)
            pictures = {} if asked.task == "sample" else {"the truth": truth, "what is given": given}
            pictures |= {f"answer {n}": answer for n, answer in enumerate(found, 1)}
            pictures["where they differ"] = heat(spread, 0.8)
            level = level_words(chosen.model.schedule, state.timestep)
            asked_for = middle_hole(*chosen.size) if asked.task == "fill" else everywhere
            distances = "" if asked.task == "sample" else _distances(found, truth, chosen.images, asked_for)
            yield View(pictures, f"Call {state.step}, {level}. {distances}")

    def code(subject: int, **values: Any) -> str:
        return _code(subjects[subject], _Asked(**values))

    controls = which(subjects) | {
        "task": choice("task", list(TASKS), task, "what is asked for"),
        "image": slider("image", 0, 0, 15, 1, "which image is varied, filled or enlarged"),
        "strength": slider("noise, % of T", 60, 1, 100, 1, "vary: how far the image is noised first"),
        "eta": slider(
            "eta, %",
            0 if task in ("sample", "vary") else 100,
            0,
            100,
            5,
            "fresh noise at each step: 0 is DDIM, 100 is DDPM, with which filling and enlarging do best",
        ),
        "jump": slider("jump", 5, 1, 20, 1, "fill: how many steps RePaint goes back"),
        "repeats": slider("repeats", 2, 1, 10, 1, "fill: how often RePaint goes each stretch; 1: never back"),
        "answers": slider("answers", 4, 1, 9, 1, "one seed each"),
        "steps": slider("steps", 15, 2, 60, 1, "timesteps to visit"),
        "seed": slider("seed", 0, 0, 99, 1, "of all noise: the same seed, the same answers"),
        "own": upload(),
    }
    return explore(controls, views, "several answers, and where they differ", "call", code)


def _code(subject: Subject, asked: _Asked) -> str:
    begin = f"from functools import partial\n\n{subject.code}from nca_lib.samplers import ddim\n"
    (height, width), settings, many = (
        subject.size,
        asked.settings,
        f"image.expand({asked.answers}, -1, -1, -1)",
    )
    if asked.task == "sample":
        return (
            f"{begin}\nanswers = nca_lib.sample(\n    model, ({height}, {width}), count={asked.answers},\n"
            f"    {settings}\n)"
        )
    lines = {
        "vary": f"editing.vary(\n    model, {many}, {asked.strength / 100},\n    {settings}\n)",
        "fill": f"editing.inpaint(\n    model, {many}, known, jump={asked.jump},\n"
        f"    repeats={asked.repeats}, {settings}\n)",
        "enlarge": f"editing.upscale(\n    model, F.avg_pool2d({many}, 4), 4,\n    {settings}\n)",
    }
    needs = {
        "vary": "",
        "enlarge": "import torch.nn.functional as F\n",
        "fill": "from nca_lib.book.edits import middle_hole\n\n"
        f"known = ~middle_hole({height}, {width})[None, None]\n",
    }
    image = subject.image_code(asked.image, asked.own)
    return f"{begin}from nca_lib import editing\n{image}{needs[asked.task]}\nanswers = {lines[asked.task]}"


def walk_explorer(*subjects: Subject) -> Explorer | HTML:
    """A walk from one sample to another: all noise is interpolated.

    Args:
        subjects: what may be sampled.
    """

    def views(subject: int, first: int, second: int, count: int, steps: int) -> Iterator[View]:
        chosen = subjects[subject]
        images = interpolate(chosen.model, (first, second), count, chosen.size, steps=steps)
        for number, image in enumerate(images):
            part = number / (count - 1)
            yield View(
                {"sample": image}, f"{part:.0%} of the way from seed {first} to seed {second}.", of=count
            )

    def code(subject: int, first: int, second: int, count: int, steps: int) -> str:
        return (
            f"{subjects[subject].code}from nca_lib.editing import interpolate\n\nimages = interpolate(\n"
            f"    model, ({first}, {second}), {count}, {subjects[subject].size}, steps={steps}\n)"
        )

    controls = which(subjects) | {
        "first": slider("first seed", 0, 0, 99, 1, "where the walk begins"),
        "second": slider("second seed", 1, 0, 99, 1, "where it ends"),
        "count": slider("images", 9, 2, 20, 1, "both ends included"),
        "steps": slider("steps", 12, 2, 50, 1, "denoiser calls"),
    }
    return explore(controls, views, "a walk between two samples", "image", code)


def middle_hole(height: int, width: int) -> Tensor:
    """The hole that `fill` fills: (height, width) bool, True in the middle half of the middle half."""
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    return hole


def _question(asked: _Asked, truth: Tensor, subject: Subject) -> tuple[Constraint | None, Tensor]:
    """What a sampler must obey, and the picture of what is given."""
    if asked.task == "vary":
        return FromImage(truth[None], asked.strength / 100, subject.model.schedule.timesteps), truth
    if asked.task == "fill":
        hole = middle_hole(*subject.size)
        known = KnownPixels(truth[None], ~hole[None, None], jump=asked.jump, repeats=asked.repeats)
        return known, torch.where(hole, torch.tensor(0.0), truth)
    if asked.task == "enlarge":
        low = F.avg_pool2d(truth[None], 4)
        return LowResolution(low, 4), enlarge(low, 4)[0]
    return None, truth


def _distances(found: Tensor, truth: Tensor, images: Tensor, where: Tensor) -> str:
    """Answers against the truth, and other images of the kind against it: what chance would score."""

    def distance(others: Tensor) -> float:
        return float((others - truth)[..., where].square().mean((1, 2)).sqrt().mean())

    return f"Distance to the truth {distance(found):.2f}; of other images of its kind {distance(images):.2f}."
