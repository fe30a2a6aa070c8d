"""The case that the compile gate compiles: a kernel as it is launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """A kernel with the types and constants of a launch.

    Attributes:
        name: the case's name.
        kernel: the Triton kernel.
        types: Triton's type of each argument that is no constant, such as "*bf16" or "i32".
        constants: the values of the constants.
        warps: warps of a program.
        stages: stages of a pipelined loop.
        divisible: arguments that are multiples of 16, besides the pointers, which all are.
        tensor_cores: whether the kernel has products that must run on tensor cores.
        pipelined: whether it must load ahead of its products.
        spill: bytes of spilled registers that are allowed.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    divisible: tuple[str, ...] = ()
    tensor_cores: bool = True
    pipelined: bool = False
    spill: int = 0
