"""Find the operations that make the host wait for the device: they cost time and cannot be captured in a CUDA graph.

The operations are the same on a CPU, so that they are found on any machine.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONISING_OPERATIONS = frozenset(
    {
        "_local_scalar_dense",
        "_linalg_check_errors",
        "_unique",
        "_unique2",
        "allclose",
        "bincount",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
    }
)
"""Operations whose value the host reads, or whose output shape depends on values."""


@dataclass(frozen=True)
class Synchronisation:
    """One wait: the operation, and the innermost line of code outside PyTorch that calls it."""

    operation: str
    where: str


def find_synchronisations(run: Callable[[], object]) -> list[Synchronisation]:
    """Return every wait of the host for the device while `run` runs, in order.

    These are operations that pass a value to the host (`item`, a tensor as a condition, a printed tensor), operations
    whose output shape depends on values (`nonzero`, a boolean mask as an index, `unique`, `repeat_interleave` by a
    tensor), and copies between devices. Copies are seen only for tensors on a device other than the CPU, real or fake
    (`cost.FakeNetwork`); tensors made from Python numbers, which cause such copies, are seen everywhere. `tolist` and
    `numpy` of a CPU tensor are not seen: they read its memory. Fake tensors have no values: an operation that needs one
    raises PyTorch's error.
    """
    with _SynchronisationMode() as watch:
        run()
    return watch.found


class _SynchronisationMode(TorchDispatchMode):
    """Inspect every operation below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Synchronisation] = []
        self._lifted: list[torch.Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if _synchronises(name, function, args, kwargs or {}, tensors) and not (
            name == "_to_copy" and self._was_lifted(tensors[0])
        ):
            self.found.append(Synchronisation(name, _calling_line()))
        result = function(*args, **(kwargs or {}))
        if name == "lift_fresh" and result.ndim:
            self._lifted.append(result)
        return result

    def _was_lifted(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor was made from Python numbers, which are counted already."""
        memory = tensor.untyped_storage()._cdata
        return any(memory == each.untyped_storage()._cdata for each in self._lifted)


def _synchronises(name: str, function: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> bool:
    if name in SYNCHRONISING_OPERATIONS or (name == "repeat_interleave" and function._overloadname != "self_int"):
        return True
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "lift_fresh":
        # The first step of `torch.tensor(numbers)` on any device: a copy from host to device. A single number is part
        # of its operation, or is copied, which is seen.
        return tensors[0].ndim > 0
    if name in ("_to_copy", "copy_"):
        devices = {each.device for each in tensors}
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        return len({device.type for device in devices}) > 1
    return False


def _calling_line() -> str:
    """Return the innermost line outside PyTorch, as file:line and its code."""
    library = str(Path(torch.__file__).parent)
    modes = ("__torch_dispatch__", "__torch_function__", "_calling_line")
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(library) and frame.name not in modes:
            return f"{frame.filename}:{frame.lineno} {frame.line}"
    return "PyTorch"
