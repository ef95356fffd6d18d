"""Training: one loop for every experiment (chapters 1 to 5).

`train(experiment, folder)` writes into `folder`: `model.safetensors` and its record (the averaged weights,
ready for `nca_lib.load`), `checkpoint.pt` (all that resuming needs), sample grids, TensorBoard events.
"""

from __future__ import annotations

import io
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from nca_lib.data.files import sheet, write
from nca_lib.devices import arithmetic, best_device, compile_step, computes_bf16, hardware
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.parallel import Loss, agreed, leads, mean, shared_loss, unshared
from nca_lib.experiments.settings import Experiment, Training
from nca_lib.experiments.tasks import Task, task_of
from nca_lib.weights import load, save, write_atomically


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


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


class Average(AveragedModel):
    """An exponential moving average of the parameters (buffers are copied), with warm-up.

    torch's own asks the device at each update how many there were.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the model; the first time, copy it."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        for own, current in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(current)
        self.n_averaged += 1


def _nonfinite(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss alone"


class _NoEvents:
    def add_scalar(self, *event: object) -> None:
        pass

    def add_image(self, *event: object) -> None:
        pass

    def close(self) -> None:
        pass


def _writer(folder: Path) -> Any:
    """TensorBoard's, or where that is not installed one that writes nothing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        print("no TensorBoard events: pip install 'nca_lib[tensorboard]'")
        return _NoEvents()
    return SummaryWriter(str(folder))


