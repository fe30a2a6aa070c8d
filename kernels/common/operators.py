"""Register functions as torch operators, so that they can be compiled, exported and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    gradients: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the torch operator `saccade::name`, on every device.

    The function must neither change its arguments nor return them. Unlike `torch.library.custom_op`, this does not load
    torch's compiler on the first call, which takes seconds.

    Args:
        name: the operator's name in the namespace `saccade`.
        fake: returns empty tensors of the results' shapes and dtypes, for compilers.
        gradients: `gradients(ctx, *output_gradients)`, the backward of `torch.library.register_autograd`.
        setup_context: `setup_context(ctx, inputs, output)`, which saves tensors for the backward pass.

    Returns:
        A decorator that returns the operator.

    Example:
        @operator("double", fake=torch.empty_like)
        def double(tensor: torch.Tensor) -> torch.Tensor:
            return 2 * tensor
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        qualified = f"saccade::{name}"
        torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(qualified, "default", function)
        torch.library.register_fake(qualified, fake)
        if gradients is not None:
            torch.library.register_autograd(qualified, gradients, setup_context=setup_context)
        return getattr(torch.ops.saccade, name).default

    return register
