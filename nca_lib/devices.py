"""Which device there is, and what it can do."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from nca_lib.errors import UsageError


def best_device() -> torch.device:
    """CUDA where there is one (of several, this process's own), else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of that name, which works; None for the best one.

    A GPU that is named by its number becomes the current one.

    Raises:
        UsageError: there is no such device here; the message names those that there are.
    """
    if name is None:
        return best_device()
    known = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    known += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("images are not computed there")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(name)!r}: {reason:.120}; here is {', '.join(known)}") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # pinned memory would else be that of the first one
    return device


def forked_random(device: torch.device) -> AbstractContextManager[None]:
    """A block with random numbers of its own: after it, the generators of CPU and device are as before.

    torch's default forks those of all GPUs, and takes memory on each.
    """
    others = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(others, device_type=device.type if others else "cuda")


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


@contextmanager
def arithmetic(device: torch.device, *, tf32: bool, deterministic: bool) -> Iterator[None]:
    """How products are computed within the block.

    Args:
        device: TF32 and the search for the fastest convolutions concern NVIDIA GPUs only.
        tf32: float32 products with ten bits behind the point.
        deterministic: refuse algorithms whose results differ from call to call.
    """
    compiler: AbstractContextManager[object] = nullcontext()
    if deterministic:  # no choice of kernels by their time, which would differ from run to run
        compiler = torch._inductor.config.patch(deterministic=True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    benchmark, repeatable = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        with compiler:
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1], benchmark
        torch.use_deterministic_algorithms(repeatable)


def compile_step(model: nn.Module, device: torch.device) -> None:
    """Compile in place what a model's calls repeat; each kind of model says what that is.

    Where that is not possible (MPS, no C++ compiler) the model stays as it is, and one line says so.
    """
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    if device.type == "mps" or not compiler:
        print(f"not compiling: {'unsupported on mps' if compiler else 'no C++ compiler found'}")
        return
    if device.type != "cuda":  # the compiler looks for CUDA all the same, and warns of one without a GPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # A step is compiled for each shape that it meets: two stages, training and sampling, sizes of batches.
    # Those beyond the usual eight would be left to the interpreter.
    torch._dynamo.config.recompile_limit = 64
    # Of several processes each compiles what it would alone, and no smaller pieces.
    torch._dynamo.config.optimize_ddp = False
    # On a GPU the best kernels are found by trying them, a minute that sampling earns back.
    model.compile_step("max-autotune-no-cudagraphs" if device.type == "cuda" else None)  # type: ignore[operator]


def compiler_failed(error: BaseException) -> str:
    """What to say, in one line, of an error that is the compiler's; "" of any other."""
    if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "triton")):
        return ""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"compiling failed ({said:.120}); an interrupted compilation leaves broken files, so if it fails "
        f"again, delete {cache_dir()}"
    )


def worth_compiling(pixels: int) -> bool:
    """Whether compiling, which takes some seconds, pays for denoiser calls on so many pixels in all."""
    return pixels > 50 * 128**2
