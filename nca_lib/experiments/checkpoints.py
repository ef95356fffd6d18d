"""How a training stops, and goes on as if it had not (chapter 5).

A folder keeps two generations of its checkpoint, `checkpoint.pt` and `checkpoint.previous.pt`: where the
newer one is damaged the older one is used, and a line says so.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nca_lib.errors import ExperimentError, NCAError, TrainingError
from nca_lib.experiments.settings import Experiment
from nca_lib.files import PARTIAL, write_atomically, writing

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
# What may differ when a training goes on: none of these decides what is learnt from one step to the next.
HOW_OFTEN = {f"training.{key}" for key in ("save_every", "log_every", "sample_every", "workers")}
ECHO = 5.0  # seconds within which a second signal is the first one's
FREE = HOW_OFTEN | {"training.steps", "training.minutes"}


class _BadCheckpointError(Exception):
    """A checkpoint that cannot be used, and why."""


def newest(folder: str | Path) -> tuple[str, float] | None:
    """The newest checkpoint of a folder and when it was written; None if there is none."""
    for path in (Path(folder) / NEWEST, Path(folder) / PREVIOUS):
        if path.is_file():
            return str(path), path.stat().st_mtime
    return None


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; what was the newest becomes the previous one.

    Raises:
        OutputError: the file cannot be written; both generations are as they were.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    fresh = folder / f"{NEWEST}{PARTIAL}"
    write_atomically(fresh, buffer.getvalue())
    with writing(folder):
        if (folder / NEWEST).is_file():
            (folder / NEWEST).replace(folder / PREVIOUS)
        fresh.replace(folder / NEWEST)


def restore(
    folder: Path,
    like: Mapping[str, Any],
    use: Callable[[dict[str, Any]], None],
    *,
    check: Callable[[dict[str, Any]], None],
) -> None:
    """Hand the newest checkpoint of a folder that is whole to `use`.

    Args:
        folder: of the training.
        like: what a checkpoint of this training holds: names, and tensors' shapes.
        use: puts a state back.
        check: raises [`ExperimentError`][] if a state is of another experiment.

    Raises:
        TrainingError: no generation is whole; the message names each file and what is wrong with it.
    """
    problems = []
    for path in (folder / NEWEST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = _read(path)
            check(state)
            _compare(like, state, "")
            use(state)
        except NCAError:
            raise
        except _BadCheckpointError as error:
            problems.append(f"{path}: {error}")
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            problems.append(f"{path}: damaged ({str(error).splitlines()[0]})")
        else:
            if problems:
                print(f"{problems[0]}; going on from {path.name} at step {state['step']}", file=sys.stderr)
            return
    raise TrainingError(f"{'; '.join(problems)}. Begin anew in another folder, or delete what is damaged")


def _read(path: Path) -> dict[str, Any]:
    if not path.stat().st_size:
        raise _BadCheckpointError("is empty")
    try:
        # To the CPU: on the device, the optimisers would read their counters from it at every step.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as error:
        raise _BadCheckpointError("is truncated, or no checkpoint") from error
    if not isinstance(state, dict):
        raise _BadCheckpointError(f"holds a {type(state).__name__}, not the state of a training")
    return state


def _compare(wanted: Any, found: Any, path: str) -> None:
    """Whether `found` has all that `wanted` has: names, and finite tensors of the same shapes and kinds."""
    if isinstance(wanted, Mapping):
        for key, value in wanted.items():
            if not isinstance(found, Mapping) or key not in found:
                raise _BadCheckpointError(f"lacks {path}{key}")
            _compare(value, found[key], f"{path}{key}.")
    elif isinstance(wanted, Tensor):
        described = [
            f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            for x in (found, wanted)
        ]
        if described[0] != described[1]:
            raise _BadCheckpointError(f"its {path[:-1]} is {described[0]} instead of {described[1]}")
        if not found.isfinite().all():
            raise _BadCheckpointError(f"its {path[:-1]} is not finite")
    elif type(wanted) is not type(found) or (isinstance(wanted, float) and not math.isfinite(found)):
        raise _BadCheckpointError(f"its {path[:-1]} is {found!r:.40}")


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put an optimiser's state back, whose moments must be shaped like its parameters.

    Raises:
        ValueError: they are not, or not finite.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if (value.ndim and value.shape != parameter.shape) or not value.isfinite().all():
                raise ValueError(
                    f"the optimiser's {name} is not that of a parameter {tuple(parameter.shape)}"
                )


def differences(
    before: Experiment, now: Experiment, free: AbstractSet[str] = FREE
) -> dict[str, tuple[Any, Any]]:
    """What two experiments differ in, but for the keys in `free`: by dotted key, both values."""
    old, new = (_flat(experiment.spelt_out()) for experiment in (before, now))
    keys = sorted((old.keys() | new.keys()) - free)
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(mapping: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def experiment_of(folder: Path, state: Mapping[str, Any]) -> Experiment | None:
    """The experiment that a folder's training runs: as its checkpoint says, or its settings file."""
    if "experiment" in state:
        return Experiment.from_dict(state["experiment"])
    path = folder / "experiment.toml"
    return Experiment.read(path) if path.is_file() else None


def refuse_other(folder: Path, differs: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to go on with other settings than a folder's training has.

    Raises:
        ExperimentError: there are differences; each is named with both values.
    """
    if differs:
        raise ExperimentError(
            f"{folder} holds a training with {in_words(differs)}; take its settings or another folder, "
            "or add --resume-anyway (resume_anyway=True)"
        )


def in_words(differs: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in a line."""
    return ", ".join(f"{key} = {old!r} (not {new!r})" for key, (old, new) in differs.items())


class Stop:
    """Which signal has asked a training to stop, if any."""

    signal: int | None = None
    since = 0.0  # when, in seconds of the monotonic clock


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM (which SLURM sends) during the block, instead of dying of them.

    A second one has its usual effect; but under torchrun, which hands on what SLURM has sent to all, only if
    it comes seconds later. Outside of the main thread nothing is noted.
    """
    stop, patience = Stop(), ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal, stop.since = number, time.monotonic()
            if not patience:
                usual()
        elif time.monotonic() - stop.since > patience:
            usual()
            signal.raise_signal(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def usual() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield stop
    finally:
        usual()


def outlive_signals(worker: int) -> None:
    """For processes that read images: what Ctrl-C and SLURM send to all is for the training to answer.

    SIGTERM ends them five seconds later, as the end of the training's process relies on it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(5))
