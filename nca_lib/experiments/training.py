"""Training: one loop for every experiment (chapters 1 to 5).

`train(experiment, folder)` writes into `folder`: `model.safetensors` and its record (the averaged weights,
ready for `nca_lib.load`), `checkpoint.pt` and the one before it (all that resuming needs), sample grids,
TensorBoard events.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from nca_lib.data.files import sheet, write
from nca_lib.devices import arithmetic, compile_step, compiler_failed, device_of
from nca_lib.errors import DivergedError, ExperimentError, TrainingError
from nca_lib.experiments import checkpoints
from nca_lib.experiments.optimizers import optimizers_of
from nca_lib.experiments.parallel import Loss, shared_loss, unshared
from nca_lib.experiments.settings import Experiment, Training
from nca_lib.experiments.state import Run, random_state, set_random_state
from nca_lib.experiments.tasks import task_of
from nca_lib.files import locked, sweep, write_atomically, writing
from nca_lib.processes import agreed, any_process, leads, mean, rank_and_size
from nca_lib.weights import load


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


class _Events:
    """TensorBoard's events of a training; none where that is not installed."""

    def __init__(self, folder: Path):
        self.folder, self.writer = folder, None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            print("no TensorBoard events: pip install 'nca_lib[tensorboard]'")
            return
        with writing(folder):
            self.writer = SummaryWriter(str(folder))

    def add(self, step: int, samples: Tensor | None = None, **scalars: float) -> None:
        """Note numbers, and a picture (C, H, W) in [0, 1]."""
        if self.writer is None:
            return
        with writing(self.folder):
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            if samples is not None:
                self.writer.add_image("samples", samples, step)

    def close(self) -> None:
        """Write what is not written yet."""
        if self.writer is not None:
            with writing(self.folder):
                self.writer.close()


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

    In a script of one's own under torchrun, call it within `with nca_lib.processes.processes():`, which
    joins the processes; the command line does.

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
        DivergedError: the loss or a gradient became infinite or NaN; the last good checkpoint is kept.
        TrainingError: no checkpoint is whole; or of several processes, one cannot compile.
        ExperimentError: the checkpoint is of other settings than the experiment, or `init_from` of another
            model.
        OutputError: the folder cannot be written, or another process trains in it.
    """
    folder, device, options = Path(folder), device_of(device), experiment.training
    # Of several processes the first holds the lock, as it writes the files.
    lock = _alone(folder) if leads() else nullcontext()
    with (
        lock,
        checkpoints.stop_signals() as stop,
        arithmetic(device, tf32=options.tf32, deterministic=options.deterministic),
    ):
        if leads():
            with writing(folder):
                sweep(folder)
        before = checkpoints.newest(folder)
        try:
            return _train(experiment, folder, device, progress, stop, resume, resume_anyway)
        except Exception as error:
            if not (said := compiler_failed(error)):
                raise
            if rank_and_size()[1] > 1:  # the others wait for this one's gradients
                raise TrainingError(f"{said}; or set training.compile = false") from error
            print(f"going on uncompiled: {said}")
        # From what has been saved in the meantime, if anything has.
        resume = resume or checkpoints.newest(folder) != before
        return _train(experiment, folder, device, progress, stop, resume, resume_anyway, compiled=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; a new folder that nothing came of, since training could not begin, is removed."""
    new = not folder.exists()
    try:
        with locked(folder / ".lock"):
            yield
    except BaseException:
        if new and [path.name for path in folder.glob("*")] == [".lock"]:
            shutil.rmtree(folder)
        raise


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
    goes_on = resume and agreed(checkpoints.newest(folder))  # a shared folder may show it to some later
    if options.init_from and not goes_on:
        try:
            task.model.load_state_dict(load(options.init_from).state_dict())
        except RuntimeError as error:
            differs = str(error).splitlines()[1].strip()
            raise ExperimentError(
                f"training.init_from: {options.init_from} is another model: {differs}"
            ) from error
    average = Average(task.model, options.ema)
    optimizers = optimizers_of(task.model, options)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    run = Run(experiment, folder, task, average, optimizers, device)
    if goes_on:
        run.restore(resume_anyway)
        agreed(None)  # before the first writes again what the others read
    if leads():
        write_atomically(folder / "experiment.toml", experiment.to_toml().encode())
    task.start(run.step)
    try:
        if options.compile and compiled:
            compile_step(task.model, device)
        _steps(run, peaks, stop, progress)
    finally:
        task.stop()
    return average.module.eval().requires_grad_(False)


