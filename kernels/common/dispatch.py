"""Where an operation runs: in a Triton kernel or in torch."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def runs_in_triton(tensor: torch.Tensor) -> bool:
    """Tell whether a kernel serves this tensor: on a GPU, or anywhere under Triton's interpreter.

    The interpreter is asked for by TRITON_INTERPRET=1, which Triton reads once, when it is imported.
    """
    return tensor.is_cuda or is_interpreted()


def is_interpreted() -> bool:
    """Tell whether kernels are interpreted: slow, on any machine, and exact in float32 alone."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
