"""Segments of packed tokens: ragged batches laid end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import is_fake

from .checks import expect, expect_tensor

INTEGERS = (torch.int32, torch.int64)

Lengths = torch.Tensor | Sequence[int] | int | None


def segment_offsets(lengths: Lengths, tokens: int, device: torch.device, argument: str) -> tuple[torch.Tensor, int]:
    """Return where segments begin and end, int32 [N + 1], and N; None is one segment of all tokens.

    A number N stands for as many segments, equally long. Raises ValueError where the lengths, if they are on the host,
    are not between 0 and `tokens` together.
    """
    if lengths is None:
        lengths = 1
    if not isinstance(lengths, torch.Tensor | Sequence):
        expect(lengths >= 0 and tokens % max(lengths, 1) == 0, argument, lengths, "a divisor of the tokens")
        return torch.arange(lengths + 1, dtype=torch.int32, device=device) * (tokens // max(lengths, 1)), lengths
    if not isinstance(lengths, torch.Tensor):
        lengths = torch.tensor(list(lengths), dtype=torch.int32, device=device)
    expect_tensor(lengths, argument, shape=(None,), dtypes=INTEGERS, device=device)
    # Imagined tensors, of which operations are counted, have no values to check.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(lengths):
        total = int(lengths.sum())
        expect(not bool((lengths < 0).any()), argument, lengths.tolist(), "no negative length")
        expect(total <= tokens, argument, f"{total} tokens together", f"at most {tokens}")
    ends = lengths.clamp(min=0).cumsum(0).int()
    return torch.cat([ends.new_zeros(1), ends]), lengths.shape[0]
