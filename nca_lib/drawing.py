"""`python -m nca_lib sample`, `inpaint`, `upscale` and `vary`: pictures into files (chapters 3 and 6)."""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nca_lib import editing, weights
from nca_lib.canvas import in_bounded_memory
from nca_lib.cascade import Cascade, Guided
from nca_lib.data import files
from nca_lib.data.conditional import WISHES, asked_for
from nca_lib.data.images import MOST_PIXELS
from nca_lib.devices import compile_step, compiler_failed, computes_bf16, device_of, worth_compiling
from nca_lib.diffusion import Denoiser
from nca_lib.errors import UsageError
from nca_lib.experiments.settings import Experiment
from nca_lib.samplers import SAMPLERS, sample, trajectory

INPAINT = "repaint (default) goes back and forth until the hole fits; published passes each level once"
UPSCALE = "ddnm (default) keeps every pixel's mean; published only begins with the small image"


def add_arguments(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the commands to a parser; `positive` reads a count."""
    drawn = commands.add_parser("sample", help="draw images from a trained model")
    drawn.add_argument("model", help=f"a .safetensors file, or one of: {', '.join(weights.names())}")
    drawn.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: what the model learned on)")
    drawn.add_argument("--count", type=positive, help="how many images (default: one of each wish)")
    drawn.add_argument("--sampler", choices=SAMPLERS, default="dpm_solver", help="default dpm_solver")
    drawn.add_argument("--steps", type=positive, default=20, help="denoiser calls (default 20)")
    drawn.add_argument("--seed", type=int, default=0, help="same seed, same picture (default 0)")
    drawn.add_argument("--layout", help="of a cascade: a sketch that stands in for its coarsest level")
    drawn.add_argument("--layout-strength", type=float, default=0.5, help="0 as it is, 1 anew (default 0.5)")
    drawn.add_argument(
        "--ask",
        nargs="+",
        metavar="WISH",
        help="of a model that reads what to draw, what each image shows, in turn: 7, or hair_colour=ginger",
    )
    drawn.add_argument("--guidance", type=float, default=1.0, help="1 as asked (default), more exaggerates")
    drawn.add_argument("--columns", type=positive, help="images per row of the grid")
    drawn.add_argument("--bf16", action="store_true", help="mixed precision: faster, slightly different")
    drawn.add_argument("--out", default="samples.png", help="the picture to write (default samples.png)")
    drawn.add_argument("--force", action="store_true", help="overwrite the file")
    drawn.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    drawn.set_defaults(run=_sample)
    _add_editing(commands, positive)


def _add_editing(commands: Any, positive: Callable[[str], int]) -> None:
    most = f"the most that a file may hold (default {MOST_PIXELS:,})"

    def add(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        told = f"{about}; the image should have the scale that the model was trained at"
        command = commands.add_parser(name, help=about, description=told)
        command.add_argument("image", help="an image file of any size; colours count as 8 bits each")
        command.add_argument("--model", default="tissue-diff-nca", help="default tissue-diff-nca")
        command.add_argument("--steps", type=positive, default=25, help="noise levels (default 25)")
        command.add_argument("--seed", type=int, default=0, help="same seed, same picture (default 0)")
        command.add_argument("--out", default=f"{name}.png", help=f"the file to write (default {name}.png)")
        command.add_argument("--force", action="store_true", help="overwrite the file")
        command.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
        command.add_argument("--max-pixels", type=positive, default=MOST_PIXELS, help=most)
        command.set_defaults(run=run)
        return command

    inpaint = add("inpaint", _inpaint, "fill the white parts of a mask")
    inpaint.add_argument("--mask", required=True, help="an image of the same size; white is filled")
    inpaint.add_argument("--method", choices=["repaint", "published"], default="repaint", help=INPAINT)
    upscale = add("upscale", _upscale, "enlarge, and invent the detail")
    upscale.add_argument("--factor", type=positive, default=4, help="default 4")
    upscale.add_argument("--method", choices=["ddnm", "published"], default="ddnm", help=UPSCALE)
    vary = add("vary", _vary, "draw a relative of an image")
    vary.add_argument("--strength", type=float, default=0.5, help="0 as it is, 1 a new one (default 0.5)")


def _sample(arguments: argparse.Namespace) -> None:
    height, width = _size(arguments.size) if arguments.size else _learned_on(arguments.model)
    arguments.count = arguments.count or len(arguments.ask or [""])
    device = device_of(arguments.device)
    columns = min(arguments.columns or 4, arguments.count)
    size = height, width
    if arguments.count > 1:
        size = files.sheet_size(arguments.count, columns, height, width)
    files.check_output(arguments.out, arguments.force, size=size)
    images = _draw(arguments, (height, width), device)
    picture = files.sheet(images, columns) if len(images) > 1 else images[0]
    files.write(picture, arguments.out, force=arguments.force)
    print(f"{arguments.out}: {arguments.count} image{'s' if arguments.count > 1 else ''} of {width}x{height}")


def _learned_on(model: str) -> tuple[int, int]:
    """The size of a model's training images; of a cascade that at which its coarsest level draws such."""
    described = weights.record(model)
    levels = described.get("levels", [described])
    side: int = Experiment.from_dict(levels[0]["experiment"]).spelt_out()["data"]["size"]
    side *= math.prod(level["experiment"]["context"]["factor"] for level in levels[1:])
    return side, side


def _loaded(arguments: argparse.Namespace, size: tuple[int, int], device: torch.device) -> nn.Module:
    model = weights.load(arguments.model, device)
    kind = weights.record(arguments.model)["experiment"].get("data", {}).get("kind")
    told = [
        f"--{name}" for name, plain in (("ask", None), ("guidance", 1)) if getattr(arguments, name) != plain
    ]
    if told and kind not in WISHES:
        raise UsageError(f"{told[0]}: {arguments.model} reads no wish; digits-by-class does")
    if arguments.layout and not isinstance(model, Cascade):
        raise UsageError(f"--layout: {arguments.model} is no cascade")
    if kind in WISHES and isinstance(model, Denoiser):
        if not math.isfinite(arguments.guidance):
            raise UsageError(f"--guidance: {arguments.guidance} is no strength; 1 as asked, 2 or 4 for more")
        wishes = arguments.ask or [""]  # nothing
        context = asked_for(kind, [wishes[i % len(wishes)] for i in range(arguments.count)], size)
        return Guided(model, context, arguments.guidance)
    if not isinstance(model, Cascade) or not arguments.layout:
        return model
    if not 0 <= arguments.layout_strength <= 1:
        raise UsageError(f"--layout-strength: {arguments.layout_strength:g} is not within 0..1")
    return model.laid_out(files.read(arguments.layout)[0][None], arguments.layout_strength)


def _draw(arguments: argparse.Namespace, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    calls, sampler = arguments.steps, SAMPLERS[arguments.sampler]

    def draw(model: nn.Module) -> torch.Tensor:
        model = in_bounded_memory(model, size, arguments.count)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16 and computes_bf16(device)):
            if not isinstance(model, Denoiser):
                return sample(model, size, count=arguments.count, seed=arguments.seed)
            way = trajectory(
                model, size, count=arguments.count, sampler=sampler, steps=calls, seed=arguments.seed
            )
            first = next(way)  # which ends what cannot be drawn, before anything is said
            said = f"{arguments.model}: denoiser calls by {arguments.sampler}"
            rest = deque(tqdm(way, said, total=calls, initial=1, unit="call"), maxlen=1)
            return (rest.pop() if rest else first).image

    model = _loaded(arguments, size, device)
    if isinstance(model, Denoiser) and worth_compiling(arguments.count * size[0] * size[1] * calls):
        print("compiling first; it takes about half a minute, once", file=sys.stderr)
        compile_step(model, device)
    try:
        return draw(model)
    except Exception as error:
        if said := compiler_failed(error):
            print(f"going on uncompiled: {said}")
        elif isinstance(error, RuntimeError) and "shape" in str(error):
            raise UsageError(
                f"--size: {arguments.model} cannot make {size[1]}x{size[0]} images: {error}"
            ) from error
        else:
            raise
    return draw(_loaded(arguments, size, device))


def _inpaint(arguments: argparse.Namespace) -> None:
    files.check_output(arguments.out, arguments.force)
    known = files.read_mask(
        arguments.mask, *files.read(arguments.image, arguments.max_pixels), arguments.max_pixels
    )

    def fill(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        # Four repeats, not the library's five: 85 calls instead of 105 at the default steps.
        return editing.inpaint(
            model, image, known.to(image.device), method=arguments.method, repeats=4, **options
        )

    _edit(arguments, fill)
    print(f"{arguments.out}: {int((~known).sum()):,} pixels filled")


def _upscale(arguments: argparse.Namespace) -> None:
    def enlarge(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        return editing.upscale(model, image, arguments.factor, method=arguments.method, **options)

    result = _edit(arguments, enlarge, arguments.factor)
    print(f"{arguments.out}: {result.shape[3]}x{result.shape[2]}")


def _vary(arguments: argparse.Namespace) -> None:
    def change(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        return editing.vary(model, image, arguments.strength, **options)

    _edit(arguments, change)
    print(f"{arguments.out}: varied with strength {arguments.strength}")


def _edit(
    arguments: argparse.Namespace, change: Callable[..., torch.Tensor], factor: int = 1
) -> torch.Tensor:
    device = device_of(arguments.device)
    model = weights.load(arguments.model, device)
    if not isinstance(model, Denoiser):
        raise UsageError(f"{arguments.model} is not a diffusion model, which editing needs")

    def changed(image: torch.Tensor) -> torch.Tensor:
        tiled = in_bounded_memory(model, (factor * image.shape[2], factor * image.shape[3]))
        return change(tiled, image.to(device), steps=arguments.steps, seed=arguments.seed)

    return files.edit(
        arguments.image,
        arguments.out,
        changed,
        channels=model.image_channels,
        factor=factor,
        force=arguments.force,
        max_pixels=arguments.max_pixels,
    )


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(f"--size: {text!r} is not WIDTHxHEIGHT, for example 256x256") from None
    if min(width, height) < 2:
        raise UsageError(f"--size: {text} is too small; at least 2x2")
    return height, width
