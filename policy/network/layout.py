"""The token layout: the one place that knows which span of the trunk's sequence is what, and who sees whom.

Masks are written as interval levels (`kernels.block_sparse`): every key has a level, every query a highest level that
it sees. Read-outs, positions and masks are asked from here and computed nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import InputError, unknown_name
from .sequence import MASKS, check_order


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

    @property
    def cached_text_length(self) -> int:
        """Text tokens that pass the trunk once for an instruction, ahead of the rest: all where they come first.

        Then nothing that is seen reaches them, so that their keys and values serve every decision. All other spans
        count from behind them.
        """
        return self.text if self.order[0] == "text" and self.mask != "full" else 0

    def span(self, name: str) -> slice:
        """Return where a span stands in what follows the remembered text, empty for one that is not there."""
        start = -self.cached_text_length
        for each in self.order:
            size = self._size(each)
            if each == name:
                return slice(max(start, 0), start + size)
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
        """Tokens of the sequence S, without the remembered text."""
        return self.prefix + self.slots

    def assemble(
        self, visual: torch.Tensor, text: torch.Tensor, state: torch.Tensor | None, slots: torch.Tensor
    ) -> torch.Tensor:
        """Return the sequence [B, S, D] of visual tokens [B, N, D], text [B, L, D], state [B, 1, D], slots [B, n, D].

        Text that is remembered is not in it. All take the dtype of the visual tokens.
        """
        first = 1 if "start" in self.order else 0
        parts = {"start": text[:, :1], "visual": visual, "text": text[:, first:], "state": state, "slots": slots}
        names = self.order[1:] if self.cached_text_length else self.order
        return torch.cat([parts[name].to(visual.dtype) for name in names], dim=1)

    def valid(self, text_valid: torch.Tensor) -> torch.Tensor:
        """Return which places are no padding, remembered text included: boolean [B, remembered + S].

        `text_valid`: boolean [B, L].
        """
        if self.cached_text_length:
            others = torch.ones(len(text_valid), self.length, dtype=torch.bool, device=text_valid.device)
            return torch.cat([text_valid, others], dim=1)
        valid = torch.ones(len(text_valid), self.length, dtype=torch.bool, device=text_valid.device)
        valid[:, self.span("text")] = text_valid[:, 1 if "start" in self.order else 0 :]
        return valid

    def levels(self, text_valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bounds `high` [R] and the levels [B, R] of the mask, R = remembered + S; lower bounds are 0.

        coupled               vision, text and state are causal; the slots see everything and each other
        causal                every token sees itself and what stands before it
        bidirectional_vision  as coupled, but the visual tokens see each other
        mutual                as bidirectional_vision, and the visual tokens see the instruction, with what stands
                              between them
        full                  every token sees every token

        In all but `full` nothing sees a slot but slots, and nothing sees padding in any. `text_valid`: boolean [B, L].
        """
        device, before = text_valid.device, self.cached_text_length
        level = torch.arange(before + self.length, device=device)
        high = level.clone()
        visual, slots = (slice(before + span.start, before + span.stop) for span in map(self.span, ("visual", "slots")))
        if self.mask != "causal":
            level[slots] = high[slots] = slots.start
        if self.mask in ("bidirectional_vision", "mutual"):
            level[visual] = high[visual] = visual.stop - 1
        if self.mask == "mutual":
            high[visual] = max(visual.stop, before + self.span("text").stop) - 1
        if self.mask == "full":
            high[:] = before + self.length
        levels = torch.where(self.valid(text_valid), level, before + self.length + 1)
        return high, levels

    def positions(self, text_valid: torch.Tensor, *, counted: bool) -> torch.Tensor:
        """Return the rotary positions [B, remembered + S]: the layout's, or `counted` over what is no padding."""
        valid = self.valid(text_valid)
        if counted:
            return valid.long().cumsum(1) - 1
        return torch.arange(valid.shape[1], device=text_valid.device).expand(len(text_valid), -1)

    def preceding_indices(self, text_valid: torch.Tensor) -> torch.Tensor:
        """Return for every slot the place [B, slots] of the token before it, padding left out.

        A language model predicts a token there, and so do policies that read their slots one place early.
        """
        indices = torch.arange(self.length, device=text_valid.device)
        valid = self.valid(text_valid)[:, self.cached_text_length : self.cached_text_length + self.prefix]
        last = (indices[: self.prefix] * valid).amax(1, keepdim=True)
        return torch.cat([last, indices[self.span("slots")][:-1].expand(len(last), -1)], dim=1)
