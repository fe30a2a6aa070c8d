"""Launch helpers that all Triton kernels share; they need no Triton to be imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[..., object]:
    """Return the function that launches a Triton kernel over a grid of programs.

    Triton's stubs give the launch the signature of the decorated function: integers are no valid constants there, and
    `num_warps` and `num_stages` are unknown. The launch is therefore typed here, once.
    """
    return kernel[grid]


def contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last dimension is contiguous; copy only where it is not, so slices stay views."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def ceil_divide(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least `number`, for a number of 1 or more."""
    return 1 << (number - 1).bit_length()
