"""The token layout: spans, positions and attention masks of the trunk's sequence, computed here and nowhere else.

Masks are interval levels (`kernels.block_sparse`): every key has a level, and every query attends to the keys up to its
bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import InputError, unknown_name
from .sequence import MASKS, check_order


@dataclass(frozen=True)
class TokenLayout:
    """The spans of the trunk's sequence.

    Attributes:
        visual: Visual tokens of all views, N.
        text: Text tokens, L.
        slots: Action slots.
        order: The order of the spans; slots come last. Without "state" the trunk does not get the state. With "start"
            the first text token has that place, and the others the text's.
        mask: The attention mask, see `levels`.

    Raises:
        InputError: The sizes, the order or the mask are not valid.
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
                raise InputError(
                    f"TokenLayout.{name}", got=getattr(self, name), expected=f"{least} or more", fix=f"Raise {name}."
                )
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        check_order(self.order)

    @property
    def cached_text_length(self) -> int:
        """Text tokens that pass the trunk once per instruction: all of them if the text comes first, else 0.

        They attend to no visual token, so that their keys and values serve every decision. The other spans are counted
        from after them.
        """
        return self.text if self.order[0] == "text" and self.mask != "full" else 0

    def span(self, name: str) -> slice:
        """Return the indices of a span in the sequence after the cached text; an absent span is empty."""
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
        """Tokens of the sequence, S, without the cached text."""
        return self.prefix + self.slots

    def assemble(
        self, visual: torch.Tensor, text: torch.Tensor, state: torch.Tensor | None, slots: torch.Tensor
    ) -> torch.Tensor:
        """Concatenate the spans in their order, in the dtype of the visual tokens.

        Args:
            visual: Visual tokens [B, N, D].
            text: Embedded text [B, L, D]; cached text is left out.
            state: State token [B, 1, D].
            slots: Action slots [B, slots, D].

        Returns:
            The sequence [B, S, D].
        """
        first = 1 if "start" in self.order else 0
        parts = {"start": text[:, :1], "visual": visual, "text": text[:, first:], "state": state, "slots": slots}
        names = self.order[1:] if self.cached_text_length else self.order
        return torch.cat([parts[name].to(visual.dtype) for name in names], dim=1)

    def valid(self, text_valid: torch.Tensor) -> torch.Tensor:
        """Return which tokens are not padding, boolean [B, cached + S], from `text_valid`, boolean [B, L]."""
        if self.cached_text_length:
            others = torch.ones(len(text_valid), self.length, dtype=torch.bool, device=text_valid.device)
            return torch.cat([text_valid, others], dim=1)
        valid = torch.ones(len(text_valid), self.length, dtype=torch.bool, device=text_valid.device)
        valid[:, self.span("text")] = text_valid[:, 1 if "start" in self.order else 0 :]
        return valid

    def levels(self, text_valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the attention mask as interval levels: a query attends to the keys of levels 0 to its bound.

        coupled               vision, text and state are causal; slots attend to everything and to each other (CogVLA's
                              CAtten, arXiv 2508.21046, section 3.4)
        causal                every token attends to itself and to those before it
        bidirectional_vision  as coupled, but visual tokens attend to each other
        mutual                as bidirectional_vision, and visual tokens attend to the instruction and to what lies
                              between them
        full                  every token attends to every token

        In all masks but `full` only slots attend to slots. In none does a token attend to padding.

        Args:
            text_valid: Boolean [B, L], false for padding.

        Returns:
            The queries' bounds `high` [R] and the keys' levels [B, R], R = cached + S.
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
        """Return the rotary positions [B, cached + S]: the layout's, or `counted` over tokens that are not padding."""
        valid = self.valid(text_valid)
        if counted:
            return valid.long().cumsum(1) - 1
        return torch.arange(valid.shape[1], device=text_valid.device).expand(len(text_valid), -1)

    def preceding_indices(self, text_valid: torch.Tensor) -> torch.Tensor:
        """Return for every slot the index [B, slots] of the token before it, padding left out.

        A language model predicts a token there; policies with `read_shifted` read their slots there.
        """
        indices = torch.arange(self.length, device=text_valid.device)
        valid = self.valid(text_valid)[:, self.cached_text_length : self.cached_text_length + self.prefix]
        last = (indices[: self.prefix] * valid).amax(1, keepdim=True)
        return torch.cat([last, indices[self.span("slots")][:-1].expand(len(last), -1)], dim=1)
