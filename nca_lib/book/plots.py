"""The numbers of the results table, and how a reader calls them (chapter 5)."""

from __future__ import annotations

COSTS = ("parameters", "operations", "training_seconds", "images_seen")
_LOWER = ("distance", "loss", "copies", "seconds", "operations", "parameters", "calls")
_HIGHER = ("precision", "recall", "coherence", "accuracy", "digits.")


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
