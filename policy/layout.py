"""The token layout: the one place that knows which span of the trunk's sequence is what, and who sees whom.

The sequence is `[visual N][text L][state 1][slots T]`. Masks are written as interval levels (`kernels.block_sparse`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass(frozen=True)
class TokenLayout:
    """Spans of the trunk's sequence: `visual` tokens of all views, `text` tokens, one state token, action `slots`."""

    visual: int
    text: int
    slots: int

    def __post_init__(self) -> None:
        for name in ("visual", "text", "slots"):
            if getattr(self, name) < 1:
                raise InputError(f"TokenLayout.{name}", got=getattr(self, name), expected="1 or more", fix="Raise it.")

    @property
    def text_span(self) -> slice:
        return slice(self.visual, self.visual + self.text)

    @property
    def state_place(self) -> int:
        return self.visual + self.text

    @property
    def slot_span(self) -> slice:
        return slice(self.state_place + 1, self.length)

    @property
    def prefix(self) -> int:
        """Tokens before the slots."""
        return self.state_place + 1

    @property
    def length(self) -> int:
        return self.prefix + self.slots

    def coupled_levels(self, text_valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bounds `high` [S] and the levels [B, S] of the coupled mask; every lower bound is 0.

        Vision, text and state are causal; the slots see everything and each other; nothing sees a slot but slots;
        nothing sees padding. `text_valid`: boolean [B, L].
        """
        device = text_valid.device
        level = torch.arange(self.length, device=device).clamp(max=self.prefix)
        high = level.clone()
        levels = level.expand(len(text_valid), -1).clone()
        levels[:, self.text_span].masked_fill_(~text_valid, self.length + 1)
        return high, levels
