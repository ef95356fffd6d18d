"""Cascades on disk (chapter 9): a canvas for each scale, whose cells are told the one below it.

The finest canvas holds the next coarser one in its folder, as `below`, and so on. A level is begun when the
one below it is finished, and reads of that one what its windows need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.canvas.tiles import ENDS_AT_BORDER, Span, in_bounded_memory
from nca_lib.cascade import SEEDS, Cascade
from nca_lib.data import files
from nca_lib.devices import computes_bf16
from nca_lib.diffusion import Denoiser
from nca_lib.editing import FromImage
from nca_lib.errors import CanvasError
from nca_lib.noise import CounterNoise
from nca_lib.samplers import SAMPLERS, sample

if TYPE_CHECKING:
    from nca_lib.canvas.outofcore import Canvas, Plan


def level_of(model: Denoiser, level: int) -> Denoiser:
    """What draws a level of a cascade: 0 is the finest, which any other model is too."""
    for _ in range(level):
        model = cast(Cascade, model).below
    return model


def plan_below(plan: Plan, model: Denoiser) -> Plan | None:
    """The plan of the next coarser level; None for what is the coarsest.

    Args:
        plan: of a level.
        model: what draws it.

    Raises:
        CanvasError: the canvas is to wrap, or too small; or a layout is given to a model without levels.
    """
    if not isinstance(model, Cascade):
        if plan.layout and not plan.level:
            raise CanvasError(f"--layout: {plan.model} is no cascade")
        return None
    if plan.wrap:
        raise CanvasError(ENDS_AT_BORDER)
    height, width = (-(-side // model.factor) for side in (plan.height, plan.width))
    if min(height, width) < 2:
        raise CanvasError(f"{plan.width}x{plan.height} is too small: a level would be {width}x{height}")
    return replace(plan, height=height, width=width, seed=plan.seed + SEEDS, level=plan.level + 1)


def context_of(canvas: Canvas, rows: Span, columns: Span) -> Tensor:
    """What a window's cells are told of the finished canvas below: (1, C + 1, h, w).

    Equal to that part of [`coarse_context`][nca_lib.cascade.coarse_context] of the whole, bit for bit where
    the factor is a power of two: a coarse pixel around the window is read, too, which enlarging mixes in.
    """
    model, below = cast(Cascade, canvas.model), cast("Canvas", canvas.below)
    factor, device = model.factor, next(model.parameters()).device
    pairs = list(zip((rows, columns), canvas.size, below.size, strict=True))
    first = [max(span.start // factor - 1, 0) for span, _, _ in pairs]
    last = [min(-(-(span.start + span.size) // factor) + 1, coarse) for span, _, coarse in pairs]
    told = torch.from_numpy(below.finished(slice(first[0], last[0]), slice(first[1], last[1])))[None].to(
        device
    )
    noise = CounterNoise(canvas.plan.seed).at(first[0], first[1])
    y, x = (span.start - factor * at for (span, _, _), at in zip(pairs, first, strict=True))
    return model.context_of(told, noise, (rows.size, columns.size), (y, x))


def layout_of(plan: Plan) -> Tensor:
    """The layout that stands in for the coarsest level, of that level's size: (1, C, height, width)."""
    layout = files.read(str(plan.layout))[0][None]
    return F.interpolate(layout, (plan.height, plan.width), mode="bilinear", antialias=True)


def lay_out(canvas: Canvas, layout: Tensor) -> None:
    """Draw the coarsest level from its layout, in one go: it is small beside the finest."""
    plan, model = canvas.plan, canvas.model
    device = next(model.parameters()).device
    image = layout.to(device)
    if plan.layout_strength > 0:
        begin = FromImage(image, plan.layout_strength, model.schedule.timesteps)
        sampler, low = SAMPLERS[plan.sampler], plan.bf16 and computes_bf16(device)
        tiled = in_bounded_memory(model, canvas.size)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            image = sample(
                tiled, canvas.size, sampler=sampler, steps=plan.steps, seed=plan.seed, constraint=begin
            )
    canvas.image[len(plan.calls) % 2] = image[0].float().cpu().numpy()
    canvas.clock[:] = len(plan.calls)
