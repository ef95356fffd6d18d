"""`make bench`: how fast a denoiser call and a training step are, as ratios within one run.

Each variant is timed in turn, round after round, so that a drift of the machine's speed hits all alike. The
literal variant is the specification, eager, in float32. Results go to benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nca_lib.diff_nca import DiffNCA, compile_step
from nca_lib.diffusion import mse_l1
from nca_lib.training import best_device, computes_bf16, hardware

ROUNDS = 7
OPTIONS = {"encoding": "sinusoidal", "position": False, "zero_init": True, "update_probability": 1.0}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product, in GFLOP/s."""
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / statistics.median(timed(lambda: a @ b, device) for _ in range(5)) / 1e9


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, device included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def variants(device: torch.device, train: bool) -> dict[str, Callable[[], object]]:
    """One denoiser call (64x64, batch 4) or training step (32x32, batch 16) in several ways."""
    batch, size = (16, 32) if train else (4, 64)
    x, t = torch.randn(batch, 3, size, size, device=device), torch.rand(batch, device=device)
    noise = torch.randn_like(x)

    def work(compiled: bool, bf16: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        model = DiffNCA(48, 192, 10, **OPTIONS).to(device)  # type: ignore[arg-type]
        if compiled:
            compile_step(model, device)

        def once() -> object:
            with torch.set_grad_enabled(train), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output = model(x, t)
            if train:
                model.zero_grad()
                mse_l1(output.float(), noise).backward()
            return output

        return once

    found = {"literal": work(False, False), "compiled": work(True, False)}
    if computes_bf16(device):
        found |= {"bf16": work(False, True), "compiled bf16": work(True, True)}
    return found


def main() -> None:
    """Run, print a table, write the results."""
    device = torch.device(os.environ["DEVICE"]) if os.environ.get("DEVICE") else best_device()
    result: dict[str, object] = {
        "hardware": hardware(device),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "matrix_gflops": {"float32": round(matrix_rate(device, torch.float32), 1)},
    }
    for name, train in (("denoiser call, 64x64 x 4", False), ("training step, 32x32 x 16", True)):
        works = variants(device, train)
        for work in works.values():
            work(), work()  # warm up, and compile
        rounds = [{key: timed(work, device) for key, work in works.items()} for _ in range(ROUNDS)]
        print(f"\n{name:28} {'median ms':>10} {'times as fast as literal (min to max)':>40}")
        table = {}
        for key in works:
            ratios = sorted(row["literal"] / row[key] for row in rounds)
            median = statistics.median(row[key] for row in rounds)
            table[key] = {
                "seconds": median,
                "ratio": statistics.median(ratios),
                "spread": ratios[:: ROUNDS - 1],
            }
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{key:28} {1000 * median:10.1f} {spread:>40}")
        result[name] = table
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    out = folder / f"{platform.system().lower()}-{device.type}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
