"""What each kind of model learns, and how its progress is shown: the losses that `training` minimises.

A task holds the model in training and its data. Diffusion models learn to undo noise (chapters 2 to 5),
growing automata to draw a picture (chapter 1), VNCA to explain images by a code (chapter 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA
from nca_lib.cascade import coarse_context
from nca_lib.data.images import Images, Stream
from nca_lib.devices import compile_step, forked_random
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.editing import reduce
from nca_lib.errors import DataError, ExperimentError
from nca_lib.experiments.checkpoints import outlive_signals
from nca_lib.experiments.growing import GrowingTask
from nca_lib.experiments.kinds import DATASETS, arguments
from nca_lib.experiments.parallel import Part, PartNoise, parts, rank_and_size
from nca_lib.experiments.settings import Experiment
from nca_lib.memory import check_memory
from nca_lib.noise import Purpose, firing_from
from nca_lib.samplers import sample
from nca_lib.weights import load


class Task(Protocol):
    """What the loop needs to know of an experiment: a loss, and how to show and measure progress."""

    @property
    def model(self) -> nn.Module:
        """The model in training."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the data."""
        ...

    parts: list[Part]
    """the parts of a batch that are computed here"""
    part: Part
    """the one that `loss` computes next"""

    def read_ahead(self) -> None:
        """Read what the next `loss` needs, while the device is busy."""
        ...

    def start(self, step: int) -> None:
        """Position the data so that `loss` continues at `step`."""
        ...

    def stop(self) -> None:
        """Read no more data."""
        ...

    def loss(self) -> Tensor:
        """The loss on the next batch, or its part; a scalar with gradient."""
        ...

    def evaluate(self, model: nn.Module) -> float:
        """The loss on held-out data with fixed noise."""
        ...

    def preview(self, model: nn.Module) -> Tensor:
        """A few samples, (B, C, H, W) in [0, 1]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What resuming needs besides weights, optimiser and random state."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put `state` back."""
        ...


