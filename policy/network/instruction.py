"""Instructions: the byte tokenizer, and encoders of the vector that modulates towers and routers."""

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
    """UTF-8 bytes as tokens, padded on the right to a fixed length.

    Case and spacing do not matter. A longer instruction raises an error; it is never truncated.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, instructions: Sequence[str]) -> torch.Tensor:
        """Return the tokens of B instructions, int64 [B, L].

        Raises:
            InputError: An instruction is empty or too long.
        """
        tokens = torch.full((len(instructions), self.length), PADDING)
        tokens[:, 0] = START
        for row, instruction in enumerate(instructions):
            # surrogatepass: a terminal turns bytes that are not UTF-8 into lone surrogates.
            content = " ".join(instruction.lower().split()).encode("utf-8", "surrogatepass")
            if not 0 < len(content) < self.length:
                raise InputError(
                    "instruction",
                    got=f"{len(content)} bytes in {instruction!r}",
                    expected=f"1 to {self.length - 1} bytes",
                    fix="Write a shorter instruction, or train with a longer text_length.",
                )
            tokens[row, 1 : 1 + len(content)] = torch.tensor(list(content))
        return tokens


class InstructionEncoder(nn.Module):
    """Encode an instruction as one vector that depends on word order and ignores padding.

    CogVLA averages token embeddings (EFA-Routing, arXiv 2508.21046, section 3.2), padding included, so that "the cup
    left of the bowl" and "the bowl left of the cup" are one instruction. Here two convolutions read n-grams, and
    attention pools them.

    Args:
        embedding: Width of the token embeddings, D.
        width: Width of the vector, C.
    """

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(embedding, width, 5, padding=2)
        self.wide = nn.Conv1d(width, width, 5, padding=4, dilation=2)
        self.weigh = nn.Linear(width, 4)
        self.merge = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Map embedded tokens [B, L, D] to [B, C]; `valid`, boolean [B, L], is false for padding."""
        keep = valid[:, None].to(embedded.dtype)  # [B, 1, L]
        narrow = functional.gelu(self.narrow(embedded.transpose(1, 2) * keep)) * keep  # [B, C, L]
        wide = (narrow + functional.gelu(self.wide(narrow))).transpose(1, 2)  # [B, L, C]
        weight = self.weigh(wide).masked_fill(~valid[..., None], float("-inf")).softmax(1)  # [B, L, 4]
        pooled = torch.einsum("blh,blw->bhw", weight, wide).flatten(1)  # [B, 4 * C]
        return self.norm(functional.gelu(self.merge(pooled)))


class MeanInstructionEncoder(nn.Module):
    """Encode an instruction as the mean of its token embeddings, as CogVLA does: a bag of words.

    Args:
        padded: Whether padding counts, as in CogVLA's training, where the vector of an instruction depends on the
            longest instruction of its batch.
    """

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded

    def forward(self, embedded: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Map embedded tokens [B, L, D] to [B, D]; `valid`, boolean [B, L], is false for padding."""
        if self.padded:
            return embedded.mean(1)
        weight = valid[..., None].to(embedded.dtype)
        return (embedded * weight).sum(1) / weight.sum(1)
