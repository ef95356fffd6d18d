"""Many answers to one question: samples, variations, fillings, enlargements, one seed each (chapter 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.book.film import View
from nca_lib.book.panel import Explorer, choice, explore, slider
from nca_lib.book.subjects import Subject, heat, level_words, states, timestep, which
from nca_lib.editing import FromImage, KnownPixels, LowResolution, enlarge, interpolate
from nca_lib.extras import extra
from nca_lib.samplers import Constraint

with extra("book"):
    from IPython.display import HTML

Task = Literal["sample", "vary", "fill", "enlarge"]
TASKS: tuple[Task, ...] = ("sample", "vary", "fill", "enlarge")


def answers_explorer(*subjects: Subject, task: Task = "vary") -> Explorer | HTML:
    """One question, several seeds: the answers side by side, where they differ, and how far the truth is.

    Args:
        subjects: denoisers with images.
        task: to begin with: a sample, variations of an image from `strength` T on, a hole in the middle
            filled, an image enlarged four times.
    """

    def views(
        subject: int, task: Task, image: int, strength: int, answers: int, steps: int, seed: int
    ) -> Iterator[View]:
        chosen = subjects[subject]
        truth = chosen.images[image % len(chosen.images)]
        constraint, given = _question(task, truth, strength / 100, chosen)
        sampler = "ddim" if task in ("sample", "vary") else "ddpm"
        for state in states(
            chosen.model,
            chosen.size,
            sampler=sampler,
            steps=steps,
            seed=seed,
            count=answers,
            constraint=constraint,
        ):
            found = state.clean_estimate
            if task == "fill":
                found = torch.where(middle_hole(*chosen.size), found, truth)
            spread = found.std(0, correction=0).mean(0)
            pictures = {} if task == "sample" else {"the truth": truth, "what is given": given}
            pictures |= {f"answer {n}": answer for n, answer in enumerate(found, 1)}
            pictures["where they differ"] = heat(spread, 0.8)
            words = level_words(chosen.model.schedule, timestep(chosen.model, state))
            yield View(
                pictures, f"Call {state.step}, {words}. {_distances(task, found, truth, chosen.images)}"
            )

    def code(subject: int, task: Task, image: int, strength: int, answers: int, steps: int, seed: int) -> str:
        begin = subjects[subject].code
        height, width = subjects[subject].size
        many = f"image.expand({answers}, -1, -1, -1)"
        if task == "sample":
            return (
                f"{begin}answers = nca_lib.sample(\n    model, ({height}, {width}), count={answers}, "
                f"steps={steps}, seed={seed}\n)"
            )
        lines = {
            "vary": f"editing.vary(\n    model, {many}, {strength / 100}, steps={steps}, seed={seed}\n)",
            "fill": f"editing.inpaint(\n    model, {many}, known, repeats=2, steps={steps}, seed={seed}\n)",
            "enlarge": f"editing.upscale(\n    model, F.avg_pool2d({many}, 4), 4, "
            f"steps={steps}, seed={seed}\n)",
        }
        needs = {
            "vary": "",
            "enlarge": "import torch.nn.functional as F\n",
            "fill": "from nca_lib.book.edits import middle_hole\n\n"
            f"known = ~middle_hole({height}, {width})[None, None]\n",
        }
        return f"{begin}from nca_lib import editing\n{needs[task]}\nanswers = {lines[task]}"

    controls = which(subjects) | {
        "task": choice("task", list(TASKS), task, "what is asked for"),
        "image": slider("image", 0, 0, 15, 1, "which image is varied, filled or enlarged"),
        "strength": slider("noise, % of T", 60, 1, 100, 1, "vary: how far the image is noised first"),
        "answers": slider("answers", 4, 1, 9, 1, "one seed each"),
        "steps": slider("steps", 15, 2, 60, 1, "timesteps to visit"),
        "seed": slider("seed", 0, 0, 99, 1, "of all noise: the same seed, the same answers"),
    }
    return explore(controls, views, "several answers, and where they differ", "call", code)


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


def _question(
    task: Task, truth: Tensor, strength: float, subject: Subject
) -> tuple[Constraint | None, Tensor]:
    """What a sampler must obey, and the picture of what is given."""
    if task == "vary":
        return FromImage(truth[None], strength, subject.model.schedule.timesteps), truth
    if task == "fill":
        hole = middle_hole(*subject.size)
        known = KnownPixels(truth[None], ~hole[None, None], repeats=2)
        return known, torch.where(hole, torch.tensor(0.0), truth)
    if task == "enlarge":
        low = F.avg_pool2d(truth[None], 4)
        return LowResolution(low, 4), enlarge(low, 4)[0]
    return None, truth


def _distances(task: Task, found: Tensor, truth: Tensor, images: Tensor) -> str:
    """Answers against the truth, and other images of the kind against it: what chance would score."""
    if task == "sample":
        return ""

    def distance(others: Tensor) -> float:
        return float((others - truth).square().mean((1, 2, 3)).sqrt().mean())

    return f"Distance to the truth {distance(found):.2f}; of other images of its kind {distance(images):.2f}."
