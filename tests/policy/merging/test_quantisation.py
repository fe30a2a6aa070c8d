"""Quantised changes of any shape are restored to within half a step."""

from __future__ import annotations

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.merging.quantisation import BLOCK_SIZE, dequantise, quantise


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65,), (7, 33), (16, 8, 3, 3)])
def test_every_entry_is_within_half_a_step(bits, shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.01
    entries, steps = quantise(delta, bits)
    assert entries.dtype == torch.uint8 and len(entries) == -(-delta.numel() // BLOCK_SIZE) * BLOCK_SIZE * bits // 8
    step = steps.float().repeat_interleave(BLOCK_SIZE)[: delta.numel()].view(shape)
    assert ((dequantise(entries, steps, shape, bits) - delta).abs() <= 0.501 * step).all()
    assert step.max() <= 1.01 * delta.abs().max() / (2 ** (bits - 1) - 1) + 1e-7


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_stays_zero_and_tiny_values_stay_finite(bits):
    delta = torch.zeros(2, BLOCK_SIZE)
    delta[1, 0] = 1e-12
    restored = dequantise(*quantise(delta, bits), delta.shape, bits)
    assert (restored[0] == 0).all() and restored.isfinite().all() and restored.abs().max() < 1e-6


def test_tensors_that_do_not_fit_together_are_refused():
    entries, steps = quantise(torch.ones(100), 8)
    for given in ((entries[:-1], steps, (100,), 8), (entries, steps[:-1], (100,), 8), (entries, steps, (400,), 8),
                  (entries, steps, (100,), 4), (entries.float(), steps, (100,), 8)):  # fmt: skip
        with pytest.raises(InputError, match="merged change: got"):
            dequantise(*given)
    with pytest.raises(InputError, match="bits: got 5"):
        quantise(torch.ones(3), 5)
