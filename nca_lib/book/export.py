"""Models for the reader's browser: one JSON file that `web/engine.js` runs (chapters 1 to 3 and 6).

Weights are rounded to float16 and written as base64. Beside them stand *golden frames*: what PyTorch makes of
the rounded weights from a seed, so that any engine that reads the file can be checked against it.
"""

from __future__ import annotations

import base64
import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nca_lib.automaton import FixedPerception, GrowingNCA, rollout
from nca_lib.cascade import Cascade
from nca_lib.diff_nca import CellNorm, DiffNCA
from nca_lib.diffusion import MLP, Denoiser
from nca_lib.errors import ExportError
from nca_lib.noise import CounterNoise, Purpose, firing_from
from nca_lib.samplers import ddim, sample

GOLDEN_SEED = 7
GOLDEN_STRENGTH = 0.5
GROWING_STEPS = 50
GROWING_SIZE = 24
EVERY = 7  # of the growing automaton's final state, every seventh number is kept
DIFFUSION_SIZE = (12, 16)


def export(model: nn.Module, steps: int = 20) -> dict[str, Any]:
    """A model as JSON-able data: settings, `tensors` (base64 of little-endian float16), `golden` frames.

    Weight normalisation is folded into the weights.

    Args:
        model: a [`GrowingNCA`][nca_lib.automaton.GrowingNCA] with fixed perception, or a
            [`Denoiser`][nca_lib.diffusion.Denoiser] around a [`DiffNCA`][nca_lib.diff_nca.DiffNCA] with
            `position=false`, `norm="cell"`, or around an [`MLP`][nca_lib.diffusion.MLP]; or a
            [`Cascade`][nca_lib.cascade.Cascade] of two such DiffNCAs that is not told its scale.
        steps: denoiser calls of a sample, for the golden frames and as the page's default.

    Raises:
        ExportError: the model is none of these; the message names the setting.
    """
    model = rounded(model)
    if isinstance(model, GrowingNCA):
        return _growing(model)
    if isinstance(model, Cascade):
        return _cascade(model, steps)
    if isinstance(model, Denoiser) and type(model.network) is DiffNCA:
        return _diffusion(model, steps)
    if isinstance(model, Denoiser) and isinstance(model.network, MLP):
        return _dense(model, steps)
    network = type(model.network if isinstance(model, Denoiser) else model).__name__
    raise ExportError(f"{network} does not run in the browser; GrowingNCA, DiffNCA and MLP do")


def rounded(model: nn.Module) -> nn.Module:
    """A copy of a model, in evaluation mode: weight norm folded, weights float32 but rounded to float16."""
    copy = deepcopy(model).cpu().eval()
    modules: list[Any] = [module for module in copy.modules() if parametrize.is_parametrized(module)]
    for module in modules:
        # `remove_parametrizations` would edit the module's class, which a copy shares with the original.
        weight = module.weight.detach()
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.weight = nn.Parameter(weight)
    for parameter in copy.parameters():
        parameter.data = parameter.data.half().float()
    return copy.requires_grad_(False)


def _growing(model: GrowingNCA) -> dict[str, Any]:
    if not isinstance(model.perceive, FixedPerception):
        raise ExportError('perception="learned" does not run in the browser; perception="fixed" does')
    with firing_from(model, CounterNoise(GOLDEN_SEED)), torch.no_grad():
        state = rollout(model, model.seed(GROWING_SIZE), GROWING_STEPS)
    return {
        "kind": "growing-nca",
        "channels": model.channels,
        "hidden": model.widen.out_channels,
        "update_probability": model.update_probability,
        "tensors": _tensors(model),
        "golden": {
            "seed": GOLDEN_SEED,
            "steps": GROWING_STEPS,
            "size": GROWING_SIZE,
            "every": EVERY,
            "state": _base64(state[0].permute(1, 2, 0).flatten()[::EVERY]),
        },
    }


