"""Block-sparse attention as a citizen of torch: its operators' own check, compilation without a break, export."""

import pytest
import torch
import torch._dynamo.testing

from saccade.kernels.block_sparse import (
    attend_with_pooled,
    batched_block_sparse_attention,
    block_sparse_attention,
    causal,
    combine_attention,
    plan_unselected,
)
from saccade.kernels.plan import (
    batch_plan,
    block_scores,
    build_plan,
    cut_blocks,
    pack_selection,
    pool,
    select_top_k,
)


def inputs(tokens, heads=(4, 2), width=8):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, heads[0], width), (tokens, heads[1], width), (tokens, heads[1], width)]
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def planned(*lengths, tile=16):
    place = torch.cat([torch.arange(length) for length in lengths])
    return build_plan(
        place * 0, place, place, query_lengths=lengths, key_lengths=lengths, query_tile=tile, key_tile=tile
    )


@pytest.mark.slow
def test_operators_pass_the_check_of_torch():
    plan, bias = planned(20, 13), torch.randn(2, 33, requires_grad=True)
    passed = torch.library.opcheck(torch.ops.saccade.block_sparse_attention, (*inputs(33), bias, *plan, 0.3, 0))
    assert set(passed.values()) == {"SUCCESS"}
    offsets = torch.tensor([0, 20, 33], dtype=torch.int32)
    torch.library.opcheck(torch.ops.saccade.cut_tiles, (offsets, 40, 16, 5))
    selection_bits, block = (
        torch.randint(-99, 99, (2, 33, 1), dtype=torch.int32),
        torch.arange(33, dtype=torch.int32) // 8,
    )
    given = (plan.low, plan.high, plan.level, offsets, offsets, selection_bits, block, 16, 16, 5, 5)
    torch.library.opcheck(torch.ops.saccade.tile_lists, given)
    torch.library.opcheck(torch.ops.saccade.block_means, (inputs(33)[0], cut_blocks(33, 7).tiles))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_whole_and_once_for_all_lengths(backend):
    def loss(query, key, value, bias, plan):
        output, log_sum_exp = block_sparse_attention(query, key, value, plan, bias=bias)
        return output.square().sum() + log_sum_exp.sum()

    torch._dynamo.reset()
    counting = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counting)
    for lengths in ((20, 13), (48, 30, 7), (5, 70), (90,)):
        parts = [*inputs(sum(lengths)), torch.randn(2, sum(lengths), requires_grad=True)]
        plan = planned(*lengths)
        expected = torch.autograd.grad(loss(*parts, plan), parts)
        for found, reference in zip(torch.autograd.grad(compiled(*parts, plan), parts), expected, strict=True):
            torch.testing.assert_close(found, reference)
    assert counting.frame_count == 1


@pytest.mark.slow
def test_planning_choosing_and_attending_compile_whole():
    def step(query, key, value, high):
        levels = (torch.zeros_like(high), high, high)
        blocks = cut_blocks(query.shape[0], 8, device=query.device)
        chosen = select_top_k(block_scores(query, pool(key, blocks), blocks, blocks.segment), 2)
        plan = build_plan(*levels, selection=pack_selection(chosen, blocks))
        return block_sparse_attention(query, key, value, plan)[0]

    torch._dynamo.reset()
    counting = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counting)
    for tokens in (40, 67, 131):
        parts = [*inputs(tokens), torch.arange(tokens)]
        torch.testing.assert_close(compiled(*parts), step(*parts))
    assert counting.frame_count == 1


@pytest.mark.slow
def test_a_batch_compiles_whole_and_once():
    def step(query, key, value, high):
        return batched_block_sparse_attention(query, key, value, batch_plan(high * 0, high, high))[0]

    torch._dynamo.reset()
    counting = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counting)
    for batch, tokens in ((3, 40), (4, 67), (6, 16)):
        parts = [torch.randn(batch, 2, tokens, 8) for _ in range(3)]
        high = torch.arange(tokens).expand(batch, -1).contiguous()
        torch.testing.assert_close(compiled(*parts, high), step(*parts, high))
    assert counting.frame_count == 1