def _steps(run: Run, peaks: list[float], stop: checkpoints.Stop, progress: bool) -> None:
    """The loop: steps until the training is over or asked to stop, with what is written on the way."""
    task, average, optimizers, folder = run.task, run.average, run.optimizers, run.folder
    options = run.experiment.training
    share = shared_loss(task.model, task.loss)
    snapshots = snapshot_steps(options)
    events = _Events(folder) if leads() else None
    # Over the budget, which is one of minutes or of steps: the time left is then that of the training.
    bar = tqdm(
        total=1,
        initial=run.progress(),
        disable=not progress or not leads(),
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        mininterval=5,
    )
    clock = time.perf_counter() - run.seconds
    while run.progress() < 1 and not any_process(stop.signal is not None):
        factor = decay_factor(options, run.step, run.progress())
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        task.model.zero_grad(set_to_none=True)
        loss = _backward(run, share)
        run.scaler.unscale_(run.scaled)
        parameters = list(task.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        task.read_ahead()
        # The only time in a step that the host waits for the device.
        loss_now, norm_now = mean(torch.stack([loss, norm])).tolist()
        too_large = run.scaler.is_enabled() and math.isfinite(loss_now) and not math.isfinite(norm_now)
        lost = too_large and run.scaler.get_scale() < 1  # it was halved again and again, to no avail
        if lost or not (too_large or math.isfinite(loss_now + norm_now)):
            raise DivergedError(
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
        bar.set_postfix_str(
            f"step {run.step:,}, loss {run.smooth_loss:.4f}, {run.images_per_second:.1f} images/s",
            refresh=False,
        )
        bar.update(min(run.progress(), 1) - bar.n)
        if events is None:
            continue
        if run.step % options.log_every == 0:
            rate, speed = optimizers[0].param_groups[0]["lr"], run.images_per_second
            events.add(run.step, loss=run.smooth_loss, learning_rate=rate, images_per_second=speed)
        if run.step in snapshots:
            run.save_model(f"model-{run.step:07d}")
        if run.step % options.save_every == 0 or run.progress() >= 1:
            run.save()
        if run.step % options.sample_every == 0 or run.progress() >= 1:
            samples = sheet(2 * task.preview(average.module.eval()).clamp(0, 1) - 1, 4)
            write(samples, folder / f"samples-{run.step:07d}.png", force=True)
            events.add(run.step, samples / 2 + 0.5)
    bar.close()
    if events is not None:
        if run.saved != run.step:
            run.save()
        if run.progress() >= 1:
            events.add(run.step, held_out_loss=run.held_out_loss)
        events.close()
    agreed(None)  # wait for the files: others read them; and torchrun ends all when one has ended
    if run.progress() < 1:
        if leads():
            print(f"stopped after step {run.step}, saved in {folder}: --resume (resume=True) goes on there")
        raise KeyboardInterrupt if stop.signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)


def _backward(run: Run, share: Loss | DistributedDataParallel) -> Tensor:
    """Gradients of the loss on this process's parts of a batch; returns their mean loss."""
    task, total = run.task, torch.zeros((), device=run.device)
    before = random_state(run.device) if len(task.parts) > 1 else {}
    for part in task.parts:
        if part != task.parts[0]:  # each takes its rows of the same numbers
            set_random_state(before, run.device)
        task.part = part
        with run.autocast(), nullcontext() if part == task.parts[-1] else unshared(share):
            loss = share() / len(task.parts)
            run.scaler.scale(loss).backward()
        total += loss.detach()
    return total
