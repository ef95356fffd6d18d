"""Canvases larger than memory: a sampler's state on disk, advanced tile by tile (chapter 7).

The state (the image; for DPM-Solver++ the last clean estimate too) lives in Zarr arrays, in two generations:
a tile reads its window from generation s and writes itself to generation s+1, where s-1 was. It may do so
once it and its neighbours have finished step s: then nobody needs s-1 any more. Dask schedules that.

On disk each tile has a *clock*, the number of steps it has finished, written after its data. A worker or a
whole run that is killed leaves every tile with a clock that is right, so whoever goes on redoes unfinished
tiles only and ends with the same bytes. (This holds for killed processes; against a loss of power nothing is
flushed.)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nca_lib import weights
from nca_lib.canvas.levels import context_of, lay_out, layout_of, level_of, plan_below
from nca_lib.canvas.tiles import SMALLEST, Span, local_network, spans_of
from nca_lib.cascade import Cascade
from nca_lib.devices import compile_step, computes_bf16, device_of
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import CanvasError
from nca_lib.extras import extra
from nca_lib.files import locked, write_atomically
from nca_lib.fourier import FourierDiffNCA
from nca_lib.memory import KEPT, in_bytes
from nca_lib.noise import CounterNoise, Purpose, firing_from
from nca_lib.samplers import SAMPLERS, SamplerState, timestep_array

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a canvas will hold.

    Attributes:
        model: a shipped name, or a .safetensors file that every worker can read.
        height: of the canvas, pixels.
        width: of the canvas.
        tile: side of a tile.
        sampler: one of [`SAMPLERS`][nca_lib.samplers.SAMPLERS].
        steps: denoiser calls.
        seed: of all noise.
        wrap: treat the canvas as a torus.
        compiled: compile the automaton's step (in every worker, some seconds).
        device: cuda, mps or cpu; None for the best that a worker has.
        bf16: mixed precision, where the device computes it.
        layout: of a cascade: a picture that stands in for its coarsest level's drawing.
        layout_strength: how far that level draws it anew, 0..1; 0 takes it as it is.
        level: of a cascade: how many levels are finer.
    """

    model: str
    height: int
    width: int
    tile: int = 512
    sampler: str = "dpm_solver"
    steps: int = 20
    seed: int = 0
    wrap: bool = False
    compiled: bool = False
    device: str | None = None
    bf16: bool = False
    layout: str | None = None
    layout_strength: float = 0.5
    level: int = 0

    @cached_property
    def calls(self) -> list[int]:
        """How many denoiser calls have been made after each step; Heun's method makes two in most."""
        if self.sampler != "heun":
            return list(range(1, self.steps + 1))
        return [*range(2 - (self.steps + 1) % 2, self.steps, 2), self.steps]