def _diffusion(model: Denoiser, steps: int) -> dict[str, Any]:
    network: Any = model.network
    if network.context_channels:
        raise ExportError(
            "context_channels > 0 does not run in the browser by itself; a cascade of two levels does"
        )
    settings = _settings(model, steps)
    height, width = DIFFUSION_SIZE
    channels, last = network.image_channels, model.schedule.timesteps // 2
    noise = CounterNoise(GOLDEN_SEED)
    start = noise.normal(torch.empty(1, channels, height, width), Purpose.START, 0)
    with firing_from(model, noise), torch.no_grad():
        output = network(start, model.schedule.time(torch.tensor([last])))
    image = sample(model, (height, width), sampler=ddim, steps=steps, seed=GOLDEN_SEED)
    return settings | {
        "golden": {
            "seed": GOLDEN_SEED,
            "size": [height, width],
            "timestep": last,
            "output": _base64(output[0].permute(1, 2, 0)),
            "sample": _base64(image[0].permute(1, 2, 0)),
        },
    }


def _cascade(model: Cascade, steps: int) -> dict[str, Any]:
    if type(model.below.network) is not DiffNCA or isinstance(model.below, Cascade):
        raise ExportError("a cascade of two levels runs in the browser; `join` its coarsest two")
    if model.scale is not None:
        raise ExportError(
            "a level that is told its scale does not run in the browser; "
            "levels that were trained on one scale each do"
        )
    height, width = (-(-side // model.factor) for side in DIFFUSION_SIZE)
    like = torch.empty(1, model.image_channels, height, width)
    layout = CounterNoise(GOLDEN_SEED).normal(like, Purpose.START, 0).clamp(-1, 1)
    laid_out = model.laid_out(layout, GOLDEN_STRENGTH)
    size = (height * model.factor, width * model.factor)  # the engine draws whole blocks
    image = sample(laid_out, size, sampler=ddim, steps=steps, seed=GOLDEN_SEED)
    level = Denoiser(model.network, model.schedule, model.target)
    return {
        "kind": "cascade",
        "image_channels": model.image_channels,
        "factor": model.factor,
        "noise": model.amount,
        "sampler_steps": steps,
        "below": _settings(model.below, steps),
        "level": _settings(level, steps) | {"context_channels": level.network.context_channels},
        "golden": {
            "seed": GOLDEN_SEED,
            "size": [*like.shape[2:]],
            "strength": GOLDEN_STRENGTH,
            "layout": _base64(layout[0].permute(1, 2, 0)),
            "sample": _base64(image[0].permute(1, 2, 0)),
        },
    }


def _settings(model: Denoiser, steps: int) -> dict[str, Any]:
    network: Any = model.network
    cell = network.cell
    if cell.position:
        raise ExportError(
            "position=true does not run in the browser: the rule would differ from cell to cell; "
            "train with position=false"
        )
    if not isinstance(cell.norm, CellNorm):
        raise ExportError('norm="group" does not run in the browser; norm="cell" does')
    return {
        "kind": "diff-nca",
        "channels": network.channels,
        "hidden": cell.widen.out_channels,
        "steps": network.steps,
        "image_channels": network.image_channels,
        "update_probability": network.update_probability,
        "encoding": cell.encoding,
        "target": model.target,
        "alpha_bar": model.schedule.alpha_bar.tolist(),
        "sampler_steps": steps,
        "tensors": _tensors(cell),
    }


def _dense(model: Denoiser, steps: int) -> dict[str, Any]:
    network: Any = model.network
    channels = network.image_channels
    side = math.isqrt(network.layers[-1].out_features // channels)
    image = sample(model, (side, side), steps=steps, seed=GOLDEN_SEED)
    return {
        "kind": "mlp",
        "size": side,
        "image_channels": channels,
        "target": model.target,
        "alpha_bar": model.schedule.alpha_bar.tolist(),
        "sampler_steps": steps,
        "tensors": _tensors(network),
        "golden": {
            "seed": GOLDEN_SEED,
            "size": [side, side],
            "sample": _base64(image[0].permute(1, 2, 0)),
        },
    }


def _tensors(model: nn.Module) -> dict[str, str]:
    return {name: _base64(value.half()) for name, value in model.named_parameters()}


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
