"""Files that are whole or not there: written beside their place and renamed; one process in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nca_lib.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".nca-partial"
"""How files that are being written end: as nobody else's do, since what is left of them is deleted."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the operating system refuses within the block into an [`OutputError`][], in one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_atomically(path: str | Path, blob: bytes) -> None:
    """Write a file so that a crash or a full disk leaves either the old one or the new one, never half of it.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or something else than a file is there.
    """
    with writing(path):
        partial = _partial(path)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(os.path.realpath(path))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def check_writable(path: str | Path) -> None:
    """Refuse, before anything is computed, a file that [`write_atomically`][] could not write.

    Raises:
        OutputError: as there; or its folder does not exist.
    """
    with writing(path):
        partial = _partial(path)
        if not partial.parent.is_dir():
            raise OutputError(f"{path}: the folder {Path(path).parent} does not exist")
        partial.touch()
        partial.unlink()


def _partial(path: str | Path) -> Path:
    # Of what a link points to: renaming would replace the link.
    try:
        real = Path(os.path.realpath(path))
    except ValueError as error:
        raise OutputError(f"{str(path)!r} is no name of a file ({error})") from error
    if real.exists() and not real.is_file():  # a folder; or a device, which renaming would replace
        raise OutputError(f"{path} is no file, so it cannot be overwritten")
    return real.with_name(real.name + PARTIAL)


def sweep(folder: str | Path) -> None:
    """Delete what interrupted writes have left in a folder."""
    for partial in Path(folder).glob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file during the block, so that no second process does the same.

    The lock is the operating system's: it ends with the process that holds it, however that ends. What the
    file says, host and process id, is for the message only.

    Args:
        path: the lock file; it stays, empty.
        wait: for the other process, instead of refusing.

    Raises:
        OutputError: another process holds the lock; the message names its host and id.
    """
    path = Path(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        if fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise OutputError(
                    f"{path.parent} is in use by {file.read().strip() or 'another process'}; "
                    "wait for it, or choose another folder"
                ) from None
            except OSError:  # a network's file system without locks
                pass
        with writing(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            file.truncate(0)
