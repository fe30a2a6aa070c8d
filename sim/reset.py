"""Initial states and the options of `reset`, the same for all worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..errors import InputError
from ..ranges import require_at_least

EVALUATION_STATES = 50
"""Initial states 0 to 49 of every task are reserved for evaluation."""

FIRST_DEMONSTRATION_STATE = 1000
"""Demonstrations start from this initial state on, so that policies are never trained on evaluated states."""


@dataclass(frozen=True)
class ResetOptions:
    """Options of `reset`.

    Attributes:
        initial_state: Number of the initial state; None lets the world choose.
        instruction: Replaces the task's instruction; None keeps it.
    """

    initial_state: int | None = None
    instruction: str | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Self:
        """Check gymnasium's `options`; raises InputError for an unknown key or a negative state."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options or ()) - set(known))
        if unknown:
            raise InputError(
                "reset options", got=unknown, expected=", ".join(known), fix=f"Remove {', '.join(unknown)}."
            )
        parsed = cls(**(options or {}))
        require_at_least(parsed, 0, "initial_state", fix="Use 0 for the first state.")
        return parsed
