"""Damage of known strength, and how an extractor's distances answer to it (chapter 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nca_lib.evaluation.extractors.extractor import Extractor, to_pixels
from nca_lib.evaluation.metrics import frechet_distance


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; `sigma` in pixels of a 64x64 image, scaled with the image's size."""
    sigma = sigma * images.shape[-1] / 64
    if sigma == 0:
        return images
    offsets = torch.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, [len(offsets) // 2] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


def noisy(images: Tensor, deviation: float) -> Tensor:
    """White noise, always the same for images of this shape."""
    generator = torch.Generator().manual_seed(len(images))
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def tinted(images: Tensor, amount: float) -> Tensor:
    """Red raised and blue lowered by `amount`."""
    return (images + amount * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)).clamp(-1, 1)


DISTORTIONS = {"blur": blurred, "noise": noisy, "colour": tinted}


def glued(images: Tensor) -> Tensor:
    """The left halves of the images, with the right halves of their neighbours in the batch."""
    half = images.shape[-1] // 2
    return torch.cat([images[..., :half], images.roll(1, 0)[..., half:]], -1)


CURVES = {"blur": (0.0, 0.5, 1.0, 2.0), "noise": (0.0, 0.05, 0.1, 0.2), "colour": (0.0, 0.05, 0.1, 0.2)}


DROPPED = (0.0, 0.2, 0.4, 0.6)


@torch.no_grad()
def response_curves(
    extractor: Extractor, images: Tensor, modes: Tensor
) -> dict[str, list[tuple[float, float]]]:
    """How an extractor's Frechet distance answers to damage: an extractor is to be trusted if it rises.

    The first half of the images stays as it is; the other half is damaged more and more and compared with
    it, so that each curve begins at the floor. For `modes dropped`, more and more of the images with the
    highest `modes` are left out, always comparing as many as the last step has.

    Args:
        extractor: what sees the images.
        images: (N, 3, H, W) in [-1, 1], real, in no order.
        modes: (N,) numbers by which the images differ: a class, a shade.

    Returns:
        For `blur` (sigma, pixels of a 64x64 image), `noise` (standard deviation), `colour` (shift) and
        `modes dropped` (fraction): pairs of strength and distance.
    """
    half = len(images) // 2
    other = images[half:]

    def see(part: Tensor) -> Tensor:
        return torch.cat([extractor(pixels) for pixels in to_pixels(part).split(64)])

    whole = see(images[:half])
    curves = {
        name: [(s, frechet_distance(whole, see(DISTORTIONS[name](other, s)))) for s in strengths]
        for name, strengths in CURVES.items()
    }
    # In order of their modes; from what is kept, evenly spread images.
    ordered = see(other)[modes[half:].argsort(stable=True)]
    fewest = round((1 - DROPPED[-1]) * len(ordered))
    curves["modes dropped"] = [
        (d, frechet_distance(whole, ordered[torch.linspace(0, (1 - d) * len(ordered) - 1, fewest).long()]))
        for d in DROPPED
    ]
    return curves
