"""A resolved experiment as a table: each key, its value, where that is written, and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from nca_lib.errors import ExperimentError
from nca_lib.experiments.files import Layer, layers_of, origins, read_matrix
from nca_lib.experiments.kinds import KINDS, arguments, meanings
from nca_lib.experiments.settings import SECTIONS, Experiment

Row = tuple[str, str, str, str]  # key, value, origin, meaning


def show(name: str, width: int = 120) -> str:
    """What an experiment comes to, as text.

    Args:
        name: a shipped experiment, a .toml file, or an entry of a matrix, as `"faces/faces-unet-990k"`.
        width: characters in a line; meanings are broken to fit, keys, values and origins are not.

    Raises:
        ExperimentError: no such experiment, matrix or entry; a bad key or value.
    """
    layers = _layers(name)
    experiment = Experiment.from_layers(layers)
    written = origins(layers)
    tables = {title: list(rows) for title, rows in _tables(experiment, written)}
    columns = [max(len(row[i]) for rows in tables.values() for row in rows) for i in range(3)]
    lines = [experiment.name]
    for title, rows in tables.items():
        lines += ["", *textwrap.wrap(title, width, break_on_hyphens=False)]
        for *cells, meaning in rows:
            start = "  ".join(f"{cell:{size}}" for cell, size in zip(cells, columns, strict=True))
            first, *more = textwrap.wrap(meaning, max(24, width - len(start) - 4)) or [""]
            lines += [f"  {start}  {first}".rstrip(), *(" " * (len(start) + 4) + line for line in more)]
    return "\n".join(lines)


def _layers(name: str) -> list[Layer]:
    matrix, _, entry = name.rpartition("/")
    if not matrix or name.endswith(".toml"):
        return layers_of(name)
    found = {Experiment.from_layers(layers).name: layers for layers in read_matrix(matrix)[1]}
    if entry not in found:
        raise ExperimentError(f"{entry}: no such entry in matrix {matrix}; it has {', '.join(found)}")
    return found[entry]


def _tables(experiment: Experiment, written: dict[str, str]) -> Iterator[tuple[str, Sequence[Row]]]:
    values = experiment.to_dict()
    for section, kinds in KINDS.items():
        kind = values[section].pop("kind")
        build = kinds[kind]
        told = meanings(build)
        defaults = {key: parameter.default for key, parameter in arguments(build).items()}
        rows = [(key, value, told[key]) for key, value in {**defaults, **values[section]}.items()]
        yield _table(section, build, [("kind", kind, ""), *rows], written)
    for section, build in SECTIONS.items():
        about = build.__pydantic_fields__
        rows = [(key, value, about[key].description) for key, value in values[section].items()]
        yield _table(section, build, rows, written)


def _table(
    section: str, build: type, rows: Sequence[tuple[str, Any, str]], written: dict[str, str]
) -> tuple[str, list[Row]]:
    title = f"[{section}]  {(build.__doc__ or '').splitlines()[0]}"
    return title, [
        (key, _text(value), written.get(f"{section}.{key}", "default"), m) for key, value, m in rows
    ]


def _text(value: Any) -> str:
    # As on the command line, which reads TOML.
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
