"""Who computes attention in `saccade bench kernels`: ours, and what a user of torch would call instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from ....kernels.block_sparse import block_sparse_attention, full_attention
from ....kernels.plan import build_plan
from .problem import AttentionCase, PreparedContestant, Problem, Unavailable, identity, require_cuda
from .public_code import dynamic_mask_attention, mixture_of_blocks
from .rows import (
    DYNAMIC_MASK_ATTENTION,
    FLEX,
    OURS,
    OURS_GATHERED,
    OURS_PLAN_KEPT,
    OURS_UNSPLIT,
    SDPA_MASKED,
    SDPA_TWO_CALLS,
    SDPA_UNMASKED,
    VARLEN,
    VMOBA,
)
from .shapes import BLOCK, Shape

Tensor = torch.Tensor


def attention_problem(
    shape: Shape, device: str, dtype: torch.dtype, public_folder: str | None, compiled: bool
) -> Problem:
    """Return a case of attention with all who take part in it; `compiled`: FlexAttention, too."""
    case = AttentionCase(shape, device, dtype)
    names = ("output", "query", "key", "value", *(() if case.score is None else ("score",)))
    problem = Problem(shape, names, 1, case.minimum_cost(), case.reference_results)
    problem.contestants = dict(_yield_contestants(case, public_folder, compiled))
    return problem


def _yield_contestants(
    case: AttentionCase, public_folder: str | None, compiled: bool
) -> Iterator[tuple[str, Callable[[], PreparedContestant]]]:
    shape = case.shape
    if case.score is not None:
        yield OURS_GATHERED, lambda: gathered(case)
    yield OURS, lambda: ours(case, kept=False)
    if not case.selects_blocks:
        yield OURS_PLAN_KEPT, lambda: ours(case, kept=True)
    if shape.family == "cross":
        yield OURS_UNSPLIT, lambda: ours(case, kept=True, splits=1)
    if case.score is None and len(set(shape.lengths)) == 1:
        yield SDPA_UNMASKED, lambda: sdpa_padded(case, masked=False)
    if shape.mask != "everything" or case.selects_blocks or case.score is not None:
        yield SDPA_MASKED, lambda: sdpa_padded(case, masked=True)
    if shape.mask in ("coupled", "prefix") and len(set(shape.lengths)) == 1:
        yield SDPA_TWO_CALLS, lambda: split(case)
    if shape.mask == "coupled":
        yield VARLEN, lambda: varlen(case)
    if compiled:
        for block in (64, 128):
            yield FLEX.format(block), lambda block=block: flex_attention_contestant(case, block)
    if case.score is not None:
        yield DYNAMIC_MASK_ATTENTION, lambda: dynamic_mask_attention(case, public_folder)
    if case.selects_blocks:
        yield VMOBA, lambda: mixture_of_blocks(case, public_folder)


def make_leaves(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return tensors that gradients are taken of, contiguous and apart from all others."""
    return tuple(part.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for part in parts)


def ours(case: AttentionCase, *, kept: bool, splits: int = 0) -> PreparedContestant:
    """Our attention; its plan is made with every call, or before and `kept`."""
    leaves = make_leaves(*case.leaves)
    query, key, value, *score = leaves
    prepared = case.plan(query, key) if kept else None

    def call() -> tuple[Tensor]:
        plan = case.plan(query, key) if prepared is None else prepared
        bias = case.bias(score[0]) if score else None
        return block_sparse_attention(query, key, value, plan, bias=bias, splits=splits)[:1]

    before = None if kept else lambda: case.plan(query, key)
    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * (1 + len(leaves)), before)


def gathered(case: AttentionCase) -> PreparedContestant:
    """Our attention to the keys that stay alone, laid side by side: each head its own. One sample."""
    leaves = make_leaves(*case.leaves)
    query, key, value, score = leaves
    kept = case.kept
    small = build_plan(*full_attention(len(query), kept, device=case.device))

    def call() -> tuple[Tensor]:
        best, places = score.topk(kept, dim=1)
        at = places.T[..., None].expand(-1, -1, key.shape[2])
        keys, values = key.gather(0, at), value.gather(0, at)
        return block_sparse_attention(query, keys, values, small, bias=best)[:1]

    return PreparedContestant(
        leaves, call, (case.output_gradient,), (identity,) * (1 + len(leaves)), lambda: score.topk(kept, dim=1)
    )


def pad_packed(packed: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return packed tokens [T, H, D] as [B, H, S, D], samples filled up with zeros to the longest."""
    rows = torch.nn.utils.rnn.pad_sequence(packed.split(list(lengths)), batch_first=True)
    return rows.transpose(1, 2).contiguous()


def gather(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return [B, H, S, D] as packed tokens [T, H, D], without what was filled up."""
    return torch.cat([sample[:, :length].transpose(0, 1) for sample, length in zip(tensor, lengths, strict=True)])


def _padded_inputs(
    case: AttentionCase,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Callable[[Tensor], Tensor], ...]]:
    """Return leaves [B, H, S, D], the gradient of the output, and what brings results back."""
    queries = case.shape.lengths
    keys = tuple(stop - start for start, stop in case.key_bounds)
    lengths = (queries, keys, keys)
    leaves = [pad_packed(part, each) for part, each in zip(case.leaves[:3], lengths, strict=True)]
    to_reference_layout = [lambda tensor, each=each: gather(tensor, each) for each in (queries, *lengths)]
    if case.score is not None:
        leaves.append(case.score)
        to_reference_layout.append(identity)
    return make_leaves(*leaves), (pad_packed(case.output_gradient, queries),), tuple(to_reference_layout)


