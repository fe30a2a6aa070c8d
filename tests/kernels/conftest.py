"""What the kernels' tests share: which of them need Triton's interpreter, and comparison with the reference."""

import os
from dataclasses import dataclass

import pytest
import torch

from saccade.kernels.block_sparse import IntervalLevels, block_sparse_attention
from saccade.kernels.block_sparse.reference import dense_attention, packed_mask
from saccade.kernels.plan import Selection, build_plan

# Triton reads TRITON_INTERPRET once: these run in a process of their own, which test_interpreted.py starts.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted/*"]


@dataclass
class Comparison:
    """The largest differences to the float64 reference, by what differs, and what was computed."""

    errors: dict[str, float]
    output: torch.Tensor
    log_sum_exp: torch.Tensor
    gradients: list[torch.Tensor]


def compare_attention(
    levels: IntervalLevels,
    query_lengths: list[int],
    key_lengths: list[int] | None = None,
    *,
    heads: tuple[int, int] = (2, 2),
    width: int = 32,
    bias: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    selection: Selection | None = None,
    tiles: tuple[int, int] = (64, 64),
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    splits: int = 0,
    device: str = "cpu",
) -> Comparison:
    """Compute outputs and all gradients, of the output and of the log-sum-exp, and compare them in float64."""
    key_lengths = query_lengths if key_lengths is None else key_lengths
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator)

    rows, columns = levels.low.shape[1], levels.level.shape[1]
    parts = [
        numbers(tokens, count, width).to(device, dtype).requires_grad_()
        for tokens, count in ((rows, heads[0]), (columns, heads[1]), (columns, heads[1]))
    ]
    if bias is not None:
        parts.append(bias.detach().clone().to(device).requires_grad_())
    above, above_sum = numbers(rows, heads[0], width).to(device, dtype), numbers(heads[0], rows).to(device)
    placed = selection
    if selection is not None:
        placed = Selection(selection.selection_bits.to(device), selection.block.to(device), selection.block_size)
    plan = build_plan(
        *(part.to(device) for part in levels),
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        selection=placed,
        query_tile=tiles[0],
        key_tile=tiles[1],
    )
    output, log_sum_exp = block_sparse_attention(
        *parts[:3], plan, bias=parts[3] if bias is not None else None, scale=scale, splits=splits
    )
    # What reaches the log-sum-exp of a query that saw nothing must not matter, whatever it is.
    spoiled = above_sum.masked_fill(log_sum_exp.detach().isneginf(), float("nan"))
    torch.autograd.backward([output, log_sum_exp], [above, spoiled])

    block = None if selection is None else selection.block
    mask = packed_mask(*levels, query_lengths, key_lengths, chosen, block).to(device)
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected, expected_sum = dense_attention(*exact[:3], mask, *exact[3:], scale=scale)
    seen = expected_sum > float("-inf")
    torch.autograd.backward([expected, expected_sum], [above.double(), above_sum.double().where(seen, 0.0)])
    assert log_sum_exp.isneginf().equal(~seen)
    found = {"output": (output, expected), "log_sum_exp": (log_sum_exp.where(seen, 0.0), expected_sum.where(seen, 0.0))}
    for name, part, reference in zip(("query", "key", "value", "bias"), parts, exact, strict=False):
        found[name] = part.grad, reference.grad.nan_to_num(0.0)
    for name, (result, _) in found.items():
        assert result.isfinite().all(), name
    errors = {
        name: (result.detach().double() - reference.detach()).abs().max().item() if result.numel() else 0.0
        for name, (result, reference) in found.items()
    }
    return Comparison(errors, output.detach(), log_sum_exp.detach(), [part.grad for part in parts])


@pytest.fixture
def compare():
    """Return the comparison with the reference."""
    return compare_attention


@pytest.fixture
def agree():
    """Return a check that float32 agrees with the reference as closely as float32 can."""

    def check(*arguments, **options):
        comparison = compare_attention(*arguments, **options)
        limits = {"output": 5e-6, "log_sum_exp": 5e-6, "query": 1e-5, "key": 1e-5, "value": 1e-5, "bias": 3e-5}
        print({name: f"{error:.1e}" for name, error in comparison.errors.items()})
        beyond = {name: error for name, error in comparison.errors.items() if not error <= limits[name]}
        assert not beyond
        return comparison

    return check
