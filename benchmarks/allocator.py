"""What it costs to hand freed memory back to the system, and to ask for it anew (chapter 8).

    python benchmarks/allocator.py

Training steps and denoiser calls run on one thread, in processes of their own: with glibc as the library sets
it (`nca_lib.memory.keep_freed_memory`), and with its defaults, in turn. Seconds are the processor's, in the
program and in the system's kernel; faults are pages that the kernel had to find and clear. Results go to
benchmarks/results/allocator-cpu.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from roofline import Step

import nca_lib
from nca_lib.devices import compile_step, computes_bf16, hardware
from nca_lib.experiments.settings import Experiment

CPU = torch.device("cpu")
OUT = Path(__file__).parent / "results" / "allocator-cpu.json"
DEFAULT = "glibc.malloc.perturb=0"  # its default; but whoever says so is left alone
TRAININGS = ("tissue-diff-nca", "faces-fourier", "faces-unet")
CALLS = (64, 256, 512)
ROUNDS, REPEATS, WARM = 3, 5, 2


def seconds_of(kind: str, what: str) -> dict[str, float]:
    """Processor seconds and page faults of one step of a training, or of a call of the tissue model."""
    torch.set_num_threads(1)
    work: Any
    if kind == "training":
        work = Step(Experiment.read(what), "compiled bf16" if computes_bf16(CPU) else "compiled")
    else:
        model: Any = nca_lib.load("tissue-diff-nca")
        size = int(what)
        noisy, t = torch.randn(1, 3, size, size), torch.tensor([100])
        if kind.endswith("compiled bf16"):
            compile_step(model, CPU)

        def work() -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind.endswith("bf16")):
                model(noisy, t)

    for _ in range(WARM):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(REPEATS):
        work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "program": (after.ru_utime - before.ru_utime) / REPEATS,
        "system": (after.ru_stime - before.ru_stime) / REPEATS,
        "faults": (after.ru_minflt - before.ru_minflt) / REPEATS,
        "peak_mib": after.ru_maxrss / 1024,
    }


def apart(kind: str, what: str, **environment: str) -> dict[str, float]:
    """The same, measured in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, __file__, kind, what]
    return json.loads(subprocess.check_output(command, env=clean | environment, text=True).splitlines()[-1])


def compare(kind: str, what: str) -> dict[str, Any]:
    """Each way's round with the fewest seconds, and how many times as fast the kept memory makes it."""
    rounds = [(apart(kind, what, GLIBC_TUNABLES=DEFAULT), apart(kind, what)) for _ in range(ROUNDS)]
    default, kept = (
        min((pair[way] for pair in rounds), key=lambda row: row["program"] + row["system"]) for way in (0, 1)
    )
    ratio = (default["program"] + default["system"]) / (kept["program"] + kept["system"])
    return {"work": kind, "of": what, "default": default, "kept": kept, "ratio": ratio}


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(seconds_of(*sys.argv[1:])))
        return
    works = [("training", name) for name in TRAININGS]
    works += [*(("call", str(size)) for size in CALLS), ("call, compiled bf16", str(CALLS[-1]))]
    rows = []
    for work in works:
        rows.append(compare(*work))
        print(rows[-1], flush=True)
    found = {"hardware": hardware(CPU), "load": os.getloadavg()[0], "rows": rows}
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
