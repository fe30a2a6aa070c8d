"""Checks of an operator's arguments: an error names the argument, what it got and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def expect(condition: bool, argument: str, got: object, expected: object, *, unit: str = "") -> None:
    """Check a condition on an argument.

    Pass sizes as integers, not formatted into a string: formatting makes a size a constant to torch.compile, even when
    nothing is raised.

    Args:
        condition: what must hold.
        argument: name of the argument in the error.
        got: the value that was passed.
        expected: the values that are valid.
        unit: what `got` counts, such as "heads".

    Raises:
        ValueError: the condition is false.
    """
    if not condition:
        raise ValueError(f"{argument}: got {got}{unit and ' ' + unit}, expected {expected}")


def expect_tensor(
    tensor: object,
    argument: str,
    *,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """Check a tensor's shape, dtype and device.

    Args:
        tensor: the value to check.
        argument: name of the argument in the error.
        shape: the expected size of each dimension; None allows any size.
        dtypes: the dtypes that are allowed.
        device: the expected device; None allows any.

    Raises:
        ValueError: it is no tensor, or its shape, dtype or device differs.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{argument}: got {type(tensor).__name__}, expected a tensor")
    if tensor.dim() != len(shape) or any(
        size is not None and tensor.shape[axis] != size for axis, size in enumerate(shape)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{argument}: got shape {list(tensor.shape)}, expected [{wanted}]")
    if tensor.dtype not in dtypes:
        names = " or ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"{argument}: got {str(tensor.dtype).removeprefix('torch.')}, expected {names}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{argument}: got device {tensor.device}, expected {device}")
