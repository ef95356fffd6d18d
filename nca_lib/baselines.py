"""What the automata are compared with: a UNet in three sizes, and VNCA (chapter 5).

[`UNet`][] is diffusers' `UNet2DModel` as a denoiser's network; diffusers is imported when one is made,
so that everything else runs without it. [`VNCA`][] is the doubling model of Palm et al., "Variational Neural
Cellular Automata" (ICLR 2022, arXiv 2201.12360): no diffusion, but a variational autoencoder whose decoder is
an automaton. It has no denoiser; it has `loss(images)` and `sample(size)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nca_lib.errors import UsageError
from nca_lib.extras import extra
from nca_lib.memory import check_call
from nca_lib.noise import CounterNoise, Noise, Purpose, TorchNoise

UNetSize = Literal["71k", "145k", "281k", "587k", "S", "M", "L"]

# Channels at each resolution and ResNet blocks per resolution. M is as large as the paper's "3.94m"; those
# called by their parameters have once and four times those of the automata that they are compared with.
UNET_SIZES: dict[UNetSize, tuple[tuple[int, ...], int]] = {
    "71k": ((8, 16, 16), 1),
    "145k": ((16, 16, 24), 1),
    "281k": ((16, 32, 32), 1),
    "587k": ((16, 24, 48), 2),
    "S": ((16, 32, 64), 2),
    "M": ((32, 64, 128), 2),
    "L": ((64, 128, 256, 256), 1),
}


class UNet(nn.Module):
    """The UNet of DDPM (Ho et al. 2020), from diffusers: ResNet blocks, attention at the lowest resolution.

    A [`Denoiser`][nca_lib.diffusion.Denoiser]'s network: `forward(noisy, time)` maps (B, C, H, W) and (B,) in
    [0, 1) to an output shaped like `noisy`. Parameters on colour images: S 989,795, M 3,940,547, L
    17,282,243.

    Args:
        size: `"S"`, `"M"`, `"L"`, or a smaller one by its number of parameters: a key of [`UNET_SIZES`][].
        image_channels: channels of the images.

    Raises:
        MissingExtra: diffusers is not installed.
        UsageError: `size` is none of these.
    """

    def __init__(self, size: UNetSize = "M", image_channels: int = 3):
        super().__init__()
        if size not in UNET_SIZES:
            raise UsageError(f"unknown UNet size {size!r}; choose one of {', '.join(UNET_SIZES)}")
        with extra("baselines"):
            from diffusers import UNet2DModel
        self.image_channels = image_channels
        widths, blocks = UNET_SIZES[size]
        plain = len(widths) - 1
        self.factor = 2**plain  # from the full resolution to the lowest
        self.net: Any = UNet2DModel(
            in_channels=image_channels,
            out_channels=image_channels,
            block_out_channels=widths,
            layers_per_block=blocks,
            norm_num_groups=8,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        )

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Map `noisy` (B, C, H, W) and `time` (B,) in [0, 1) to an output shaped like `noisy`.

        Raises:
            UsageError: H or W does not divide by the network's downsampling factor (4; L: 8).
        """
        height, width = noisy.shape[2:]
        if height % self.factor or width % self.factor:
            raise UsageError(
                f"the image is {height}x{width}; this UNet halves it {self.factor.bit_length() - 1} times, "
                f"so height and width must be multiples of {self.factor}"
            )
        # The sinusoids of its time embedding are made for timesteps of 0..1000, whatever T is here.
        return self.net(noisy, 1000 * time.to(noisy.device, non_blocking=True)).sample

    def compile_step(self, mode: str | None) -> None:
        """Compile the network, and with it choose the layout of its images.

        Channels-last by hand is worth nothing here: 0.96 to 1.00 times as fast on a CPU, and on a GPU every
        group norm outside of compiled code would undo it.
        """
        self.compile()


