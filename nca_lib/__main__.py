"""The command line: `python -m nca_lib COMMAND`.

Commands: train, show, cost, run, evaluate, sample, canvas, inpaint, upscale, vary, join, export-web, models.
A wrong argument ends with exit status 2 and one line that says what would be right.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tomllib
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nca_lib import weights
from nca_lib.canvas import TiledDenoiser
from nca_lib.canvas import command as canvas
from nca_lib.cascade import Cascade
from nca_lib.data.images import MOST_PIXELS
from nca_lib.diffusion import Denoiser
from nca_lib.errors import NCAError, ParallelError, UsageError
from nca_lib.evaluation import command as evaluation
from nca_lib.experiments import files, settings
from nca_lib.experiments.settings import Experiment
from nca_lib.files import check_writable, write_atomically
from nca_lib.memory import out_of_memory
from nca_lib.processes import leads, processes
from nca_lib.samplers import SAMPLERS

FEW = 5_000  # images, after which a model's samples still look like its noise or like blotches


def _train(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    from nca_lib.experiments import checkpoints
    from nca_lib.experiments.training import train

    overrides = _overrides(extra)
    if arguments.minutes is not None:
        overrides["training.minutes"] = arguments.minutes
    experiment = Experiment.read(arguments.experiment, overrides)
    folder = Path(arguments.out or Path("runs") / experiment.name)
    resume, anyway = arguments.resume or arguments.resume_anyway, arguments.resume_anyway
    if checkpoints.newest(folder) and not resume:
        raise UsageError(f"{folder} holds a run already; add --resume to go on, or choose another --out")
    train(experiment, folder, resume=resume, resume_anyway=anyway, device=arguments.device)
    if leads():
        _say_what_came_of_it(folder)


def _say_what_came_of_it(folder: Path) -> None:
    model = folder / "model.safetensors"
    record = weights.record(model)
    experiment, steps = record["experiment"], record["steps"]
    images = steps * experiment["training"]["batch"]
    print(f"{model}: {steps:,} steps, {images:,} images, held-out loss {record['held_out_loss']:.3f}")
    if (samples := folder / f"samples-{steps:07d}.png").is_file():  # not where nothing was to be trained
        print(f"  samples  {samples}")
    if experiment["model"]["kind"] == "growing-nca":
        return
    if images < FEW:
        print(f"  too few  samples show something after {FEW:,} images: --resume with a larger budget")
    size = experiment["data"].get("size")
    of_size = f" --size {size}x{size}" if size else ""
    print(f"  draw     python -m nca_lib sample {model}{of_size} --count 4 --out {folder / 'drawn.png'}")
    print(f"  measure  python -m nca_lib evaluate {model}")


def _run(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    from nca_lib.evaluation.metrics import measurements
    from nca_lib.experiments import matrix

    chosen = matrix.read(arguments.matrix, arguments.minutes)
    rows = matrix.run(
        chosen, arguments.out, arguments.table, only=arguments.only or (), device=arguments.device
    )
    if not leads():
        return
    for row in rows:
        if "diverged" in row:
            print(f"{row['name']:28} diverged at {row['diverged']}")
            continue
        found = measurements(row["metrics"]) if "metrics" in row else {}
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        print(
            f"{row['name']:28} {row['parameters']:10,} parameters, {row['images_seen']:9,} images: {numbers}"
        )
    print(f"{arguments.table}: {len(rows)} rows of {chosen.name}")


def _no_more(extra: Sequence[str]) -> None:
    if extra:
        raise UsageError(f"{extra[0]!r}: unknown argument")


def _overrides(extra: Sequence[str]) -> dict[str, Any]:
    """`--training.steps 100 --model.position=false` as a dictionary; values are read as TOML."""
    overrides: dict[str, Any] = {}
    words = list(extra)
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not key.startswith("--"):
            raise UsageError(f"{key!r}: unexpected; override experiment keys as --section.key value")
        if not equals:
            if not words:
                raise UsageError(f"{key}: needs a value")
            value = words.pop(0)
        try:
            overrides[key[2:]] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key[2:]] = value
    return overrides


def _sample(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    from nca_lib.data.files import check_output, sheet, write
    from nca_lib.devices import device_of

    height, width = _size(arguments.size)
    device = device_of(arguments.device)
    check_output(arguments.out, arguments.force)
    model = weights.load(arguments.model, device)
    if arguments.layout:
        model = _laid_out(arguments, model)
    images = _draw(arguments, model, (height, width), device)
    picture = sheet(images, min(arguments.columns or 4, arguments.count)) if len(images) > 1 else images[0]
    write(picture, arguments.out, force=arguments.force)
    print(f"{arguments.out}: {arguments.count} image{'s' if arguments.count > 1 else ''} of {width}x{height}")


def _laid_out(arguments: argparse.Namespace, model: nn.Module) -> nn.Module:
    from nca_lib.data.files import read

    if not isinstance(model, Cascade):
        raise UsageError(f"--layout: {arguments.model} is no cascade")
    if not 0 <= arguments.layout_strength <= 1:
        raise UsageError(f"--layout-strength: {arguments.layout_strength:g} is not within 0..1")
    return model.laid_out(read(arguments.layout)[0][None], arguments.layout_strength)


def _join(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    out = Path(arguments.out)
    if out.exists() and not arguments.force:
        raise UsageError(f"{out} exists; add --force to overwrite it, or choose another name")
    weights.join(arguments.levels, out)
    print(f"{out}: a cascade of {len(arguments.levels)} levels; try  python -m nca_lib sample {out}")


def _draw(
    arguments: argparse.Namespace, model: nn.Module, size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    from nca_lib.devices import compile_step, compiler_failed, computes_bf16, worth_compiling
    from nca_lib.samplers import sample, trajectory

    calls, sampler = arguments.steps, SAMPLERS[arguments.sampler]

    def draw(model: nn.Module) -> torch.Tensor:
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

    if isinstance(model, Denoiser):
        many = arguments.count * size[0] * size[1] * calls
        if worth_compiling(many):
            print("compiling first; it takes about half a minute, once", file=sys.stderr)
            compile_step(model, device)
    if isinstance(model, Cascade) and size[0] * size[1] > 1024**2:
        model = TiledDenoiser(model, tile=512)  # equal bit for bit, in less memory
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
    return draw(weights.load(arguments.model, device))


def _inpaint(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    from nca_lib import editing
    from nca_lib.data import files as images

    images.check_output(arguments.out, arguments.force)
    known = images.read_mask(
        arguments.mask, *images.read(arguments.image, arguments.max_pixels), arguments.max_pixels
    )

    def fill(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        # Four repeats, not the library's five: 85 calls instead of 105 at the default steps.
        return editing.inpaint(
            model, image, known.to(image.device), method=arguments.method, repeats=4, **options
        )

    _edit(arguments, extra, fill)
    print(f"{arguments.out}: {int((~known).sum()):,} pixels filled")


def _upscale(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    from nca_lib import editing

    def enlarge(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        return editing.upscale(model, image, arguments.factor, method=arguments.method, **options)

    result = _edit(arguments, extra, enlarge)
    print(f"{arguments.out}: {result.shape[3]}x{result.shape[2]}")


def _vary(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    from nca_lib import editing

    def change(model: Denoiser, image: torch.Tensor, **options: Any) -> torch.Tensor:
        return editing.vary(model, image, arguments.strength, **options)

    _edit(arguments, extra, change)
    print(f"{arguments.out}: varied with strength {arguments.strength}")


def _edit(
    arguments: argparse.Namespace, extra: Sequence[str], change: Callable[..., torch.Tensor]
) -> torch.Tensor:
    _no_more(extra)
    from nca_lib.data import files as images
    from nca_lib.devices import device_of

    device = device_of(arguments.device)
    model = weights.load(arguments.model, device)
    if not isinstance(model, Denoiser):
        raise UsageError(f"{arguments.model} is not a diffusion model, which editing needs")
    return images.edit(
        arguments.image,
        arguments.out,
        lambda image: change(model, image.to(device), steps=arguments.steps, seed=arguments.seed),
        channels=model.image_channels,
        force=arguments.force,
        max_pixels=arguments.max_pixels,
    )


def _export_web(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    from nca_lib.book.export import export

    out = Path(arguments.out or f"{Path(arguments.model).stem}.web.json")
    if out.exists() and not arguments.force:
        raise UsageError(f"{out} exists; add --force to overwrite it, or choose another name")
    check_writable(out)
    text = json.dumps(export(weights.load(arguments.model)), separators=(",", ":"))
    write_atomically(out, text.encode())
    print(f"{out}: {len(text) / 1000:.0f} kB")


def _show(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    from nca_lib.experiments.show import show

    print(show(arguments.experiment, shutil.get_terminal_size((120, 24)).columns))


def _cost(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    from nca_lib.experiments.cost import device_named, predict, table

    device, overrides = device_named(arguments.device), _overrides(extra)
    if arguments.price is not None:
        device = replace(
            device, dollars=arguments.price, basis=f"{device.basis}; here ${arguments.price:.2f}"
        )
    print(table([predict(Experiment.read(name, overrides), device) for name in arguments.experiments]))


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(f"--size: {text!r} is not WIDTHxHEIGHT, for example 256x256") from None
    if min(width, height) < 2:
        raise UsageError(f"--size: {text} is too small; at least 2x2")
    return height, width


def _models(arguments: argparse.Namespace, extra: Sequence[str]) -> None:
    _no_more(extra)
    print(f"{'name':24} {'kind':16} {'parameters':>10} {'data':10} {'steps':>7} {'minutes':>7}  hardware")
    for name in weights.names():
        record = weights.record(name)
        experiment = record["experiment"]
        kind = "cascade" if "levels" in record else experiment["model"]["kind"]
        data = experiment["growing"]["picture"] if kind == "growing-nca" else experiment["data"]["kind"]
        print(
            f"{name:24} {kind:16} {record['parameters']:10,} {data:10} {record['steps']:7,} "
            f"{record['training_seconds'] / 60:7.1f}  {record['hardware']}"
        )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nca_lib", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command")

    keys = "\n".join(
        f"  --{key} {values}\n      {meaning}" for key, (values, meaning) in settings.fields().items()
    )
    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="run an experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"any key of the experiment can be overridden:\n  --model.KEY, --data.KEY\n{keys}",
    )
    train.add_argument("experiment", help=f"a .toml file, or one of: {', '.join(files.names())}")
    train.add_argument("--out", help="folder of the run (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument("--resume-anyway", action="store_true", help="even with other settings (recorded)")
    train.add_argument("--minutes", type=float, help="stop by the clock, the learning rate scaled to it")
    train.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    train.set_defaults(run=_train)

    show = commands.add_parser(
        "show", help="what an experiment comes to: key, value, where it is set, meaning"
    )
    show.add_argument("experiment", help=f"a .toml file, MATRIX/ENTRY, or one of: {', '.join(files.names())}")
    show.set_defaults(run=_show)

    cost = commands.add_parser("cost", help="what training would cost on a device: predicted, not measured")
    cost.add_argument(
        "experiments", nargs="+", metavar="experiment", help="as for train; several give a table"
    )
    cost.add_argument("--device", default="h100", help="h100, a100, l4, t4, or here: this CPU (default h100)")
    cost.add_argument("--price", type=float, help="dollars an hour, instead of what is assumed")
    cost.set_defaults(run=_cost)

    run = commands.add_parser("run", help="train and evaluate a matrix of experiments, what is not yet done")
    run.add_argument("matrix", help=f"a .toml file, or one of: {', '.join(files.matrices())}")
    run.add_argument("--minutes", type=float, help="train each entry for this long")
    run.add_argument("--only", nargs="+", metavar="ENTRY", help="run these entries only")
    run.add_argument("--out", default="runs", help="each entry trains in OUT/NAME (default runs)")
    run.add_argument("--table", default="runs/results.jsonl", help="JSON lines to append to")
    run.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    run.set_defaults(run=_run)

    evaluation.add_arguments(commands, _positive, _overrides)

    sample = commands.add_parser("sample", help="draw images from a trained model")
    sample.add_argument("model", help=f"a .safetensors file, or one of: {', '.join(weights.names())}")
    sample.add_argument("--size", default="64x64", help="WIDTHxHEIGHT in pixels (default 64x64)")
    sample.add_argument("--count", type=_positive, default=1, help="how many images (default 1)")
    sample.add_argument("--sampler", choices=SAMPLERS, default="dpm_solver", help="default dpm_solver")
    sample.add_argument("--steps", type=_positive, default=20, help="denoiser calls (default 20)")
    sample.add_argument("--seed", type=int, default=0, help="same seed, same picture (default 0)")
    sample.add_argument("--layout", help="of a cascade: a sketch that stands in for its coarsest level")
    sample.add_argument("--layout-strength", type=float, default=0.5, help="0 as it is, 1 anew (default 0.5)")
    sample.add_argument("--columns", type=_positive, help="images per row of the grid")
    sample.add_argument("--bf16", action="store_true", help="mixed precision: faster, slightly different")
    sample.add_argument("--out", default="samples.png", help="the picture to write (default samples.png)")
    sample.add_argument("--force", action="store_true", help="overwrite the file")
    sample.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    sample.set_defaults(run=_sample)

    canvas.add_arguments(commands, _positive)
    _add_editing(commands)

    join = commands.add_parser("join", help="make a cascade of models that were trained as its levels")
    join.add_argument("levels", nargs="+", help="weights, the coarsest first")
    join.add_argument("--out", required=True, help="the file to write, .safetensors")
    join.add_argument("--force", action="store_true", help="overwrite the file")
    join.set_defaults(run=_join)

    export = commands.add_parser("export-web", help="write a model as JSON that runs in a browser")
    export.add_argument("model", help=f"a .safetensors file, or one of: {', '.join(weights.names())}")
    export.add_argument("--out", help="the file to write (default NAME.web.json)")
    export.add_argument("--force", action="store_true", help="overwrite the file")
    export.set_defaults(run=_export_web)

    models = commands.add_parser("models", help="the weights that ship with the library")
    models.set_defaults(run=_models)
    return parser


def _add_editing(commands: Any) -> None:
    def add(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about)
        command.add_argument("image", help="an image file of any size and mode")
        command.add_argument("--model", default="tissue-diff-nca", help="default tissue-diff-nca")
        command.add_argument("--steps", type=_positive, default=25, help="noise levels (default 25)")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", default=f"{name}.png", help=f"the file to write (default {name}.png)")
        command.add_argument("--force", action="store_true", help="overwrite the file")
        command.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
        command.add_argument("--max-pixels", type=_positive, default=MOST_PIXELS, help="of an image file")
        command.set_defaults(run=run)
        return command

    inpaint = add("inpaint", _inpaint, "fill the white parts of a mask")
    inpaint.add_argument("--mask", required=True, help="an image of the same size; white is filled")
    inpaint.add_argument("--method", choices=["repaint", "published"], default="repaint")
    upscale = add("upscale", _upscale, "enlarge, and invent the detail")
    upscale.add_argument("--factor", type=_positive, default=4, help="default 4")
    upscale.add_argument("--method", choices=["ddnm", "published"], default="ddnm")
    vary = add("vary", _vary, "draw a relative of an image")
    vary.add_argument("--strength", type=float, default=0.5, help="0 the image itself, 1 a new one")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.error(
            "which command? For a first picture: python -m nca_lib sample tissue-diff-nca; "
            "for all of them: python -m nca_lib --help"
        )
    try:
        with processes():
            arguments.run(arguments, extra)
    except NCAError as error:
        print(f"nca_lib {arguments.command}: {error}", file=sys.stderr)
        return 1 if isinstance(error, ParallelError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if not (said := out_of_memory(error)):
            return _report(arguments.command)
        print(f"nca_lib {arguments.command}: {said}", file=sys.stderr)
        return 2
    return 0


def _report(command: str) -> int:
    traceback.print_exc()
    print(f"nca_lib {command}: a bug; please report it with the lines above", file=sys.stderr)
    return 1


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
