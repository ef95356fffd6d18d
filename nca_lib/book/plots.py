"""The numbers of the results table, and how a reader calls them (chapter 5)."""

from __future__ import annotations

import math
from typing import Any

COSTS = ("parameters", "operations", "training_seconds", "images_seen")
_LOWER = ("distance", "loss", "copies", "seconds", "operations", "parameters", "calls")
_HIGHER = ("precision", "recall", "coherence", "accuracy", "digits.")


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numeric leaves of nested dictionaries, by their names joined with dots."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + name] = value
    return found


def measurements(metrics: dict[str, Any]) -> dict[str, float]:
    """The [`numbers`][] of a row's metrics or floor; those of an extractor begin with its name."""
    others = {name: value for name, value in metrics.items() if name != "extractors"}
    return numbers(metrics["extractors"]) | numbers(others)


def words(name: str) -> str:
    """A quantity of the results as a reader calls it: `eye.frechet_distance` is "frechet distance (eye)"."""
    *where, what = name.split(".")
    shown = what.replace("_", " ")
    return f"{shown} ({' '.join(where).replace('_', ' ')})" if where else shown


def better(name: str) -> str:
    """`"lower"` or `"higher"`, whichever is better; empty where neither is."""
    if name.endswith("_std"):
        return ""
    if any(word in name for word in _HIGHER):
        return "higher"
    return "lower" if any(word in name for word in _LOWER) else ""
