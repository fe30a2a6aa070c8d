"""A kernel as it is launched: what the compile gate builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """A kernel as it is launched.

    `types`: Triton's type of each argument that is no constant, such as "*bf16" or "i32". `divisible`: the arguments
    known to be multiples of 16 beside the pointers, which all are. `tensor_cores`: whether it has products that must
    run there. `pipelined`: whether it must load ahead of its products. `spill`: bytes of registers in memory that are
    put up with.
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
