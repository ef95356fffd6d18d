"""`python -m nca_lib canvas`: an image of any size as a file that pathologists open (chapter 7)."""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nca_lib import weights
from nca_lib.canvas import formats, outofcore
from nca_lib.canvas.outofcore import Canvas, Plan
from nca_lib.canvas.tiles import sample_region
from nca_lib.data.images import to_pixels
from nca_lib.devices import computes_bf16, device_of, worth_compiling
from nca_lib.errors import CanvasError, OutputError
from nca_lib.files import check_writable, locked, writing
from nca_lib.samplers import SAMPLERS


def add_arguments(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the command to a parser; `positive` reads a count."""
    canvas = commands.add_parser(
        "canvas", help="draw an image of any size, in bounded memory", allow_abbrev=False
    )
    canvas.add_argument("model", help=f"a .safetensors file, or one of: {', '.join(weights.names())}")
    canvas.add_argument("--size", help="WIDTHxHEIGHT in pixels")
    canvas.add_argument(
        "--region",
        help="X,Y,WIDTHxHEIGHT instead: a window of an endless image (--region=-5,... if X is negative)",
    )
    canvas.add_argument("--out", required=True, help="a pyramid, .tiff or .zarr (OME-Zarr), or a .png")
    canvas.add_argument("--tile", type=positive, default=512, help="side of a tile (default 512)")
    canvas.add_argument("--sampler", choices=SAMPLERS, default="dpm_solver", help="default dpm_solver")
    canvas.add_argument("--steps", type=positive, default=20, help="denoiser calls (default 20)")
    canvas.add_argument("--seed", type=int, default=0, help="same seed, same picture as sample (default 0)")
    canvas.add_argument("--wrap", action="store_true", help="opposite borders fit: the image tiles the plane")
    canvas.add_argument("--layout", help="of a cascade: a sketch that stands in for its coarsest level")
    canvas.add_argument("--layout-strength", type=float, default=0.5, help="0 as it is, 1 anew (default 0.5)")
    canvas.add_argument("--workers", type=positive, default=1, help="processes on this machine (default 1)")
    canvas.add_argument("--scheduler", help="tcp://HOST:PORT of a Dask scheduler, instead of --workers")
    canvas.add_argument("--bf16", action="store_true", help="mixed precision, as in sample: faster")
    canvas.add_argument("--mpp", type=float, help="micrometres per pixel, for the file")
    canvas.add_argument("--compression", choices=["jpeg", "deflate"], default="jpeg", help="of a .tiff")
    canvas.add_argument("--ome-zarr", choices=["0.4", "0.5"], default="0.4", help="version (default 0.4)")
    canvas.add_argument("--resume", action="store_true", help="go on with what was stopped")
    canvas.add_argument("--force", action="store_true", help="overwrite the file, begin anew")
    canvas.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    canvas.set_defaults(run=_canvas)


def _canvas(arguments: argparse.Namespace) -> None:
    if (arguments.size is None) == (arguments.region is None):
        raise CanvasError("give --size WIDTHxHEIGHT, or --region X,Y,WIDTHxHEIGHT")
    told = [f"--{name}" for name in ("wrap", "layout", "scheduler", "resume") if getattr(arguments, name)]
    told += ["--workers"] if arguments.workers > 1 else []
    if arguments.region and told:
        raise CanvasError(f"--region is drawn in one go, in memory; it takes no {told[0]}")
    out = Path(arguments.out)
    x, y, width, height = _numbers(arguments)
    if not 0 <= arguments.layout_strength <= 1:
        raise CanvasError(f"--layout-strength: {arguments.layout_strength:g} is not within 0..1")
    if out.suffix not in {".tiff", ".tif", ".zarr", ".png"}:
        raise CanvasError(f"--out: {out.suffix or 'no suffix'} is none of .tiff, .zarr, .png")
    if out.name.endswith((".ome.tiff", ".ome.tif")):
        raise CanvasError(f"--out: {out} would hold no OME-XML; a pyramid is .tiff, or .zarr for OME-Zarr")
    if out.suffix == ".png":
        formats.check_png(height, width)
    if not out.parent.is_dir():
        raise CanvasError(f"--out: the folder {out.parent} does not exist")
    if out.exists() and not arguments.force:
        raise CanvasError(f"{out} exists; add --force to overwrite it, or choose another name")
    check_writable(out if out.suffix != ".zarr" else out.with_name(out.name + ".canvas.json"))
    if arguments.mpp is not None and not 1e-3 <= arguments.mpp <= 1e3:
        raise CanvasError(
            f"--mpp: {arguments.mpp:g} micrometres; a pixel has 0.001 to 1000, on slides about 0.5"
        )
    if arguments.mpp is not None and out.suffix == ".png":
        raise CanvasError("--mpp: a .png does not say how large a pixel is; .tiff and .zarr do")
    device = device_of(None if arguments.scheduler else arguments.device)  # before anything is begun
    if arguments.region:
        low = arguments.bf16 and computes_bf16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            image = sample_region(
                weights.load(arguments.model, device),  # type: ignore[arg-type]
                y,
                x,
                height,
                width,
                arguments.seed,
                sampler=SAMPLERS[arguments.sampler],
                steps=arguments.steps,
                tile=arguments.tile,
            )
        _write(arguments, out, to_pixels(image[0]).numpy())
    else:
        folder = out.with_name(out.name + ".canvas")
        canvas = _begin(arguments, folder, height, width)
        try:
            outofcore.run(
                canvas, workers=arguments.workers, scheduler=arguments.scheduler, progress=_progress()
            )
        except KeyboardInterrupt:
            print(
                f"\nstopped; {folder} holds what is done, the same command with --resume goes on",
                file=sys.stderr,
            )
            raise
        except OSError as error:
            said = error.strerror or error
            raise OutputError(f"{folder}: {said}; it holds what is done, --resume goes on") from error
        print(file=sys.stderr)
        _write(arguments, out, formats.Finished(canvas))
        shutil.rmtree(folder)
    print(f"{out}: {width}x{height}")


def _numbers(arguments: argparse.Namespace) -> tuple[int, int, int, int]:
    text = arguments.region or f"0,0,{arguments.size}"
    found = re.fullmatch(r"(-?\d+),(-?\d+),([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        option = "--region is X,Y,WIDTHxHEIGHT" if arguments.region else "--size is WIDTHxHEIGHT"
        raise CanvasError(f"{arguments.region or arguments.size!r}: {option}, in pixels")
    x, y, width, height = map(int, found.groups())
    return x, y, width, height


def _begin(arguments: argparse.Namespace, folder: Path, height: int, width: int) -> Canvas:
    plan = Plan(
        model=arguments.model,
        height=height,
        width=width,
        tile=arguments.tile,
        sampler=arguments.sampler,
        steps=arguments.steps,
        seed=arguments.seed,
        wrap=arguments.wrap,
        compiled=worth_compiling(height * width * arguments.steps),
        device=arguments.device,
        bf16=arguments.bf16,
        layout=arguments.layout and str(Path(arguments.layout).resolve()),
        layout_strength=arguments.layout_strength,
    )
    if arguments.resume and (folder / "plan.json").exists():
        canvas = Canvas(folder)
        if canvas.plan != plan:
            differing = [key for key, value in vars(plan).items() if vars(canvas.plan).get(key) != value]
            raise CanvasError(f"{folder} was begun with another {', '.join(differing)}; --force begins anew")
        return canvas
    if folder.exists() and not (arguments.force or arguments.resume):
        raise CanvasError(f"{folder} is a canvas that was stopped; --resume goes on, --force begins anew")
    if folder.exists():
        with locked(folder / "lock"):
            shutil.rmtree(folder)
    # The pyramid's levels are together 4/3 of the picture, and a TIFF is made of them.
    return outofcore.create(folder, plan, spare=math.ceil(2 * 3 * height * width * 4 / 3))


def _progress() -> outofcore.Progress:
    start = time.monotonic()

    def tell(made: float, total: float) -> None:
        speed = made / (time.monotonic() - start)
        left = max(total - made, 0) / speed / 60
        line = f"\r{made:.2f} of {total:.2f} megapixels, {speed:.3f} a second, {left:.0f} minutes left  "
        print(line, end="", file=sys.stderr, flush=True)

    return tell


def _write(arguments: argparse.Namespace, out: Path, picture: formats.Picture) -> None:
    """Write the file beside its place first, so that none that is half written looks finished."""
    partial, pyramid = out.with_name(f"{out.stem}.partial{out.suffix}"), out.with_name(out.name + ".levels")
    with writing(out):
        try:
            _write_beside(arguments, out, partial, pyramid, picture)
        except BaseException:
            if not partial.is_dir():
                partial.unlink(missing_ok=True)
            for folder in (partial, pyramid):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if out.is_dir():
            shutil.rmtree(out)
        elif out.suffix == ".zarr":  # a folder does not replace a file
            out.unlink(missing_ok=True)
        partial.replace(out)


def _write_beside(
    arguments: argparse.Namespace, out: Path, partial: Path, pyramid: Path, picture: formats.Picture
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    if out.suffix == ".png":
        formats.write_png(partial, picture)
    elif out.suffix == ".zarr":
        version = arguments.ome_zarr
        formats.write_pyramid(partial, picture, name=out.name, mpp=arguments.mpp, version=version)
    else:
        shutil.rmtree(pyramid, ignore_errors=True)
        levels = formats.write_pyramid(pyramid, picture)
        formats.write_tiff(partial, levels, mpp=arguments.mpp, compression=arguments.compression)
        shutil.rmtree(pyramid)
