"""Choose where an operator runs: in a Triton kernel or in plain torch."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def runs_in_triton(tensor: torch.Tensor) -> bool:
    """Tell whether the Triton kernels compute on this tensor: on a GPU, or on any device under Triton's interpreter.

    TRITON_INTERPRET=1 turns the interpreter on. Triton reads the variable once, when it is imported.
    """
    return tensor.is_cuda or is_interpreted()


def is_interpreted() -> bool:
    """Tell whether kernels run in Triton's interpreter: on any machine, slowly, and exactly in float32 only."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current device: Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
