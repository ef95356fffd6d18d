"""FourierDiff-NCA: an automaton in frequency space first, then in image space (chapter 4).

Kalkhof et al., "Frequency-Time Diffusion with Neural Cellular Automata" (arXiv 2401.06291). A cell of the
spectrum holds the Fourier coefficients of all channels at one frequency. Every coefficient touches every
pixel, so one step there is a message to the whole image; in image space a message moves one cell a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from nca_lib.diff_nca import Cell, DiffNCA, Encoding, Norm
from nca_lib.errors import UsageError, check_choice

Window = Literal["quadrant", "half_plane"]


def spectrum_window(images: Tensor, window: Window, frequencies: int) -> Tensor:
    """The lowest Fourier coefficients of real images, scaled by 1/(HW): the mean is the coefficient at 0.

    Args:
        images: (B, C, H, W), real.
        window: which coefficients to keep, n being `frequencies`.
            `"quadrant"`, as published: ky and kx from 0 to n-1, (B, C, n, n). A wave that runs from top right
            to bottom left has ky and kx of opposite sign and is not in it.
            `"half_plane"`: ky from -(n-1) to n-1, kx from 0 to n-1, (B, C, 2n-1, n). All waves up to n-1; the
            coefficients left out are conjugates of those kept.
        frequencies: n.

    Returns:
        Complex coefficients, rows in the order of ky.
    """
    spectrum = torch.fft.rfft2(images, norm="forward")[..., :frequencies]
    if window == "quadrant":
        return spectrum[..., :frequencies, :]
    negative = spectrum[..., images.shape[-2] - frequencies + 1 :, :]
    return torch.cat([negative, spectrum[..., :frequencies, :]], dim=-2)


def image_of_window(coefficients: Tensor, window: Window, height: int, width: int) -> Tensor:
    """The real image whose spectrum is `coefficients` within the window and zero elsewhere.

    For the quadrant it is the real part of the inverse transform, as in the public code (each wave at half
    its amplitude, its conjugate being absent); for the half plane the absent half is the conjugate.

    Args:
        coefficients: (B, C, rows, n), from [`spectrum_window`][].
        window: the window they belong to.
        height: of the image.
        width: of the image.
    """
    rows, frequencies = coefficients.shape[-2:]
    if window == "quadrant":
        # Re(ifft2 X) needs no negative kx: irfft2 counts each kx > 0 twice, so those are halved first.
        twice = torch.full((frequencies,), 0.5, device=coefficients.device)
        twice[0] = 1
        positive, negative = coefficients * twice, coefficients[..., :0, :]
    else:
        negative, positive = coefficients.split([rows - frequencies, frequencies], dim=-2)
    gap = height - rows
    full = torch.cat([positive, positive.new_zeros(*positive.shape[:-2], gap, frequencies), negative], dim=-2)
    return torch.fft.irfft2(full, s=(height, width), norm="forward")


def window_sums(part: Tensor, y: Tensor, x: Tensor, size: tuple[int, int], window: Window, n: int) -> Tensor:
    """What a part of an image adds to its [`spectrum_window`][]; the parts' sums add up to that of the whole.

    The two-dimensional sum over pixels is a product of two matrices of waves, one for each axis.

    Args:
        part: (B, C, h, w), the pixels of rows `y` and columns `x`.
        y: (h,) integers.
        x: (w,) integers.
        size: height and width of the whole image.
        window: which coefficients.
        n: frequencies per axis.

    Returns:
        (B, C, rows, n), complex128.
    """
    vertical, horizontal = _waves(y, x, size, window, n)
    return vertical.conj() @ part.to(vertical.dtype) @ horizontal.conj().mT / (size[0] * size[1])


def part_of_window(
    coefficients: Tensor, y: Tensor, x: Tensor, size: tuple[int, int], window: Window
) -> Tensor:
    """Rows `y` and columns `x` of [`image_of_window`][], (B, C, h, w), without the rest of the image."""
    vertical, horizontal = _waves(y, x, size, window, coefficients.shape[-1])
    # Each wave counts twice, for its conjugate; in the quadrant that is absent, and kx = 0 is its own.
    weight = torch.full_like(horizontal[:, 0], 2 if window == "half_plane" else 1)
    weight[0] = 1
    waves = vertical.mT @ (coefficients.to(vertical.dtype) * weight) @ horizontal
    return waves.real.to(coefficients.real.dtype)


def _waves(y: Tensor, x: Tensor, size: tuple[int, int], window: Window, n: int) -> tuple[Tensor, Tensor]:
    """exp(2 pi i ky y / H), (rows, h), and exp(2 pi i kx x / W), (n, w), complex128."""

    def waves(k: Tensor, place: Tensor, length: int) -> Tensor:
        turns = (k[:, None] * place).remainder(length).double() / length  # in integers: no digit is lost
        return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)

    lowest = 0 if window == "quadrant" else 1 - n
    rows, columns = torch.arange(lowest, n, device=y.device), torch.arange(n, device=x.device)
    return waves(rows, y, size[0]), waves(columns, x, size[1])


class FourierDiffNCA(DiffNCA):
    """FourierDiff-NCA: steps of one cell on the low frequencies, then Diff-NCA from what they wrote.

    A [`Denoiser`][nca_lib.diffusion.Denoiser]'s network: `forward(noisy, time)` maps (B, 3, H, W) and (B,) in
    [0, 1) to an output shaped like `noisy`, for any H, W of at least `2 * frequencies`, odd and
    non-square ones included.

    Args:
        channels: C, numbers per cell: image, prediction, hidden. A cell of the spectrum holds 2C, the real
            parts and then the imaginary parts.
        hidden: h, width of the hidden layer in both stages.
        steps: K, automaton steps in image space per call.
        frequencies: n, how many frequencies per axis the window holds, 0 included.
        window: `"quadrant"` as published, or `"half_plane"`, see [`spectrum_window`][].
        spectrum_steps: automaton steps in frequency space; 2n as published.
        update_probability: chance that a cell of the image updates; those of the spectrum always do.
        position: tell the cells of the image where they are; those of the spectrum always know theirs.
        image_channels: this and what follows as for [`DiffNCA`][].
        context_channels: both stages read them, the spectrum its window of theirs.
        encoding: `"reference"` or `"sinusoidal"`.
        norm: `"cell"` or `"group"`.
        weight_norm: weight-normalise every convolution.
        modulation: condition by multiplication as well.
        zero_init: start with updates of exactly zero.
        checkpointing: recompute activations in the backward pass.

    Raises:
        UsageError: as [`DiffNCA`][]; no frequency, an unknown window; or, when called, an image smaller than
            `2 * frequencies`.
    """

    def __init__(
        self,
        channels: int = 96,
        hidden: int = 512,
        steps: int = 20,
        *,
        frequencies: int = 16,
        window: Window = "quadrant",
        spectrum_steps: int | None = None,
        update_probability: float = 0.9,
        image_channels: int = 3,
        context_channels: int = 0,
        encoding: Encoding = "reference",
        norm: Norm = "cell",
        weight_norm: bool = True,
        modulation: bool = True,
        position: bool = True,
        zero_init: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__(
            channels,
            hidden,
            steps,
            update_probability=update_probability,
            image_channels=image_channels,
            context_channels=context_channels,
            encoding=encoding,
            norm=norm,
            weight_norm=weight_norm,
            modulation=modulation,
            position=position,
            zero_init=zero_init,
            checkpointing=checkpointing,
        )
        check_choice("window", window, get_args(Window))
        if frequencies < 1:
            raise UsageError(f"frequencies is {frequencies}; at least 1")
        self.frequencies, self.window = frequencies, window
        self.spectrum_steps = 2 * frequencies if spectrum_steps is None else spectrum_steps
        self.spectrum_cell = Cell(
            2 * channels,
            hidden,
            image_channels=image_channels,
            encoding=encoding,
            norm=norm,
            weight_norm=weight_norm,
            modulation=modulation,
            padding="zeros",
            zero_init=zero_init,
        )
        # Its imaginary half is read-only where the real one is.
        self.spectrum_cell.writable = self.cell.writable.repeat(1, 2, 1, 1)

    def spectrum_seed(self, noisy: Tensor) -> Tensor:
        """The spectrum before the first step: real parts, then imaginary parts, (B, 2C, rows, n)."""
        self.check_size(*noisy.shape[2:])
        return self.seed_of_window(spectrum_window(self.reads(noisy), self.window, self.frequencies))

    def check_size(self, height: int, width: int) -> None:
        """Refuse ([`UsageError`][]) an image that is smaller than `2 * frequencies`."""
        smallest = 2 * self.frequencies
        if min(height, width) < smallest:
            raise UsageError(
                f"the image is {width}x{height} (width x height); a window of "
                f"{self.frequencies} frequencies needs at least {smallest}x{smallest}"
            )

    def seed_of_window(self, read: Tensor) -> Tensor:
        """The same from the coefficients of what cells read, (B, image channels + G, rows, n)."""
        spectrum = self.placed(read)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def spectrum_rollout(self, spectrum: Tensor, time: Tensor) -> Iterator[Tensor]:
        """Yield the spectrum after each step in frequency space, from a given one."""
        time = time.to(spectrum.device, non_blocking=True)
        for k in range(self.spectrum_steps):
            embedding = self.spectrum_cell.condition(time, k / self.frequencies, *spectrum.shape[2:])
            spectrum = self.literal_step(self.spectrum_cell, spectrum, embedding)
            yield spectrum

    def initial_state(self, noisy: Tensor, time: Tensor) -> Tensor:
        """The state that the image stage starts from: what is read, and what the spectrum says."""
        written = self.written(self.spectrum_seed(noisy), time)
        return self.beside(self.reads(noisy), image_of_window(written, self.window, *noisy.shape[2:]))

    def beside(self, read: Tensor, written: Tensor) -> Tensor:
        """The state (B, C, H, W) of what is read and, in the other channels, of what the spectrum wrote."""
        image, context = read.tensor_split([self.image_channels], dim=1)
        prediction, _, hidden = written.tensor_split([self.image_channels, read.shape[1]], dim=1)
        return torch.cat([image, prediction, context, hidden], dim=1)

    def written(self, spectrum: Tensor, time: Tensor) -> Tensor:
        """What the frequency stage tells the image stage: coefficients of all channels but the image's."""
        if self.runs_fast:
            moments = [k / self.frequencies for k in range(self.spectrum_steps)]
            all_fire = [None] * self.spectrum_steps
            spectrum = self.fast_rollout(self.spectrum_cell, spectrum, time, moments, all_fire)
        else:
            time = time.expand(len(spectrum))
            for spectrum in self.spectrum_rollout(spectrum, time):  # noqa: B007, B020 - the last one counts
                pass
        real, imaginary = spectrum.chunk(2, dim=1)
        return torch.complex(real, imaginary)[:, self.image_channels :]
