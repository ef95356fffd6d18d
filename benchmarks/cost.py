"""`python benchmarks/cost.py`: training steps, as `nca_lib.experiments.cost` predicts and as measured.

Both are seconds of this process, so that other programs matter little. What is predicted rests on two
measured rates alone, that of matrix products and that of a pointwise loop; nothing is fitted.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from nca_lib.devices import compile_step, computes_bf16
from nca_lib.experiments.cost import measured, predict
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.settings import Experiment

# Automata whose steps are far more than four times apart; and a UNet, of few and narrow products.
EXPERIMENTS = ("web-tissue", "tissue-diff-nca", "faces-fourier", "faces-64", "faces-unet")


def seconds_of(experiment: Experiment, rounds: int = 5) -> float:
    """Median seconds of a compiled training step: loss, gradients, optimiser."""
    torch._dynamo.reset()
    device, options = torch.device("cpu"), experiment.training
    model = experiment.build_model()
    compile_step(model, device)
    optimizers = optimizers_of(model, options)
    size = experiment.data["size"]
    clean = torch.rand(options.batch, model.image_channels, size, size) * 2 - 1
    t = torch.arange(options.batch) * experiment.diffusion.timesteps // options.batch

    def step() -> float:
        start = time.process_time()
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16 and computes_bf16(device)):
            loss = model.loss(clean, t, torch.randn_like(clean))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return time.process_time() - start

    step(), step()  # compile
    return statistics.median(step() for _ in range(rounds))


def main() -> None:
    """Measure on one thread, print, write the results."""
    torch.set_num_threads(1)
    device, rows = measured(2), {}
    print(f"{device.name}: {device.basis}")
    print(f"{'seconds of a training step':28} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    for name in EXPERIMENTS:
        experiment = Experiment.read(name)
        found, predicted = seconds_of(experiment), predict(experiment, device).seconds_per_step
        rows[name] = {"predicted": predicted, "measured": found, "ratio": predicted / found}
        print(f"{name:28} {predicted:10.3f} {found:10.3f} {predicted / found:6.2f}", flush=True)
    seconds = [row["measured"] for row in rows.values()]
    result = {"basis": device.basis, "apart": max(seconds) / min(seconds), "seconds of a step": rows}
    print(f"measured steps lie {result['apart']:.1f} times apart")
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "cost-cpu.json")
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
