"""Denoisers that no training can beat: formulas over the training images (end of chapter 2).

Under the squared error the best answer is a mean, of all clean images weighted by how well each explains the
noisy one. Of whole images that mean copies the training set. [`IdealPatches`][] may look at a square around
each pixel only, and may not know where the square lies: the ideal of every local rule that is the same
everywhere, Diff-NCA's among them (Kamb & Ganguli, "An analytic theory of creativity in convolutional
diffusion models", ICML 2025, arXiv 2412.20292). It paints mosaics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nca_lib.diffusion import NoiseSchedule


def patches_of(images: Tensor, size: int, stride: int = 1) -> Tensor:
    """All squares of `size` pixels of images (B, C, H, W), every `stride` pixels: (N, C, size, size)."""
    columns = F.unfold(images, size, stride=stride)  # (B, C size size, places)
    return columns.transpose(1, 2).reshape(-1, images.shape[1], size, size)


class IdealPatches(nn.Module):
    """The lowest squared error of all denoisers that see one square of pixels and not where it lies.

    A [`Denoiser`][nca_lib.diffusion.Denoiser]'s network with target `"x0"`: each pixel becomes the mean of
    the patches' middle pixels, weighted by how well each patch explains the square around it (Kamb & Ganguli
    2025, the equivariant local score machine). Beyond the border nothing is seen, and nothing compared.

    Args:
        patches: (N, C, P, P) in [-1, 1], P odd: what the clean squares may be, from [`patches_of`][].
        schedule: of the noise.
    """

    patches: Tensor

    def __init__(self, patches: Tensor, schedule: NoiseSchedule):
        super().__init__()
        self.schedule, self.image_channels = schedule, patches.shape[1]
        self.register_buffer("patches", patches, persistent=False)

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """The clean estimate of `noisy` (B, C, H, W) at `time` (B,) in [0, 1), same shape."""
        signal, sigma = self.schedule.signal_and_noise(self.schedule.timestep(time), noisy)
        size = self.patches.shape[-1]
        patches = self.patches.to(noisy).flatten(1)  # (N, C P P)
        squares = F.unfold(noisy, size, padding=size // 2).mT  # (B, H W, C P P)
        visible = F.unfold(torch.ones_like(noisy[:1]), size, padding=size // 2).mT
        # -|x - signal p|² / 2 without |x|², which all patches share; what is unseen is 0 in both terms.
        agreement = signal[:, 0] * (squares @ patches.T)
        agreement -= signal[:, 0] ** 2 / 2 * (visible @ patches.T.square())
        weight = torch.softmax(agreement / sigma[:, 0] ** 2, dim=-1)  # (B, H W, N)
        middle = self.patches[:, :, size // 2, size // 2].to(noisy)
        return (weight @ middle).mT.reshape(noisy.shape)