class Canvas:
    """A canvas on disk.

    Args:
        folder: made by [`create`][].

    Attributes:
        below: of a cascade: the canvas of the next coarser level, see [`levels`][nca_lib.canvas.levels].
    """

    def __init__(self, folder: str | Path):
        with extra("canvas"):
            import zarr

        self.folder = Path(folder)
        described = json.loads((self.folder / "plan.json").read_text())
        self.sha256 = described.pop("sha256")
        self.plan = Plan(**described)
        self.size = (self.plan.height, self.plan.width)
        group = zarr.open_group(str(self.folder), mode="r+")
        self.image = cast(Any, group["image"])
        self.clean = cast(Any, group["clean"]) if "clean" in group else None
        self.clock = cast(Any, group["clock"])
        self.layout = cast(Any, group["layout"]) if "layout" in group else None
        below = self.folder / "below"
        self.below = Canvas(below) if below.exists() else None

    @cached_property
    def model(self) -> Denoiser:
        """The denoiser."""
        if weights.record(self.plan.model)["sha256"] != self.sha256:
            raise CanvasError(f"{self.plan.model} is not the model that {self.folder} was begun with")
        device = device_of(self.plan.device)
        model = level_of(cast(Denoiser, weights.load(self.plan.model, device)), self.plan.level)
        if self.plan.compiled:
            compile_step(model, device)
        return model

    @property
    def network(self) -> DiffNCA:
        """Its automaton."""
        return cast(DiffNCA, self.model.network)

    def halo(self, step: int) -> int:
        """From how far away a step hears."""
        before = self.plan.calls[step - 1] if step > 0 else 0
        return (self.plan.calls[step] - before) * self.network.steps

    def tile(self, step: int, place: tuple[int, int]) -> tuple[Span, Span]:
        """Rows and columns of the tile at a place of the grid, with the window that a step needs."""
        cells = SMALLEST // self.network.channels + 1
        spans = spans_of(self.size, self.plan.tile, self.halo(step), wrap=self.plan.wrap, cells=cells)
        return spans[0][place[0]], spans[1][place[1]]

    def neighbours(self, place: tuple[int, int]) -> list[tuple[int, int]]:
        """The tiles whose last state a tile may need, or who may need its last state; itself included."""
        reach = math.ceil(2 * self.network.steps / self.plan.tile)  # no step makes more than two calls
        shape = self.clock.shape
        around = []
        for at, length in zip(place, shape, strict=True):
            near = range(at - reach, at + reach + 1)
            around.append(
                {k % length for k in near} if self.plan.wrap else {k for k in near if 0 <= k < length}
            )
        return [(row, column) for row in sorted(around[0]) for column in sorted(around[1])]

    def advance(self, step: int, place: tuple[int, int]) -> None:
        """Make one step of one tile, unless it has been made."""
        if self.clock[place] > step:
            return
        rows, columns = self.tile(step, place)
        state = self._make(step, rows, columns)
        # A worker that was given up for lost, and comes late, must not touch what others have built on.
        if self.clock[place] > step:
            return
        generation = (step + 1) % 2
        for array, values in ((self.image, state.image), (self.clean, state.clean_estimate)):
            if array is None:
                continue
            own = values[0, :, rows.inner, columns.inner].cpu().numpy()
            array[generation, :, rows.own, columns.own] = own
            if step == 0 and not np.array_equal(array[generation, :, rows.own, columns.own], own):
                raise CanvasError(f"{self.folder}: tile {place} does not read back as it was written")
        self.clock[place] = step + 1

    def _make(self, step: int, rows: Span, columns: Span) -> SamplerState:
        noise = CounterNoise(self.plan.seed)
        noise = noise.at(rows.start, columns.start, self.size if self.plan.wrap else None)
        device = next(self.network.parameters()).device
        empty = torch.empty(1, self.network.image_channels, rows.size, columns.size, device=device)
        made = self.plan.calls[step - 1] if step > 0 else 0
        start, after = noise.normal(empty, Purpose.START, 0), None
        if step > 0:
            image = self._read(self.image, step, rows, columns).to(device)
            clean = image if self.clean is None else self._read(self.clean, step, rows, columns).to(device)
            after = SamplerState(math.nan, image, clean, made, -1)  # `after` goes by the calls made
        sampler, low = SAMPLERS[self.plan.sampler], self.plan.bf16 and computes_bf16(device)
        model = self.model.given(context_of(self, rows, columns)) if self.below else self.model
        with firing_from(model, noise), torch.autocast(device.type, torch.bfloat16, enabled=low):
            states = sampler(model, start, steps=self.plan.steps, noise=noise, after=after)
            for _ in range(self.plan.calls[step] - made):
                state = next(states)
        return state

    def _read(self, array: Any, step: int, rows: Span, columns: Span) -> Tensor:
        down, across = (list(_runs(*pair)) for pair in ((rows, self.size[0]), (columns, self.size[1])))
        parts = [[array[step % 2, :, y, x] for x in across] for y in down]
        return torch.from_numpy(np.block(parts))[None]

    def megapixels(self, place: tuple[int, int]) -> float:
        """A tile's, as its part of all steps."""
        sides = [min(self.plan.tile, n - self.plan.tile * at) for n, at in zip(self.size, place, strict=True)]
        return math.prod(sides) / len(self.plan.calls) / 1e6

    def remaining(self) -> list[tuple[int, tuple[int, int]]]:
        """What is left to do: (step, place), in an order in which it can be done."""
        clock = self.clock[:]
        steps = range(int(clock.min()), len(self.plan.calls))
        return [(step, place) for step in steps for place in np.ndindex(clock.shape) if clock[place] <= step]

    def finished(self, rows: slice, columns: slice) -> np.ndarray:
        """A part of the finished image, (C, h, w) float32."""
        return self.image[len(self.plan.calls) % 2, :, rows, columns]


