"""The contestants of the attention cases of `saccade bench kernels`: our kernels, and what a torch user would call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

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
    shape: Shape, device: str, dtype: torch.dtype, public_folder: str | None, *, compiled: bool
) -> Problem:
    """Return an attention case with its contestants.

    Args:
        shape: The sizes of the case.
        device: "cpu" or "cuda".
        dtype: Type of the inputs.
        public_folder: Folder with clones of public code, see `public_code`.
        compiled: Include FlexAttention, which is compiled.
    """
    case = AttentionCase(shape, device, dtype)
    names = ("output", "query", "key", "value", *(() if case.score is None else ("score",)))
    problem = Problem(shape, names, 1, case.minimum_cost(), case.reference_results)
    problem.contestants = dict(_yield_contestants(case, public_folder, compiled=compiled))
    return problem


def _yield_contestants(
    case: AttentionCase, public_folder: str | None, *, compiled: bool
) -> Iterator[tuple[str, Callable[[], PreparedContestant]]]:
    shape = case.shape
    if case.score is not None:
        yield OURS_GATHERED, lambda: gathered(case)
    yield OURS, lambda: ours(case, reuse_plan=False)
    if not case.selects_blocks:
        yield OURS_PLAN_KEPT, lambda: ours(case, reuse_plan=True)
    if shape.family == "cross":
        yield OURS_UNSPLIT, lambda: ours(case, reuse_plan=True, splits=1)
    if case.score is None and len(set(shape.lengths)) == 1:
        yield SDPA_UNMASKED, lambda: sdpa_padded(case, masked=False)
    if shape.mask != "everything" or case.selects_blocks or case.score is not None:
        yield SDPA_MASKED, lambda: sdpa_padded(case, masked=True)
    if shape.mask in ("coupled", "prefix") and len(set(shape.lengths)) == 1:
        yield SDPA_TWO_CALLS, lambda: sdpa_two_calls(case)
    if shape.mask == "coupled":
        yield VARLEN, lambda: torch_varlen(case)
    if compiled:
        for block in (64, 128):
            yield FLEX.format(block), lambda block=block: flex_attention_contestant(case, block)
    if case.score is not None:
        yield DYNAMIC_MASK_ATTENTION, lambda: dynamic_mask_attention(case, public_folder)
    if case.selects_blocks:
        yield VMOBA, lambda: mixture_of_blocks(case, public_folder)


def make_leaves(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return contiguous copies of the tensors that require gradients."""
    return tuple(part.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for part in parts)


def ours(case: AttentionCase, *, reuse_plan: bool, splits: int = 0) -> PreparedContestant:
    """Prepare our attention.

    Args:
        case: The inputs.
        reuse_plan: Build the plan once, before the timed calls, instead of in each call.
        splits: Parts into which the keys are split; 0 lets the kernel choose.
    """
    leaves = make_leaves(*case.leaves)
    query, key, value, *score = leaves
    prepared = case.plan(query, key) if reuse_plan else None

    def call() -> tuple[Tensor]:
        plan = case.plan(query, key) if prepared is None else prepared
        bias = case.bias(score[0]) if score else None
        return block_sparse_attention(query, key, value, plan, bias=bias, splits=splits)[:1]

    make_plan = None if reuse_plan else lambda: case.plan(query, key)
    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * (1 + len(leaves)), make_plan)


def gathered(case: AttentionCase) -> PreparedContestant:
    """Prepare our attention over the kept keys only, gathered for each head. One sample."""
    leaves = make_leaves(*case.leaves)
    query, key, value, score = leaves
    keep_count = case.keep_count
    plan = build_plan(*full_attention(len(query), keep_count, device=case.device))

    def call() -> tuple[Tensor]:
        bias, positions = score.topk(keep_count, dim=1)  # [HK, kept]
        indices = positions.T[..., None].expand(-1, -1, key.shape[2])  # [kept, HK, D]
        keys, values = key.gather(0, indices), value.gather(0, indices)
        return block_sparse_attention(query, keys, values, plan, bias=bias)[:1]

    return PreparedContestant(
        leaves, call, (case.output_gradient,), (identity,) * (1 + len(leaves)), lambda: score.topk(keep_count, dim=1)
    )


