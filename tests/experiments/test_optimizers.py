"""Muon steps kernels as torch's steps matrices; every parameter is stepped by one optimiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nca_lib.diff_nca import DiffNCA
from nca_lib.experiments.optimizers import KernelMuon, is_kernel, optimizers_of
from nca_lib.experiments.settings import Training


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 3, 3, 3), (3, 8, 1, 1)])
def test_a_kernel_is_stepped_as_torch_steps_the_matrix_of_it(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    ours, theirs = KernelMuon([kernel], 0.02), torch.optim.Muon([matrix], lr=0.02, weight_decay=0)
    for _ in range(3):
        kernel.grad = torch.randn(shape)
        matrix.grad = kernel.grad.flatten(1)
        ours.step()
        theirs.step()
    assert torch.equal(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 6, 1, 1)])
def test_a_step_moves_all_directions_alike(shape: tuple[int, ...]) -> None:
    """Five Newton-Schulz steps bring all singular values near 1, however far apart the gradient's are."""
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(shape))
    u, _, v = torch.linalg.svd(torch.randn(shape).flatten(1), full_matrices=False)
    rank = len(v)
    kernel.grad = (u * torch.logspace(0, -1, rank) @ v).view(shape)
    KernelMuon([kernel], 0.01).step()
    moved = torch.linalg.svdvals(kernel.detach().flatten(1))
    scale = 0.01 * math.sqrt(max(1, shape[0] / kernel[0].numel()))
    assert moved.min() > 0.6 * scale
    assert moved.max() < 1.3 * scale


def test_every_parameter_is_stepped_by_one_optimiser_and_gains_and_biases_by_adam() -> None:
    model = DiffNCA(8, 16, 1)
    muon, adam = optimizers_of(model, Training(optimizer="muon", muon_learning_rate=0.03, beta2=0.9))
    assert isinstance(muon, KernelMuon)
    named = dict(model.named_parameters())
    by_adam = {id(p) for p in adam.param_groups[0]["params"]}
    names = {name for name, parameter in named.items() if id(parameter) in by_adam}
    assert names == {n for n in named if n.endswith(("bias", "original0"))}
    assert {id(kernel) for kernel in muon.kernels} | by_adam == {id(p) for p in named.values()}
    assert muon.param_groups[0]["lr"] == 0.03
    assert adam.param_groups[0]["betas"] == (0.9, 0.9)
    (alone,) = optimizers_of(model, Training(optimizer="adam"))
    assert len(alone.param_groups[0]["params"]) == len(named)


def test_a_column_of_gains_is_no_kernel() -> None:
    assert not is_kernel(nn.Parameter(torch.zeros(5, 1, 1, 1)))
    assert not is_kernel(nn.Parameter(torch.zeros(5)))
    assert is_kernel(nn.Parameter(torch.zeros(5, 1, 3, 3)))
