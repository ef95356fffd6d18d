"""The command line: `python -m nca_lib COMMAND`.

Commands: train, show, cost, run, evaluate, sample, canvas, inpaint, upscale, vary, join, export-web, models.
A wrong argument ends with exit status 2 and one line that says what would be right.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tomllib
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nca_lib import drawing, weights
from nca_lib.canvas import command as canvas
from nca_lib.errors import NCAError, ParallelError, UsageError
from nca_lib.evaluation import command as evaluation
from nca_lib.experiments import files, kinds, settings
from nca_lib.experiments.settings import Experiment
from nca_lib.files import check_writable, write_atomically
from nca_lib.memory import out_of_memory
from nca_lib.processes import leads, processes

FEW = 5_000  # images, after which a model's samples still look like its noise or like blotches


def _train(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from nca_lib.experiments import checkpoints
    from nca_lib.experiments.training import train

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
    if experiment["context"]["factor"]:
        print(f"  level    python -m nca_lib join COARSER {model} --out cascade.safetensors")
        return
    data = experiment["data"]
    where = "".join(f" --data.{key} {shlex.quote(data[key])}" for key in evaluation.PLACES if key in data)
    print(f"  draw     python -m nca_lib sample {model} --count 4 --out {folder / 'drawn.png'}")
    print(f"  measure  python -m nca_lib evaluate {model}{where}")


def _run(arguments: argparse.Namespace) -> None:
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


def _overrides(extra: Sequence[str]) -> dict[str, Any]:
    """`--training.steps 100 --model.position=false` as a dictionary; values are read as TOML."""
    overrides: dict[str, Any] = {}
    words, texts = list(extra), settings.texts()
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not key.startswith("--"):
            raise UsageError(f"{key!r}: unexpected; override experiment keys as --section.key value")
        if not equals:
            if not words:
                raise UsageError(f"{key}: needs a value")
            value = words.pop(0)
        overrides[key[2:]] = value
        with suppress(tomllib.TOMLDecodeError):
            read = tomllib.loads(f"value = {value}")["value"]
            if isinstance(read, str) or key[2:] not in texts:  # a folder may be called 2026
                overrides[key[2:]] = read
    return overrides


def _join(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    if out.exists() and not arguments.force:
        raise UsageError(f"{out} exists; add --force to overwrite it, or choose another name")
    weights.join(arguments.levels, out)
    print(f"{out}: a cascade of {len(arguments.levels)} levels; try  python -m nca_lib sample {out}")


def _export_web(arguments: argparse.Namespace) -> None:
    from nca_lib.book.export import export

    out = Path(arguments.out or f"{Path(arguments.model).stem}.web.json")
    if out.exists() and not arguments.force:
        raise UsageError(f"{out} exists; add --force to overwrite it, or choose another name")
    check_writable(out)
    text = json.dumps(export(weights.load(arguments.model)), separators=(",", ":"))
    write_atomically(out, text.encode())
    print(f"{out}: {len(text) / 1000:.0f} kB")


def _show(arguments: argparse.Namespace) -> None:
    from nca_lib.experiments.show import show

    print(show(arguments.experiment, shutil.get_terminal_size((120, 24)).columns))


def _cost(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from nca_lib.experiments.cost import device_named, predict, table

    device = device_named(arguments.device)
    if arguments.price is not None:
        if not 0 <= arguments.price < float("inf"):
            raise UsageError(f"--price: {arguments.price} is no price; dollars an hour, at least 0")
        device = replace(
            device, dollars=arguments.price, basis=f"{device.basis}; here ${arguments.price:.2f}"
        )
    print(table([predict(Experiment.read(name, overrides), device) for name in arguments.experiments]))


def _models(arguments: argparse.Namespace) -> None:
    if arguments.model:
        from nca_lib.experiments.cards import card

        print(card(arguments.model))
        return
    print(f"{'name':24} {'kind':16} {'parameters':>10} {'data':19} {'steps':>7} {'minutes':>7}  hardware")
    for name in weights.names():
        record = weights.record(name)
        experiment = record["experiment"]
        kind = "cascade" if "levels" in record else experiment["model"]["kind"]
        data = experiment["growing"]["picture"] if kind == "growing-nca" else experiment["data"]["kind"]
        print(
            f"{name:24} {kind:16} {record['parameters']:10,} {data:19} {record['steps']:7,} "
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
    by_kind = "\n".join(
        f"  --{table}.KEY, by --{table}.kind:\n"
        + "\n".join(f"      {kind}: {', '.join(kinds.arguments(build))}" for kind, build in known.items())
        for table, known in kinds.KINDS.items()
    )
    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="run an experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"any key of the experiment can be overridden:\n{by_kind}\n{keys}",
    )
    train.add_argument("experiment", help=f"a .toml file, or one of: {', '.join(files.names())}")
    train.add_argument("--out", help="folder of the run (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument("--resume-anyway", action="store_true", help="even with other settings (recorded)")
    train.add_argument("--minutes", type=float, help="stop by the clock, the learning rate scaled to it")
    train.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    train.set_defaults(run=_train, overrides=True)

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
    cost.set_defaults(run=_cost, overrides=True)

    run = commands.add_parser("run", help="train and evaluate a matrix of experiments, what is not yet done")
    run.add_argument("matrix", help=f"a .toml file, or one of: {', '.join(files.matrices())}")
    run.add_argument("--minutes", type=float, help="train each entry for this long")
    run.add_argument("--only", nargs="+", metavar="ENTRY", help="run these entries only")
    run.add_argument("--out", default="runs", help="each entry trains in OUT/NAME (default runs)")
    run.add_argument("--table", default="runs/results.jsonl", help="JSON lines to append to")
    run.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    run.set_defaults(run=_run)

    evaluation.add_arguments(commands, _positive)

    drawing.add_arguments(commands, _positive)
    canvas.add_arguments(commands, _positive)

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

    models = commands.add_parser("models", help="the weights that ship with the library, or the card of one")
    models.add_argument(
        "model", nargs="?", help="print its card: data, recipe, budget, numbers, limits; without: list all"
    )
    models.set_defaults(run=_models)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.error(
            "which command? For a first picture: python -m nca_lib sample tissue-diff-nca --size 128x128; "
            "for all of them: python -m nca_lib --help"
        )
    try:
        if extra and "overrides" not in arguments:
            raise UsageError(f"{extra[0]!r}: unknown argument")
        told = [_overrides(extra)] if "overrides" in arguments else []
        with processes(getattr(arguments, "device", None)):
            arguments.run(arguments, *told)
        sys.stdout.flush()
    except NCAError as error:
        print(f"nca_lib {arguments.command}: {error}", file=sys.stderr)
        return 1 if isinstance(error, ParallelError) else 2
    except KeyboardInterrupt:
        return 130
    except (
        BrokenPipeError
    ):  # who reads has enough, as `| head` does; nothing is left to be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as if SIGPIPE had ended it
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
    sys.exit(main())
