"""The compile gate's cases of the plan's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .case import CompileCase

ELEMENTS = ("tokens", "means", "gradient", "spread")
NUMBERS = ("stride", "tokens", "segments", "outside", "count", "word_count", "own_count", "other_count")


def cases() -> Iterator[CompileCase]:
    """Yield every kernel of the plan; none computes products."""
    from ..plan.index_kernel import cut_kernel, key_selection_kernel, list_kernel, query_selection_kernel
    from ..plan.pooling_kernel import mean_backward_kernel, mean_kernel

    for channels in (0, 1, 3):
        constants = {"CHANNELS": channels, "SIZE": 64, "ROWS": 64 if channels else 1, "CHUNK": 64}
        yield _case(f"cut {channels}", cut_kernel, constants)
    for channels, select in ((1, False), (3, True)):
        for columns in (False, True):
            constants = {
                "CHANNELS": channels,
                "KEY_TILE": 64,
                "COLUMNS": columns,
                "SELECT": select,
                "CHUNK": 128,
            }
            yield _case(f"list {channels} {'columns' if columns else 'rows'}", list_kernel, constants)
    yield _case("query_choice", query_selection_kernel, {"SIZE": 64})
    yield _case("key_choice", key_selection_kernel, {"SIZE": 64})
    for width in (64, 128):
        constants = {"HEADS": 8, "HEAD_SIZE": width, "PADDED_SIZE": width, "ROWS": 32}
        yield _case(f"mean {width}", mean_kernel, constants)
        yield _case(f"spread {width}", mean_backward_kernel, constants)


def _case(name: str, kernel: Any, constants: dict[str, Any]) -> CompileCase:
    types_by_name = dict.fromkeys(ELEMENTS, "*bf16") | dict.fromkeys(NUMBERS, "i32")
    if kernel.arg_names[0] in ELEMENTS:
        types_by_name["tokens"] = "*bf16"
    types = {name: types_by_name.get(name, "*i32") for name in kernel.arg_names if name not in constants}
    return CompileCase(name, kernel, types, constants, warps=1, stages=3, tensor_cores=False)