def _check_memory(experiment: Experiment, device: torch.device) -> None:
    """Refuse what cannot fit, counted from below: see [`nca_lib.memory`][]."""
    options = experiment.training
    with torch.device("meta"):
        model: Any = experiment.build_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Weights, their average, gradients, and a moment of each (Muon) or two.
    check_memory(16 * parameters, f"a model of {parameters:,} parameters", "take a smaller one", device)
    network = getattr(model, "network", model)
    if isinstance(network, GrowingNCA):
        side, steps, numbers = experiment.growing.size, experiment.growing.max_rollout, network.channels
        pool = 4 * experiment.growing.pool * side**2 * numbers
        check_memory(pool, "the sample pool", "take a smaller growing.pool or growing.size", device)
    else:
        defaults = arguments(DATASETS[experiment.data["kind"]])
        side, steps = experiment.data.get("size", defaults["size"].default), getattr(network, "steps", 1)
        numbers = getattr(network, "numbers_per_pixel", 0)
        if getattr(network, "checkpointing", False):  # a state each, the rest is computed again
            numbers = network.channels
    part = max(1, options.batch // (options.accumulate * rank_and_size()[1]))
    per_pixel = 12 + (2 if options.bf16 else 4) * steps * numbers  # three images of at least one channel
    what = f"{part} images of {side}x{side} in training"
    cure = "take a smaller training.batch, or a larger training.accumulate"
    check_memory(part * side**2 * per_pixel, what, cure, device)


def check_fits(experiment: Experiment, model: Denoiser | VNCA, data: Images) -> None:
    """Refuse a model of other images than the data's, which might broadcast, or of another context.

    Raises:
        ExperimentError: their channels differ, the size of an MLP or VNCA does, or what cells are told.
    """
    said, kind, factor = experiment.spelt_out()["model"], experiment.data["kind"], experiment.context.factor
    if model.image_channels != data.channels:
        key = "channels" if said["kind"] == "mlp" else "image_channels"
        raise ExperimentError(
            f"model.{key} is {model.image_channels}; images of data.kind {kind} have {data.channels}"
        )
    size = said.get("size")
    if isinstance(size, int) and size != data.size:  # a UNet's is a word
        raise ExperimentError(f"model.size is {size}; the images are {data.size}x{data.size}, see data.size")
    told, reads = len(data.image(0, np.random.default_rng(0))) - data.channels, 0
    if isinstance(model, Denoiser):
        told, reads = told + (data.channels + 1 if factor else 0), model.context_channels
    if told != reads:
        whose = "" if "context_channels" in said else f" for {said['kind']}"
        raise ExperimentError(
            f"model.context_channels is {reads}{whose}; "
            f"data.kind {kind} and context.factor {factor or 'none'} tell {told}"
        )


class _ImageTask:
    """What diffusion models and VNCA share: an endless stream of images, and a held-out split."""

    def __init__(self, experiment: Experiment, device: torch.device):
        self.data, self.held_out = experiment.build_data("train"), experiment.build_data("test")
        self.training, self.context, self.device = experiment.training, experiment.context, device
        self.fingerprint = self.data.fingerprint()
        self.parts = parts(experiment.training)
        self.part = self.parts[0]
        self.ahead: Tensor | None = None

    def _built(self, experiment: Experiment) -> nn.Module:
        model: Any = experiment.build_model()
        for data in (self.data, self.held_out):
            check_fits(experiment, model, data)
        return model.to(self.device)

    def start(self, step: int) -> None:
        """Continue the stream of images at batch `step`."""
        batch = self.training.batch

        def batches() -> Iterator[range]:
            n, size = step * batch, batch // self.part.count
            while True:
                yield from (range(n + p.index * size, n + (p.index + 1) * size) for p in self.parts)
                n += batch

        # A generator of its own: creating the loader must not consume the training's random numbers.
        loader = DataLoader(
            Stream(self.data, self.training.seed),
            batch_sampler=batches(),  # type: ignore[arg-type]
            num_workers=self.training.workers,
            generator=torch.Generator(),
            worker_init_fn=outlive_signals,
            pin_memory=self.device.type == "cuda",
        )
        self.batches, self.ahead = iter(loader), None

    def stop(self) -> None:
        """End the processes that read images. Left to the garbage collector, that takes ten seconds."""
        if self.training.workers:
            self.batches._shutdown_workers()  # type: ignore[attr-defined]

    def read_ahead(self) -> None:
        """Read the next images and begin to send them, while the device is busy."""
        self.ahead = self._next()

    def _next(self) -> Tensor:
        images, self.ahead = self.ahead, None
        if images is not None:
            return images
        try:
            return next(self.batches).to(self.device, non_blocking=True)
        except DataError as error:
            # A worker's comes with its traceback, whose last line is what the data said.
            _, _, said = str(error).rstrip().splitlines()[-1].rpartition("DataError: ")
            raise DataError(said) from error

    def _held_out_images(self) -> Tensor:
        stream = Stream(self.held_out, seed=0)
        return torch.stack([stream[n] for n in range(64)])

    def state(self) -> dict[str, Tensor]:
        """Nothing: the stream's position follows from the step."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to put back."""


class DiffusionTask(_ImageTask):
    """Learn to predict noise on a data set's images."""

    def __init__(self, experiment: Experiment, device: torch.device):
        super().__init__(experiment, device)
        self.model: Denoiser = self._built(experiment)  # type: ignore[assignment]
        self.teacher: Denoiser | None = None
        if experiment.training.teacher:
            self.teacher = teacher_of(experiment).to(device)
            if experiment.training.compile:
                compile_step(self.teacher, device)

    def loss(self) -> Tensor:
        """MSE + L1 at random timesteps, against the truth or the teacher."""
        images, noise = self._next(), PartNoise(self.part)
        clean, told = images[:, : self.data.channels], self._context(images, self.part)
        # One timestep from each of B equal strata: uniform like independent draws, with less variance
        # (Kingma et al. 2021, appendix I.1).
        count = len(clean) * self.part.count
        strata = torch.arange(count, device=self.device) + torch.rand(1, device=self.device)
        timesteps = self.model.schedule.timesteps
        # The sum is rounded, in the last stratum now and then up to all of `count`.
        t = self.part.of((strata / count * timesteps).long().clamp(max=timesteps - 1))
        drawn = noise.normal(clean, Purpose.SAMPLER, 0)
        model, teacher = _told(self.model, told), self.teacher and _told(self.teacher, told)
        with firing_from(model, noise), firing_from(teacher or model, noise):
            return model.loss(clean, t, drawn, teacher)

    def _context(self, images: Tensor, part: Part) -> Tensor | None:
        """What cells are told of images: what the data set says behind their channels, a coarser scale."""
        clean, told = images.tensor_split([self.data.channels], dim=1)
        count, options = len(images) * part.count, self.context
        if options.factor:
            level = part.of(torch.rand(count, 1, 1, 1, device=self.device)) * options.noise
            coarse = reduce(clean, options.factor)
            drawn = PartNoise(part).normal(coarse, Purpose.CONTEXT, 0)
            size = (clean.shape[2], clean.shape[3])
            told = torch.cat([told, coarse_context(coarse, options.factor, size, level, drawn)], dim=1)
        if options.dropout:
            told = told * (part.of(torch.rand(count, 1, 1, 1, device=self.device)) >= options.dropout)
        return told if told.shape[1] else None

    def evaluate(self, model: nn.Module) -> float:
        """Mean loss on 64 held-out images, each at eight timesteps, always with the same noise."""
        assert isinstance(model, Denoiser)
        images = self._held_out_images()
        clean = images[:, : self.data.channels]
        total = 0.0
        with forked_random(self.device), torch.no_grad():
            torch.manual_seed(0)
            model = _told(model, self._context(images.to(self.device), Part()))
            for part in range(8):
                t = (torch.arange(64) * 8 + part) * model.schedule.timesteps // 512
                total += float(model.loss(clean.to(self.device), t, torch.randn_like(clean).to(self.device)))
        return total / 8

    def preview(self, model: nn.Module) -> Tensor:
        """Eight samples by DDIM, always from the same noise, told of held-out images if of any."""
        assert isinstance(model, Denoiser)
        with forked_random(self.device):
            torch.manual_seed(0)
            told = self._context(self._held_out_images()[:8].to(self.device), Part())
        size = (self.data.size, self.data.size) if told is None else (told.shape[2], told.shape[3])
        steps = min(25, model.schedule.timesteps)
        return sample(_told(model, told), size, count=8, steps=steps) / 2 + 0.5


def _told(model: Denoiser, context: Tensor | None) -> Denoiser:
    return model if context is None else model.given(context)


def teacher_of(experiment: Experiment) -> Denoiser:
    """The trained model that `training.teacher` names.

    Raises:
        WeightsError: there are no such weights.
        ExperimentError: it is no denoiser, or one of another target or schedule than the experiment's.
    """
    name = experiment.training.teacher
    teacher = load(str(name))
    wanted = experiment.diffusion
    if not isinstance(teacher, Denoiser):
        raise ExperimentError(f"training.teacher: {name} is no denoiser; it has nothing to teach")
    same = teacher.schedule.alpha_bar.equal(noise_schedule(wanted.schedule, wanted.timesteps).alpha_bar)
    if teacher.target != wanted.target or not same:
        raise ExperimentError(
            f"training.teacher: {name} predicts {teacher.target} on {teacher.schedule.timesteps} timesteps; "
            f"the experiment must have the same target and schedule"
        )
    return teacher


class VNCATask(_ImageTask):
    """Learn to code images and to draw them from the code: the evidence lower bound (Palm et al. 2022)."""

    def __init__(self, experiment: Experiment, device: torch.device):
        super().__init__(experiment, device)
        self.model: VNCA = self._built(experiment)  # type: ignore[assignment]

    def loss(self) -> Tensor:
        """The negative evidence lower bound."""
        return self.model.loss(self._next(), PartNoise(self.part))

    def evaluate(self, model: nn.Module) -> float:
        """The loss on 64 held-out images, always with the same codes drawn."""
        assert isinstance(model, VNCA)
        with forked_random(self.device), torch.no_grad():
            torch.manual_seed(0)
            return float(model.loss(self._held_out_images().to(self.device)))

    def preview(self, model: nn.Module) -> Tensor:
        """Eight samples from the prior, always from the same codes."""
        assert isinstance(model, VNCA)
        return model.sample((self.data.size, self.data.size), count=8) / 2 + 0.5


def task_of(experiment: Experiment, device: torch.device) -> Task:
    """The task that an experiment's kind of model learns.

    Raises:
        TooLargeError: the model or a batch does not fit into memory.
        ExperimentError: the model and its data do not fit, see [`check_fits`][], nor its teacher.
    """
    _check_memory(experiment, device)
    kinds: dict[str, type] = {"growing-nca": GrowingTask, "vnca": VNCATask}
    return kinds.get(experiment.model["kind"], DiffusionTask)(experiment, device)
