"""The compile gate's cases of linear attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .case import CompileCase


def cases() -> Iterator[CompileCase]:
    """Yield every kernel, in both directions and dtypes, with a width that fills tiles and one that does not."""
    for index in ("*i32", "*i64"):
        yield _plan(index)
    for operand, widths in ((torch.bfloat16, (72, 128)), (torch.float32, (72,))):
        for reverse in (False, True):
            yield _scan(operand, reverse)
            for width in widths:
                yield _local_states(operand, width, reverse)
                yield _outputs(operand, width, reverse, transposed=False)
                yield _outputs(operand, width, reverse, transposed=True)


def _plan(index: str) -> CompileCase:
    from ..linear_attention import kernel

    types = {"boundaries": index, "chunks": "*i32", "first": "*i32"}
    types |= dict.fromkeys(("tokens", "capacity", "segments"), "i32")
    constants = {"CHUNK": kernel.CHUNK, "BLOCK": kernel.PLAN_BLOCK}
    return _case(f"plan {index[1:]}", kernel.plan_kernel, types, constants)


def _scan(operand: torch.dtype, reverse: bool) -> CompileCase:
    from ..linear_attention import kernel

    types = dict.fromkeys(("chunk_states", "initial_state", "final_state", "log_decay"), "*fp32") | {
        "entering_states": _pointer(operand)
    }
    types |= dict.fromkeys(("chunks", "first"), "*i32")
    constants = {"SIZE": 128 * 128, "REVERSE": reverse, "BLOCK": kernel.SCAN_BLOCK}
    return _case(f"scan {_label(operand, reverse)}", kernel.scan_kernel, types, constants)


def _local_states(operand: torch.dtype, width: int, reverse: bool) -> CompileCase:
    from ..linear_attention import kernel

    tile_config = kernel.TILE_CONFIGS[operand]
    strides = ("left_token", "left_head", "right_token", "right_head")
    types = dict.fromkeys(("left", "right"), _pointer(operand)) | dict.fromkeys(("chunk_states", "log_decay"), "*fp32")
    types |= {"chunks": "*i32", "scale": "fp32"} | dict.fromkeys(strides, "i32")
    constants = {
        "LEFT": width,
        "RIGHT": width,
        "CHUNK": kernel.CHUNK,
        "LEFT_TILE": kernel.tile(width, tile_config.state_rows),
        "RIGHT_TILE": kernel.tile(width, tile_config.state_columns),
        "REVERSE": reverse,
    }
    return _case(
        f"local_states {_label(operand, reverse)} {width}",
        kernel.local_states_kernel,
        types,
        constants | tile_config.constants,
        strides,
        tile_config.options,
    )


def _outputs(operand: torch.dtype, width: int, reverse: bool, transposed: bool) -> CompileCase:
    from ..linear_attention import kernel

    tile_config = kernel.TILE_CONFIGS[operand]
    strides = tuple(f"{part}_{step}" for part in ("query", "key", "value") for step in ("token", "head"))
    along, across = (
        ("state_row_stride", "state_column_stride") if transposed else ("state_column_stride", "state_row_stride")
    )
    types = dict.fromkeys(("query", "key", "value", "entering_states", "output"), _pointer(operand))
    types |= {"log_decay": "*fp32", "chunks": "*i32", "scale": "fp32"} | dict.fromkeys((*strides, across), "i32")
    constants = {
        along: 1,
        "KEY": width,
        "VALUE": width,
        "CHUNK": kernel.CHUNK,
        "KEY_TILE": kernel.tile(width, tile_config.key_tile),
        "VALUE_TILE": kernel.tile(width, tile_config.value_tile),
        "REVERSE": reverse,
    }
    return _case(
        f"outputs {_label(operand, reverse)} {width}{' transposed' if transposed else ''}",
        kernel.outputs_kernel,
        types,
        constants | tile_config.constants,
        strides + ((across,) if width % 16 == 0 else ()),
        tile_config.options,
    )


def _case(
    name: str,
    function: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    strides: tuple[str, ...] = (),
    options: dict[str, int] | None = None,
) -> CompileCase:
    """Return a case; a kernel with `options` computes products and must use tensor cores."""
    return CompileCase(
        f"linear_attention {name}",
        function,
        types,
        constants,
        warps=options["num_warps"] if options else 4,
        stages=options["num_stages"] if options else 3,
        divisible=strides,
        tensor_cores=options is not None,
    )


def _pointer(operand: torch.dtype) -> str:
    return "*bf16" if operand == torch.bfloat16 else "*fp32"


def _label(operand: torch.dtype, reverse: bool) -> str:
    return f"{str(operand).removeprefix('torch.')} {'backward' if reverse else 'forward'}"
