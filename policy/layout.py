"""The token layout: the one place that knows which span of the trunk's sequence is what, and who sees whom.

Masks are written as interval levels (`kernels.block_sparse`): every key has a level, every query a highest level that
it sees. Read-outs, positions and masks are asked from here and computed nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError, unknown_name

MASKS = ("coupled", "causal", "bidirectional_vision", "mutual", "full")
"""Who sees whom, see `TokenLayout.levels`."""

SPANS = ("start", "visual", "text", "state", "slots")
"""What a sequence is made of; `start` is the text's first token where it stands apart from the others."""


@dataclass(frozen=True)
class TokenLayout:
    """Spans of the trunk's sequence, in `order`: `visual` tokens of all views, `text` tokens, a state, action `slots`.

    The slots come last. Without "state" in the order the trunk does not see the state; with "start" the first of the
    text tokens stands at that place and the others in the text's span. Raises InputError for what does not fit.
    """

    visual: int
    text: int
    slots: int
    order: tuple[str, ...] = ("visual", "text", "state", "slots")
    mask: str = "coupled"

    def __post_init__(self) -> None:
        for name in ("visual", "text", "slots"):
            least = 2 if name == "text" and "start" in self.order else 1
            if getattr(self, name) < least:
                fix = "Raise it."
                raise InputError(f"TokenLayout.{name}", got=getattr(self, name), expected=f"{least} or more", fix=fix)
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        check_order(self.order)

    def span(self, name: str) -> slice:
        """Return where a span stands, empty for one that is not in the order."""
        start = 0
        for each in self.order:
            size = self._size(each)
            if each == name:
                return slice(start, start + size)
            start += size
        return slice(0, 0)

    def _size(self, name: str) -> int:
        sizes = {"start": 1, "visual": self.visual, "state": 1, "slots": self.slots}
        return sizes[name] if name != "text" else self.text - ("start" in self.order)

    @property
    def prefix(self) -> int:
        """Tokens before the slots."""
        return self.span("slots").start

    @property
    def length(self) -> int:
        return self.prefix + self.slots

    def assemble(
        self, visual: torch.Tensor, text: torch.Tensor, state: torch.Tensor | None, slots: torch.Tensor
    ) -> torch.Tensor:
        """Return the sequence [B, S, D] of visual tokens [B, N, D], text [B, L, D], state [B, 1, D], slots [B, n, D].

        All take the dtype of the visual tokens.
        """
        first = 1 if "start" in self.order else 0
        parts = {"start": text[:, :1], "visual": visual, "text": text[:, first:], "state": state, "slots": slots}
        return torch.cat([parts[name].to(visual.dtype) for name in self.order], dim=1)

    def valid(self, text_valid: torch.Tensor) -> torch.Tensor:
        """Return which places are no padding, boolean [B, S]; `text_valid`: boolean [B, L]."""
        valid = torch.ones(len(text_valid), self.length, dtype=torch.bool, device=text_valid.device)
        valid[:, self.span("text")] = text_valid[:, 1 if "start" in self.order else 0 :]
        return valid

    def levels(self, text_valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bounds `high` [S] and the levels [B, S] of the mask; every lower bound is 0.

        coupled               vision, text and state are causal; the slots see everything and each other
        causal                every token sees itself and what stands before it
        bidirectional_vision  as coupled, but the visual tokens see each other
        mutual                as bidirectional_vision, and the visual tokens see the instruction, with what stands
                              between them
        full                  every token sees every token

        In all but `full` nothing sees a slot but slots, and nothing sees padding in any. `text_valid`: boolean [B, L].
        """
        device = text_valid.device
        level = torch.arange(self.length, device=device)
        high = level.clone()
        visual, slots = self.span("visual"), self.span("slots")
        if self.mask != "causal":
            level[slots] = high[slots] = slots.start
        if self.mask in ("bidirectional_vision", "mutual"):
            level[visual] = high[visual] = visual.stop - 1
        if self.mask == "mutual":
            high[visual] = max(visual.stop, self.span("text").stop) - 1
        if self.mask == "full":
            high[:] = self.length
        levels = torch.where(self.valid(text_valid), level, self.length + 1)
        return high, levels

    def positions(self, text_valid: torch.Tensor, *, counted: bool) -> torch.Tensor:
        """Return the rotary positions [B, S]: those of the layout, or `counted` over what is no padding."""
        if counted:
            return self.valid(text_valid).long().cumsum(1) - 1
        return torch.arange(self.length, device=text_valid.device).expand(len(text_valid), -1)


def check_order(order: tuple[str, ...]) -> None:
    """Raise InputError unless `order` names each span once at most, vision and text among them, and the slots last."""
    for name in order:
        if name not in SPANS:
            raise unknown_name("sequence", name, SPANS)
    repeated = len(set(order)) < len(order)
    if repeated or not {"visual", "text", "slots"} <= set(order) or order[-1] != "slots":
        raise InputError(
            "sequence",
            got=" ".join(order) or "nothing",
            expected="visual and text once each, start and state at most once, slots last",
            fix="The usual order is: visual text state slots.",
        )
    if "start" in order and order.index("start") > order.index("text"):
        raise InputError(
            "sequence", got=" ".join(order), expected="start before text", fix="It is the text's first token."
        )
