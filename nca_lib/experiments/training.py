"""Training: one loop for every experiment (chapters 1 to 5).

`train(experiment, folder)` writes into `folder`: `model.safetensors` and its record (the averaged weights,
ready for `nca_lib.load`), `checkpoint.pt` (all that resuming needs), sample grids, TensorBoard events.
"""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from tqdm import tqdm

from nca_lib.data.files import write as write_image
from nca_lib.devices import compile_step, compiler_failed, computes_bf16, device_of, hardware
from nca_lib.errors import TrainingError
from nca_lib.experiments import checkpoints
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.settings import Experiment, Training
from nca_lib.experiments.tasks import Task, task_of
from nca_lib.files import locked, sweep, write_atomically, writing
from nca_lib.weights import load, save


def decay_factor(options: Training, step: int, progress: float) -> float:
    """The part of its peak that a learning rate has at a step; `progress` in [0, 1]: how much is over."""
    if options.decay == "reference":
        return 0.9999**step
    warm = min(1.0, (step + 1) / options.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def snapshot_steps(options: Training) -> list[int]:
    """The steps after which snapshots are kept, ascending: ..., a quarter of all, half of all."""
    steps = [options.steps >> halvings for halvings in range(options.snapshots, 0, -1)]
    return [step for step in steps if step > 0]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters (buffers are copied), with warm-up."""

    def update(average: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
        return torch.lerp(average, current, 1 - min(decay, (1 + int(n)) / (10 + int(n))))

    return AveragedModel(model, avg_fn=update)


def _nonfinite(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss alone"


def train(
    experiment: Experiment,
    folder: str | Path,
    *,
    resume: bool = False,
    resume_anyway: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> nn.Module:
    """Run an experiment and return its averaged model, ready to use.

    Asked to stop by SIGINT (Ctrl-C) or SIGTERM (SLURM), it finishes the step, saves all, says how to go on,
    and raises KeyboardInterrupt or SystemExit(143). Where compiling fails it goes on uncompiled.

    Args:
        experiment: what to do.
        folder: where everything is written.
        resume: go on from the folder's checkpoint if there is one; on the CPU the result equals, bit for
            bit, that of a run that was never interrupted with as many threads (unless it is timed by the
            clock).
        resume_anyway: go on even with other settings than the checkpoint's; the record will say so.
        device: by default the best that is there.
        progress: show a progress bar.

    Raises:
        TrainingError: the loss or a gradient became infinite or NaN, and the last good checkpoint is kept; or
            no checkpoint is whole.
        ExperimentError: the checkpoint is of other settings than the experiment.
        OutputError: the folder cannot be written, or another process trains in it.
    """
    folder, device = Path(folder), device_of(device)
    with writing(folder), locked(folder / ".lock"), checkpoints.stop_signals() as stop:
        sweep(folder)
        before = checkpoints.newest(folder)
        try:
            return _train(experiment, folder, device, progress, stop, resume, resume_anyway)
        except Exception as error:
            if not compiler_failed(error):
                raise
            print(f"going on uncompiled: {compiler_failed(error)}")
        # From what has been saved in the meantime, if anything has.
        resume = resume or checkpoints.newest(folder) != before
        return _train(experiment, folder, device, progress, stop, resume, resume_anyway, compiled=False)


def _train(
    experiment: Experiment,
    folder: Path,
    device: torch.device,
    progress: bool,
    stop: checkpoints.Stop,
    resume: bool,
    resume_anyway: bool,
    compiled: bool = True,
) -> nn.Module:
    options = experiment.training
    torch.manual_seed(options.seed)
    task = task_of(experiment, device)
    if options.init_from:
        task.model.load_state_dict(load(options.init_from).state_dict())
    average = averaged(task.model, options.ema)
    optimizers = optimizers_of(task.model, options)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    run = Run(experiment, folder, task, average, optimizers, device)
    if resume and checkpoints.newest(folder):
        run.restore(resume_anyway)
    write_atomically(folder / "experiment.toml", experiment.to_toml().encode())
    task.start(run.step)
    if options.compile and compiled:
        compile_step(task.model, device)

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16 and computes_bf16(device))
    snapshots = snapshot_steps(options)
    writer = SummaryWriter(str(folder))
    bar = tqdm(total=options.steps, initial=run.step, disable=not progress, unit="step", mininterval=5)
    clock = time.perf_counter() - run.seconds
    while run.progress() < 1 and not stop.signal:
        factor = decay_factor(options, run.step, run.progress())
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        with autocast:
            loss = task.loss()
        task.model.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(task.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(norm + loss.detach()):
            raise TrainingError(
                f"step {run.step}: loss is {float(loss.detach())}, gradient norm {float(norm)}; "
                f"first non-finite tensor: {_nonfinite(task.model)}. The last checkpoint is kept in {folder}"
            )
        nn.utils.clip_grads_with_norm_(parameters, options.clip, norm)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(task.model)
        run.count(float(loss.detach()), time.perf_counter() - clock)
        bar.update()
        if run.step % options.log_every == 0:
            bar.set_postfix_str(
                f"loss {run.smooth_loss:.4f}, {run.images_per_second:.0f} images/s", refresh=False
            )
            writer.add_scalar("loss", run.smooth_loss, run.step)
            writer.add_scalar("learning_rate", options.learning_rate * factor, run.step)
            writer.add_scalar("images_per_second", run.images_per_second, run.step)
        if run.step % options.sample_every == 0:
            grid = make_grid(task.preview(average.module.eval()).clamp(0, 1), nrow=4)
            write_image(grid * 2 - 1, folder / f"samples-{run.step:07d}.png", force=True)
            writer.add_image("samples", grid, run.step)
        if run.step in snapshots:
            run.save_model(f"model-{run.step:07d}")
        if run.step % options.save_every == 0:
            run.save()
    bar.close()
    if run.step and run.saved != run.step:
        run.save()
    if run.progress() < 1:
        print(f"stopped after step {run.step}, saved in {folder}: --resume (resume=True) goes on from there")
        raise KeyboardInterrupt if stop.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    writer.add_scalar("held_out_loss", run.held_out_loss, run.step)
    writer.close()
    return average.module.eval().requires_grad_(False)


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
        self.resumed_anyway: list[dict[str, Any]] = []
        self.step, self.saved, self.seconds = 0, 0, 0.0
        self.smooth_loss, self.held_out_loss, self.images_per_second = math.nan, math.nan, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def progress(self) -> float:
        """The part of the training that is over, by the clock if it has one, else by steps."""
        options = self.experiment.training
        by_clock = self.seconds / 60 / options.minutes if options.minutes is not None else 0.0
        return max(by_clock, self.step / options.steps)

    def count(self, loss: float, seconds: float) -> None:
        """Book one step."""
        self.step += 1
        rate = self.experiment.training.batch / max(seconds - self.seconds, 1e-9)
        self.seconds = seconds
        smooth = 0.0 if math.isnan(self.smooth_loss) else 0.98
        self.smooth_loss = loss if not smooth else smooth * self.smooth_loss + (1 - smooth) * loss
        self.images_per_second = smooth * self.images_per_second + (1 - smooth) * rate

    def save_model(self, name: str) -> None:
        """Write the averaged weights with their record, atomically."""
        self.held_out_loss = self.task.evaluate(self.average.module.eval())
        save(self.average.module, self.folder / f"{name}.safetensors", self.record())

    def save(self) -> None:
        """Write the averaged weights with their record, and the checkpoint; each atomically."""
        self.save_model("model")
        state = self.state() | {
            "experiment": self.experiment.to_dict(),
            "threads": torch.get_num_threads(),
            "resumed_anyway": self.resumed_anyway,
        }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        checkpoints.write(self.folder, state)
        self.saved = self.step

    def state(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "smooth_loss": self.smooth_loss,
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
                cure = "take its settings or another folder, or add --resume-anyway (resume_anyway=True)"
                checkpoints.refuse_other(self.folder, differs, cure)
            self.resumed_anyway = list(state.get("resumed_anyway", []))
            if differs:
                changed = {key: list(values) for key, values in differs.items()}
                self.resumed_anyway.append({"step": state["step"], "changed": changed})

        checkpoints.restore(self.folder, self.state(), self._put_back, check=check, device=self.device)

    def _put_back(self, state: dict[str, Any]) -> None:
        self.task.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            checkpoints.restore_optimizer(optimizer, kept)
        self.task.restore(state["task"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.smooth_loss = state["smooth_loss"]
        torch.set_rng_state(state["cpu_random"].cpu())
        if "cuda_random" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"].cpu(), self.device)
        threads, now = state.get("threads"), torch.get_num_threads()
        if threads not in (None, now) and self.device.type == "cpu":
            print(f"{self.folder} was trained with {threads} threads, now {now}: the last bits may differ")

    def record(self) -> dict[str, Any]:
        """How the weights came about."""
        return {
            "experiment": self.experiment.to_dict(),
            "data_fingerprint": self.task.fingerprint,
            "seed": self.experiment.training.seed,
            "steps": self.step,
            "images_seen": self.step * self.experiment.training.batch,
            "training_seconds": round(self.seconds, 1),
            "training_loss": round(self.smooth_loss, 5),
            "held_out_loss": round(self.held_out_loss, 5),
            "hardware": hardware(self.device),
            "torch_version": torch.__version__,
            **({"resumed_anyway": self.resumed_anyway} if self.resumed_anyway else {}),
        }
