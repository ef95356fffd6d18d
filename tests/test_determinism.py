"""What the book promises of the same seed (troubleshooting, "The same again"), on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from nca_lib import load
from nca_lib.data.images import to_pixels
from nca_lib.devices import compile_step
from nca_lib.samplers import SAMPLERS, sample

MODELS = ["digits-mlp", "digits-diff-nca", "digits-fourier"]
TOLERANCE = 1e-4  # float32 sums in another order, through five denoiser calls


def drawn(name: str, sampler: str = "ddpm", **options: int) -> Tensor:
    size = 8 if name == "digits-mlp" else 16
    return sample(load(name), (size, size), steps=5, seed=3, sampler=SAMPLERS[sampler], **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_call_gives_the_same_bytes(sampler: str) -> None:
    once = drawn("digits-diff-nca", sampler)
    torch.rand(3)  # torch's own generator plays no part
    assert torch.equal(drawn("digits-diff-nca", sampler), once)


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import hashlib, sys; from nca_lib import load, sample; "
        "print(hashlib.sha256(sample(load('digits-mlp'), (8, 8), steps=10).numpy().tobytes()).hexdigest())"
    )
    said = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale}
        )
        for seed, locale in (("1", "C"), ("2", "tr_TR.UTF-8"))
    }
    assert len(said) == 1


@pytest.mark.parametrize("name", MODELS)
def test_an_image_is_the_same_alone_and_in_a_batch_within_the_tolerance(name: str) -> None:
    together = drawn(name, count=4)
    for i, image in enumerate(together):
        alone = drawn(name, first_sample=i)[0]
        torch.testing.assert_close(alone, image, atol=TOLERANCE, rtol=0)
        levels = to_pixels(alone).int() - to_pixels(image).int()
        assert levels.abs().max() <= 1


@pytest.mark.parametrize("name", MODELS)
def test_threads_change_no_more_than_the_tolerance(name: str) -> None:
    before = torch.get_num_threads()
    try:
        images = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            images.append(drawn(name, count=4))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*images, atol=TOLERANCE, rtol=0)


def test_compiling_changes_no_more_than_the_tolerance() -> None:
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("nothing compiles without a C++ compiler")
    eager = drawn("digits-fourier", count=2)
    model = load("digits-fourier")
    compile_step(model, torch.device("cpu"))
    compiled = sample(model, (16, 16), steps=5, seed=3, sampler=SAMPLERS["ddpm"], count=2)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0  # it was
    torch.testing.assert_close(compiled, eager, atol=TOLERANCE, rtol=0)
