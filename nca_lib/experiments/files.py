"""Experiments and matrices as TOML files: where they are, and what they inherit by `base`.

    base = "faces-fourier"             # a shipped experiment, or a .toml file beside this one
    name = "faces-fourier-quadrant"
    model.window = "quadrant"

A file says what it changes of its base, which may have a base in turn; what nobody says has its default. So
an experiment is a pile of *layers*, the lowest base first. Where a layer names another `kind` of model or
data, it inherits the keys that both kinds have.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nca_lib.errors import ExperimentError
from nca_lib.experiments.kinds import KINDS, arguments

Layer = tuple[str, Mapping[str, Any]]  # where it is written, and what it says
FOLDERS = {"experiment": "recipes", "matrix": "matrices"}


def names() -> list[str]:
    """The names of the shipped experiments."""
    return _shipped("experiment")


def matrices() -> list[str]:
    """The names of the shipped matrices, see [`nca_lib.experiments.matrix`][]."""
    return _shipped("matrix")


def layers_of(source: str | Path, beside: Path = Path()) -> list[Layer]:
    """The layers of an experiment: a .toml file (in the folder `beside`), or a shipped one by its name.

    Raises:
        ExperimentError: no such experiment or base, not TOML, or bases that lead in a circle.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        path = _locate("experiment", source, beside, f"{seen[-1]}: base: " if seen else "")
        if path in seen:
            circle = " -> ".join(file.stem for file in [*seen[seen.index(path) :], path])
            raise ExperimentError(f"{path}: base: {circle} is a circle")
        values = _parse(path)
        seen.append(path)
        layers.insert(0, (str(source), values))
        if "base" not in values:
            return layers
        source, beside = values.pop("base"), path.parent


def read_matrix(source: str | Path) -> tuple[dict[str, Any], list[list[Layer]]]:
    """A matrix file (or a shipped one by its name) without its entries, and each entry's layers.

    An entry's base is an entry above it, or an experiment. With `seeds`, each entry is there once for each.

    Raises:
        ExperimentError: no such matrix, not TOML, unknown keys, or an unknown base.
    """
    path = _locate("matrix", source, Path())
    head = _parse(path)
    entries = head.pop("entry", [])
    name, evaluation = head.get("name"), head.get("evaluation", {})
    tables = isinstance(entries, list) and all(isinstance(table, dict) for table in [*entries, evaluation])
    unknown = head.keys() - {"name", "seeds", "evaluation"}
    if unknown or not isinstance(name, str) or not tables or not entries:
        raise ExperimentError(f"{path}: a matrix has a name, seeds, [evaluation], and [[entry]] tables")
    seeds = head.get("seeds")
    if seeds is not None and (type(seeds) is not int or seeds < 1):
        raise ExperimentError(f"{path}: seeds: {seeds!r} is no whole number of at least 1")
    named: dict[str, list[Layer]] = {}
    found: list[list[Layer]] = []
    for entry in entries:
        values = {key: value for key, value in entry.items() if key != "base"}
        below: list[Layer] = []
        if "base" in entry:
            below = named.get(str(entry["base"])) or layers_of(entry["base"], path.parent)
        layers = [*below, (name, values)]
        if "name" in values:
            named[str(values["name"])] = layers
        found += [layers] if seeds is None else _seeded(layers, seeds)
    return head, found


def _seeded(layers: list[Layer], seeds: int) -> list[list[Layer]]:
    name = merged(layers).get("name")
    changes: list[dict[str, Any]] = [{"training": {"seed": seed}} for seed in range(seeds)]
    for seed in range(1, seeds):
        changes[seed]["name"] = f"{name}-seed-{seed}"
    return [[*layers, ("seeds", values)] for values in changes]


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """What the layers say together."""
    result: dict[str, Any] = {}
    for _, values in layers:
        for key, value in values.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                value = {**_inherited(key, below, value), **value}
            result[key] = value
    return result


def _inherited(section: str, below: Mapping[str, Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    build = KINDS.get(section, {}).get(str(values.get("kind")))
    if build is None or values["kind"] == below.get("kind"):
        return below
    return {key: value for key, value in below.items() if key in arguments(build)}


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"training.steps": 3}` as `{"training": {"steps": 3}}`.

    Raises:
        ExperimentError: a key is given a value and keys within it.
    """
    values: dict[str, Any] = {}
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition(".")
        within = values.setdefault(section, {}) if section else values
        if not isinstance(within, dict):
            raise ExperimentError(f"{dotted}: {section} is {within!r}, which holds no keys")
        within[key] = value
    return values


def origins(layers: Sequence[Layer]) -> dict[str, str]:
    """Where each key, dotted, got its value."""
    found: dict[str, str] = {}
    for origin, values in layers:
        for key, value in values.items():
            inner = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [key]
            found |= dict.fromkeys(inner, origin)
    return found


def _shipped(kind: str) -> list[str]:
    entries = (resources.files("nca_lib") / "experiments" / FOLDERS[kind]).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def _locate(kind: str, source: str | Path, beside: Path, asked: str = "") -> Path:
    path = beside / str(source)
    if path.suffix != ".toml":
        folder = Path(str(resources.files("nca_lib") / "experiments" / FOLDERS[kind]))
        path = folder / f"{source}.toml"
    if not path.is_file():
        raise ExperimentError(
            f"{asked}no {kind} {str(source)!r}; give a .toml file or one of: {', '.join(_shipped(kind))}"
        )
    return path.resolve()


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read ({error.strerror})") from error
