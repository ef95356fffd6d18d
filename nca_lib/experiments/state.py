"""The state of a training between two steps, and the files that it leaves (chapter 5)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel

from nca_lib.devices import computes_bf16, hardware
from nca_lib.experiments import checkpoints
from nca_lib.experiments.settings import Experiment
from nca_lib.experiments.tasks import Task
from nca_lib.files import writing
from nca_lib.processes import leads, rank_and_size
from nca_lib.weights import save


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that a training on the device uses."""
    state = {"cpu_random": torch.get_rng_state()}
    if device.type != "cpu":
        state[f"{device.type}_random"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what [`random_state`][] gave, perhaps on another device."""
    torch.set_rng_state(state["cpu_random"])
    if (there := f"{device.type}_random") in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[there], device)


class Run:
    """The state of a training run between steps, and its files."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        task: Task,
        average: AveragedModel,
        optimizers: list[Optimizer],
        device: torch.device,
    ):
        self.experiment, self.folder, self.task = experiment, folder, task
        self.average, self.optimizers, self.device = average, optimizers, device
        older = torch.float16 if device.type == "cuda" else torch.float32
        half = torch.bfloat16 if computes_bf16(device) else older
        self.precision = half if experiment.training.bf16 else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        # It never steps: through it the scaler sees all gradients, those too that Muon takes through views.
        self.scaled = SGD(task.model.parameters())
        self.resumed_anyway: list[dict[str, Any]] = []
        self.step, self.seconds = 0, 0.0
        self.saved: int | None = None
        self.smooth_loss, self.held_out_loss, self.images_per_second = math.nan, math.nan, 0.0
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def autocast(self) -> torch.autocast:
        """Mixed precision, if the experiment wants it and the device has it."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def progress(self) -> float:
        """The part of the training that is over, by the clock if it has one, else by steps."""
        options = self.experiment.training
        by_clock = self.seconds / 60 / options.minutes if options.minutes is not None else 0.0
        return max(by_clock, self.step / options.steps if options.steps else 1.0)

    def count(self, loss: float, seconds: float) -> None:
        """Book one step."""
        self.step += 1
        rate = self.experiment.training.batch / max(seconds - self.seconds, 1e-9)
        self.seconds = seconds
        smooth = 0.0 if math.isnan(self.smooth_loss) else 0.98
        self.smooth_loss = loss if not smooth else smooth * self.smooth_loss + (1 - smooth) * loss
        kept = smooth if self.images_per_second else 0.0  # after a resume the rate begins anew
        self.images_per_second = kept * self.images_per_second + (1 - kept) * rate

    def save_model(self, name: str) -> None:
        """Write the averaged weights with their record, atomically."""
        with self.autocast():  # as in training
            self.held_out_loss = self.task.evaluate(self.average.module.eval())
        save(self.average.module, self.folder / f"{name}.safetensors", self.record())

    def save(self) -> None:
        """Write the averaged weights with their record, and the checkpoint; each atomically."""
        self.save_model("model")
        more = {
            "experiment": self.experiment.to_dict(),
            "threads": torch.get_num_threads(),
            "resumed_anyway": self.resumed_anyway,
            "smooth_loss": self.smooth_loss,  # NaN where there was no step yet
            "scaler": self.scaler.state_dict(),
        }
        checkpoints.write(self.folder, self.state() | random_state(self.device) | more)
        self.saved = self.step

    def state(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.task.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "task": self.task.state(),
            "cpu_random": torch.get_rng_state(),
        }

    def restore(self, anyway: bool = False) -> None:
        """Continue from the newest checkpoint that is whole.

        Args:
            anyway: even if it is of other settings; the record will say so.

        Raises:
            TrainingError: none is whole.
            ExperimentError: it is of other settings.
        """

        def check(state: dict[str, Any]) -> None:
            before = checkpoints.experiment_of(self.folder, state)
            differs = checkpoints.differences(before, self.experiment) if before else {}
            if not anyway:
                checkpoints.refuse_other(self.folder, differs)
            self.resumed_anyway = list(state.get("resumed_anyway", []))
            if differs:
                changed = {key: list(values) for key, values in differs.items()}
                self.resumed_anyway.append({"step": state["step"], "changed": changed})

        checkpoints.restore(self.folder, self.state(), self._put_back, check=check)

    def _put_back(self, state: dict[str, Any]) -> None:
        self.task.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            checkpoints.restore_optimizer(optimizer, kept)
        self.task.restore(state["task"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.smooth_loss = float(state["smooth_loss"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        set_random_state(state, self.device)
        threads, now = state.get("threads"), torch.get_num_threads()
        if threads not in (None, now) and self.device.type == "cpu" and leads():
            print(f"{self.folder} was trained with {threads} threads, now {now}: the last bits may differ")

    def record(self) -> dict[str, Any]:
        """How the weights came about."""
        processes = rank_and_size()[1]
        return {
            "experiment": self.experiment.to_dict(),
            "data_fingerprint": self.task.fingerprint,
            "seed": self.experiment.training.seed,
            "steps": self.step,
            "images_seen": self.step * self.experiment.training.batch,
            "training_seconds": round(self.seconds, 1),
            "training_loss": round(self.smooth_loss, 5) if self.step else None,
            "held_out_loss": round(self.held_out_loss, 5),
            "hardware": hardware(self.device) if processes == 1 else f"{processes} x {hardware(self.device)}",
            "torch_version": torch.__version__,
            **({"resumed_anyway": self.resumed_anyway} if self.resumed_anyway else {}),
        }