def pad_packed(packed: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return packed tokens [T, H, D] as [B, H, S, D], samples padded with zeros to the longest."""
    rows = torch.nn.utils.rnn.pad_sequence(list(packed.split(list(lengths))), batch_first=True)
    return rows.transpose(1, 2).contiguous()


def unpad(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return [B, H, S, D] as packed tokens [T, H, D], without the padding."""
    return torch.cat([sample[:, :length].transpose(0, 1) for sample, length in zip(tensor, lengths, strict=True)])


def _padded_inputs(
    case: AttentionCase,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Callable[[Tensor], Tensor], ...]]:
    """Return leaves [B, H, S, D], the output gradient, and the functions that bring results to the packed layout."""
    queries = case.shape.lengths
    keys = tuple(stop - start for start, stop in case.key_bounds)
    lengths = (queries, keys, keys)
    leaves = [pad_packed(part, each) for part, each in zip(case.leaves[:3], lengths, strict=True)]
    to_reference_layout: list[Callable[[Tensor], Tensor]] = [
        partial(unpad, lengths=each) for each in (queries, *lengths)
    ]
    if case.score is not None:
        leaves.append(case.score)
        to_reference_layout.append(identity)
    return make_leaves(*leaves), (pad_packed(case.output_gradient, queries),), tuple(to_reference_layout)


def sdpa_padded(case: AttentionCase, *, masked: bool) -> PreparedContestant:
    """Prepare torch's SDPA over padded samples.

    Args:
        case: The inputs.
        masked: Use a mask, built before the timed calls. Without one the result is that of dense attention.
    """
    leaves, output_gradient, to_reference_layout = _padded_inputs(case)
    query, key, value, *score = leaves
    grouped = case.shape.heads != case.shape.key_heads
    attention_mask = padded_mask(case) if masked and not score else None

    def call() -> tuple[Tensor]:
        mask = attention_mask
        if score:
            group = case.shape.heads // case.shape.key_heads
            mask = case.bias(score[0]).to(query.dtype).repeat_interleave(group, 0)[None, :, None]  # [1, HQ, 1, Tk]
            mask = mask.expand(-1, -1, query.shape[2], -1)  # [1, HQ, Tq, Tk]
        return (functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped),)

    return PreparedContestant(
        leaves, call, output_gradient, to_reference_layout, reference_kind="own" if masked else "dense"
    )


def padded_mask(case: AttentionCase) -> Tensor:
    """Return the mask of a padded batch [1 or B, 1 or HQ, S, S]; padding queries see the keys of their sample."""
    lengths = case.shape.lengths
    if len(set(lengths)) == 1:
        return case.mask(0)[None]
    longest = max(lengths)
    mask = torch.zeros(len(lengths), 1, longest, longest, dtype=torch.bool, device=case.device)
    for sample, length in enumerate(lengths):
        mask[sample, :, :, :length] = True
        mask[sample, :, :length, :length] = case.mask(sample)
    return mask


def sdpa_two_calls(case: AttentionCase) -> PreparedContestant:
    """Prepare two calls of torch's SDPA: for the context, causal or full, and for the slots, which see everything."""
    leaves, output_gradient, to_reference_layout = _padded_inputs(case)
    query, key, value = leaves
    context, grouped = case.shape.lengths[0] - case.shape.slots, case.shape.heads != case.shape.key_heads
    context_is_causal = case.shape.mask == "coupled"

    def call() -> tuple[Tensor]:
        context_output = functional.scaled_dot_product_attention(
            query[:, :, :context],
            key[:, :, :context],
            value[:, :, :context],
            is_causal=context_is_causal,
            enable_gqa=grouped,
        )
        slot_output = functional.scaled_dot_product_attention(query[:, :, context:], key, value, enable_gqa=grouped)
        return (torch.cat([context_output, slot_output], 2),)

    return PreparedContestant(leaves, call, output_gradient, to_reference_layout)


