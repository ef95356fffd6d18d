"""Does a model copy its training data? Distances to the nearest training image or patch (chapter 5).

A sample near to a training image proves little: images of one kind are all somewhat near to one another. So
the samples' distances are compared with those of *held-out* images, which come from the same source and
cannot be copies (Meehan et al. 2020): [`nearest_patches`][] and [`nearest_images`][] measure both,
[`compare`][] says how often a sample is the nearer one.

Two numbers are measured. The root mean square difference of pixels is small for a copy, but also for a sample
that is blurred or pale: such images are near to everything (Carlini et al. 2023). Their remedy is taken too:
the *ratio* of the distance to the nearest training image to the distance to others, here to the next one. A
copy is far nearer to one place than to any other; a blurred image is not. What occurs twice in the training
data escapes the ratio: its copies are as near to both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nca_lib.errors import UsageError

ORIENTATIONS = 8
RESAMPLES, TAIL = 1000, 0.05


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image (or patch) of each of N images.

    Attributes:
        images: the nearest ones, turned as the images are, (N, C, H, W).
        distance: root mean square difference of pixels, (N,); one step of 8 bits is 2/255.
        ratio: that distance over the distance to the nearest one elsewhere, (N,) in [0, 1].
        place: where they are: indices (N,), or rows and columns of top left corners (N, 2).
        orientation: how they are turned to give `images`, (N,); see [`orient`][].
    """

    images: Tensor
    distance: Tensor
    ratio: Tensor
    place: Tensor
    orientation: Tensor


@dataclass(frozen=True)
class Comparison:
    """How near samples lie to the training data, beside held-out images; see [`compare`][].

    Attributes:
        nearer: the probability that a sample is nearer than a held-out image; 0.5: no copying, 1: all copies.
        nearer_interval: its 95% interval.
        tail: the part of the samples that are as near as the nearest 5% of held-out images.
        tail_interval: its 95% interval.
    """

    nearer: float
    nearer_interval: tuple[float, float]
    tail: float
    tail_interval: tuple[float, float]


def orient(images: Tensor, orientation: int) -> Tensor:
    """Turn (..., S, S) by quarters, `orientation // 2` times, and mirror left to right if it is odd."""
    turned = torch.rot90(images, orientation // 2, dims=(-2, -1))
    return turned.flip(-1) if orientation % 2 else turned


def grid(images: Tensor, size: int) -> Tensor:
    """Cut images (N, C, H, W) into patches that do not overlap, (N, patches of an image, C, size, size)."""
    patches = images.unfold(2, size, size).unfold(3, size, size)  # (N, C, rows, columns, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


@torch.no_grad()
def nearest_patches(patches: Tensor, photo: Tensor, allowed: Tensor | None = None) -> Neighbours:
    """The nearest patches of a photograph, of all positions in all eight orientations: exhaustive search.

    `ratio` divides by the distance to the nearest patch that does not overlap the nearest one.

    Squared distances are `|a|² + |b|² - 2ab`, a matrix product; it is too coarse where a and b are almost
    equal, so the distances that are returned are computed again, directly.

    Args:
        patches: (N, C, S, S) in [-1, 1].
        photo: the training data, (C, H, W) in [-1, 1].
        allowed: which of its patches are, by top left corner, (H - S + 1, W - S + 1) of bool; by default all.

    Raises:
        UsageError: there is a patch of which all others that are allowed overlap.
    """
    size = patches.shape[-1]
    every = (
        photo.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4)
    )  # (rows, columns, C, S, S), a view
    if allowed is None:
        allowed = torch.ones(every.shape[:2], dtype=torch.bool)
    places = allowed.nonzero()
    mean = photo.mean((1, 2))[:, None, None]  # small numbers, small errors
    turned = torch.stack([_undo(patches, orientation) for orientation in range(ORIENTATIONS)])
    queries = (turned - mean).flatten(2).flatten(0, 1)
    squares = torch.empty(len(patches), len(places))
    for part in torch.arange(len(places)).split(1024):
        chosen = (every[*places[part].T] - mean).flatten(1)
        products = (queries @ chosen.T).unflatten(0, (ORIENTATIONS, -1)).amax(0)
        squares[:, part] = chosen.square().sum(1) - 2 * products
    first = places[squares.argmin(1)]
    for row, corner in zip(squares, first, strict=True):
        row[((places - corner).abs() < size).all(1)] = torch.inf
    if squares.isinf().all(1).any():
        raise UsageError(f"the photograph has no two patches of {size}x{size} that do not overlap")
    second = places[squares.argmin(1)]
    nearest = every[*first.T]
    distance, orientation = _distance(turned, nearest).min(0)
    ratio = _ratio(distance, _distance(turned, every[*second.T]).amin(0))
    images = torch.stack([orient(x, int(o)) for x, o in zip(nearest, orientation, strict=True)])
    return Neighbours(images, distance, ratio, first, orientation)


