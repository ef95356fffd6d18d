"""The published method as it is told, eager, in float32: what the library's speed is measured against.

One function for each paragraph of the method (Kalkhof et al. 2024), computed with a model's own weights:
every step embeds place and time anew at each cell of each image, normalises the convolutions' weights,
multiplies the modulations and copies the state; the frequency stage transforms the whole spectrum.
`tests/test_benchmarks.py` holds it equal to the library.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.diff_nca import Cell, DiffNCA
from nca_lib.fourier import FourierDiffNCA


def embedding(cell: Any, time: Tensor, step: float, height: int, width: int) -> Tensor:
    """Four channels from place and time, at every cell."""
    places = []
    if cell.position:
        py = torch.linspace(1, 0, height, device=time.device).view(1, 1, height, 1)
        px = torch.linspace(1, 0, width, device=time.device).view(1, 1, 1, width)
        places = [place.expand(len(time), 1, height, width) for place in (py, px)]
    clock = [time, torch.full_like(time, step)]
    scalars = torch.cat([*places, *(c.view(-1, 1, 1, 1).expand(-1, 1, height, width) for c in clock)], dim=1)
    lifted = []
    for i in range(scalars.shape[1]):
        index = torch.tensor(float(i), device=time.device)
        for wave in (index.cos(), (index * 0.01).cos(), index.sin(), (index * 0.01).sin()):
            lifted.append(scalars[:, i : i + 1] * wave)
    return convolve(cell.embedding[2], F.silu(convolve(cell.embedding[0], torch.cat(lifted, dim=1))))


def convolve(layer: Any, x: Tensor) -> Tensor:
    """A convolution whose weight is normalised anew."""
    if layer.kernel_size == (3, 3):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect" if layer.padding_mode == "reflect" else "constant")
    return F.conv2d(x, layer.weight, layer.bias)


def modulation(net: Any, e: Tensor) -> Tensor:
    """A small net of the embedding, at every cell."""
    return convolve(net[2], F.silu(convolve(net[0], e)))


def cell_step(cell: Cell, state: Tensor, time: Tensor, step: float, fire: float) -> Tensor:
    """One step of every cell."""
    before = state.clone()
    e = embedding(cell, time, step, *state.shape[2:])
    z = torch.cat([state, e], dim=1)
    p = torch.cat([z, convolve(cell.perception, z)], dim=1)
    p = p * modulation(cell.modulate_seen, e)
    q = F.leaky_relu(cell.norm(convolve(cell.widen, p)), 0.01)
    q = q * modulation(cell.modulate_hidden, e)
    mask = (torch.rand(len(state), 1, *state.shape[2:], device=state.device) < fire).float()
    state = state + mask * convolve(cell.narrow, q)
    return torch.where(cell.writable.bool(), state, before)


def call(model: DiffNCA, noisy: Tensor, time: Tensor) -> Tensor:
    """One denoiser call of Diff-NCA or FourierDiff-NCA (quadrant window, reference encoding)."""
    state = torch.cat([noisy, noisy.new_zeros(len(noisy), model.channels - 3, *noisy.shape[2:])], dim=1)
    if isinstance(model, FourierDiffNCA):
        state = frequency_stage(model, state, time)
    for k in range(model.steps):
        state = cell_step(model.cell, state, time, k / model.steps, model.update_probability)
    return state[:, 3:6]


def frequency_stage(model: FourierDiffNCA, state: Tensor, time: Tensor) -> Tensor:
    """The automaton on one quadrant of the spectrum."""
    n, (height, width) = model.frequencies, state.shape[2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(state, norm="forward"), dim=(2, 3))
    rows, columns = slice(height // 2, height // 2 + n), slice(width // 2, width // 2 + n)
    window = spectrum[:, :, rows, columns]
    cells = torch.cat([window.real, window.imag], dim=1)
    for k in range(model.spectrum_steps):
        cells = cell_step(model.spectrum_cell, cells, time, k / n, 1.0)
    real, imaginary = cells.chunk(2, dim=1)
    written = torch.zeros_like(spectrum)
    written[:, 3:, rows, columns] = torch.complex(real, imaginary)[:, 3:]
    image = torch.fft.ifft2(torch.fft.ifftshift(written, dim=(2, 3)), norm="forward").real
    return torch.cat([state[:, :3], image[:, 3:]], dim=1)
