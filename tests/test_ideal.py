"""The best denoiser that sees a square only: against sums over patches, and shifted."""

import torch

from nca_lib.diffusion import noise_schedule
from nca_lib.ideal import IdealPatches, patches_of

SCHEDULE = noise_schedule("cosine", 300)


def by_hand(noisy: torch.Tensor, patches: torch.Tensor, signal: float, sigma: float) -> torch.Tensor:
    """Pixel by pixel and patch by patch, for an image (C, H, W)."""
    reach = patches.shape[-1] // 2
    _, height, width = noisy.shape
    result = torch.zeros_like(noisy)
    for y in range(height):
        for x in range(width):
            rows = slice(max(y - reach, 0), min(y + reach + 1, height))
            columns = slice(max(x - reach, 0), min(x + reach + 1, width))
            top, left = rows.start - y + reach, columns.start - x + reach
            square = noisy[:, rows, columns]
            logits = []
            for patch in patches:
                part = patch[:, top : top + square.shape[1], left : left + square.shape[2]]
                logits.append(-(square - signal * part).square().sum() / (2 * sigma**2))
            weights = torch.stack(logits).softmax(0)
            result[:, y, x] = (weights[:, None] * patches[:, :, reach, reach]).sum(0)
    return result


def test_it_is_the_mean_over_patches_that_explain_what_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 6, 7, generator=generator, dtype=torch.float64) * 2 - 1
    noisy = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    ideal = IdealPatches(patches_of(images, 3), SCHEDULE)
    t = torch.tensor([40, 200])
    found = ideal(noisy, SCHEDULE.time(t))
    expected = [by_hand(x, ideal.patches, *SCHEDULE.levels(int(k))) for x, k in zip(noisy, t, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_it_does_not_know_where_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    ideal = IdealPatches(torch.rand(30, 1, 5, 5, generator=generator), SCHEDULE)
    noisy, time = torch.randn(1, 1, 12, 14, generator=generator), torch.tensor([0.4])
    left, right = ideal(noisy[..., :11], time), ideal(noisy[..., 3:], time)
    torch.testing.assert_close(left[..., 2:-2, 5:9], right[..., 2:-2, 2:6])


def test_patches_are_cut_where_they_lie() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    patches = patches_of(image, 3, stride=2)
    torch.testing.assert_close(patches[3], image[0, :, 2:5, 2:5])
    assert patches.shape == (4, 1, 3, 3)
