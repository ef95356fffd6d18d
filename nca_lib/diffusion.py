"""The forward process, what a denoiser predicts, and the loss (chapter 2).

Images are float tensors (B, C, H, W) in [-1, 1]. A *timestep* `t` is an integer in 0..T-1; a denoiser
is told the *time* t/T in [0, 1). The table of `alpha_bar` is float64, because the cosine schedule ends
at 2.7e-9 and products of 300 factors lose digits in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.errors import NCAError, UsageError, check_choice

Target = Literal["epsilon", "x0", "v"]
ScheduleName = Literal["cosine", "linear", "sigmoid"]
Weighting = Literal["uniform", "min_snr"]


def check_images(images: Tensor, name: str, error: type[NCAError] = UsageError) -> None:
    """Refuse what are no images: floats (B, C, H, W), finite, and in [-1, 1] but for half a grey level.

    Raises:
        NCAError: of the kind `error`; the message calls the images `name`.
    """
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        found = f"{images.dtype} {tuple(images.shape)}"
        raise error(f"{name}: {found}; images are floats of shape (batch, channels, height, width)")
    low, high = (float(value) for value in images.aminmax())  # NaN if any value is
    if not -1 - 1 / 255 <= low <= high <= 1 + 1 / 255:
        raise error(f"{name}: values from {low:.4g} to {high:.4g}; images are finite, and lie in [-1, 1]")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How much of the image is left at each timestep.

    Args:
        betas: (T,) float64 variances of the single steps, in (0, 1], on the CPU; `alpha_bar[t]` is the
            product of `1 - beta` up to and including t (Ho et al. 2020, eq. 4).

    Raises:
        UsageError: betas of another shape or type. (Samplers refuse those out of range.)
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.ndim != 1 or betas.dtype != torch.float64 or betas.device.type != "cpu":
            found = f"{betas.dtype} {tuple(betas.shape)} on {betas.device}"
            raise UsageError(f"betas are {found}; a schedule has (T,) of torch.float64 on the CPU")

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T,) float64: the fraction of the image's variance that is left at timestep t."""
        return torch.cumprod(1 - self.betas, dim=0)

    def levels(self, t: int) -> tuple[float, float]:
        """`sqrt(alpha_bar[t])` and `sqrt(1 - alpha_bar[t])` as numbers; t = -1 is the clean image."""
        alpha_bar = float(self.alpha_bar[t]) if t >= 0 else 1.0
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """`sqrt(alpha_bar[t])` and `sqrt(1 - alpha_bar[t])` as (B, 1, 1, 1) tensors like `like`.

        `t` is (B,) integers in -1..T-1, where -1 stands for the clean image (alpha_bar = 1). They are looked
        up where `t` lies; nothing waits for the device.
        """
        found = self._table(t.device, like.dtype)[:, t + 1].view(2, -1, 1, 1, 1)
        signal, sigma = found.to(like.device, non_blocking=True)
        return signal, sigma

    @cached_property
    def _tables(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Both levels of t = -1, ..., T-1: (2, T + 1), computed in float64 on the CPU and kept."""
        if (device, dtype) not in self._tables:
            alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
            levels = torch.stack([alpha_bar, 1 - alpha_bar]).sqrt()
            self._tables[device, dtype] = levels.to(dtype).to(device)
        return self._tables[device, dtype]

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Jump to timestep t in one go: sqrt(ab) x0 + sqrt(1 - ab) eps (Ho et al. 2020, eq. 4)."""
        signal, sigma = self.signal_and_noise(t, clean)
        return signal * clean + sigma * noise

    def clean_from_noise(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The clean image that `noisy` stands for if `noise` is the noise in it."""
        signal, sigma = self.signal_and_noise(t, noisy)
        return (noisy - sigma * noise) / signal

    def noise_from_clean(self, noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """The noise in `noisy` if `clean` is the image under it."""
        signal, sigma = self.signal_and_noise(t, noisy)
        return (noisy - signal * clean) / sigma

    def time(self, t: Tensor) -> Tensor:
        """What a denoiser is told: t/T, float32, in [0, 1)."""
        return t.float() / self.timesteps

    def timestep(self, time: Tensor) -> Tensor:
        """The integer timestep of a time t/T (inverse of `time`)."""
        return (time * self.timesteps).round().long()


def noise_schedule(name: ScheduleName = "cosine", timesteps: int = 300) -> NoiseSchedule:
    """Build a schedule by name.

    - `"cosine"`: Nichol & Dhariwal (2021), eq. 17 with s = 0.008, betas clipped to [1e-4, 0.9999].
      With T = 300 alpha_bar ends at 2.7e-9: practically pure noise.
    - `"linear"`: betas from 1e-4 to 0.02 (Ho et al. 2020). With T = 300 alpha_bar ends at 0.048, so the
      network never sees pure noise although sampling starts from it.
    - `"sigmoid"`: alpha_bar a logistic curve from -3 to 3 (Jabri et al. 2023), same clipping as cosine.

    Raises:
        UsageError: `name` is none of these, or `timesteps` is below 2.
    """
    if timesteps < 2:
        raise UsageError(f"timesteps is {timesteps}; a schedule needs at least 2")
    check_choice("the schedule", name, get_args(ScheduleName))
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    grid = torch.linspace(0, 1, timesteps + 1, **exact)
    if name == "linear":
        return NoiseSchedule(torch.linspace(1e-4, 0.02, timesteps, **exact))
    if name == "cosine":
        curve = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        low, high = torch.tensor([-3.0, 3.0], **exact).sigmoid()
        curve = (high - (6 * grid - 3).sigmoid()) / (high - low)
    return NoiseSchedule((1 - curve[1:] / curve[:-1]).clamp(1e-4, 0.9999))


def target_of(target: Target, schedule: NoiseSchedule, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should output: the noise, the clean image, or the velocity.

    The velocity is v = sqrt(ab) eps - sqrt(1 - ab) x0 (Salimans & Ho 2022, appendix D): mostly noise at
    small t, mostly (minus) image at large t, so that it is a fair question at every t.
    """
    if target == "epsilon":
        return noise
    if target == "x0":
        return clean
    signal, sigma = schedule.signal_and_noise(t, clean)
    return signal * noise - sigma * clean


def clean_of(target: Target, schedule: NoiseSchedule, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The clean image that a network's `output` implies, whatever it was trained to predict."""
    if target == "x0":
        return output
    if target == "epsilon":
        return schedule.clean_from_noise(noisy, t, output)
    signal, sigma = schedule.signal_and_noise(t, noisy)
    return signal * noisy - sigma * output


def noise_of(target: Target, schedule: NoiseSchedule, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The noise that a network's `output` implies, whatever it was trained to predict."""
    if target == "epsilon":
        return output
    if target == "x0":
        return schedule.noise_from_clean(noisy, t, output)
    signal, sigma = schedule.signal_and_noise(t, noisy)
    return signal * output + sigma * noisy


def mse_l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared plus mean absolute error, the training loss of Diff-NCA; a scalar.

    `weight` (B,) multiplies each image's error.
    """
    if weight is None:
        return F.mse_loss(prediction, target) + F.l1_loss(prediction, target)
    error = (prediction - target).square() + (prediction - target).abs()
    return (weight.view(-1, *[1] * (error.ndim - 1)) * error).mean()


def min_snr_weight(target: Target, schedule: NoiseSchedule, t: Tensor, gamma: float = 5) -> Tensor:
    """The weight of each timestep's loss, (B,): Hang et al. (2023), eq. 8, min-SNR-gamma.

    Counted in errors of the clean image it is min(SNR, gamma), SNR = ab / (1 - ab): easy questions, at little
    noise, no longer outweigh the others. For the noise that is min(SNR, gamma) / SNR, for the velocity
    min(SNR, gamma) / (SNR + 1).
    """
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    per_error = {"x0": torch.ones_like(snr), "epsilon": snr, "v": snr + 1}[target]
    weights = (snr.clamp(max=gamma) / per_error).float()
    return weights.to(t.device, non_blocking=True)[t]


class Denoiser(nn.Module):
    """A network together with its schedule and what it was trained to predict.

    What samplers, edits and everything else know of a model is this contract: a denoiser owns its `schedule`,
    and `denoiser(noisy, t)` is the clean image that it sees in `noisy`, (B, C, H, W), at timesteps t, (B,)
    integers. The network knows neither: it maps `noisy` and the time t/T in [0, 1) to its target.

    Args:
        network: any module with `forward(noisy, time)`, the output shaped like `noisy`; `time` (B,) may lie
            on the CPU. Samplers ask for its `image_channels`.
        schedule: the schedule it was trained with.
        target: what its output means.
        weighting: of the loss over timesteps, `"uniform"` or `"min_snr"`, see [`min_snr_weight`][].

    Raises:
        UsageError: an unknown target or weighting. When called: images or timesteps of another shape.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        target: Target = "epsilon",
        weighting: Weighting = "uniform",
    ):
        super().__init__()
        check_choice("target", target, get_args(Target))
        check_choice("weighting", weighting, get_args(Weighting))
        self.network = network
        self.schedule = schedule
        self.target: Target = target
        self.weighting: Weighting = weighting

    is_ready = True
    """Whether it can be called as it is; a cascade must draw its coarser scales first, see `ready`."""

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return cast(int, self.network.image_channels)

    @property
    def context_channels(self) -> int:
        """Channels of the context that the network reads, see [`given`][nca_lib.diffusion.Denoiser.given]."""
        return cast(int, getattr(self.network, "context_channels", 0))

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean estimate: the image under `noisy`, as the network sees it; shaped like `noisy`.

        On a GPU, timesteps that lie on the CPU let an automaton see that all are the same without waiting.
        """
        return clean_of(self.target, self.schedule, self._output(noisy, t), noisy, t)

    def noise(self, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise in `noisy`, as the network sees it; shaped like `noisy`."""
        return noise_of(self.target, self.schedule, self._output(noisy, t), noisy, t)

    def _output(self, noisy: Tensor, t: Tensor) -> Tensor:
        _check_shapes(noisy, t)
        return self.network(noisy, self.schedule.time(t)).to(noisy.dtype)

    def given(self, context: Tensor) -> Denoiser:
        """The denoiser that is told `context`, (1 or B, G, H, W), beside every noisy image (chapter 9).

        Weights are shared. It makes images of the context's size.

        Raises:
            UsageError: the network reads no context, or one of other channels.
        """
        network: Any = self.network
        if not hasattr(network, "given"):
            raise UsageError(
                f"a {type(network).__name__} reads no context; an automaton with channels for it does"
            )
        return Denoiser(network.given(context), self.schedule, self.target, self.weighting)

    def ready(self, size: tuple[int, int], **settings: Any) -> Denoiser:
        """The denoiser to call for images of this size: itself, but of a cascade (chapter 9).

        `settings` are those of [`sample`][nca_lib.samplers.sample], which asks.
        """
        return self

    def compile_step(self, mode: str | None) -> None:
        """Compile what a call repeats, see [`compile_step`][nca_lib.devices.compile_step]."""
        self.network.compile_step(mode)  # type: ignore[operator]

    def loss(self, clean: Tensor, t: Tensor, noise: Tensor, teacher: Denoiser | None = None) -> Tensor:
        """The training loss (MSE + L1) on the network's own target; a scalar.

        `clean` (B, C, H, W) in [-1, 1], `t` (B,) integers, `noise` like `clean`. With a `teacher`,
        which must have the same target and schedule, the target is what the teacher's network says
        (distillation, Hinton et al. 2015).
        """
        _check_shapes(clean, t)
        noisy, time = self.schedule.add_noise(clean, t, noise), self.schedule.time(t)
        output = self.network(noisy, time)
        weight = None
        if self.weighting == "min_snr":
            weight = min_snr_weight(self.target, self.schedule, t).to(clean.device, non_blocking=True)
        if teacher is None:
            wanted = target_of(self.target, self.schedule, clean, noise, t)
        else:
            with torch.no_grad():
                wanted = teacher.network(noisy, time).float()
        return mse_l1(output.float(), wanted, weight)


def _check_shapes(images: Tensor, t: Tensor) -> None:
    if images.ndim != 4 or t.ndim != 1 or len(t) not in (1, len(images)):
        found = f"images {tuple(images.shape)} and timesteps {tuple(t.shape)}"
        raise UsageError(f"{found}; (B, C, H, W) and (B,) are needed, or (1,) for all")


class MLP(nn.Module):
    """The smallest denoising network: three dense layers on the flattened image (chapter 2).

    Args:
        size: height and width of the images; the network knows no other size.
        channels: channels of the images.
        width: units of each hidden layer.
    """

    frequencies: Tensor

    def __init__(self, size: int = 8, channels: int = 1, width: int = 256):
        super().__init__()
        self.image_channels = channels
        values = channels * size * size
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(8), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(values + 16, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, values),
        )

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Map `noisy` (B, C, size, size) and `time` (B,) in [0, 1) to an output shaped like `noisy`."""
        angles = time.to(noisy.device, non_blocking=True)[:, None] * self.frequencies
        features = torch.cat([noisy.flatten(1), angles.sin(), angles.cos()], dim=1)
        return self.layers(features).view_as(noisy)

    def compile_step(self, mode: str | None) -> None:
        """Compile the network."""
        self.compile()
