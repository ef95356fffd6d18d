"""What the library refuses to do, as exceptions: each message says what was wrong and what would be right.

The command line turns these, and only these, into one line; any other exception is a bug and keeps its
traceback. All are ValueErrors.
"""

from __future__ import annotations

from collections.abc import Iterable


class NCAError(ValueError):
    """Anything that the library refuses; the others are its children."""


class UsageError(NCAError):
    """An argument that cannot be used."""


class DataError(NCAError):
    """Images that cannot be used; the message names each file and what is wrong with it."""


class ExperimentError(NCAError):
    """An experiment that cannot be run; the message names the key and what would be right."""


class WeightsError(NCAError):
    """Weights that are not there, damaged, or of another model; the message says which."""


class TrainingError(NCAError):
    """Training cannot begin or go on; the message says why."""


class DivergedError(TrainingError):
    """The loss or a gradient is not finite; the message begins with the step."""


class ParallelError(NCAError):
    """Another process ended, so this one cannot go on."""


class EvaluationError(NCAError):
    """An evaluation that would mean nothing; the message says what is too few and how many would do."""


class CanvasError(NCAError):
    """A canvas that cannot be made; the message says what would be right."""


class EditingError(NCAError):
    """An edit that cannot be made."""


class ExportError(NCAError):
    """A model that the browser cannot run; the message says which setting stands against it."""


class TooLargeError(NCAError):
    """Something that does not fit into memory; the message says what it needs and what there is."""


class OutputError(NCAError):
    """A file that cannot be written, or a folder that another process works in."""


def check_choice(name: str, given: str, choices: Iterable[str]) -> None:
    """Refuse ([`UsageError`][]) what is none of the choices."""
    known = list(choices)
    if given not in known:
        raise UsageError(f"{name} is {given!r}; choose {', '.join(known[:-1])} or {known[-1]}")
