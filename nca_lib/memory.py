"""Memory: that what was freed is used again, and whether there is enough, asked before anything is computed.

What a computation needs is counted from below: its largest arrays, not all. So what is refused could not have
been done; what is let through may still fail, which the command line then says in one line.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nca_lib.errors import TooLargeError, UsageError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
# One arena, since those of other threads are too small for large blocks: they would not be kept there.
KEPT = {"MALLOC_TRIM_THRESHOLD_": 2**31 - 1, "MALLOC_MMAP_THRESHOLD_": 2**30, "MALLOC_ARENA_MAX": 1}
"""What `keep_freed_memory` sets, as variables of the environment of a process that is started."""


def keep_freed_memory() -> None:
    """Tell glibc to keep the large blocks that are freed, up to 2 GB, for who asks next; done on import.

    By default it hands them back to the system, which must find and clear each of their pages anew when the
    next step asks: half of the time of a large canvas (chapter 8, `benchmarks/allocator.py`). Nothing is done
    where the environment tunes it (`MALLOC_...`, `GLIBC_TUNABLES`), or where another library allocates
    (macOS, Windows, musl).
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if (malloc := _glibc()) and not tuned and "glibc.malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        for option, value in zip(
            (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX), KEPT.values(), strict=True
        ):
            malloc.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") else None


def available(device: torch.device) -> float:
    """Bytes that there are on a device for something new; infinite where nobody says."""
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for what comes next
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    return min(_free(), _left_of_limit())


def _free() -> float:
    if MEMINFO.is_file():
        said = re.search(r"^MemAvailable: +(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        return int(said[1]) * 1024 if said else math.inf
    try:  # macOS, where only the whole is known
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError, OSError):
        return math.inf


def _left_of_limit() -> float:
    """What a container's limit (cgroup v2) leaves; the files that it caches would be given up."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        return math.inf if limit == "max" else int(limit) - used + (int(cached[1]) if cached else 0)
    except (OSError, ValueError):
        return math.inf


def check_memory(needed: float, what: str, cure: str, device: torch.device | None = None) -> None:
    """Refuse what does not fit.

    Args:
        needed: bytes, at least.
        what: needs them.
        cure: what to do, in words.
        device: where; the CPU by default.

    Raises:
        TooLargeError: there is less; the message says what is needed and what there is.
    """
    device = device or torch.device("cpu")
    if needed > available(device) and (malloc := _glibc()):
        malloc.malloc_trim(0)  # what was freed and kept is there too
    there = available(device)
    if needed > there:
        raise TooLargeError(
            f"{what}: at least {in_bytes(needed)} of memory, of which {device} has {in_bytes(there)}; {cure}"
        )


def check_call(model: nn.Module, count: int, size: tuple[int, int]) -> None:
    """Refuse to draw no images, or more and larger ones (height, width) than memory holds.

    A network says by `numbers_per_pixel` what a call holds at a time, at least, for each pixel of each image.

    Raises:
        UsageError: a number below 1.
        TooLargeError: they do not fit.
    """
    height, width = size
    what = f"{count} image{'s' if count > 1 else ''} of {width}x{height}"
    if min(count, height, width) < 1:
        raise UsageError(f"{what}; at least one, of 1x1")
    network: Any = getattr(model, "network", model)
    # Besides: the image, its clean estimate, and the next one.
    numbers = 3 * network.image_channels + getattr(network, "numbers_per_pixel", 0)
    device = next(model.parameters(), torch.empty(0)).device
    cure = "ask for fewer or smaller ones, or for a canvas, which is drawn in tiles"
    check_memory(4 * count * height * width * numbers, what, cure, device)


def out_of_memory(error: BaseException) -> str:
    """What to say, in one line, of an error that says that memory ended; "" of any other."""
    ended = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return f"out of memory; ask for fewer or smaller images ({error!s:.120})" if ended else ""


def in_bytes(count: float) -> str:
    """A number of bytes as it is read: three digits and a unit."""
    unit = min(int(math.log(max(count, 1), 1000)), 6)
    return f"{count / 1000**unit:,.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[unit]}"
