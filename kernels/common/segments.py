"""Segments of packed tokens: the sequences of a ragged batch, concatenated without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import is_fake

from .checks import INTEGERS, expect, expect_tensor

type Lengths = torch.Tensor | Sequence[int] | int | None
"""Tokens of each segment [N], or the number N of equally long segments, or None for one segment of all tokens."""


def segment_offsets(lengths: Lengths, tokens: int, device: torch.device, argument: str) -> tuple[torch.Tensor, int]:
    """Return the offsets of segments in packed tokens.

    Args:
        lengths: tokens of each segment [N], or N equally long segments, or None for one segment.
        tokens: tokens of all segments, and of what follows the last one.
        device: device of the offsets.
        argument: name of `lengths` in an error.

    Returns:
        The offsets, int32 [N + 1], where segments begin and end, and N.

    Raises:
        ValueError: lengths on the CPU are negative or sum to more than `tokens`. A GPU's are not read.
    """
    if lengths is None:
        lengths = 1
    if not isinstance(lengths, torch.Tensor | Sequence):
        expect(lengths >= 0 and tokens % max(lengths, 1) == 0, argument, lengths, "a divisor of the tokens")
        return torch.arange(lengths + 1, dtype=torch.int32, device=device) * (tokens // max(lengths, 1)), lengths
    if not isinstance(lengths, torch.Tensor):
        lengths = torch.tensor(list(lengths), dtype=torch.int32, device=device)
    expect_tensor(lengths, argument, shape=(None,), dtypes=INTEGERS, device=device)
    # Fake tensors, which compilers and FLOP counters use, have no values to check.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(lengths):
        total = int(lengths.sum())
        expect(not bool((lengths < 0).any()), argument, lengths.tolist(), "no negative length")
        expect(total <= tokens, argument, f"{total} tokens together", f"at most {tokens}")
    ends = lengths.clamp(min=0).cumsum(0).int()
    return torch.cat([ends.new_zeros(1), ends]), lengths.shape[0]
