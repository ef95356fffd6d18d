"""Copies of training data are found, with their place; honest data is cleared, blurred or not."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from skimage.data import immunohistochemistry
from torch import Tensor

from nca_lib.data.faces import Faces, draw
from nca_lib.data.images import to_float
from nca_lib.evaluation.copying import ORIENTATIONS, compare, grid, nearest_images, nearest_patches, orient


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(images: Tensor, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def blur(images: Tensor) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def every(photo: Tensor, size: int) -> dict[tuple[int, int, int], Tensor]:
    """All patches, by row, column and orientation, one after the other."""
    _, height, width = photo.shape
    return {
        (top, left, orientation): orient(photo[:, top : top + size, left : left + size], orientation)
        for top in range(height - size + 1)
        for left in range(width - size + 1)
        for orientation in range(ORIENTATIONS)
    }


@pytest.mark.parametrize(("size", "height", "width"), [(4, 13, 17), (5, 17, 16), (3, 7, 6)])
def test_search_equals_brute_force(size: int, height: int, width: int) -> None:
    photo, patches = random(3, height, width), random(6, 3, size, size, seed=1)
    allowed = random(height - size + 1, width - size + 1, seed=2) > -0.5
    found = nearest_patches(patches, photo, allowed)
    candidates = {key: patch for key, patch in every(photo, size).items() if allowed[key[:2]]}
    for i, patch in enumerate(patches):
        distances = {key: float((patch - other).square().mean().sqrt()) for key, other in candidates.items()}
        best = min(distances, key=lambda key: distances[key])
        elsewhere = min(
            value
            for key, value in distances.items()
            if max(abs(key[0] - best[0]), abs(key[1] - best[1])) >= size
        )
        assert (*found.place[i].tolist(), int(found.orientation[i])) == best
        assert float(found.distance[i]) == pytest.approx(distances[best], rel=1e-5)
        assert float(found.ratio[i]) == pytest.approx(distances[best] / elsewhere, rel=1e-5)
        torch.testing.assert_close(found.images[i], candidates[best])


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_planted_copy_is_found_in_every_orientation(size: int) -> None:
    photo = random(3, 80, 90)
    copies = torch.stack([orient(photo[:, 11 : 11 + size, 40 : 40 + size], o) for o in range(8)])
    found = nearest_patches(copies, photo)
    assert found.place.tolist() == [[11, 40]] * 8
    assert found.orientation.tolist() == list(range(8))
    assert (found.distance == 0).all() and (found.ratio == 0).all()
    torch.testing.assert_close(found.images, copies, rtol=0, atol=0)


def test_the_orientations_are_eight_and_those_of_the_crops_that_models_train_on() -> None:
    patch = torch.arange(9.0).view(1, 3, 3)
    turned = [orient(patch, orientation) for orientation in range(ORIENTATIONS)]
    assert len({tuple(x.flatten().tolist()) for x in turned}) == 8
    torch.testing.assert_close(turned[2], torch.rot90(patch, 1, dims=(1, 2)))
    torch.testing.assert_close(turned[1], patch.flip(2))


def test_a_distance_far_below_the_numbers_is_exact() -> None:
    photo = 0.9 + 0.1 * random(3, 40, 40)  # |a|² and |b|² cancel to 7 digits
    patch = photo[None, :, 5:21, 9:25] + 1e-4
    assert float(nearest_patches(patch, photo).distance) == pytest.approx(1e-4, rel=1e-2)
    assert float(nearest_images(patch, [patch.flip(3) + 1e-4, photo[None, :, 20:36, 3:19]]).distance) < 2e-4


def test_what_is_there_twice_was_not_copied_from_one_place() -> None:
    photo = random(3, 30, 30)
    photo[:, 20:28, 20:28] = photo[:, 2:10, 3:11]
    found = nearest_patches(photo[None, :, 20:28, 20:28], photo)
    assert float(found.distance) == 0
    assert float(found.ratio) == 1


def test_a_photo_without_a_second_place_is_refused() -> None:
    with pytest.raises(ValueError, match="8x8"):
        nearest_patches(random(1, 3, 8, 8), random(3, 12, 12))


def test_patches_of_a_grid_are_in_order_and_do_not_overlap() -> None:
    images = random(2, 3, 8, 12)
    patches = grid(images, 4)
    assert patches.shape == (2, 6, 3, 4, 4)
    torch.testing.assert_close(patches[1, 4], images[1, :, 4:8, 4:8])


def test_nearest_images_equal_brute_force_in_any_batches() -> None:
    training, images = random(40, 3, 6, 5), random(7, 3, 6, 5, seed=1)
    both = torch.stack([training, training.flip(3)])
    distances = (images[:, None, None] - both).square().mean((3, 4, 5)).sqrt()  # (7, 2, 40)
    for batches in ([training], list(training.split(9)), list(training.split(2))):
        found = nearest_images(images, batches)
        nearest, second = distances.amin(1).topk(2, largest=False).values.T
        torch.testing.assert_close(found.distance, nearest)
        torch.testing.assert_close(found.ratio, nearest / second)
        assert found.place.tolist() == distances.amin(1).argmin(1).tolist()
        assert found.orientation.tolist() == distances.amin(2).argmin(1).tolist()
        torch.testing.assert_close(found.images, both[found.orientation, found.place])


def test_comparison_counts_pairs_with_ties_as_half() -> None:
    ours, theirs = torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.2, 0.3])
    assert compare(ours, theirs).nearer == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 0) / 6)
    assert compare(theirs, ours).nearer == pytest.approx(1 - 3.5 / 6)


def test_the_tail_sees_a_few_copies_among_many_samples() -> None:
    held_out, honest = random(400, seed=3), random(400, seed=4)
    some = torch.where(torch.arange(400) % 10 == 0, -2.0, honest)
    few, none = compare(some, held_out), compare(honest, held_out)
    assert few.nearer < 0.58
    assert few.tail == pytest.approx(0.1 + 0.9 * 0.05, abs=0.03) and few.tail_interval[0] > 0.1
    assert none.tail_interval[0] < 0.05 < none.tail_interval[1]


def test_the_tail_reaches_to_the_last_of_the_nearest_5_percent() -> None:
    held_out = torch.arange(1.0, 41)  # the nearest 5% are 1 and 2
    assert compare(torch.tensor([1.0, 2.0, 3.0, 30.0]), held_out).tail == 0.5


def test_an_interval_of_a_fraction_is_as_wide_as_95_percent_of_the_binomial() -> None:
    low, high = compare((torch.arange(100) % 2).double(), torch.tensor([0.5])).nearer_interval
    assert high - low == pytest.approx(2 * 1.96 * 0.05, abs=0.025)  # half of 100: a deviation of 0.05


def test_95_percent_intervals_hold_the_truth_about_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(25):  # rows of 8 numbers that depend on one another: as few as 20 independent ones
        ours, theirs = (
            torch.randn(20, 1, generator=generator) + 0.1 * torch.randn(20, 8, generator=generator)
            for _ in range(2)
        )
        low, high = compare(ours, theirs, seed=trial).nearer_interval
        held += low <= 0.5 <= high
    assert held >= 21


BLOCKS = [(0, 64), (64, 192), (128, 0), (192, 128)]  # held out: top left corners, 64 pixels each


@lru_cache
def tissue() -> tuple[Tensor, Tensor, Tensor]:
    """The photograph, which 16x16 patches are for training, and the blocks that are held out."""
    photo = F.avg_pool2d(to_float(immunohistochemistry()), 2)
    kept = torch.zeros(1, 256, 256)
    for top, left in BLOCKS:
        kept[:, top : top + 64, left : left + 64] = 1
    allowed = F.max_pool2d(kept, 16, stride=1)[0] == 0
    held_out = torch.stack([photo[:, top : top + 64, left : left + 64] for top, left in BLOCKS])
    return photo, allowed, held_out


def ratios_of_tissue(images: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and ratios of 16x16 patches, a row an image."""
    photo, allowed, _ = tissue()
    patches = grid(images, 16)
    found = nearest_patches(patches.flatten(0, 1), photo, allowed)
    return found.distance.view(patches.shape[:2]), found.ratio.view(patches.shape[:2])