@pytest.mark.slow
def test_it_is_exported_for_any_length():
    class Attend(torch.nn.Module):
        def forward(self, query, key, value, high):
            plan = batch_plan(torch.zeros_like(high), high, high)
            return block_sparse_attention(query, key, value, plan)[0]

    tokens = torch.export.Dim("tokens", min=2, max=4096)
    example = (*[part.detach() for part in inputs(48)], torch.arange(48)[None])
    exported = torch.export.export(Attend(), example, dynamic_shapes=({0: tokens},) * 3 + ({1: tokens},))
    for length in (48, 131):
        parts = (*[part.detach() for part in inputs(length)], torch.arange(length)[None])
        torch.testing.assert_close(exported.module()(*parts), Attend()(*parts))


def test_unselected_blocks_enter_the_same_softmax_through_their_means():
    lengths = [64, 40]
    levels = causal(104)
    blocks = cut_blocks(104, 8, lengths=lengths)
    query, key, value = inputs(104, heads=(2, 1))
    chosen = torch.rand(2, 104, blocks.max_per_segment, generator=torch.Generator().manual_seed(3)) < 0.4
    selection = pack_selection(chosen, blocks)
    plan = build_plan(*levels, query_lengths=lengths, key_lengths=lengths, selection=selection)
    rest = plan_unselected(levels, blocks, selection, lengths)
    output, log_sum_exp = attend_with_pooled(query, key, value, plan, rest, blocks)

    expected, sums = torch.zeros(104, 2, 8), torch.zeros(2, 104)
    starts = [(start, start + length, segment) for start, length, segment in blocks.tiles.tolist() if length]
    for row in range(104):
        segment = int(row >= 64)
        for head in range(2):
            keys, values, added = [], [], []
            for start, end, owner in starts:
                if owner != segment:
                    continue
                local = (start - 64 * segment) // 8
                if chosen[head, row, local]:
                    for place in range(start, min(end, row + 1)):
                        keys, values, added = [*keys, key[place, 0]], [*values, value[place, 0]], [*added, 0.0]
                elif end - 1 <= row:
                    keys, values = [*keys, key[start:end, 0].mean(0)], [*values, value[start:end, 0].mean(0)]
                    added.append(torch.tensor(float(end - start)).log().item())
            if keys:
                score = torch.stack(keys) @ query[row, head] * 8**-0.5 + torch.tensor(added)
                expected[row, head] = score.softmax(0) @ torch.stack(values)
                sums[head, row] = score.logsumexp(0)
            else:
                sums[head, row] = float("-inf")
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_sum_exp, sums, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(output.sin().sum(), (query, key, value))
    references = torch.autograd.grad(expected.sin().sum(), (query, key, value))
    for found, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)


def test_branches_over_disjoint_keys_are_joined_exactly_where_one_or_both_are_empty():
    query, key, value = inputs(60)
    place = torch.arange(60)
    low, high = place - 20, place.clone()
    low[50:] = 1000
    others = (torch.where(place % 3 == 0, place, 2**31 - 1), torch.where(place % 3 == 0, 2**31 - 1, place))
    plans = (build_plan(low, high, level) for level in (place, *others))
    whole, *parts = (block_sparse_attention(query, key, value, plan) for plan in plans)
    joined = combine_attention(*parts[0], *parts[1])
    torch.testing.assert_close(joined, whole, atol=1e-6, rtol=1e-6)
    assert joined[1][:, 50:].isneginf().all() and not joined[0][50:].any()
    losses = [output.sin().sum() + sums[:, :50].cos().sum() for output, sums in (joined, whole)]
    for found, expected in zip(*(torch.autograd.grad(loss, (query, key, value)) for loss in losses), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_log_sum_exp_alone_has_a_gradient():
    query, key, value = inputs(20)
    sums = block_sparse_attention(query, key, value, build_plan(*causal(20)))[1]
    gradients = torch.autograd.grad(sums.sum(), (query, key, value))
    assert gradients[0].any() and gradients[1].any() and not gradients[2].any()
