"""From noise to image: the reverse process (chapter 2).

A sampler is a generator:

    for state in ddim(denoiser, start, steps=50):
        state.image, state.clean_estimate, state.time

`steps` counts denoiser calls, whatever the sampler. The timesteps that it visits are an explicit array, and
the step before each is read from that array, never computed by division. [`sample`][] runs one to its end.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nca_lib.diffusion import Denoiser, NoiseSchedule
from nca_lib.errors import UsageError
from nca_lib.memory import check_call
from nca_lib.noise import CounterNoise, Firing, Noise, Purpose, TorchNoise, firing_from, firing_masks_of


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands.

    Attributes:
        time: t/T of the noise level that `image` has now; 0 for the finished image, and for timestep 0.
        image: (B, C, H, W), the partly denoised image.
        clean_estimate: (B, C, H, W), the clean image that the denoiser saw through the noise.
        step: how many denoiser calls have been made, 1..steps.
        timestep: t of that noise level; -1 for the finished image.
    """

    time: float
    image: Tensor
    clean_estimate: Tensor
    step: int
    timestep: int


class Constraint:
    """What an edit asks of a sampler (chapter 6); this one asks for nothing, subclasses say what they need.

    A sampler calls `path` and `begin` once, `correct` within each step and `overwrite` after it.
    """

    def path(self, visited: list[int]) -> list[int]:
        """The timesteps to visit instead of the evenly spaced `visited`, then -1 (clean).

        Where one is above the one before, noise is added. `visited` itself leaves the spacing to the sampler.
        """
        return visited

    def begin(self, start: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The image to begin with, instead of the noise `start` (B, C, H, W)."""
        return start

    def correct(self, clean: Tensor) -> Tensor:
        """The clean estimate (B, C, H, W) as it should be."""
        return clean

    def coarser(self, factor: int) -> Constraint:
        """What the same edit asks of the image at a `factor` times coarser scale; nothing."""
        return Constraint()

    def overwrite(self, image: Tensor, schedule: NoiseSchedule, t: int, noise: Noise, address: int) -> Tensor:
        """The image after a step to timestep t (-1: clean) as it should be; `address` is this step's own."""
        return image


class Sampler(Protocol):
    """The signature that all samplers share."""

    def __call__(
        self,
        denoiser: Denoiser,
        start: Tensor,
        *,
        steps: int | None = None,
        noise: Noise | None = None,
        clip: bool = True,
        constraint: Constraint | None = None,
        after: SamplerState | None = None,
    ) -> Iterator[SamplerState]:
        """Yield one state per denoiser call."""


def timestep_array(timesteps: int, steps: int | None = None) -> list[int]:
    """The timesteps to visit, descending from T-1 to 0, evenly spaced, followed by -1 (clean).

    Raises:
        UsageError: `steps` is not within 1..T.
    """
    steps = timesteps if steps is None else steps
    if not 1 <= steps <= timesteps:
        raise UsageError(f"steps is {steps}; the schedule has {timesteps} timesteps, so 1 to {timesteps}")
    visited = torch.linspace(timesteps - 1, 0, steps, dtype=torch.float64).round().long()
    return [*visited.tolist(), -1]


def log_snr_array(schedule: NoiseSchedule, steps: int | None = None) -> list[int]:
    """The timesteps to visit, evenly spaced in lambda = log(signal / sigma), followed by -1 (clean).

    This suits the second-order samplers, for which clean estimates change evenly over lambda rather than over
    time. After T-1, where the process begins, come n-1 timesteps (n = `steps`) from T-1 - T/4n to T/2n:
    beyond, where all is noise or almost none, calls are wasted. Where neighbours would share a timestep, the
    later ones move on. (Where alpha_bar ends at 0, lambda is infinite: its last finite value stands for it.)
    """
    timesteps, last = schedule.timesteps, schedule.timesteps - 1
    steps = len(timestep_array(timesteps, steps)) - 1
    lambdas = (schedule.alpha_bar / (1 - schedule.alpha_bar)).log() / 2
    lambdas = torch.where(lambdas.isinf(), lambdas[-2], lambdas)
    noisy, clean = lambdas[last - timesteps // (4 * steps)], lambdas[timesteps // (2 * steps)]
    visited = [last]
    for value in torch.linspace(float(noisy), float(clean), steps - 1, dtype=torch.float64):
        nearest, left = int((lambdas - value).abs().argmin()), steps - 1 - len(visited)
        visited.append(max(min(nearest, visited[-1] - 1), left))
    return [*visited, -1]


def _check_sampled(denoiser: Denoiser) -> None:
    betas = denoiser.schedule.betas
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise UsageError(f"betas go from {betas.min():.4g} to {betas.max():.4g}; each lies in (0, 1]")
    # A denoiser by hand has a schedule and can be called, and no more.
    if getattr(denoiser, "target", None) == "epsilon" and denoiser.schedule.alpha_bar[-1] == 0:
        raise UsageError(
            "noise is predicted, which says nothing where alpha_bar ends at 0; 'v' or 'x0' says something"
        )


class _Reversal:
    """What the samplers share: where the process stands, and the operations on it.

    Every sampler loops over `steps`, asks for a `clean` estimate, and moves on by `advance`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        start: Tensor,
        visited: list[int],
        noise: Noise | None,
        clip: bool,
        constraint: Constraint | None,
        after: SamplerState | None,
    ):
        _check_sampled(denoiser)
        self.denoiser, self.schedule, self.clip = denoiser, denoiser.schedule, clip
        self.noise, self.edit = noise or TorchNoise(), constraint or Constraint()
        even = timestep_array(self.schedule.timesteps, len(visited) - 1)
        path = self.edit.path(even)
        self.path = visited if path == even else path
        self.image = self.edit.begin(start, self.schedule) if after is None else after.image
        self.calls = 0 if after is None else after.step
        self.address = 0  # of the noise of the step that is being made

    def steps(self, made: int) -> Iterator[tuple[int, int, float]]:
        """Every step down but the first `made`: (timestep now, timestep before it, the last step's stride).

        Where the path goes up, noise is added, and the next step down is a new beginning: its last stride is
        0.
        """
        visits, stride = Counter[int](), 0.0
        for now, before in itertools.pairwise(self.path):
            self.address = now + self.schedule.timesteps * visits[now]  # seen again, it draws new noise
            visits[now] += 1
            if before > now:
                stride = 0.0
                if made <= 0:
                    # the alpha_bars' ratio is what is left of the image
                    left = self.schedule.levels(before)[0] / self.schedule.levels(now)[0]
                    drawn = self.noise.normal(self.image, Purpose.START, 1 + self.address)
                    self.image = left * self.image + math.sqrt(1 - left**2) * drawn
            else:
                if made <= 0:
                    yield now, before, stride
                made, stride = made - 1, self.stride(now, before)

    def clean(self, image: Tensor, now: int) -> Tensor:
        """The clean image that the denoiser sees through the noise: clipped, and as the edit wants it."""
        with torch.no_grad():
            clean = self.denoiser(image, torch.full((len(image),), now))
            self.calls += 1
            return self.edit.correct(clean.clamp(-1, 1) if self.clip else clean)

    def advance(self, clean: Tensor, now: int, before: int, eta: float = 0.0) -> Tensor:
        """The image at timestep `before` if `clean` lies under the one at `now`.

        DDIM (Song et al. 2021, eq. 12): with eta = 0 the exact solution of the probability flow for a clean
        estimate that does not change on the way. With eta = 1 it is ancestral DDPM (their section 4.1): the
        standard deviation (eq. 16) is the square root of the posterior variance (Ho et al. 2020, eq. 7).
        """
        signal, sigma = self.schedule.levels(now)
        signal_before, sigma_before = self.schedule.levels(before)
        predicted = (self.image - signal * clean) / sigma
        spread = eta * sigma_before / sigma * math.sqrt(max(0.0, 1 - (signal / signal_before) ** 2))
        image = signal_before * clean + math.sqrt(max(0.0, sigma_before**2 - spread**2)) * predicted
        if eta > 0 and before >= 0:
            image = image + spread * self.noise.normal(image, Purpose.SAMPLER, self.address)
        return self.edit.overwrite(image, self.schedule, before, self.noise, self.address)

    def stride(self, now: int, before: int) -> float:
        """How far a step goes in lambda = log(signal / sigma), half the logarithm of the SNR.

        Infinitely far to the clean image, and from pure noise, where alpha_bar ends at 0.
        """
        (signal, sigma), (signal_before, sigma_before) = map(self.schedule.levels, (now, before))
        if before < 0 or signal == 0:
            return math.inf
        return math.log(signal_before / signal) + math.log(sigma / sigma_before)

    def state(self, image: Tensor, clean: Tensor, before: int) -> SamplerState:
        """What a sampler yields after a call."""
        return SamplerState(max(before, 0) / self.schedule.timesteps, image, clean, self.calls, before)


def ddpm(
    denoiser: Denoiser,
    start: Tensor,
    *,
    steps: int | None = None,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
    after: SamplerState | None = None,
) -> Iterator[SamplerState]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), all timesteps unless `steps` says fewer.

    Args:
        denoiser: what sees the clean image under a noisy one.
        start: (B, C, H, W) standard normal noise.
        steps: how often to call the denoiser, at evenly spaced timesteps; None for as often as there are
            timesteps.
        noise: where the posterior noise comes from; torch's generator by default.
        clip: keep each clean estimate within [-1, 1]. Off for data of another range.
        constraint: what the image must obey, see [`Constraint`][]; nothing by default.
        after: go on after this state, as if never stopped; `start` then plays no part. (Of Heun's method,
            which yields two states a step, the second.)

    Raises:
        UsageError: `steps` is not within 1..T; betas outside (0, 1]; or noise is predicted under a schedule
            whose alpha_bar ends at 0.
    """
    visited = timestep_array(denoiser.schedule.timesteps, steps)
    reversal = _Reversal(denoiser, start, visited, noise, clip, constraint, after)
    for now, before, _ in reversal.steps(reversal.calls):
        clean = reversal.clean(reversal.image, now)
        reversal.image = reversal.advance(clean, now, before, eta=1.0)
        yield reversal.state(reversal.image, clean, before)


def ddim(
    denoiser: Denoiser,
    start: Tensor,
    *,
    steps: int | None = 50,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
    after: SamplerState | None = None,
    eta: float = 0.0,
) -> Iterator[SamplerState]:
    """DDIM sampling (Song et al. 2021, eq. 12); arguments as for [`ddpm`][], and `eta`.

    With `eta` 0 it is deterministic, the first-order solver of the probability flow: half the steps, twice
    the error. With 1 it is [`ddpm`][], and between them it draws a part of that noise.
    """
    visited = timestep_array(denoiser.schedule.timesteps, steps)
    reversal = _Reversal(denoiser, start, visited, noise, clip, constraint, after)
    for now, before, _ in reversal.steps(reversal.calls):
        clean = reversal.clean(reversal.image, now)
        reversal.image = reversal.advance(clean, now, before, eta)
        yield reversal.state(reversal.image, clean, before)


def dpm_solver(
    denoiser: Denoiser,
    start: Tensor,
    *,
    steps: int | None = 20,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
    after: SamplerState | None = None,
) -> Iterator[SamplerState]:
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2); arguments as for [`ddpm`][].

    Deterministic, of second order with one call a step: a line through the last two clean estimates, drawn
    over lambda = log(signal / sigma), says what the clean estimate will be halfway. The first step, the step
    after a jump back, and the last one (lambda of the clean image is infinite) have no such line: they are
    DDIM's.
    """
    visited = log_snr_array(denoiser.schedule, steps)
    reversal = _Reversal(denoiser, start, visited, noise, clip, constraint, after)
    previous = start if after is None else after.clean_estimate
    for now, before, last_stride in reversal.steps(reversal.calls):
        clean = ahead = reversal.clean(reversal.image, now)
        if last_stride > 0 and before >= 0:
            ahead = clean + reversal.stride(now, before) / (2 * last_stride) * (clean - previous)
        reversal.image = reversal.advance(ahead, now, before)
        previous = clean
        yield reversal.state(reversal.image, clean, before)


def heun(
    denoiser: Denoiser,
    start: Tensor,
    *,
    steps: int | None = 20,
    noise: Noise | None = None,
    clip: bool = True,
    constraint: Constraint | None = None,
    after: SamplerState | None = None,
) -> Iterator[SamplerState]:
    """Heun's method for the probability flow (Karras et al. 2022, algorithm 1 without churn).

    Deterministic, of second order: step as DDIM does, call the denoiser there too, and step again from where
    the step began with a mean of the two clean estimates. Karras et al. average slopes over sigma / signal;
    that ratio falls from 19,000 to 6 in the first of ten steps of our cosine schedule, where one slope says
    nothing of the other. Here the clean estimate changes evenly over lambda = log(signal / sigma), and the
    rest is exact (Cox & Matthews 2002, eq. 22).

    `steps` counts denoiser calls here too, two for each step but the last one. Of an even number one is left
    over: then the first step, from pure noise, is DDIM's. Each call yields a state; of two with the same time
    the second is the better one. Arguments as for [`ddpm`][].
    """
    steps = len(timestep_array(denoiser.schedule.timesteps, steps)) - 1
    visited = log_snr_array(denoiser.schedule, steps // 2 + 1)
    reversal = _Reversal(denoiser, start, visited, noise, clip, constraint, after)
    for now, before, _ in reversal.steps((reversal.calls + 1) // 2):
        clean = reversal.clean(reversal.image, now)
        image = reversal.advance(clean, now, before)
        yield reversal.state(image, clean, before)
        if before >= 0 and (reversal.calls > 1 or steps % 2 == 1):
            second = reversal.clean(image, before)
            ahead = clean + _mean_progress(reversal.stride(now, before)) * (second - clean)
            image = reversal.advance(ahead, now, before)
            yield reversal.state(image, second, before)
        reversal.image = image


def _mean_progress(stride: float) -> float:
    # The mean of what goes from 0 to 1 evenly over lambda, weighted by exp(lambda) as the flow weights it.
    return 1 / -math.expm1(-stride) - 1 / stride


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver, "heun": heun}


def trajectory(
    model: Denoiser,
    size: tuple[int, int],
    *,
    count: int = 1,
    sampler: Sampler = ddim,
    steps: int | None = 50,
    seed: int = 0,
    first_sample: int = 0,
    constraint: Constraint | None = None,
    firing: Firing = "fresh",
) -> Iterator[SamplerState]:
    """Every state on the way of [`sample`][], which has the same arguments."""
    check_call(model, count, size)
    noise = CounterNoise(seed, first_sample)
    device = next(model.parameters(), torch.empty(0)).device
    empty = torch.empty(count, model.image_channels, *size, device=device)
    told: dict[str, Any] = {"sampler": sampler, "steps": steps, "constraint": constraint, "firing": firing}
    model = model.ready(size, count=count, seed=seed, first_sample=first_sample, **told)
    start = noise.normal(empty, Purpose.START, 0)
    masks = firing_masks_of(noise, firing)
    with firing_from(model, masks):
        way = sampler(model, start, steps=steps, noise=noise, constraint=constraint)
    while True:
        with firing_from(model, masks):  # step by step: between two, others may use the model
            state = next(way, None)
        if state is None:
            return
        yield state


def sample(
    model: nn.Module,
    size: tuple[int, int],
    *,
    count: int = 1,
    sampler: Sampler = ddim,
    steps: int | None = 50,
    seed: int = 0,
    first_sample: int = 0,
    constraint: Constraint | None = None,
    firing: Firing = "fresh",
) -> Tensor:
    """Draw `count` images of `size` (height, width): (count, image channels, height, width) in [-1, 1].

    All randomness, firing masks included, comes from [`CounterNoise`][] with `seed`: image i is the same
    whether it is drawn alone or in a batch, and `first_sample` is the i of the first image of this batch.

    Args:
        model: a denoiser; or a model that draws by itself, `model.sample(size, ...)`, as a VNCA does: then
            what follows `seed` and `first_sample`; `sampler`, `steps` and `firing` play no part.
        size: height and width.
        count: how many images.
        sampler: one of [`SAMPLERS`][].
        steps: denoiser calls, 50 whatever the sampler; None for as many as there are timesteps.
        seed: any integer.
        first_sample: index of the first image.
        constraint: what they must obey, see [`Constraint`][].
        firing: which cells of an automaton update, see [`firing_masks_of`][nca_lib.noise.firing_masks_of].

    Raises:
        UsageError: `steps` is not within 1..T; or a model that draws no images, or none under a constraint.
            TooLargeError: no memory.
    """
    if not isinstance(model, Denoiser):
        draw: Any = getattr(model, "sample", None)
        if draw is None:
            raise UsageError(f"a {type(model).__name__} draws no images; a denoiser or a VNCA does")
        if constraint is not None:
            raise UsageError(
                f"a {type(model).__name__} draws at once and obeys no constraint; a denoiser does"
            )
        return draw(size, count=count, seed=seed, first_sample=first_sample)
    settings: dict[str, Any] = {"steps": steps, "seed": seed, "first_sample": first_sample, "firing": firing}
    way = trajectory(model, size, count=count, sampler=sampler, constraint=constraint, **settings)
    return deque(way, maxlen=1).pop().image
