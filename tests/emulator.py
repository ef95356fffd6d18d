"""A GPU that is not there: tensors that say `cuda:0`, hold numbers on the CPU, and keep a log.

Within `with Emulator() as gpu:` tensors move to the device and are made there as on a real one. The log says
where the host waited for the device (a synchronisation: `.item()`, `bool()`, a copy that blocks, an index to
be fetched) and where kernels were launched. What a device refuses is refused: tensors of different
devices in one operation, and float64 on `"mps"`.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

_LIBRARY = str(Path(__file__).parents[1] / "nca_lib")
_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "_linalg_check_errors"}
_INDEXED = {"index", "index_put", "index_put_"}


class OnDevice(Tensor):
    """A tensor on the emulated device; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if Emulator.active.device.type == "mps" and held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return Emulator.active.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.device.type == "cuda"

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation with at least one tensor that is there: on the numbers held, and logged."""
        gpu, name, kwargs = Emulator.active, func.overloadpacket.__name__, kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        # A number on the host goes with the launch, an index is fetched; all else has to be there.
        elsewhere = [x for x in tensors if not isinstance(x, OnDevice) and x.ndim]
        if elsewhere and name not in _INDEXED and name != "copy_":
            raise RuntimeError(f"{func}: expected all tensors on one device, but found {gpu.device} and cpu")
        indices = [i for i in args[1] if i is not None] if name in _INDEXED else []
        fetched = any(i.dtype == torch.bool or not isinstance(i, OnDevice) for i in indices)
        blocking = name == "copy_" and bool(elsewhere) and not (args[2:] or kwargs.get("non_blocking"))
        if name in _READS or fetched or blocking:
            gpu.wait(name)
        if not func.is_view and name not in ("detach", "_local_scalar_dense"):
            gpu.launches[gpu.site()] += 1
        there = {id(x.held): x for x in tensors if isinstance(x, OnDevice)}
        result = func(*tree_map_only(OnDevice, _held, args), **tree_map_only(OnDevice, _held, kwargs))
        if name == "_local_scalar_dense":
            return result

        def place(held: Tensor) -> Tensor:
            return there[id(held)] if id(held) in there else OnDevice(held)

        return tree_map_only(Tensor, place, result)


def _held(tensor: OnDevice) -> Tensor:
    return tensor.held


class Emulator(TorchFunctionMode):
    """An emulated device, see above.

    Args:
        kind: `"cuda"` or `"mps"`.

    Attributes:
        synchronisations: how often each call site of the library made the host wait.
        launches: how often each call site launched a kernel.
    """

    active: Any = None

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.device = torch.device(kind, 0)
        self.synchronisations: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.stack = ExitStack()

    def __enter__(self) -> Emulator:
        Emulator.active = self
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        group = torch._C._group_tensors_by_device_and_dtype

        def grouped(lists: Any, indices: bool = False) -> Any:  # C++ takes the tensors for the CPU's
            found = group(lists, indices).items()
            return {(g[0][0][0].device, dtype): g for (_, dtype), g in found}

        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
        for module in (torch.cuda, torch.mps):
            patch.setattr(module, "get_rng_state", lambda *_: torch.get_rng_state())
            patch.setattr(module, "set_rng_state", lambda state, *_: torch.set_rng_state(state))
        patch.setattr(torch.cuda, "set_device", lambda *_: None)
        # Scaled losses, and what asks for the precision; what autocast casts by itself stays as it is.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "an emulated GPU")
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        Emulator.active = None

    def forget(self) -> None:
        """Begin a new log."""
        self.synchronisations.clear(), self.launches.clear()

    def wait(self, what: str) -> None:
        """Log that the host waits for the device."""
        self.synchronisations[f"{self.site()} {what}"] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls that name a device, and those that read all numbers, as C++ would do them there."""
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "tolist" and isinstance(args[0], OnDevice):
            self.wait(name)
            return args[0].held.tolist()
        if name in ("numpy", "__array__") and isinstance(args[0], OnDevice):
            raise TypeError(f"can't convert {self.device} tensor to numpy")
        if name in ("to", "cpu"):
            return self._moved(func, name, args, kwargs)
        asked = kwargs.get("device")
        if asked is None or torch.device(asked).type in ("cpu", "meta"):
            return func(*args, **kwargs)
        assert torch.device(asked) == self.device, f"{name}: there is no {asked}"
        kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if name in ("tensor", "as_tensor"):
            self.wait(name)
        else:
            self.launches[self.site()] += 1
        return result if isinstance(result, OnDevice) else OnDevice(result)

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        source, *rest = args
        waits = not kwargs.pop("non_blocking", False)
        device = kwargs.pop("device", "cpu" if name == "cpu" else None)
        if rest and isinstance(rest[0], Tensor):
            device, rest[0] = rest[0].device, rest[0].dtype
        elif rest and not isinstance(rest[0], torch.dtype):
            device = rest.pop(0)
        if len(rest) > 1:  # as modules pass it: dtype, non_blocking
            waits = not rest.pop(1)
        here = isinstance(source, OnDevice)
        there = here if device is None else torch.device(device).type == self.device.type
        assert device is None or torch.device(device).type in ("cpu", self.device.type), f"no {device}"
        rest = [dtype for dtype in rest if dtype is not None]
        if here and not there:
            self.wait(name)  # what arrives is used, whether or not the copy blocks
            return source.held.detach().to(*rest, **kwargs)
        result = source.to(*rest, **kwargs) if rest or kwargs else source
        if there and not here:
            if waits:
                self.wait(name)
            return OnDevice(result.detach())
        return result

    @staticmethod
    def site() -> str:
        """The line of the library that is being executed."""
        frame = sys._getframe(1)
        while frame.f_back and not frame.f_code.co_filename.startswith(_LIBRARY):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