def _runs(span: Span, length: int) -> Iterator[slice]:
    """A window's cells as slices of the canvas; more than one where it wraps."""
    at, left = span.start % length, span.size
    while left > 0:
        run = min(left, length - at)
        yield slice(at, at + run)
        at, left = 0, left - run


def create(folder: str | Path, plan: Plan, spare: int = 0) -> Canvas:
    """Begin a canvas on disk.

    Args:
        folder: does not exist yet.
        plan: what to make.
        spare: bytes that will be needed beside it, for what is made of it.

    Raises:
        CanvasError: the model is no local automaton, or the disk is too small.
        UsageError: `steps` is not within 1..T, or the canvas is smaller than 2x2 and does not wrap.
    """
    with extra("canvas"):
        import zarr

    folder, model = Path(folder), level_of(cast(Denoiser, weights.load(plan.model)), plan.level)
    below = plan_below(plan, model)
    needed = spare + _bytes_of(plan, model, below)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise CanvasError(
            f"a canvas of {plan.width}x{plan.height} needs {in_bytes(needed)} on disk while it is made; "
            f"{folder.parent.resolve()} has {in_bytes(free)}"
        )
    layout = layout_of(plan) if plan.layout and below is None else None
    group = zarr.open_group(str(folder), mode="w-", zarr_format=3)
    side = (min(plan.tile, plan.height), min(plan.tile, plan.width))
    shape = _shape(plan, model)
    for name in _arrays(plan):  # noise does not compress
        group.create_array(name, shape=shape, chunks=(1, shape[1], *side), dtype="float32", compressors=None)
    grid = (math.ceil(plan.height / plan.tile), math.ceil(plan.width / plan.tile))
    group.create_array("clock", shape=grid, chunks=(1, 1), dtype="int32", compressors=None)
    if layout is not None:
        group.create_array("layout", data=layout.numpy())
    if below:
        try:
            create(folder / "below", below, spare)
        except BaseException:  # a level that cannot begin leaves nothing of the others
            shutil.rmtree(folder)
            raise
    described = {**asdict(plan), "sha256": weights.record(plan.model)["sha256"]}
    write_atomically(folder / "plan.json", json.dumps(described, indent=2).encode() + b"\n")
    return Canvas(folder)


def _bytes_of(plan: Plan, model: Denoiser, below: Plan | None) -> int:
    """The bytes of a canvas's arrays and of those below it; what cannot be drawn on disk is refused."""
    network = local_network(model)
    if isinstance(network, FourierDiffNCA):
        raise CanvasError("a FourierDiffNCA hears its whole canvas at each call; it samples in memory only")
    if network.context_channels and below is None:
        raise CanvasError("this model is told a context, of which a canvas knows that of a cascade only")
    if not plan.wrap:
        network.check_size(plan.height, plan.width)
    timestep_array(model.schedule.timesteps, plan.steps)  # refuses as the samplers do
    own = 4 * math.prod(_shape(plan, model)) * len(_arrays(plan))
    if below is None:
        return own
    coarser = cast(Cascade, model).below
    return own + _bytes_of(below, coarser, plan_below(below, coarser))


def _arrays(plan: Plan) -> list[str]:
    return ["image", "clean"] if plan.sampler == "dpm_solver" else ["image"]


