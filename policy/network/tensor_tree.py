"""Map or list all tensors inside nested dataclasses, dictionaries, lists and (named) tuples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return the same structure with `change` applied to each of its tensors; other values stay as they are."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{each.name: map_tensors(getattr(value, each.name), change) for each in fields(value)})
    if isinstance(value, dict):
        return {key: map_tensors(each, change) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(each, change) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(each, change) for each in value)
    return value


def list_tensors(value: Any) -> list[torch.Tensor]:
    """Return every tensor of a structure in the order of its fields and items; dictionaries in sorted order of keys."""
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        return [tensor for each in fields(value) for tensor in list_tensors(getattr(value, each.name))]
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in list_tensors(value[key])]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in list_tensors(each)]
    return []