def sdpa_padded(case: AttentionCase, *, masked: bool) -> PreparedContestant:
    """Torch's attention over samples filled up to the longest; with a mask that is made before, or with none at all.

    Without one it computes something else: everything sees everything.
    """
    leaves, output_gradient, to_reference_layout = _padded_inputs(case)
    query, key, value, *score = leaves
    grouped = case.shape.heads != case.shape.key_heads
    attention_mask = padded_mask(case) if masked and not score else None

    def call() -> tuple[Tensor]:
        seen = attention_mask
        if score:
            group = case.shape.heads // case.shape.key_heads
            seen = case.bias(score[0]).to(query.dtype).repeat_interleave(group, 0)[None, :, None]
            seen = seen.expand(-1, -1, query.shape[2], -1)
        return (functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=grouped),)

    return PreparedContestant(
        leaves, call, output_gradient, to_reference_layout, reference_kind="own" if masked else "dense"
    )


def padded_mask(case: AttentionCase) -> Tensor:
    """Return the mask of a padded batch [1 or B, 1 or HQ, S, S]; a query that is none sees its sample's keys."""
    lengths = case.shape.lengths
    if len(set(lengths)) == 1:
        return case.mask(0)[None]
    longest = max(lengths)
    mask = torch.zeros(len(lengths), 1, longest, longest, dtype=torch.bool, device=case.device)
    for sample, length in enumerate(lengths):
        mask[sample, :, :, :length] = True
        mask[sample, :, :length, :length] = case.mask(sample)
    return mask


def split(case: AttentionCase) -> PreparedContestant:
    """Torch's attention called twice: for the context, causal or full, and for the slots, who see everything."""
    leaves, output_gradient, to_reference_layout = _padded_inputs(case)
    query, key, value = leaves
    context, grouped = case.shape.lengths[0] - case.shape.slots, case.shape.heads != case.shape.key_heads
    ordered = case.shape.mask == "coupled"

    def call() -> tuple[Tensor]:
        first = functional.scaled_dot_product_attention(
            query[:, :, :context], key[:, :, :context], value[:, :, :context], is_causal=ordered, enable_gqa=grouped
        )
        second = functional.scaled_dot_product_attention(query[:, :, context:], key, value, enable_gqa=grouped)
        return (torch.cat([first, second], 2),)

    return PreparedContestant(leaves, call, output_gradient, to_reference_layout)


def varlen(case: AttentionCase) -> PreparedContestant:
    """Torch's attention of packed samples called twice: causal over all tokens, and again for the slots."""
    require_cuda(case.device)
    if case.shape.heads != case.shape.key_heads:
        raise Unavailable("takes no grouped queries")
    from torch.nn.attention.varlen import varlen_attn

    leaves = make_leaves(*case.leaves)
    query, key, value = leaves
    slots = case.shape.slots
    ends = torch.tensor([0, *(stop for _, stop in case.query_bounds)], dtype=torch.int32, device=case.device)
    slot_ends = torch.arange(len(case.shape.lengths) + 1, dtype=torch.int32, device=case.device) * slots
    places = torch.cat([torch.arange(stop - slots, stop, device=case.device) for _, stop in case.query_bounds])
    longest = max(case.shape.lengths)

    def call() -> tuple[Tensor]:
        whole = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(-1, 0))
        last = varlen_attn(query.index_select(0, places), key, value, slot_ends, ends, slots, longest)
        return (whole.index_copy(0, places, last),)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 4)


def flex_attention_contestant(case: AttentionCase, block: int) -> PreparedContestant:
    """FlexAttention, compiled, with a mask of blocks that is made before; packed where samples differ in length."""
    require_cuda(case.device, ": without it, it has no gradients")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ragged = len(set(case.shape.lengths)) > 1
    if ragged:
        leaves = make_leaves(*(part.transpose(0, 1)[None] for part in case.leaves))
        output_gradient = (case.output_gradient.transpose(0, 1)[None].contiguous(),)
        to_reference_layout: tuple[Callable[[Tensor], Tensor], ...] = (lambda tensor: tensor[0].transpose(0, 1),) * 4
    else:
        leaves, output_gradient, to_reference_layout = _padded_inputs(case)
    query, key, value, *score = leaves
    seen = _flex_mask_mod(case, ragged)
    group = case.shape.heads // case.shape.key_heads
    # Its builds are tried out: the one it takes untried does not fit blocks of 64.
    run = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")

    def make() -> Any:
        heads = case.shape.heads if case.selects_blocks else None
        return create_block_mask(
            seen, None, heads, query.shape[2], key.shape[2], device=case.device, BLOCK_SIZE=block, _compile=True
        )

    prepared = make()

    def call() -> tuple[Tensor]:
        added = None
        if score:
            bias = case.bias(score[0])

            def added(value, _sample, head, _row, column):
                return value + bias[head // group, column]

        return (run(query, key, value, score_mod=added, block_mask=prepared, enable_gqa=group > 1),)

    return PreparedContestant(leaves, call, output_gradient, to_reference_layout, plan=make)


def _flex_mask_mod(case: AttentionCase, ragged: bool) -> Callable[..., Tensor]:
    """Return the mask as a function of sample, head, row and column; samples are alike unless they are packed."""
    low, high, level = case.levels.low[0], case.levels.high[0], case.levels.level[0]
    samples = torch.arange(len(case.shape.lengths), device=case.device)
    rows, columns = (torch.repeat_interleave(samples, each) for each in (case.query_lengths, case.key_lengths))
    chosen = case.choose_blocks(case.query, case.key) if case.selects_blocks else None

    def seen(_sample, head, row, column):
        found = (level[column] >= low[row]) & (level[column] <= high[row])
        if ragged:
            found = found & (rows[row] == columns[column])
        if chosen is not None:
            found = found & chosen[head, row // BLOCK, column // BLOCK]
        return found

    return seen