def _shape(plan: Plan, model: Denoiser) -> tuple[int, int, int, int]:
    return (2, local_network(model).image_channels, plan.height, plan.width)


def run(
    canvas: Canvas, *, workers: int = 1, scheduler: str | None = None, progress: Progress | None = None
) -> None:
    """Advance a canvas to its end; whatever stopped before, the bytes are the same.

    One process at a time: a second one that takes the same folder is refused.

    Args:
        canvas: begun, or partly done.
        workers: processes on this machine; 1 works in this process.
        scheduler: the address of a Dask scheduler, instead; its workers must see the canvas's folder.
        progress: called after each tile's step with the megapixels made by now and those to be made in all; a
            pixel's step counts as its part of all steps.

    Raises:
        OutputError: another process is at work on this canvas; the message names it.
        CanvasError: there is no such scheduler.
    """
    levels, below = [canvas], canvas.below  # the finest first
    while below:
        levels, below = [*levels, below], below.below
    with locked(canvas.folder / "lock"):
        if levels[-1].layout is not None and levels[-1].remaining():
            lay_out(levels[-1], torch.from_numpy(levels[-1].layout[:]))
        left = [sum(level.megapixels(place) for _, place in level.remaining()) for level in levels]
        for number, level in reversed(list(enumerate(levels))):

            def tell(made: float, before: float = sum(left[number + 1 :])) -> None:
                if progress:
                    progress(before + made, sum(left))

            _run(level, workers, scheduler, tell)


def _run(canvas: Canvas, workers: int, scheduler: str | None, progress: Callable[[float], None]) -> None:
    with extra("canvas"):
        import dask
        from distributed import Client, LocalCluster, as_completed

    plan, made = canvas.plan, 0.0
    nodes: dict[str, Any] = {}
    work: dict[str, float] = {}
    task = dask.delayed(_advance, pure=False)
    for step, place in canvas.remaining():
        before = [nodes[name] for at in canvas.neighbours(place) if (name := _name(step - 1, at)) in nodes]
        name = _name(step, place)
        nodes[name] = task(str(canvas.folder), plan, canvas.sha256, step, place, before, dask_key_name=name)
        work[name] = canvas.megapixels(place)

    def tell(name: str) -> None:
        nonlocal made
        made += work[name]
        progress(made)

    if workers == 1 and scheduler is None:
        from dask.callbacks import Callback

        with Callback(posttask=lambda name, *_: tell(name)):
            dask.compute(*nodes.values(), scheduler="synchronous", optimize_graph=False)
        return
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            stack.enter_context(_same_environment())
            # By default a task that has seen three workers die is given up.
            failures = {"distributed.scheduler.allowed-failures": 20}
            # Dask's workers hand freed memory back; ours keep it (see `keep_freed_memory`).
            kept = {f"distributed.nanny.pre-spawn-environ.{name}": size for name, size in KEPT.items()}
            stack.enter_context(dask.config.set(failures | kept))
            cluster = LocalCluster(workers, threads_per_worker=1, dashboard_address=None, silence_logs=50)
            stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(scheduler or cluster))
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise CanvasError(f"scheduler {scheduler}: {said}; it is tcp://HOST:PORT") from error
        for future in as_completed(client.compute(list(nodes.values()), optimize_graph=False)):
            future.result()
            tell(future.key)


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Undo what Dask sets in this process for the workers that it starts, one thread for all among it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _name(step: int, place: tuple[int, int]) -> str:
    return f"step-{step}-tile-{place[0]}-{place[1]}"


def _advance(
    folder: str, plan: Plan, sha256: str, step: int, place: tuple[int, int], before: list[None]
) -> None:
    """One task of the graph; `before` only says what must have been done."""
    _canvas(folder, plan, sha256).advance(step, place)


@lru_cache(maxsize=1)
def _canvas(folder: str, plan: Plan, sha256: str) -> Canvas:
    return Canvas(folder)
