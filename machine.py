"""What this machine has to offer: cores that the process may use, and devices."""

from __future__ import annotations

import os
from typing import Literal

from .errors import InputError

Device = Literal["cpu", "cuda"]


def usable_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Tell whether PyTorch sees a CUDA device; imports torch, which takes seconds."""
    import torch

    return torch.cuda.is_available()


def require_device(device: str, *, fix: str = "Use --device cpu.") -> None:
    """Check that a device is there, and import torch only if it could be missing.

    Args:
        device: "cpu" or "cuda", optionally with a number ("cuda:1").
        fix: The next step that the error suggests.

    Raises:
        InputError: The device is a GPU and PyTorch sees none.
    """
    if device.startswith("cuda") and not has_cuda():
        got = f"{device}, but PyTorch sees no CUDA device"
        raise InputError("device", got=got, expected="a device of this machine", fix=fix)
