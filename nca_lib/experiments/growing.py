"""What a growing automaton learns: to draw a picture, to keep it, to mend it (chapter 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

from nca_lib.automaton import GrowingNCA, SamplePool, damage, rollout, to_rgb
from nca_lib.data.images import opened, to_float, whole
from nca_lib.devices import forked_random
from nca_lib.errors import DataError, ExperimentError
from nca_lib.experiments.parallel import PartNoise, parts
from nca_lib.experiments.settings import Experiment
from nca_lib.noise import firing_from
from nca_lib.processes import gathered


def picture(source: str, size: int) -> Tensor:
    """A target for growing: (4, size, size) in [0, 1], RGB premultiplied by opacity, with a margin.

    `source` is `"ladybird"`, or the path of an image (RGBA, or its white background stays).

    Raises:
        DataError: neither a built-in picture nor a readable image.
    """
    inner = size * 4 // 5
    if source == "ladybird":
        drawing = _ladybird()
    else:
        try:
            with opened(Path(source)) as image:
                drawing = whole(image).convert("RGBA")
        except DataError as error:
            raise DataError(f"growing.picture: neither 'ladybird' nor an image: {error}") from error
    drawing.thumbnail((inner, inner), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    rgba = to_float(canvas) / 2 + 0.5
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])


def _ladybird() -> Image.Image:
    image = Image.new("RGBA", (640, 640))
    draw = ImageDraw.Draw(image)
    black, red, dark, white = "#221d1d", "#e2382c", "#8f1a1c", "#f7f3ea"
    for knee, foot in (((215, 285), (95, 215)), ((185, 390), (60, 400)), ((215, 490), (100, 585))):
        for flip in (False, True):
            points = [(640 - x if flip else x, y) for x, y in ((300, knee[1] + 30), knee, foot)]
            draw.line(points, fill=black, width=34, joint="curve")
            draw.ellipse(
                [points[-1][0] - 17, points[-1][1] - 17, points[-1][0] + 17, points[-1][1] + 17], black
            )
    for x, tip in ((260, 185), (380, 455)):
        draw.line([(x, 130), (tip, 30)], fill=black, width=26)
        draw.ellipse([tip - 26, 8, tip + 26, 60], black)
    draw.ellipse([200, 80, 440, 300], black)
    draw.ellipse([222, 130, 280, 190], white)
    draw.ellipse([360, 130, 418, 190], white)
    draw.ellipse([130, 190, 510, 620], dark)
    draw.ellipse([146, 200, 494, 604], red)
    draw.rectangle([310, 200, 330, 606], black)
    draw.pieslice([180, 180, 460, 330], 180, 360, black)
    for x, y, r in ((235, 330, 42), (210, 455, 38), (265, 535, 30)):
        draw.ellipse([x - r, y - r, x + r, y + r], black)
        draw.ellipse([640 - x - r, y - r, 640 - x + r, y + r], black)
    shine = Image.new("RGBA", image.size)
    ImageDraw.Draw(shine).ellipse([175, 250, 255, 300], "#ffffff70")
    return Image.alpha_composite(image, shine.filter(ImageFilter.GaussianBlur(12)))


class GrowingTask:
    """Learn to grow a picture from one cell, to keep it, to mend it (Mordvintsev et al. 2020)."""

    model: GrowingNCA

    def __init__(self, experiment: Experiment, device: torch.device):
        self.model = experiment.build_model().to(device)  # type: ignore[assignment]
        self.options, self.batch = experiment.growing, experiment.training.batch
        if experiment.training.accumulate > 1:
            raise ExperimentError("training.accumulate: a growing automaton's batch is taken as a whole, 1")
        self.parts = parts(experiment.training)
        self.part = self.parts[0]
        self.target = picture(self.options.picture, self.options.size)[None].to(device)
        self.pool = SamplePool(self.model.seed(self.options.size), self.options.pool)
        self.fingerprint = str(round(float(self.target.sum()), 3))

    def start(self, step: int) -> None:
        """Nothing to position."""

    def stop(self) -> None:
        """Nothing to end."""

    def _distance(self, state: Tensor) -> Tensor:
        return (state[:, :4] - self.target).square().mean(dim=(1, 2, 3))

    def loss(self) -> Tensor:
        """Mean squared error of the picture after a rollout of random length."""
        indices, state = self.pool.sample(self.batch)
        if self.options.regime == "grow":
            state = self.model.seed(self.options.size, self.batch)
        else:
            # The worst state gives way to a seed, so that growing is never forgotten; the best are damaged.
            order = self._distance(state).argsort(descending=True)
            indices, state = indices[order], state[order]
            state[:1] = self.model.seed(self.options.size)
            if self.options.regime == "regenerate" and self.batch > 1:  # a seed alone is left whole
                hurt = max(1, self.batch * 3 // 8)  # three of eight, as published
                state[-hurt:] = self._damaged(state[-hurt:])
        steps = int(torch.randint(self.options.min_rollout, self.options.max_rollout + 1, (1,)))
        with firing_from(self.model, PartNoise(self.part)):
            state = rollout(self.model, self.part.of(state), steps)
        self.pool.replace(indices, gathered(state.detach()))
        return self._distance(state).mean()

    def read_ahead(self) -> None:
        """Nothing to read."""

    def _damaged(self, state: Tensor) -> Tensor:
        size = self.options.size
        centres = size / 4 + torch.rand(len(state), 2) * size / 2
        centres = centres.to(state.device, non_blocking=True)
        return damage(state, centres, radius=size * float(0.1 + 0.1 * torch.rand(1)))

    def evaluate(self, model: nn.Module) -> float:
        """Error after growing from the seed for `max_rollout` steps, mean of eight."""
        with forked_random(self.target.device), torch.no_grad():
            torch.manual_seed(0)
            return float(self._distance(self._grown(model, self.options.max_rollout)).mean())

    def _grown(self, model: nn.Module, steps: int) -> Tensor:
        return rollout(model, self.model.seed(self.options.size, 8), steps)

    def preview(self, model: nn.Module) -> Tensor:
        """Eight grown pictures after twice the longest rollout: those that do not persist have decayed."""
        with forked_random(self.target.device), torch.no_grad():
            torch.manual_seed(0)
            return to_rgb(self._grown(model, 2 * self.options.max_rollout))

    def state(self) -> dict[str, Tensor]:
        """The pool."""
        return {"pool": self.pool.states}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the pool back."""
        self.pool.states = state["pool"].to(self.target.device)
