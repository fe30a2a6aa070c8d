"""The compile gate's cases of the attention kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..block_sparse.configuration import HEAD_SIZES, kernel_config, padded_size
from .case import CompileCase

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ELEMENTS = ("query", "key", "value", "output", "output_gradient", "query_gradient", "key_gradient", "value_gradient")
FLOATS = ("log_sum_exp", "log_sum_exp_gradient", "delta", "bias", "bias_gradient", "part", "part_log_sum_exp")
INTEGERS = ("query_tiles", "key_tiles", "counts", "lists", "low", "high", "level", "selection_bits", "block")
STRIDES = ("query_stride", "key_stride", "value_stride")

FLOAT32_SPILL = 512
"""Spilled bytes allowed in float32, which computes three products for each one to be exact."""

WIDE_SPILL = 64
"""Spilled bytes allowed for heads of 256: smaller tiles would leave the tensor cores half empty."""

VARIANTS = {
    "plain": {"BIAS_HEADS": 0, "CHANNELS": 1, "SELECT": 0},
    "bias": {"BIAS_HEADS": 1, "CHANNELS": 1, "SELECT": 0},
    "blocks": {"BIAS_HEADS": 0, "CHANNELS": 1, "SELECT": 1},
    "everything": {"BIAS_HEADS": 1, "CHANNELS": 3, "SELECT": 2},
}
"""The constants of a case besides the head size: the extremes of each choice."""


def cases() -> Iterator[CompileCase]:
    """Yield every kernel for every head size, variant and dtype."""
    from ..block_sparse.kernel_backward import delta_kernel, key_gradient_kernel, query_gradient_kernel
    from ..block_sparse.kernel_forward import combine_kernel, forward_kernel

    kernels = {
        "forward": forward_kernel,
        "query_gradient": query_gradient_kernel,
        "key_gradient": key_gradient_kernel,
    }
    for name, kernel in kernels.items():
        for head_size in HEAD_SIZES:
            for variant in VARIANTS:
                yield attention_case(name, kernel, head_size, variant, "bf16")
            yield attention_case(name, kernel, head_size, "everything", "fp16")
            yield attention_case(name, kernel, head_size, "everything", "fp32")
    for head_size in HEAD_SIZES:
        yield row_case("join", combine_kernel, head_size, {})
        yield row_case("delta", delta_kernel, head_size, {"UPCAST": False})


def attention_case(
    name: str, kernel: Any, head_size: int, variant: str, element: str, tiles: tuple[int, int] = (64, 64)
) -> CompileCase:
    """Return one case of an attention kernel, with grouped query heads."""
    config = kernel_config(name, head_size, ELEMENT_BYTES[element], VARIANTS[variant]["SELECT"], tiles)
    constants = {
        "HEADS": 8,
        "KEY_HEADS": 2,
        "MASK_HEADS": 1,
        **VARIANTS[variant],
        "HEAD_SIZE": head_size,
        "PADDED_SIZE": padded_size(head_size),
        "QUERY_TILE": tiles[0],
        "KEY_TILE": tiles[1],
        "OUTER_TILE": config.outer_tile,
        "INNER_TILE": config.inner_tile,
        "STAGES": config.stages,
        "PRECISION": "tf32x3" if element == "fp32" else "ieee",
        "UPCAST": False,
    }
    tile = f"{config.outer_tile}x{config.inner_tile}"
    title = f"{name} {head_size} {variant} {element} {tile} {config.warps}w{config.stages}s"
    spill = FLOAT32_SPILL if element == "fp32" else WIDE_SPILL if head_size == 256 else 0
    types = _types(kernel, constants, element)
    return CompileCase(
        title,
        kernel,
        types,
        constants,
        config.warps,
        config.stages,
        STRIDES,
        pipelined=config.stages > 1,
        spill=spill,
    )


def row_case(name: str, kernel: Any, head_size: int, more: dict[str, Any]) -> CompileCase:
    """Return one case of a kernel that goes through rows."""
    constants = {"HEADS": 8, "HEAD_SIZE": head_size, "PADDED_SIZE": padded_size(head_size), "ROWS": 32, **more}
    types = _types(kernel, constants, "bf16")
    return CompileCase(f"{name} {head_size}", kernel, types, constants, 4, 3, tensor_cores=False)


def _types(kernel: Any, constants: dict[str, Any], element: str) -> dict[str, str]:
    groups = ((f"*{element}", ELEMENTS), ("*fp32", FLOATS), ("*i32", INTEGERS), ("fp32", ("scale",)))
    types_by_name = {name: type_ for type_, names in groups for name in names}
    return {name: types_by_name.get(name, "i32") for name in kernel.arg_names if name not in constants}
