"""The fast path of an automaton's call (chapter 8): a cell's numbers side by side, weights normalised once.

A state is (B, H, W, C), which a convolution reads as channels-last: products need no copies, on a GPU either.
It computes what [`Cell`][nca_lib.diff_nca.Cell] computes, equal up to rounding, gradients included, where
cells normalise by themselves. Where all cells of an image are told the same, conditioning becomes part of the
weights: one set for all images if they are told the same, as when sampling, or one for each, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from nca_lib.diff_nca import Cell

Net = tuple[Tensor, Tensor, Tensor, Tensor]  # weight and bias, twice
Told = tuple[Tensor, Tensor]
Step = Callable[[Tensor, "Told | None", "CellWeights", "Tensor | None", str], Tensor]


class CellWeights(NamedTuple):
    """What a step multiplies by: convolutions as matrices (out, in), zeros where a channel is not written.

    All but the first may have leading dimensions: one for each image, see [`fold`][].
    """

    perception: Tensor  # (C, C + 4, 3, 3), channels last
    perception_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    modulate_seen: Net | None
    modulate_hidden: Net | None
    embedding: Net

    def to(self, dtype: torch.dtype) -> CellWeights:
        """The same in another precision, but for the embedding: eight bits cannot tell timesteps apart."""
        plain = [weights.to(dtype) for weights in self[:6]]
        nets = [None if net is None else tuple(w.to(dtype) for w in net) for net in self[6:8]]
        return CellWeights(*plain, *nets, self.embedding)  # type: ignore[arg-type, call-arg]

    def at(self, step: int) -> CellWeights:
        """Those of one step, of weights that were folded for several."""
        return CellWeights(self.perception, *(weights[step] for weights in self[1:6]), *self[6:])  # type: ignore[arg-type, call-arg]


def fold(by: CellWeights, told: Tensor) -> CellWeights:
    """The weights where all cells are told the same, (..., 8): modulation and embedding become part of them.

    `W (m * p) = (W diag(m)) p`, and what is the same at every cell only adds to a bias. The leading
    dimensions of `told` are those of the result.
    """
    embedding = _apply(by.embedding, told)
    channels, leading = by.perception.shape[0], told.shape[:-1]
    widen, narrow = (matrix.expand(*leading, *matrix.shape) for matrix in (by.widen, by.narrow))
    if by.modulate_seen is not None:
        widen = widen * _apply(by.modulate_seen, embedding)[..., None, :]
    if by.modulate_hidden is not None:
        narrow = narrow * _apply(by.modulate_hidden, embedding)[..., None, :]
    own, constant, around = widen.split([channels, embedding.shape[-1], channels], dim=-1)
    return CellWeights(
        by.perception[:, :channels].contiguous(memory_format=torch.channels_last),
        by.perception_bias + embedding @ by.perception[:, channels:].sum((2, 3)).T,
        torch.cat([own, around], dim=-1),
        by.widen_bias + (constant @ embedding[..., None])[..., 0],
        narrow,
        by.narrow_bias.expand(*leading, -1),
        None,
        None,
        by.embedding,
    )


def _apply(net: Net, x: Tensor) -> Tensor:
    first, first_bias, second, second_bias = net
    return F.linear(F.silu(F.linear(x, first, first_bias)), second, second_bias)


def _multiply(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """(B, H, W, in) by (out, in), or each image by its own of (B, out, in)."""
    if matrix.ndim == 2:
        return F.linear(x, matrix, bias)
    return torch.baddbmm(bias[:, None], x.flatten(1, 2), matrix.mT).view(*x.shape[:-1], -1)


def _pad(x: Tensor, padding: str) -> Tensor:
    if padding == "reflect" and torch.are_deterministic_algorithms_enabled():
        x = torch.cat(
            [x[:, :, 1:2], x, x[:, :, -2:-1]], 2
        )  # on CUDA, F.pad's gradient is summed in any order
        return torch.cat([x[..., 1:2], x, x[..., -2:-1]], 3)
    return F.pad(x, (1, 1, 1, 1), mode="reflect" if padding == "reflect" else "constant")


def fast_step(state: Tensor, told: Told | None, by: CellWeights, mask: Tensor | None, padding: str) -> Tensor:
    """One step, channels last: (B, H, W, C) to the same shape, in the state's precision.

    Args:
        state: what the cells hold.
        told: what the embedding's first layer makes of place, (1, H, W, 256), and of time and step,
            (1 or B, 256), apart: they add up. None where it is folded into the weights.
        by: the weights; the products are done in their precision.
        mask: (B, H, W, 1), 1 where a cell fires; None where all do.
        padding: `"reflect"` or `"zeros"`.
    """
    z = state.to(by.widen.dtype)
    embedding = None
    if told is not None:
        place, clock = told
        embedding = F.linear(F.silu(place + clock[:, None, None]), *by.embedding[2:]).to(z.dtype)
        z = torch.cat([z, embedding.expand(len(z), *z.shape[1:3], -1)], dim=-1)
    around = (
        F.conv2d(_pad(z.permute(0, 3, 1, 2), padding), by.perception).permute(0, 2, 3, 1)
        + by.perception_bias[..., None, None, :]
    )
    seen = torch.cat([z, around], dim=-1)
    if embedding is not None and by.modulate_seen is not None:
        seen = seen * _apply(by.modulate_seen, embedding)
    hidden = _multiply(seen, by.widen, by.widen_bias).to(state.dtype)
    hidden = F.leaky_relu(F.layer_norm(hidden, hidden.shape[-1:], eps=1e-5), 0.01).to(z.dtype)
    if embedding is not None and by.modulate_hidden is not None:
        hidden = hidden * _apply(by.modulate_hidden, embedding)
    update = _multiply(hidden, by.narrow, by.narrow_bias).to(state.dtype)
    return state + (update if mask is None else mask * update)


def replayed(step: Step) -> Step:
    """A step that is compiled to a CUDA graph: the next replay, which overwrites the result, finds a copy."""

    def kept(*given: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step(*given).clone()

    return kept


def _first_layer(cell: Cell, net: Net, clocks: Tensor, size: Sequence[int]) -> Told:
    """What the embedding's first layer makes of place, once for all, and of the clocks."""
    weight, bias = net[:2]
    if not cell.position:
        return bias.expand(1, 1, 1, -1), F.linear(clocks, weight)
    where, when = weight.split(clocks.shape[-1], dim=1)
    height, width = size
    place = cell.place(height, width, clocks).permute(0, 2, 3, 1)
    return F.linear(place, where, bias), F.linear(clocks, when)


