"""Where a computation makes the host wait for the device: such places cost a decision time and cannot be captured.

A processor waits for nobody, but the operations that would make it wait are the same there, so that they are counted
on any machine.
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
"""Operations of which the host needs a value, or the shape of whose result is a value."""


@dataclass(frozen=True)
class Synchronisation:
    """One wait: the operation, and the line that asked for it, the innermost that is not PyTorch's."""

    operation: str
    where: str


def find_synchronisations(run: Callable[[], object]) -> list[Synchronisation]:
    """Return every wait of the host for the device while `run` runs, in order.

    These are operations that hand a value to the host (`item`, a tensor as a condition, a printed tensor), operations
    the shape of whose result is a value (`nonzero`, a boolean mask as an index, `unique`, `repeat_interleave` by a
    tensor), and copies between devices, in both directions. Copies are seen only where tensors are on another device
    than the processor, or imagined there (`measure.FakeNetwork`); tensors made out of Python's numbers, which become such
    copies, are seen everywhere. `tolist` and `numpy` of a tensor on the processor are not seen: they read its memory.
    What is imagined has no values, so that it stops at what needs one: the error is PyTorch's.
    """
    with _SynchronisationMode() as watch:
        run()
    return watch.found


class _SynchronisationMode(TorchDispatchMode):
    """Look at every operation below autograd."""

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
        """Tell whether these are Python's numbers, which are counted already."""
        memory = tensor.untyped_storage()._cdata
        return any(memory == each.untyped_storage()._cdata for each in self._lifted)


def _synchronises(name: str, function: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> bool:
    if name in SYNCHRONISING_OPERATIONS or (name == "repeat_interleave" and function._overloadname != "self_int"):
        return True
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "lift_fresh":
        # What `torch.tensor(numbers)` begins with, on any device: from the processor's memory to the device's. A lone
        # number travels with the operation that it is for, or is copied, which is seen.
        return tensors[0].ndim > 0
    if name in ("_to_copy", "copy_"):
        devices = {each.device for each in tensors}
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        return len({device.type for device in devices}) > 1
    return False


def _calling_line() -> str:
    """Return the innermost line outside PyTorch, as file:line and what it says."""
    library = str(Path(torch.__file__).parent)
    modes = ("__torch_dispatch__", "__torch_function__", "_calling_line")
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(library) and frame.name not in modes:
            return f"{frame.filename}:{frame.lineno} {frame.line}"
    return "PyTorch"
