"""Block-sparse attention on the CPU: every kind of mask against float64, gradients, and what has next to nothing."""

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.kernels.block_sparse import (
    IntervalLevels,
    attention,
    batched_block_sparse_attention,
    block_sparse_attention,
    causal,
    concatenate_segments,
    coupled,
    full_attention,
    hide_keys,
    interval_mask,
    neighbourhood,
    select_tokens,
    sliding_window,
)
from saccade.kernels.plan import (
    HIDDEN,
    batch_plan,
    block_scores,
    box_partition,
    build_plan,
    cut_blocks,
    pack_selection,
    partition_blocks,
    pool,
    recurrent_partition,
    select_top_k,
    select_top_p,
    top_k_key_bias,
)
from saccade.policy.network.layout import MASKS, TokenLayout


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1)])
@pytest.mark.parametrize("width", [1, 32, 72, 256])
def test_ragged_segments_of_odd_sizes(agree, heads, width):
    lengths = [37, 1, 0, 64, 90]
    levels = concatenate_segments([coupled(length - length // 3, length // 3) for length in lengths])
    agree(levels, lengths, heads=heads, width=width)


@pytest.mark.parametrize("tiles", [(16, 128), (64, 64), (128, 16)])
def test_results_do_not_depend_on_tiles(agree, tiles):
    agree(causal(150, window=40), [150], tiles=tiles, heads=(2, 1), bias=numbers(1, 150))


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_of_the_trunk_pruned_and_padded(agree, mask):
    layout = TokenLayout(visual=40, text=13, slots=9, mask=mask)
    valid = torch.arange(13)[None] < torch.tensor([13, 7])[:, None]
    high, level = layout.levels(valid)
    high = high.expand(2, -1)
    kept = torch.cat([torch.arange(0, 40, 3), torch.arange(40, high.shape[1])])
    high, level = high[:, kept].reshape(1, -1), level[:, kept].reshape(1, -1)
    agree(IntervalLevels(torch.zeros_like(high), high, level), [len(kept)] * 2, heads=(2, 1))


def test_sliding_windows_see_what_is_near():
    levels = sliding_window(9, before=2, behind=1)
    seen = interval_mask(*levels)[0]
    assert seen.tolist() == [[-2 <= key - query <= 1 for key in range(9)] for query in range(9)]
    assert interval_mask(*causal(9, window=3))[0].tolist() == [[0 <= q - k < 3 for k in range(9)] for q in range(9)]


@pytest.mark.parametrize("causal_axes", [(), (True, False, False)])
@pytest.mark.parametrize(("grid", "window"), [((3, 5, 4), (2, 3, 3)), ((4, 4, 4), (1, 4, 3)), ((2, 1, 7), (2, 1, 5))])
def test_neighbourhood_boxes_are_those_of_a_walk_through_the_grid(agree, grid, window, causal_axes):
    levels = neighbourhood(grid, window, causal_axes=causal_axes)
    places = list(itertools.product(*map(range, grid)))

    def near(axis, query, key):
        size, edge = grid[axis], window[axis]
        if causal_axes and causal_axes[axis]:
            return 0 <= query - key < edge
        first = min(max(query - edge // 2, 0), size - edge)
        return first <= key < first + edge

    mask = interval_mask(*levels).all(0)
    assert mask.tolist() == [
        [all(near(axis, query[axis], key[axis]) for axis in range(3)) for key in places] for query in places
    ]
    order = box_partition(grid, (2, 2, 2)).order
    comparison = agree(select_tokens(levels, order, order), [len(places)])
    plain = agree(levels, [len(places)])
    assert comparison.output.shape == plain.output.shape


def test_hidden_keys_and_queries_that_see_nothing(agree):
    levels = hide_keys(causal(90), torch.arange(90) % 2 == 0)
    levels = levels._replace(high=levels.high.clone(), low=levels.low.clone())
    levels.high[0, 30:50] = -1
    levels.low[0, 60:] = 1000
    comparison = agree(levels, [90], bias=numbers(2, 90))
    assert not comparison.output[30:50].any() and not comparison.output[60:].any()
    assert not comparison.gradients[0][60:].any() and not comparison.gradients[1][::2].any()


def test_hidden_key_is_masked_for_the_highest_bound():
    plan = build_plan(torch.tensor([-HIDDEN]), torch.tensor([HIDDEN]), torch.tensor([HIDDEN, 0]))
    value = torch.stack([torch.full((1, 4), 1e9), torch.ones(1, 4)])
    output, _ = block_sparse_attention(torch.zeros(1, 1, 4), torch.zeros(2, 1, 4), value, plan)
    assert output.unique().tolist() == [1.0]


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 5), (5, 0), (1, 1), (1, 70), (70, 1)])
def test_very_few_tokens(agree, queries, keys):
    agree(full_attention(queries, keys), [queries], [keys], bias=numbers(1, keys))


def test_tokens_behind_the_last_segment_see_and_are_seen_by_nothing(agree):
    levels = concatenate_segments([full_attention(20, 20), full_attention(30, 30)])
    comparison = agree(levels, [20, 10])
    assert not comparison.output[30:].any() and comparison.log_sum_exp[:, 30:].isneginf().all()
    assert not any(gradient[30:].any() for gradient in comparison.gradients)


def test_a_bias_moves_hides_and_learns(agree):
    bias = numbers(2, 80)
    bias[:, ::3] = float("-inf")
    bias[0, :] = float("-inf")
    comparison = agree(causal(80), [80], heads=(4, 2), bias=bias)
    assert not comparison.output[:, :2].any() and comparison.output[3:, 2:].any()
    assert not comparison.gradients[3][:, ::3].any()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_levels_in_any_number_of_channels(data):
    rows, columns, channels = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def levels(count):
        return torch.randint(-4, 5, (channels, count), generator=generator)

    low, high, level = levels(rows), levels(rows) + 3, levels(columns)
    mask = interval_mask(low, high, level).all(0)
    plan = build_plan(low, high, level, query_tile=16, key_tile=16)
    query, key, value = (torch.randn(count, 1, 8, generator=generator) for count in (rows, columns, columns))
    output, _ = block_sparse_attention(query, key, value, plan)
    expected = attention(*(part.movedim(0, 1)[None] for part in (query, key, value)), mask) if columns else output * 0
    assert (output - (expected[0].movedim(0, 1) if columns else expected)).abs().amax() < 1e-5 if rows else True


def test_gradients_are_those_of_finite_differences():
    levels = hide_keys(coupled(9, 4), torch.arange(13) == 3)
    plan = build_plan(*levels, query_lengths=[13], key_lengths=[13])
    parts = [numbers(13, heads, 5, seed=heads, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2)]
    bias = numbers(2, 13, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *four: block_sparse_attention(*four[:3], plan, bias=four[3]), [*parts, bias], fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_results_are_rounded_once(compare, dtype):
    comparison = compare(coupled(60, 10), [70], dtype=dtype, heads=(4, 2))
    step = torch.finfo(dtype).eps
    assert comparison.output.dtype == dtype
    assert comparison.errors["log_sum_exp"] < 5e-6
    assert max(comparison.errors.values()) < 4 * step


def test_results_repeat_bit_by_bit(compare):
    first, second = (compare(causal(90), [40, 50], bias=numbers(1, 90)) for _ in range(2))
    assert first.output.equal(second.output) and first.log_sum_exp.equal(second.log_sum_exp)
    assert all(left.equal(right) for left, right in zip(first.gradients, second.gradients, strict=True))


@pytest.mark.parametrize("scope", ["row", "head"])
def test_blocks_that_each_query_chose(agree, scope):
    lengths = [100, 60]
    levels = concatenate_segments([full_attention(length, length) for length in lengths])
    blocks = cut_blocks(160, 16, lengths=lengths, longest=100)
    query, key = numbers(160, 2, 32), numbers(160, 1, 32, seed=1)
    scores = block_scores(query, pool(key, blocks), blocks, blocks.segment)
    own = torch.nn.functional.one_hot(blocks.block_in_segment, blocks.max_per_segment).bool()
    if scope == "row":
        chosen = select_top_k(scores, 2, forced=own)
        assert (chosen.sum(-1) <= 3).all() and (chosen & own).any(-1).all()
    else:
        chosen = select_top_p(scores, 0.25, scope="head", segment=blocks.segment, forced=own)
    agree(levels, lengths, chosen=chosen, selection=pack_selection(chosen, blocks), tiles=(64, 16))
    always = torch.arange(160) >= 150
    selection = pack_selection(chosen, blocks, always)
    agree(levels, lengths, chosen=chosen, selection=selection)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_slabs_columns_and_boxes_of_a_grid_in_turn(agree, layer):
    partition = recurrent_partition((4, 5, 6), (2, (3, 3), (2, 3, 3)), layer)
    blocks = partition_blocks(partition, copies=2)
    chosen = torch.rand(2, 240, blocks.max_per_segment, generator=torch.Generator().manual_seed(layer)) < 0.4
    levels = concatenate_segments([full_attention(120, 120)] * 2)
    agree(levels, [120, 120], chosen=chosen, selection=pack_selection(chosen, blocks))


def test_the_best_keys_of_a_learned_score(agree):
    score = numbers(1, 80)
    bias = top_k_key_bias(score, 7)
    assert bias.isfinite().sum() == 7 and bias.nan_to_num(neginf=0).sum() == score.topk(7).values.sum()
    agree(causal(80), [80], bias=bias)


def test_a_batch_is_the_same_as_its_tokens_packed():
    high = torch.arange(40).expand(3, -1)
    plan = batch_plan(torch.zeros_like(high), high, high)
    query, key, value = (numbers(3, 40, heads, 16, seed=heads).transpose(1, 2) for heads in (4, 2, 2))
    bias = numbers(3, 2, 40)
    output, log_sum_exp = batched_block_sparse_attention(query, key, value, plan, bias=bias)
    assert output.shape == (3, 4, 40, 16) and log_sum_exp.shape == (3, 4, 40)
    mask = interval_mask(torch.zeros_like(high), high, high)[:, None]
    added = torch.where(mask, bias.repeat_interleave(2, 1)[:, :, None], float("-inf"))
    repeated = (part.repeat_interleave(2, 1) for part in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=added)
    assert (output - expected).abs().max() < 1e-5


def test_triton_is_not_imported_where_no_kernel_runs():
    script = (
        "import sys, torch; from saccade.kernels.block_sparse import *; from saccade.kernels.plan import *;"
        "plan = build_plan(*causal(9)); parts = [torch.ones(9, 1, 4, requires_grad=True) for _ in range(3)];"
        "block_sparse_attention(*parts, plan)[0].sum().backward(); print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False"]