def torch_varlen(case: AttentionCase) -> PreparedContestant:
    """Prepare two calls of torch's varlen_attn on packed samples: causal over all tokens, and full for the slots."""
    require_cuda(case.device)
    if case.shape.heads != case.shape.key_heads:
        raise Unavailable("does not support grouped queries")
    from torch.nn.attention.varlen import varlen_attn

    leaves = make_leaves(*case.leaves)
    query, key, value = leaves
    slots = case.shape.slots
    ends = torch.tensor([0, *(stop for _, stop in case.query_bounds)], dtype=torch.int32, device=case.device)
    slot_ends = torch.arange(len(case.shape.lengths) + 1, dtype=torch.int32, device=case.device) * slots
    slot_positions = torch.cat([torch.arange(stop - slots, stop, device=case.device) for _, stop in case.query_bounds])
    longest = max(case.shape.lengths)

    def call() -> tuple[Tensor]:
        causal_output = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(-1, 0))
        slot_output = varlen_attn(query.index_select(0, slot_positions), key, value, slot_ends, ends, slots, longest)
        # Its stub has a second result, the log-sum-exp, which is returned on request only.
        return (cast("Tensor", causal_output).index_copy(0, slot_positions, cast("Tensor", slot_output)),)

    return PreparedContestant(leaves, call, (case.output_gradient,), (identity,) * 4)


def flex_attention_contestant(case: AttentionCase, block: int) -> PreparedContestant:
    """Prepare compiled FlexAttention with a block mask built before; samples of different lengths are packed."""
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
    mask_mod = _flex_mask_mod(case, ragged=ragged)
    group = case.shape.heads // case.shape.key_heads
    # Autotune: the default configuration does not support blocks of 64.
    run = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")

    def make_block_mask() -> Any:
        heads = case.shape.heads if case.selects_blocks else None
        return create_block_mask(
            mask_mod, None, heads, query.shape[2], key.shape[2], device=case.device, BLOCK_SIZE=block, _compile=True
        )

    block_mask = make_block_mask()

    def call() -> tuple[Tensor]:
        score_mod = _flex_score_mod(case.bias(score[0]), group) if score else None
        output = run(query, key, value, score_mod=score_mod, block_mask=block_mask, enable_gqa=group > 1)
        return (cast("Tensor", output),)  # its stub has more results, which are returned on request only

    return PreparedContestant(leaves, call, output_gradient, to_reference_layout, plan=make_block_mask)


def _flex_score_mod(bias: Tensor, group: int) -> Callable[..., Tensor]:
    """Return the function of score, sample, head, row and column that adds the bias [HK, Tk] of the key."""

    def score_mod(score: Tensor, _sample: Tensor, head: Tensor, _row: Tensor, column: Tensor) -> Tensor:
        return score + bias[head // group, column]

    return score_mod


def _flex_mask_mod(case: AttentionCase, *, ragged: bool) -> Callable[..., Tensor]:
    """Return the mask as a function of sample, head, row and column; unless packed, all samples share it."""
    low, high, level = case.levels.low[0], case.levels.high[0], case.levels.level[0]
    samples = torch.arange(len(case.shape.lengths), device=case.device)
    rows, columns = (torch.repeat_interleave(samples, each) for each in (case.query_lengths, case.key_lengths))
    selected = case.choose_blocks(case.query, case.key) if case.selects_blocks else None

    def mask_mod(_sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        visible = (level[column] >= low[row]) & (level[column] <= high[row])
        if ragged:
            visible = visible & (rows[row] == columns[column])
        if selected is not None:
            visible = visible & selected[head, row // BLOCK, column // BLOCK]
        return visible

    return mask_mod
