"""A matrix of experiments: train, evaluate, and keep one row for each (chapter 5).

    name = "faces"
    seeds = 3                          # train each entry with seeds 0, 1, 2; by default once, as it says
    [evaluation]                       # arguments of `evaluation.evaluate_model`; without it there is none
    protocol = "quick"
    [[entry]]
    base = "faces-fourier"             # an experiment or an entry above, see `files`
    name = "faces-fourier-quadrant"    # by default the base's own
    model.window = "quadrant"

Rows are appended to a table of JSON lines, one for each entry and each snapshot of its training, where that
was not over before by the clock. A row that is there, of the same experiment and evaluation, is not made
again. What was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, with_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import TypedDict

from nca_lib import weights
from nca_lib.data.files import sheet, write
from nca_lib.devices import compile_step, computes_bf16
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import DivergedError, ExperimentError
from nca_lib.evaluation.evaluate import evaluate_model, generator
from nca_lib.experiments import checkpoints
from nca_lib.experiments.files import Layer, merged, read_matrix
from nca_lib.experiments.settings import CHECKED, Experiment, message
from nca_lib.experiments.training import snapshot_steps, train
from nca_lib.files import locked, write_atomically
from nca_lib.processes import agreed, leads
from nca_lib.samplers import sample


@with_config(CHECKED)
class Evaluation(TypedDict, total=False):
    """What a matrix can say of [`evaluate_model`][nca_lib.evaluation.evaluate.evaluate_model]'s arguments."""

    protocol: Literal["reference", "sound", "quick"]
    count: PositiveInt
    sampler: Literal["ddpm", "ddim", "dpm_solver", "heun"]
    steps: PositiveInt
    seed: NonNegativeInt
    batch: PositiveInt
    bf16: bool


@dataclass(frozen=True)
class Matrix:
    """Experiments that are evaluated alike."""

    name: str
    entries: tuple[Experiment, ...]
    evaluation: Mapping[str, Any]


def read(source: str | Path, minutes: float | None = None) -> Matrix:
    """Read a matrix from a .toml file, or a shipped one by its name.

    Args:
        source: file or name.
        minutes: train each entry for this long instead of what its experiment says.

    Raises:
        ExperimentError: no such matrix or base; an entry that is no experiment, or whose model
            draws no images; two entries of one name.
    """
    head, found = read_matrix(source)
    if minutes is not None:
        found = [[*layers, ("minutes", {"training": {"minutes": minutes}})] for layers in found]
    entries = tuple(_entry(head, layers) for layers in found)
    repeated = {entry.name for entry in entries if [e.name for e in entries].count(entry.name) > 1}
    if repeated:
        raise ExperimentError(f"{source}: more than one entry is named {', '.join(sorted(repeated))}")
    evaluation = head.get("evaluation", {})
    try:
        TypeAdapter(Evaluation).validate_python(evaluation)
    except ValidationError as error:
        raise ExperimentError(
            f"{source}: evaluation.{message(error, [*Evaluation.__annotations__])}"
        ) from None
    return Matrix(head["name"], entries, evaluation)


def _entry(head: Mapping[str, Any], layers: Sequence[Layer]) -> Experiment:
    try:
        entry = Experiment.from_layers(layers)
        if entry.model["kind"] == "growing-nca":
            raise ExperimentError("a growing automaton draws no images to compare; train it by itself")
        if head.get("evaluation") and entry.context.factor:
            raise ExperimentError(
                "a level that is told a coarser one draws nothing alone; evaluate its cascade"
            )
    except ExperimentError as error:
        raise ExperimentError(f"{head['name']}/{merged(layers).get('name')}: {error}") from None
    return entry


