"""The compile gate's cases of gather_norm_film."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from .case import CompileCase

WIDTHS = (128, 960, 4096)
"""The small trunk's width, one that is no power of two, a large one."""


def cases() -> Iterator[CompileCase]:
    """Yield both passes for bfloat16 and float32, gathered and modulated, and the extreme cases."""
    from ..gather_norm_film import kernel
    from ..gather_norm_film.operator import MAX_WIDTH

    for make_case, token, width in product((_forward, _backward), ("*bf16", "*fp32"), WIDTHS):
        yield make_case(token, width)
    for make_case in (_forward, _backward):
        yield make_case("*bf16", 960, plain=True)
        yield make_case("*bf16", MAX_WIDTH)
    types = {"indices": "*i64", "row_of_source": "*i32", "sources": "i32", "rows": "i32"}
    yield _case("invert", kernel.invert_kernel, types, {"BLOCK": kernel.INVERT_BLOCK})


def _forward(token: str, width: int, plain: bool = False) -> CompileCase:
    from ..gather_norm_film import kernel

    types = {"tokens": token, "result": token, "weight": "*fp32", "inverse_rms": "*fp32"}
    types |= {"sources": "i32", "rows": "i32", "epsilon": "fp32", "tokens_sample": "i32", "tokens_row": "i32"}
    optional = ("indices", "kept", "scale", "shift")
    constants: dict[str, Any] = {"WIDTH": width, "GATHERED": not plain, "MODULATED": not plain}
    if plain:
        constants |= dict.fromkeys(optional)
    else:
        types |= dict.fromkeys(optional, token) | {"indices": "*i64"}
    name = f"forward {token[1:]} {width}{' plain' if plain else ''}"
    return _case(name, kernel.forward_kernel, types, constants, ("tokens_sample", "tokens_row"))


def _backward(token: str, width: int, plain: bool = False) -> CompileCase:
    from ..gather_norm_film import kernel

    types: dict[str, str] = dict.fromkeys(("source", "gradient", "tokens_gradient"), token)
    types |= dict.fromkeys(("weight", "inverse_rms", "sums"), "*fp32")
    types |= dict.fromkeys(("sources", "rows", "steps", "source_sample", "source_row"), "i32")
    optional = ("row_of_source", "scale", "kept_gradient")
    constants: dict[str, Any] = {"WIDTH": width, "GATHERED": not plain, "MODULATED": not plain, "RESIDUAL": not plain}
    if plain:
        constants |= dict.fromkeys(optional)
    else:
        types |= dict.fromkeys(optional, token) | {"row_of_source": "*i32"}
    name = f"backward {token[1:]} {width}{' plain' if plain else ''}"
    return _case(name, kernel.backward_kernel, types, constants, ("source_sample", "source_row"))


def _case(
    name: str, function: Any, types: Mapping[str, str], constants: dict[str, Any], strides: tuple[str, ...] = ()
) -> CompileCase:
    from ..gather_norm_film.kernel import tile_config

    tile, options = tile_config(constants["WIDTH"]) if "WIDTH" in constants else ({}, {"num_warps": 4})
    return CompileCase(
        f"gather_norm_film {name}",
        function,
        types,
        constants | tile,
        warps=options["num_warps"],
        stages=3,
        divisible=strides,
        tensor_cores=False,
    )