def fast_rollout(
    cell: Cell,
    state: Tensor,
    time: Tensor,
    moments: Sequence[float],
    masks: Iterable[Tensor | None],
    step: Step,
    recompute: bool = False,
) -> Tensor:
    """The state after as many steps as there are moments (k/K).

    Args:
        cell: the rule.
        state: (B, C, H, W).
        time: (B,), or (1,) where all images are told the same.
        moments: what the steps are told besides the time.
        masks: which cells fire in each, (B, 1, H, W).
        step: [`fast_step`][], or it compiled.
        recompute: keep one state per step for the backward pass instead of all activations.
    """
    device, size = state.device.type, state.shape[2:]
    low = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if low else state.dtype
    with torch.autocast(device, enabled=False):
        exact = cell.weights()
        by, told = exact.to(dtype), None
        clocks = cell.clock(time.to(state.device, non_blocking=True), moments)
        if cell.foldable:
            folded = fold(exact, clocks if len(time) > 1 else clocks[:, 0]).to(dtype)
        else:
            place, clocks = _first_layer(cell, exact.embedding, clocks, size)
        state = state.permute(0, 2, 3, 1).contiguous()
        for k, mask in enumerate(masks):
            if cell.foldable:
                by = folded.at(k)
            else:
                told = place, clocks[k]
            fires = None if mask is None else mask.permute(0, 2, 3, 1)
            given = (state, told, by, fires, cell.padding)
            if recompute:
                state = checkpoint(step, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                state = step(*given)
    return state.permute(0, 3, 1, 2)