def copied() -> Tensor:
    photo, _, _ = tissue()
    corners = [(3, 2), (67, 70), (150, 66), (195, 195)]
    return torch.stack([orient(photo[:, t : t + 48, o : o + 48], i) for i, (t, o) in enumerate(corners)])


def test_a_copyist_of_tissue_is_caught() -> None:
    distance, ratio = ratios_of_tissue(tissue()[2])
    for copies in (copied(), noise(copied(), 0.1), blur(copied())):
        found_distance, found_ratio = ratios_of_tissue(copies)
        assert compare(found_ratio, ratio).nearer > 0.95
        assert compare(found_ratio, ratio).tail > 0.9
        assert compare(found_distance, distance).nearer > 0.9


def test_held_out_tissue_is_cleared_and_blur_fools_only_the_distance() -> None:
    distance, ratio = ratios_of_tissue(tissue()[2])
    own = compare(ratio, ratio)
    assert own.nearer == 0.5 and own.nearer_interval[0] < 0.5 < own.nearer_interval[1]
    left, right = compare(ratio[:2], ratio[2:]), compare(distance[:2], distance[2:])
    assert left.nearer == pytest.approx(0.5, abs=0.15) and right.nearer == pytest.approx(0.5, abs=0.25)
    blurred_distance, blurred_ratio = ratios_of_tissue(blur(tissue()[2]))
    assert compare(blurred_distance, distance).nearer > 0.7
    assert compare(blurred_ratio, ratio).nearer < 0.62


def test_a_copyist_of_faces_is_caught_and_other_faces_are_cleared() -> None:
    def faces(data: Faces, first: int, count: int) -> Tensor:
        return draw([data.attributes(i) for i in range(first, first + count)], 32)

    training = faces(Faces(32), 0, 1000)
    batches = training.split(250)
    held_out, others = (nearest_images(faces(Faces(32, "test"), first, 150), batches) for first in (0, 150))
    copies = nearest_images(noise(training[300:450].flip(3), 0.1), batches)
    assert copies.place.tolist() == list(range(300, 450)) and (copies.orientation == 1).all()
    for what in ("distance", "ratio"):
        real, other, copy = (getattr(found, what) for found in (held_out, others, copies))
        assert compare(copy, real).nearer > 0.99
        low, high = compare(other, real).nearer_interval
        assert low < 0.5 < high
