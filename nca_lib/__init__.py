"""Diffusion models whose network is a neural cellular automaton.

The modules follow the chapters of the book: `automaton` (1), `noise`, `diffusion` and `samplers` (2),
`diff_nca` (3), `fourier` (4), `baselines` (5), `editing` (6), `canvas` (7), `fast` (8), `cascade` (9). Around
them are four rooms: `data`, `experiments`, `evaluation`, and `book`, which holds what the notebooks show.
"""

__version__ = "0.1.0"

from nca_lib.memory import keep_freed_memory
from nca_lib.samplers import sample
from nca_lib.weights import from_reference, load

keep_freed_memory()

__all__ = ["from_reference", "load", "sample"]