def run(
    matrix: Matrix,
    folder: str | Path,
    table: str | Path,
    *,
    only: Sequence[str] = (),
    device: str | torch.device | None = None,
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train every entry and make its rows that are not in the table yet; return all rows of this matrix.

    Of several processes ([`nca_lib.processes`][]) all train and evaluate together, and the first writes.

    Args:
        matrix: what to run.
        folder: each entry trains in `folder/NAME`, with samples in `folder/NAME/samples.png`.
        table: the JSON lines file that rows are appended to. What diverges has rows that say `diverged`, and
            at which step.
        only: names of the entries to run; all if empty. Several processes may share a table this way.
        device: by default the best that is there.
        progress: told what is being done.

    Raises:
        ExperimentError: `only` names an entry that does not exist; or an entry's folder holds a training of
            other settings, of its length too.
    """
    unknown = set(only) - {entry.name for entry in matrix.entries}
    if unknown:
        raise ExperimentError(f"{', '.join(sorted(unknown))}: no such entry in matrix {matrix.name}")
    table, say = Path(table), progress if leads() else _nothing
    if leads() and (said := mend(table)):
        say(said)
    done = agreed([_identity(row) for row in rows(table)] if leads() else [])
    for entry in matrix.entries:
        if only and entry.name not in only:
            continue
        stages = [f"model-{step:07d}" for step in snapshot_steps(entry.training)] + ["model"]
        settings = {"evaluation": dict(matrix.evaluation), "experiment": entry.to_dict()}
        wanted: list[dict[str, Any]] = [
            {"name": entry.name, "matrix": matrix.name, "weights": stage, **settings} for stage in stages
        ]
        missing = [row for row in wanted if _identity(row) not in done]
        by_clock = entry.training.minutes is not None  # and so perhaps over before the last snapshots
        if not missing or (by_clock and wanted[-1] not in missing):
            say(f"{entry.name}: done before")
            continue
        place = Path(folder) / entry.name
        _refuse_other(place, entry)
        say(f"{entry.name}: training")
        torch.compiler.reset()  # of one function no more than eight shapes are compiled
        try:
            used = next(train(entry, place, resume=True, device=device).parameters()).device
        except DivergedError as error:  # a finding like others
            diverged = {"diverged": str(error).partition(";")[0]}
            say(f"{entry.name}: diverged at {diverged['diverged']}")
            _append(table, [row | diverged for row in missing])
            continue
        if by_clock:
            missing = agreed([row for row in missing if (place / f"{row['weights']}.safetensors").is_file()])
        for row in missing:
            say(f"{entry.name}: evaluating {row['weights']}")
            _append(table, [row | _measured(matrix, entry, place, row["weights"], used)])
    return agreed([row for row in rows(table) if row["matrix"] == matrix.name] if leads() else [])


def _nothing(said: str) -> None:
    """What all processes but the first say."""


def _refuse_other(place: Path, entry: Experiment) -> None:
    """Refuse to go on from another training: one that was shorter has let its learning rate decay."""
    said = place / "experiment.toml"
    if not (checkpoints.newest(place) and said.is_file()):
        return
    if differs := checkpoints.differences(Experiment.read(said), entry, checkpoints.HOW_OFTEN):
        raise ExperimentError(
            f"{place} holds a training with {checkpoints.in_words(differs)}; delete it, or take another --out"
        )


def _identity(row: Mapping[str, Any]) -> dict[str, Any]:
    if missing := {"name", "matrix", "experiment"} - row.keys():
        raise ExperimentError(
            f"a row of the table has no {min(missing)!r}; --table names another kind of file"
        )
    kept = {key: row.get(key) for key in ("matrix", "weights", "evaluation", "experiment")}
    # A row older than a setting was made with that setting's default.
    with suppress(ExperimentError):
        kept["experiment"] = Experiment.from_dict(row["experiment"]).spelt_out()
    return kept


def _measured(
    matrix: Matrix, entry: Experiment, place: Path, stage: str, device: torch.device
) -> dict[str, Any]:
    """What a row holds of one snapshot: its record, its operations, and its evaluation if there is one."""
    model, data = weights.load(place / f"{stage}.safetensors", device), entry.build_data("test")
    measured = {
        **weights.record(place / f"{stage}.safetensors"),
        "operations": operations(model, data.size),
    }
    if not matrix.evaluation:
        return measured
    if entry.training.compile:
        compile_step(model, device)
    options = {"bf16": entry.training.bf16 and computes_bf16(device), **matrix.evaluation}
    if stage == "model" and leads():
        sampling = {key: options[key] for key in ("sampler", "steps", "seed", "bf16") if key in options}
        images = generator(model, data, **sampling)(0, 32)
        write(sheet(images.float(), 8, padding=1), place / "samples.png", force=True)
    folder = place / "evaluation" / stage
    return measured | evaluate_model(model, entry, folder=folder, device=device, **options)


def operations(model: nn.Module, size: int) -> float:
    """Floating-point operations of one network call on one image (a multiply-add counts as two).

    Of an automaton they are those of the literal computation, as published. For VNCA it is the whole image:
    there is only one call.
    """
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, DiffNCA):
            module.fast = False
    parameter = next(model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(model, Denoiser):
            noisy = torch.zeros(1, model.image_channels, size, size, device=parameter.device)
            if model.context_channels:
                model = model.given(noisy.new_zeros(1, model.context_channels, size, size))
            model.network(noisy, torch.full((1,), 0.5, device=parameter.device))
        else:
            sample(model, (size, size))
    return float(counter.get_total_flops())


def rows(table: str | Path) -> list[dict[str, Any]]:
    """The rows of a results table: a JSON lines file, or `"shipped"` for those that come with the library.

    Raises:
        ExperimentError: the file cannot be read, or a line is no row.
    """
    path = Path(table)
    if str(table) == "shipped":
        path = Path(str(resources.files("nca_lib") / "experiments" / "results" / "results.jsonl"))
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                found.append(dict(row))
        except (ValueError, TypeError) as error:
            raise ExperimentError(f"{path}, line {number}: not a row of JSON; mend or delete it") from error
    return found


def _text(table: Path) -> bytes:
    try:
        return table.read_bytes() if table.is_file() else b""
    except OSError as error:
        raise ExperimentError(f"{table}: cannot be read ({error.strerror})") from error


def mend(table: Path) -> str:
    """Keep aside the half row that an interrupted write left at a table's end; returns what to say."""
    with _changing(table):
        text = _text(table)
        whole, _, half = text.rpartition(b"\n")
        try:
            if half.strip():
                json.loads(half)
            return ""
        except ValueError:
            aside = table.with_name(table.name + ".half")
            write_atomically(aside, half)
            write_atomically(table, whole + b"\n" if whole else b"")
            return f"{table}: its last line was half a row; it is kept in {aside}"


def _changing(table: Path) -> AbstractContextManager[None]:
    # What is read within the block and written anew loses no rows of another process.
    return locked(table.with_name(table.name + ".lock"), wait=True)


def _append(table: Path, more: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, as the first process; the table is written anew, so that a full disk leaves the old one."""
    if not leads():
        return
    with _changing(table):
        text = _text(table)
        if text and not text.endswith(b"\n"):
            text += b"\n"
        added = "".join(json.dumps(row) + "\n" for row in more)
        write_atomically(table, text + added.encode())