def discretised_logistic(images: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability (nats) of 8-bit values under a logistic whose tails belong to the outermost levels.

    All arguments have the same shape; `images` lie in [-1, 1], 256 levels spaced by 2/255. The mass between
    the edges a > b of a level is s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), s the sigmoid: in logs exact
    however small it is, where the usual code (PixelCNN++, Salimans et al. 2017) switches to an approximation.
    """
    inverse = torch.exp(-log_scale)
    above = inverse * (images - location + 1 / 255)
    below = inverse * (images - location - 1 / 255)
    zero = torch.zeros_like(images)
    lowest, highest = images < -0.999, images > 0.999
    from_left = torch.where(highest, zero, F.logsigmoid(above))
    from_right = torch.where(lowest, zero, F.logsigmoid(-below))
    # log(1 - exp(-w)), with w = 2/255 / scale; where w may underflow its series is exact and stays finite.
    w, log_w = 2 / 255 * inverse, math.log(2 / 255) - log_scale
    inside = torch.where(w > 1e-5, torch.log(-torch.expm1(-w.clamp(min=1e-5))), log_w - w / 2)
    return from_left + from_right + torch.where(lowest | highest, zero, inside)


def kl_from_prior(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """KL divergence in nats from N(mean, sigma^2) to N(0, 1), summed over the last axis: (B, Z) to (B,)."""
    return 0.5 * (mean**2 + torch.exp(2 * log_sigma) - 1 - 2 * log_sigma).sum(dim=-1)


class Residual(nn.Module):
    """A cell's own two-layer perceptron, added to what it is given: x + conv1x1(ELU(conv1x1(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ELU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.layers(x)


