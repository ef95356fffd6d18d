"""Which device there is, and what it can do."""

from __future__ import annotations

import platform
import shutil

import torch
from torch import nn


def best_device() -> torch.device:
    """CUDA where there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hardware(device: torch.device) -> str:
    """What the training ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} {platform.machine()} threads, {platform.system()} ({device.type})"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic of its own (elsewhere it is emulated, and slower)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def compile_step(model: nn.Module, device: torch.device) -> None:
    """Compile in place what a model's calls repeat; each kind of model says what that is.

    Where that is not possible (MPS, no C++ compiler) the model stays as it is, and one line says so.
    """
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    if device.type == "mps" or not compiler:
        print(f"not compiling: {'unsupported on mps' if compiler else 'no C++ compiler found'}")
        return
    # On a GPU the best kernels are found by trying them, a minute that sampling earns back.
    model.compile_step("max-autotune-no-cudagraphs" if device.type == "cuda" else None)  # type: ignore[operator]


def worth_compiling(pixels: int) -> bool:
    """Whether compiling, which takes some seconds, pays for denoiser calls on so many pixels in all."""
    return pixels > 50 * 128**2
