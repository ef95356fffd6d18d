"""Packages that only parts of the library need: the extras of pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nca_lib.errors import NCAError


class MissingExtra(NCAError, ImportError):
    """A package of an extra is not installed; the message says what to install."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports: what is missing is in the extra `name`.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install 'nca_lib[{name}]'") from None
