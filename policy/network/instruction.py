"""Instructions: bytes to tokens, and tokens to the vector that steers towers and pruning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ...errors import InputError

PADDING, START = 256, 257
VOCABULARY = 258
"""Bytes 0 to 255, padding and start."""


class ByteTokenizer:
    """UTF-8 bytes as tokens, padded on the right to a fixed length; a longer instruction is refused, never cut.

    Case and spacing do not matter.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return int64 [B, L]; raises InputError for an empty or too long instruction."""
        tokens = torch.full((len(instructions), self.length), PADDING)
        tokens[:, 0] = START
        for row, instruction in enumerate(instructions):
            # Lone surrogates, which a terminal makes of foreign bytes, are bytes like any other.
            content = " ".join(instruction.lower().split()).encode("utf-8", "surrogatepass")
            if not 0 < len(content) < self.length:
                raise InputError(
                    "instruction",
                    got=f"{len(content)} bytes in {instruction!r}",
                    expected=f"1 to {self.length - 1} bytes",
                    fix="Say it in other words, or train with a longer text_length.",
                )
            tokens[row, 1 : 1 + len(content)] = torch.tensor(list(content))
        return tokens


class InstructionEncoder(nn.Module):
    """Sum an instruction up in one vector that knows word order and ignores padding.

    The original averages word embeddings, padding included, so that "the cup left of the bowl" and "the bowl left of
    the cup" are one instruction. Two convolutions see n-grams of bytes; attention picks those that matter.
    """

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(embedding, width, 5, padding=2)
        self.wide = nn.Conv1d(width, width, 5, padding=4, dilation=2)
        self.weigh = nn.Linear(width, 4)
        self.merge = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Map embedded tokens [B, L, embedding] and `valid` boolean [B, L] to the instruction's vector [B, width]."""
        keep = valid[:, None].to(embedded.dtype)
        narrow = functional.gelu(self.narrow(embedded.transpose(1, 2) * keep)) * keep
        wide = (narrow + functional.gelu(self.wide(narrow))).transpose(1, 2)
        weight = self.weigh(wide).masked_fill(~valid[..., None], float("-inf")).softmax(1)
        pooled = torch.einsum("blh,blw->bhw", weight, wide).flatten(1)
        return self.norm(functional.gelu(self.merge(pooled)))


class MeanInstructionEncoder(nn.Module):
    """Sum an instruction up as the original does, by the mean of its word embeddings: a bag of words.

    With `padded` the padding is counted among the words, as in the original's training, where what an instruction
    means depends on how long the others of its batch are.
    """

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded

    def forward(self, embedded: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Map embedded tokens [B, L, D] and `valid` boolean [B, L] to the instruction's vector [B, D]."""
        if self.padded:
            return embedded.mean(1)
        weight = valid[..., None].to(embedded.dtype)
        return (embedded * weight).sum(1) / weight.sum(1)
