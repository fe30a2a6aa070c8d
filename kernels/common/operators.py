"""Registering functions as operators of torch, so that they can be compiled, exported and differentiated."""

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
    """Decorate a function so that it becomes the operator `saccade::name`, on every device.

    `fake` returns tensors of the result's shapes and types; `gradients(ctx, *gradients)` and
    `remember(ctx, inputs, output)` are those of `torch.library.register_autograd`. The function must neither change
    its arguments nor return them. Unlike `torch.library.custom_op` this does not load torch's compiler on the first
    call, which takes seconds.
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
