"""The optimisers of training: Adam, and Muon for kernels (chapter 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from nca_lib.experiments.settings import Training


class KernelMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for kernels of convolutions.

    torch's Muon with momentum 0.95 (Nesterov), five Newton-Schulz steps, steps scaled by
    sqrt(max(1, out / in)), and no weight decay. It takes matrices only, so each kernel (out, in, ...) is
    stepped through a view of it as (out, in * ...), which shares its memory.

    Args:
        kernels: parameters of two or more dimensions, contiguous.
        learning_rate: how far the largest singular values move in a step, roughly.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], learning_rate: float):
        self.kernels = list(kernels)
        self.matrices = [kernel.detach().view(len(kernel), -1) for kernel in self.kernels]
        super().__init__(self.matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="original")

    def step(self, closure: Any = None) -> Any:
        """One step from the gradients of the kernels."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        return super().step(closure)  # type: ignore[no-untyped-call]


def is_kernel(parameter: nn.Parameter) -> bool:
    """Whether a parameter mixes several inputs: biases and gains of a weight norm, one a filter, do not."""
    return parameter.ndim > 1 and parameter[0].numel() > 1


def optimizers_of(model: nn.Module, options: Training) -> list[Optimizer]:
    """The optimisers that together step all parameters of a model."""
    parameters = list(model.parameters())
    betas = (0.9, options.beta2)
    fused = True if parameters[0].device.type == "cuda" else None  # one kernel for all parameters
    if options.optimizer == "adam":
        return [Adam(parameters, options.learning_rate, betas, fused=fused)]
    kernels = [parameter for parameter in parameters if is_kernel(parameter)]
    others = [parameter for parameter in parameters if not is_kernel(parameter)]
    adam = Adam(others, options.learning_rate, betas, fused=fused)
    return [KernelMuon(kernels, options.muon_learning_rate), adam]
