"""Errors for what does not fit an operation: each names the argument, what was got and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def expect(condition: bool, argument: str, got: object, expected: object, *, unit: str = "") -> None:
    """Raise ValueError unless `condition`; `unit` says what was counted.

    Hand sizes over as they are: a size in a text is a constant to torch's compiler, even where nothing is raised.
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
    """Raise ValueError unless it is a tensor of that shape (None: any size), one of the dtypes, and on the device."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{argument}: got {type(tensor).__name__}, expected a tensor")
    if tensor.dim() != len(shape) or any(
        size is not None and tensor.shape[axis] != size for axis, size in enumerate(shape)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{argument}: got shape {list(tensor.shape)}, expected [{wanted}]")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{argument}: got {str(tensor.dtype).removeprefix('torch.')}, expected {names}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{argument}: got device {tensor.device}, expected {device}")
