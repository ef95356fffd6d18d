"""Time per training step and per image of each model, for chapter 5: `python benchmarks/steps.py MATRIX ...`.

The trainings themselves ran beside other work, so their clocks say little. Here each model is timed apart, on
one thread, by the processor's clock, which stands still while others have the core. Appends one JSON line for
each entry to the results' `steps.jsonl`, and skips those that are there. Seconds of one day's machine are not
those of another's: what is added later is measured beside the table's first model, and stated in its seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nca_lib.devices import compile_step, computes_bf16, hardware
from nca_lib.evaluation.evaluate import generator
from nca_lib.experiments.matrix import Matrix, read, rows
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.state import Run
from nca_lib.experiments.tasks import task_of
from nca_lib.experiments.training import Average

TABLE = Path(__file__).parents[1] / "nca_lib" / "experiments" / "results" / "steps.jsonl"
DEVICE = torch.device("cpu")
WARM, TIMED, IMAGES = 3, 15, 32
Row = dict[str, Any]


def median_seconds(work: Callable[[], object], warm: int, timed: int) -> float:
    """Processor seconds of one thread, the median of `timed` after `warm`."""
    found = []
    for n in range(warm + timed):
        begin = time.process_time()
        work()
        if n >= warm:
            found.append(time.process_time() - begin)
    return statistics.median(found)


def training_step(experiment: Experiment, folder: Path) -> Callable[[], None]:
    """A step as in training: batch, loss, gradients, optimisers, average."""
    torch.manual_seed(0)
    options = experiment.training
    task = task_of(experiment, DEVICE)
    average = Average(task.model, options.ema)
    run = Run(experiment, folder, task, average, optimizers_of(task.model, options), DEVICE)
    task.start(0)
    compile_step(task.model, DEVICE)

    def step() -> None:
        task.model.zero_grad(set_to_none=True)
        with run.autocast():
            task.loss().backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), options.clip)
        for optimizer in run.optimizers:
            optimizer.step()
        average.update_parameters(task.model)

    return step


def measured(experiment: Experiment, matrix: Matrix) -> Row:
    """The row of one entry."""
    torch.compiler.reset()
    with TemporaryDirectory() as folder:
        step = median_seconds(training_step(experiment, Path(folder)), WARM, TIMED)
    model, data = experiment.build_model().eval(), experiment.build_data("test")
    compile_step(model, DEVICE)
    sampling = {key: matrix.evaluation[key] for key in ("sampler", "steps") if key in matrix.evaluation}
    make = generator(model, data, bf16=computes_bf16(DEVICE), **sampling)
    image = median_seconds(lambda: make(0, IMAGES), 1, 2) / IMAGES
    return {
        "name": experiment.name,
        "matrix": matrix.name,
        "batch": experiment.training.batch,
        "seconds_per_step": round(step, 5),
        "seconds_per_image": round(image, 5),
        "hardware": hardware(DEVICE),
    }


def in_seconds_of(first: Row, row: Row, matrix: Matrix) -> Row:
    """A row of today, as the machine that measured the table's first row would have measured it."""
    (same,) = (experiment for experiment in matrix.entries if experiment.name == first["name"])
    today = measured(same, matrix)
    scaled = {
        key: round(row[key] * first[key] / today[key], 5) for key in ("seconds_per_step", "seconds_per_image")
    }
    return row | scaled | {"beside": {key: today[key] for key in ("name", *scaled)}}


def main() -> None:
    """All that is missing; other seeds take as long."""
    torch.set_num_threads(1)
    for matrix in map(read, sys.argv[1:]):
        done = {(row["matrix"], row["name"]) for row in rows(TABLE)}
        for experiment in matrix.entries:
            if "-seed-" in experiment.name or (matrix.name, experiment.name) in done:
                continue
            row = measured(experiment, matrix)
            if first := next(iter(rows(TABLE)), None):
                row = in_seconds_of(first, row, read(first["matrix"]))
            with TABLE.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