class VNCA(nn.Module):
    """VNCA, the doubling model: an encoder to a latent z, and an automaton that grows an image from it.

    The decoder puts z on every cell of a 2x2 grid and runs 8 steps; then, until the image has its size, each
    cell divides into 2x2 and 8 steps follow. As the authors' code has it (github.com/rasmusbergpalm/vnca,
    revision 641588a, "Doubling CelebA"), the state's first channels parametrise the image: one mixture weight
    (of a single component: without effect), then for each colour its location, log-scale and a coefficient
    by which it depends on the colours before it. On grey images: weight, location, log-scale.

    Args:
        size: height and width of the training images, a power of two of at least 8.
        image_channels: 3 or 1.
        latent: numbers in z, which are the state's channels.
        hidden: width of the update net.

    Raises:
        UsageError: a `size` or `image_channels` other than these; too few channels for the likelihood.
    """

    steps = 8  # after the start and after each doubling

    def __init__(self, size: int = 64, image_channels: int = 3, *, latent: int = 256, hidden: int = 256):
        super().__init__()
        if size < 8 or size & (size - 1):
            raise UsageError(
                f"size is {size}; the image doubles from 2x2, so a power of two from 8 on is needed"
            )
        if image_channels not in (1, 3):
            raise UsageError(f"image_channels is {image_channels}; VNCA has a likelihood for 1 and for 3")
        parameters = {1: 3, 3: 10}[image_channels]
        if latent < parameters:
            raise UsageError(
                f"latent is {latent}; the likelihood reads {parameters} channels, so at least that"
            )
        self.image_channels, self.latent = image_channels, latent
        self.numbers_per_pixel = 2 * latent  # a state and its update, see `memory.check_call`
        self.doublings = size.bit_length() - 2
        layers: list[nn.Module] = []
        fan_in = image_channels
        for width, stride in ((32, 1), (64, 2), (128, 2), (256, 2), (512, 2)):
            layers += [nn.Conv2d(fan_in, width, 5, stride=stride, padding=2), nn.ELU()]
            fan_in = width
        self.encoder = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(512 * math.ceil(size / 16) ** 2, 2 * latent)
        )
        narrow = nn.Conv2d(hidden, latent, 1)
        nn.init.zeros_(narrow.weight)
        nn.init.zeros_(narrow.bias)  # type: ignore[arg-type]
        self.update = nn.Sequential(
            nn.Conv2d(latent, hidden, 3, padding=1), *(Residual(hidden) for _ in range(4)), narrow
        )

    def compile_step(self, mode: str | None) -> None:
        """Compile the update net, which every step calls."""
        self.update.compile()

    def step(self, state: Tensor) -> Tensor:
        """One step of the automaton, in which every cell updates: (B, latent, H, W) to the same shape."""
        return state + self.update(state)

    def growth(self, z: Tensor, grid: tuple[int, int] = (2, 2)) -> Iterator[Tensor]:
        """Yield the decoder's states (B, latent, h, w): z on the grid, then after each step and doubling.

        `z` is (B, latent). While gradients are recorded, each step keeps only its input and is computed
        again in the backward pass: same values, same gradients.
        """
        # A cell's numbers side by side, as all that follows keeps them: on a CPU a bf16 step takes 11% less
        # time, and tensor cores of GPUs read nothing else.
        state = z[:, :, None, None].expand(-1, -1, *grid).contiguous(memory_format=torch.channels_last)
        yield state
        for doubling in range(self.doublings + 1):
            if doubling:
                state = F.interpolate(state, scale_factor=2, mode="nearest")
                yield state
            for _ in range(self.steps):
                if torch.is_grad_enabled():
                    state = checkpoint(self.step, state, use_reentrant=False, preserve_rng_state=False)
                else:
                    state = self.step(state)
                yield state

    def decode(self, z: Tensor, grid: tuple[int, int] = (2, 2)) -> Tensor:
        """The decoder's last state, (B, latent, H, W)."""
        for state in self.growth(z, grid):  # noqa: B007 - the last one is the result
            pass
        return state

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sigma of z given `images` (B, C, size, size) in [-1, 1]: two (B, latent)."""
        # In the images' precision whatever surrounds it: eight bits of a log sigma are too few for an ELBO.
        mean, log_sigma = self.encoder(images).to(images.dtype).chunk(2, dim=1)
        return mean, log_sigma

    def _parameters_of(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (B, C, H, W) each: location, log-scale (at least -7, as in PixelCNN++), dependence on other colours.
        if self.image_channels == 1:
            return state[:, 1:2], state[:, 2:3].clamp(min=-7), state[:, :0]
        location, log_scale, coefficients = state[:, 1:10].unflatten(1, (3, 3)).unbind(dim=2)
        return location, log_scale.clamp(min=-7), coefficients.tanh()

    def log_likelihood(self, images: Tensor, state: Tensor) -> Tensor:
        """Log p(images | state) in nats, (B,), for `images` (B, C, H, W) in [-1, 1]."""
        location, log_scale, k = self._parameters_of(state)
        if self.image_channels == 3:
            red, green = images[:, 0], images[:, 1]
            shift = [torch.zeros_like(red), k[:, 0] * red, k[:, 1] * red + k[:, 2] * green]
            location = location + torch.stack(shift, dim=1)
        return discretised_logistic(images, location, log_scale).sum(dim=(1, 2, 3))

    def to_images(self, state: Tensor) -> Tensor:
        """The image that a state stands for, (B, C, H, W) in [-1, 1]: the logistics' means, without noise.

        The colours follow one another: green is given the red shown, blue is given both. (The authors' code
        shows draws from the logistics; independent noise at each pixel says nothing about the picture.)
        """
        location, _, k = self._parameters_of(state)
        if self.image_channels == 1:
            return location.clamp(-1, 1)
        red = location[:, 0].clamp(-1, 1)
        green = (location[:, 1] + k[:, 0] * red).clamp(-1, 1)
        blue = (location[:, 2] + k[:, 1] * red + k[:, 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], dim=1)

    def elbo(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """The evidence lower bound on log p(image), in nats, one for each image: (B, C, H, W) to (B,).

        One z is drawn per image (from `noise`, torch's generator by default) and reparametrised; the KL term
        is in closed form.
        Divide by `-log(2) C H W` for bits per dimension.
        """
        mean, log_sigma = self.encode(images)
        drawn = (noise or TorchNoise()).normal(mean, Purpose.START, 0)
        z = mean + log_sigma.exp() * drawn
        return self.log_likelihood(images, self.decode(z)) - kl_from_prior(mean, log_sigma)

    def loss(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Minus the mean ELBO in nats per image, as published; `images` (B, C, size, size) in [-1, 1]."""
        return -self.elbo(images, noise).mean()

    @torch.no_grad()
    def sample(
        self, size: tuple[int, int], *, count: int = 1, seed: int = 0, first_sample: int = 0
    ) -> Tensor:
        """Images from the prior: (count, C, H, W) in [-1, 1].

        Args:
            size: (H, W), multiples of 2^doublings; the training images' size starts from a grid of 2x2, other
                sizes from other grids.
            count: number of images.
            seed: any integer; the same seed gives the same images.
            first_sample: index of the first image: image i is the same alone and in a batch.

        Raises:
            UsageError: `size` cannot be reached by doubling.
        """
        unit = 2**self.doublings
        if size[0] < 1 or size[1] < 1 or size[0] % unit or size[1] % unit:
            raise UsageError(
                f"size is {size[0]}x{size[1]}; the image doubles {self.doublings} times, "
                f"so height and width must be multiples of {unit}"
            )
        check_call(self, count, size)
        like = next(self.parameters()).new_empty(count, self.latent, 1, 1)
        z = CounterNoise(seed, first_sample).normal(like, Purpose.START, 0).flatten(1)
        return self.to_images(self.decode(z, (size[0] // unit, size[1] // unit)))
