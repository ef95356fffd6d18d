"""What one would count in stained tissue: how much is stained, how many nuclei, how large (chapter 5).

Distances between features say that generated tissue differs, not in what. These statistics have units, and
are compared between samples and the photograph. They are for haematoxylin (blue: nuclei) and DAB (brown: the
protein that is looked for), at the resolution of [`Tissue`][nca_lib.data.tissue.Tissue] with
`downscale=2`, where nuclei are 4 to 20 pixels long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nca_lib.extras import extra

with extra("evaluation"):
    from scipy.ndimage import distance_transform_edt
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.measure import label
    from skimage.morphology import disk, opening
    from skimage.segmentation import watershed

# Pixels; chosen by eye on the photograph.
_SMOOTH = 0.7  # standard deviation of the blur against noise
_SURROUNDINGS = 4.0  # of the blur that gives a nucleus's surroundings
_APART = 3  # least distance between the centres of two nuclei
_SMALLEST = 12  # area


@dataclass(frozen=True)
class StainThresholds:
    """The amounts above which a pixel counts as stained; see [`fit_thresholds`][].

    Attributes:
        haematoxylin: of the blue stain.
        dab: of the brown one.
    """

    haematoxylin: float
    dab: float


def stain_amounts(images: Tensor) -> Tensor:
    """Separate the stains by colour deconvolution (Ruifrok and Johnston 2001).

    Light is absorbed exponentially (Beer-Lambert), so the logarithm of a colour is the sum of the stains' own
    colours, each times its amount; scikit-image's `rgb2hed` solves for the amounts.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 2, H, W): haematoxylin and DAB, at least 0. The unit is scikit-image's: 6 decades of absorbance
        along the stain's colour, a unit vector in RGB.
    """
    rgb = (images.permute(0, 2, 3, 1).double().numpy() / 2 + 0.5).clip(0, 1)
    return torch.from_numpy(rgb2hed(rgb)[..., [0, 2]]).permute(0, 3, 1, 2)


def fit_thresholds(images: Tensor) -> StainThresholds:
    """Otsu's thresholds of both stains on real images, (N, 3, H, W) in [-1, 1], for all later comparisons."""
    haematoxylin, dab = stain_amounts(images).unbind(1)
    return StainThresholds(*(float(threshold_otsu(_smooth(x.numpy()))) for x in (haematoxylin, dab)))


def segment_nuclei(haematoxylin: np.ndarray, threshold: float) -> np.ndarray:
    """Find nuclei: what is bluer than the threshold and than its surroundings, opened, split by a watershed.

    The surroundings part nuclei within a stained gland. The watershed floods the distance to the background
    from its maxima, which splits nuclei that touch. Discs of 8 pixels across come out 5% too small.

    Args:
        haematoxylin: its amounts, (H, W).
        threshold: see [`fit_thresholds`][].

    Returns:
        (H, W) of integers: 0 for the background, 1, 2, ... for each nucleus.
    """
    smooth = _smooth(haematoxylin[None])[0]
    mask = opening((smooth > threshold) & (smooth > gaussian(haematoxylin, _SURROUNDINGS)), disk(1))
    # A nucleus goes on beyond the edge of the image.
    depth = gaussian(distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1], _SMOOTH)
    centres = peak_local_max(depth, min_distance=_APART, labels=label(mask), exclude_border=False)
    seeds = np.zeros(mask.shape, dtype=int)
    seeds[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    nuclei = watershed(-depth, seeds, mask=mask)
    large = np.bincount(nuclei.flat) >= _SMALLEST
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[nuclei]


def tissue_statistics(images: Tensor, thresholds: StainThresholds) -> dict[str, Tensor]:
    """Stains and nuclei of each image.

    - `"haematoxylin"`, `"dab"`: the fraction of each image's pixels that are stained, (N,).
    - `"nuclei"`: how many there are per 1,000 pixels of each image, (N,). Those that touch the right or the
      lower edge are not counted: the next image would count them again (Gundersen 1977).
    - `"nucleus_area"`: pixels, for each nucleus that touches no edge, of all images in order, (nuclei,).

    Args:
        images: (N, 3, H, W) in [-1, 1]. Only images of one size compare: large nuclei are cut by the edges of
            small images more often.
        thresholds: those of the real images, from [`fit_thresholds`][].
    """
    stained = stain_amounts(images)
    counts, areas = [], []
    for haematoxylin in stained[:, 0].numpy():
        nuclei = segment_nuclei(haematoxylin, thresholds.haematoxylin)
        area = np.bincount(nuclei.flat)
        cut = set(nuclei[-1]) | set(nuclei[:, -1]) | {0}
        counts.append(len(area) - len(cut))
        cut |= set(nuclei[0]) | set(nuclei[:, 0])
        areas += [float(area[n]) for n in range(len(area)) if n not in cut]
    height, width = images.shape[2:]
    fractions = [
        torch.from_numpy(_smooth(stain.numpy()) > threshold).double().mean((1, 2))
        for stain, threshold in zip(stained.unbind(1), (thresholds.haematoxylin, thresholds.dab), strict=True)
    ]
    return {
        "haematoxylin": fractions[0],
        "dab": fractions[1],
        "nuclei": torch.tensor(counts, dtype=torch.double) * 1000 / (height * width),
        "nucleus_area": torch.tensor(areas, dtype=torch.double),
    }


def _smooth(amounts: np.ndarray) -> np.ndarray:
    """Blur (N, H, W) in space."""
    return gaussian(amounts, (0, _SMOOTH, _SMOOTH))