def train(
    experiment: Experiment,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> nn.Module:
    """Run an experiment and return its averaged model, ready to use.

    Args:
        experiment: what to do.
        folder: where everything is written.
        resume: go on from the folder's checkpoint if there is one; on the CPU the result equals, bit for
            bit, that of a run that was never interrupted (unless it is timed by the clock).
        device: by default the best that is there.
        progress: show a progress bar.

    Raises:
        TrainingError: the loss or a gradient became infinite or NaN; the last good checkpoint is kept.
    """
    device, options = torch.device(device) if device else best_device(), experiment.training
    with arithmetic(device, tf32=options.tf32, deterministic=options.deterministic):
        return _train(experiment, Path(folder), resume, device, progress)


def _train(
    experiment: Experiment, folder: Path, resume: bool, device: torch.device, progress: bool
) -> nn.Module:
    options = experiment.training
    torch.manual_seed(options.seed)
    task = task_of(experiment, device)
    if options.init_from:
        task.model.load_state_dict(load(options.init_from).state_dict())
    average = Average(task.model, options.ema)
    optimizers = optimizers_of(task.model, options)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    run = Run(experiment, folder, task, average, optimizers, device)
    if resume and run.checkpoint.is_file():
        run.restore()
    task.start(run.step)
    if options.compile:
        compile_step(task.model, device)

    share = shared_loss(task.model, task.loss)
    snapshots = snapshot_steps(options)
    writer = _writer(folder) if leads() else None
    hidden = not progress or not leads()
    bar = tqdm(total=options.steps, initial=run.step, disable=hidden, unit="step", mininterval=5)
    clock = time.perf_counter() - run.seconds
    while run.progress() < 1:
        factor = decay_factor(options, run.step, run.progress())
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        task.model.zero_grad(set_to_none=True)
        loss = _backward(run, share)
        for optimizer in optimizers:
            run.scaler.unscale_(optimizer)
        parameters = list(task.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        task.read_ahead()
        # The only time in a step that the host waits for the device.
        loss_now, norm_now = mean(torch.stack([loss, norm])).tolist()
        too_large = run.scaler.is_enabled() and math.isfinite(loss_now) and not math.isfinite(norm_now)
        if not (too_large or math.isfinite(loss_now + norm_now)):
            raise TrainingError(
                f"step {run.step}: loss is {loss_now}, gradient norm {norm_now}; "
                f"first non-finite tensor: {_nonfinite(task.model)}. The last checkpoint is kept in {folder}"
            )
        if not too_large:  # for fp16: then the step is left out, and the next loss scaled less
            nn.utils.clip_grads_with_norm_(parameters, options.clip, norm)
            for optimizer in optimizers:
                optimizer.step()
            average.update_parameters(task.model)
        run.scaler.update()
        seconds = time.perf_counter() - clock
        run.count(loss_now, seconds if options.minutes is None else agreed(seconds))
        bar.update()
        if writer is None:
            continue
        if run.step % options.log_every == 0:
            bar.set_postfix_str(
                f"loss {run.smooth_loss:.4f}, {run.images_per_second:.0f} images/s", refresh=False
            )
            writer.add_scalar("loss", run.smooth_loss, run.step)
            writer.add_scalar("learning_rate", options.learning_rate * factor, run.step)
            writer.add_scalar("images_per_second", run.images_per_second, run.step)
        if run.step % options.sample_every == 0:
            samples = sheet(2 * task.preview(average.module.eval()).clamp(0, 1) - 1, 4)
            write(samples, folder / f"samples-{run.step:07d}.png", force=True)
            writer.add_image("samples", samples / 2 + 0.5, run.step)
        if run.step in snapshots:
            run.save_model(f"model-{run.step:07d}")
        if run.step % options.save_every == 0:
            run.save()
    bar.close()
    if writer is not None:
        run.save()
        writer.add_scalar("held_out_loss", run.held_out_loss, run.step)
        writer.close()
    return average.module.eval().requires_grad_(False)


def _backward(run: Run, share: Loss | DistributedDataParallel) -> Tensor:
    """Gradients of the loss on this process's parts of a batch; returns their mean loss."""
    task, total = run.task, torch.zeros((), device=run.device)
    before = _random_state(run.device) if len(task.parts) > 1 else {}
    for part in task.parts:
        if part != task.parts[0]:  # each takes its rows of the same numbers
            _set_random_state(before, run.device)
        task.part = part
        with run.autocast(), nullcontext() if part == task.parts[-1] else unshared(share):
            loss = share() / len(task.parts)
            run.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu_random": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu_random"])
    if "cuda_random" in state:
        torch.cuda.set_rng_state(state["cuda_random"], device)


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
        self.checkpoint = folder / "checkpoint.pt"
        older = torch.float16 if device.type == "cuda" else torch.float32
        half = torch.bfloat16 if computes_bf16(device) else older
        self.precision = half if experiment.training.bf16 else torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.step, self.seconds = 0, 0.0
        self.smooth_loss, self.held_out_loss, self.images_per_second = math.nan, math.nan, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if leads():
            write_atomically(folder / "experiment.toml", experiment.to_toml().encode())

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
        self.images_per_second = smooth * self.images_per_second + (1 - smooth) * rate

    def save_model(self, name: str) -> None:
        """Write the averaged weights with their record, atomically."""
        with self.autocast():  # as in training
            self.held_out_loss = self.task.evaluate(self.average.module.eval())
        save(self.average.module, self.folder / f"{name}.safetensors", self.record())

    def save(self) -> None:
        """Write the averaged weights with their record, and the checkpoint; each atomically."""
        self.save_model("model")
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "smooth_loss": self.smooth_loss,
            "model": self.task.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "task": self.task.state(),
            "scaler": self.scaler.state_dict(),
            **_random_state(self.device),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.checkpoint, buffer.getvalue())

    def restore(self) -> None:
        """Continue from the checkpoint."""
        # To the CPU: on the device, the optimisers would read their counters from it at every step.
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.task.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.task.restore(state["task"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.smooth_loss = state["smooth_loss"]
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        _set_random_state(state, self.device)

    def record(self) -> dict[str, Any]:
        """How the weights came about."""
        return {
            "experiment": self.experiment.to_dict(),
            "data_fingerprint": self.task.fingerprint,
            "seed": self.experiment.training.seed,
            "steps": self.step,
            "images_seen": self.step * self.experiment.training.batch,
            "training_seconds": round(self.seconds, 1),
            "training_loss": round(self.smooth_loss, 5) if self.step else None,
            "held_out_loss": round(self.held_out_loss, 5),
            "hardware": hardware(self.device),
            "torch_version": torch.__version__,
        }
