"""What a world's `reset` may be told, the same for all worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..errors import InputError


@dataclass(frozen=True)
class ResetOptions:
    """The initial state to begin in, and the words to say; None leaves either to the world."""

    initial_state: int | None = None
    instruction: str | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any] | None) -> Self:
        """Return gymnasium's options, checked; InputError for an unknown one and for a negative state."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options or ()) - set(known))
        if unknown:
            raise InputError("reset options", got=unknown, expected=", ".join(known), fix="Remove the others.")
        read = cls(**(options or {}))
        if read.initial_state is not None and read.initial_state < 0:
            raise InputError("initial_state", got=read.initial_state, expected="0 or more", fix="States count from 0.")
        return read