@torch.no_grad()
def nearest_images(images: Tensor, training: Iterable[Tensor]) -> Neighbours:
    """The nearest training images, as they are or mirrored (orientations 0 and 1).

    `ratio` divides by the distance to the second nearest training image.

    Args:
        images: (N, C, H, W) in [-1, 1].
        training: all training images in batches, (B, C, H, W) in [-1, 1]; two images or more.
    """
    count = len(images)
    best = torch.full((count, 2), torch.inf)
    place, orientation = torch.zeros(2, count, dtype=torch.long)
    nearest, queries = torch.empty_like(images), images.flatten(1)
    seen = 0
    for batch in training:
        both = torch.stack([batch, batch.flip(3)])
        vectors = both.flatten(2)
        squares = torch.stack([torch.addmm(v.square().sum(1), queries, v.T, alpha=-2) for v in vectors])
        index = squares.amin(0).topk(min(2, len(batch)), largest=False).indices
        found, way = _distance(images[:, None], both[:, index]).min(0)  # directly: see nearest_patches
        found, order = found.sort(1)
        index, way = index.gather(1, order)[:, 0], way.gather(1, order)[:, 0]
        better = found[:, 0] < best[:, 0]
        place[better], orientation[better] = seen + index[better], way[better]
        nearest[better] = both[way[better], index[better]]
        best = torch.cat([best, found], 1).topk(2, largest=False).values
        seen += len(batch)
    return Neighbours(nearest, best[:, 0], _ratio(*best.T), place, orientation)


def compare(samples: Tensor, held_out: Tensor, seed: int = 0) -> Comparison:
    """How often samples are nearer to the training data than held-out images, with 95% intervals.

    `nearer` is P(sample < held-out) + P(equal) / 2, the Mann-Whitney statistic of Meehan et al. (2020) as a
    fraction, also called the area under the ROC curve. It may well be below 0.5: then the samples are farther
    from the training data than real images are. `tail` finds a few copies among many samples.

    Intervals are percentiles of a bootstrap of 1,000 resamples. Patches of one image are not independent, so
    whole rows are resampled: let a row be all patches of one image, or of one block of the held-out data.

    Args:
        samples: distances or ratios, (images, patches of each), or (images,).
        held_out: likewise, of held-out images.
        seed: of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)

    def resampled(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    drawn = [_nearer_and_tail(resampled(samples), resampled(held_out)) for _ in range(RESAMPLES)]
    (nearer_low, tail_low), (nearer_high, tail_high) = np.percentile(drawn, [2.5, 97.5], axis=0).tolist()
    nearer, tail = _nearer_and_tail(samples, held_out)
    return Comparison(nearer, (nearer_low, nearer_high), tail, (tail_low, tail_high))


def _nearer_and_tail(samples: Tensor, held_out: Tensor) -> tuple[float, float]:
    samples, held_out = samples.contiguous().flatten(), held_out.flatten().sort().values
    below, upto = (
        torch.searchsorted(held_out, samples, right=right).double().mean() for right in (False, True)
    )
    bound = held_out[math.ceil(len(held_out) * TAIL) - 1]
    return float(1 - (below + upto) / (2 * len(held_out))), float((samples <= bound).double().mean())


def _undo(patches: Tensor, orientation: int) -> Tensor:
    """Turn back what [`orient`][] has turned."""
    patches = patches.flip(-1) if orientation % 2 else patches
    return torch.rot90(patches, -(orientation // 2), dims=(-2, -1))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square over the last three dimensions."""
    return (a - b).square().mean((-3, -2, -1)).sqrt()


def _ratio(first: Tensor, second: Tensor) -> Tensor:
    # Where two places are equal to the image, neither was copied rather than the other.
    return torch.where(second == 0, 1.0, first / second).clamp(max=1)
