"""Plans: tiles and lists against the mask that they stand for, blocks, means, scores, choices and partitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.kernels.block_sparse import IntervalLevels, block_levels, causal, interval_mask
from saccade.kernels.block_sparse.reference import packed_mask
from saccade.kernels.plan import (
    HIDDEN,
    block_scores,
    box_partition,
    build_plan,
    complement,
    cut_blocks,
    pack_selection,
    partition_blocks,
    pool,
    recurrent_partition,
    select_top_k,
    select_top_p,
    top_k_key_bias,
)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(selection_bits):
    """Return a selection's words as booleans."""
    return ((selection_bits[..., None] >> torch.arange(32, dtype=torch.int32)) & 1).bool().flatten(-2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_lists_hold_every_overlapping_pair_of_tiles_and_mark_full_ones(data):
    rows = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    columns = data.draw(st.lists(st.integers(0, 40), min_size=len(rows), max_size=len(rows)))
    tiles = data.draw(st.sampled_from([(16, 16), (16, 32), (32, 16)]))
    channels, spread = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 30))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def levels(count):
        return torch.randint(-3, 3, (channels, count), generator=generator)

    low, high, level = levels(sum(rows) + 5), levels(sum(rows) + 5) + spread, levels(sum(columns)).sort(1).values
    selection = chosen = block = None
    if data.draw(st.booleans()):
        blocks = cut_blocks(sum(columns), data.draw(st.sampled_from([5, 16])), lengths=columns)
        chosen = torch.rand(2, sum(rows) + 5, blocks.max_per_segment, generator=generator) < data.draw(st.floats(0, 1))
        selection = pack_selection(chosen, blocks, torch.rand(sum(columns), generator=generator) < 0.1)
        block = selection.block
    plan = build_plan(
        low,
        high,
        level,
        query_lengths=rows,
        key_lengths=columns,
        selection=selection,
        query_tile=tiles[0],
        key_tile=tiles[1],
    )
    mask = packed_mask(low, high, level, rows, columns, chosen, block)
    for heads, (counts, lists) in enumerate(
        ((plan.row_counts, plan.row_lists), (plan.column_counts, plan.column_lists))
    ):
        own, other = (plan.query_tiles, plan.key_tiles)[:: 1 - 2 * heads]
        for head in range(counts.shape[0]):
            view = mask[head] if heads == 0 else mask[head].T
            for number, (start, length, _) in enumerate(own.tolist()):
                partial, full = counts[head, number].tolist()
                listed = lists[head, number].tolist()
                part, whole = set(listed[:partial]), set(listed[len(listed) - full :])
                assert len(part) == partial and len(whole) == full and not part & whole
                for place, (first, size, _) in enumerate(other.tolist()):
                    pairs = view[start : start + length, first : first + size]
                    if place in whole:
                        assert pairs.all() and (size if heads == 0 else length) == tiles[1]
                    elif place not in part:
                        assert not pairs.any()


def test_tiles_stay_within_segments_and_cover_the_tail():
    plan = build_plan(*causal(100), query_lengths=[40, 0, 35], key_lengths=[70, 0, 0], query_tile=32, key_tile=64)
    assert plan.query_tiles.tolist() == [
        [0, 32, 0],
        [32, 8, 0],
        [40, 32, 2],
        [72, 3, 2],
        [75, 25, -1],
        [0, 0, -1],
        [0, 0, -1],
    ]
    assert plan.key_tiles[:3].tolist() == [[0, 64, 0], [64, 6, 0], [70, 30, -2]]


def test_lengths_may_stay_on_the_device_as_tensors():
    one, other = (
        build_plan(*causal(50), query_lengths=lengths, key_lengths=lengths)
        for lengths in ([20, 30], torch.tensor([20, 30]))
    )
    assert all(
        left.equal(right) if isinstance(left, torch.Tensor) else left == right
        for left, right in zip(one, other, strict=True)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=4), st.integers(0, 5), st.integers(1, 12))
def test_blocks_and_their_means(lengths, behind, size):
    tokens = sum(lengths) + behind
    blocks = cut_blocks(tokens, size, lengths=lengths)
    values = numbers(tokens, 2, 3)
    means = pool(values, blocks)
    covered = []
    for number, (start, length, segment) in enumerate(blocks.tiles.tolist()):
        covered += range(start, start + length)
        expected = values[start : start + length].mean(0) if length else torch.zeros(2, 3)
        torch.testing.assert_close(means[number], expected)
        if segment >= 0:
            assert blocks.segment[start : start + length].eq(segment).all()
            assert blocks.block_in_segment[start : start + length].eq(number - blocks.first[segment]).all()
    assert covered == list(range(tokens))
    assert blocks.count.tolist() == [-(-length // size) for length in lengths]


def test_means_have_the_gradient_of_means():
    blocks = cut_blocks(23, 4, lengths=[9, 11])
    values = torch.randn(23, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tokens: pool(tokens, blocks), [values])


def test_scores_are_those_of_the_blocks_of_the_own_segment():
    blocks = cut_blocks(50, 8, lengths=[30, 15])
    query, key = numbers(50, 4, 16), numbers(50, 2, 16, seed=1)
    scores = block_scores(query, pool(key, blocks), blocks, blocks.segment)
    assert scores.shape == (4, 50, blocks.max_per_segment)
    for row, head in ((0, 0), (29, 3), (31, 2), (44, 1)):
        start, count = (0, 4) if row < 30 else (30, 2)
        end = 30 if row < 30 else 45
        means = [key[place : min(place + 8, end), head // 2].mean(0) for place in range(start, end, 8)]
        torch.testing.assert_close(scores[head, row, :count], torch.stack(means) @ query[row, head])
        assert scores[head, row, count:].isneginf().all()
    assert scores[:, 45:].isneginf().all()


def test_selection_takes_the_best_and_the_forced_blocks_but_no_absent_ones():
    scores = torch.tensor([[[3.0, 1.0, 2.0, 2.0], [float("-inf"), 5.0, float("-inf"), 0.0]]])
    assert select_top_k(scores, 2).int().tolist() == [[[1, 0, 1, 0], [0, 1, 0, 1]]]
    forced = torch.tensor([[False, True, False, False], [True, False, False, False]])
    assert select_top_k(scores, 1, forced).int().tolist() == [[[1, 1, 0, 0], [0, 1, 0, 0]]]
    assert select_top_k(scores, 9).sum().item() == 6
    assert not select_top_k(scores, 0).any()


@pytest.mark.parametrize("scope", ["row", "head"])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_share_selects_the_shortest_prefix_of_the_ranking_that_reaches_it(scope, share):
    scores = numbers(2, 12, 7)
    segment = torch.arange(12) // 5
    for row in range(12):
        scores[:, row, 7 - int(segment[row]) :] = float("-inf")
    forced = torch.nn.functional.one_hot(torch.arange(12) % 5, 7).bool()
    chosen = select_top_p(scores, share, scope=scope, segment=segment, forced=forced)
    groups = (
        [[row] for row in range(12)] if scope == "row" else [(segment == n).nonzero()[:, 0].tolist() for n in range(3)]
    )
    for head in range(2):
        for rows in groups:
            cells = [(row, block) for row in rows for block in range(7) if scores[head, row, block] > float("-inf")]
            values = {cell: scores[head][cell].item() for cell in cells}
            least, greatest = min(values.values()), max(values.values())
            weight = {cell: (value - least) / (greatest - least) for cell, value in values.items()}
            ranked = sorted(cells, key=lambda cell: (not forced[cell], -weight[cell]))
            wanted, held = {cell for cell in cells if forced[cell]}, 0.0
            for cell in ranked:
                if held >= share * sum(weight.values()) - 1e-6:
                    break
                wanted.add(cell)
                held += weight[cell]
            found = {cell for cell in cells if chosen[head][cell]}
            # At a share of everything rounding decides about cells of no weight.
            assert {cell for cell in wanted ^ found if weight[cell] > 1e-5} == set()
    assert not (chosen & scores.isneginf()).any()


def test_equal_scores_are_shared_evenly():
    chosen = select_top_p(torch.zeros(1, 3, 8), 0.25)
    assert chosen.sum(-1).tolist() == [[2, 2, 2]]


def test_a_selection_is_packed_bit_by_bit():
    blocks = cut_blocks(150, 2)
    chosen = torch.rand(3, 150, 75, generator=torch.Generator().manual_seed(0)) < 0.5
    selection = pack_selection(chosen, blocks)
    assert selection.selection_bits.shape == (3, 150, 3) and selection.selection_bits.dtype == torch.int32
    assert bits(selection.selection_bits)[..., :75].equal(chosen) and not bits(selection.selection_bits)[..., 75:].any()
    assert selection.block.tolist() == [place // 2 for place in range(150)]
    rest = complement(selection, torch.arange(75))
    assert bits(rest.selection_bits)[..., :75].equal(~chosen)
    assert pack_selection(chosen, blocks, torch.arange(150) == 7).block[7] == -1


def test_the_best_keys_of_every_segment_keep_their_score_and_its_gradient():
    score = numbers(2, 20).requires_grad_()
    bias = top_k_key_bias(score, 3, torch.tensor([0, 2, 12, 19], dtype=torch.int32))
    for head in range(2):
        for start, end in ((0, 2), (2, 12), (12, 19)):
            kept = bias[head, start:end] > float("-inf")
            best = score[head, start:end].topk(min(3, end - start)).indices
            assert kept.nonzero()[:, 0].tolist() == sorted(best.tolist())
    bias.masked_fill(bias.isneginf(), 0).sum().backward()
    assert score.grad.equal((bias > float("-inf")).float())


@pytest.mark.parametrize(
    ("grid", "box"), [((4, 4), (2, 2)), ((3, 5, 7), (2, 2, 3)), ((9,), (4,)), ((1, 1, 1), (5, 5, 5))]
)
def test_partition_orders_tokens_by_box_and_back(grid, box):
    partition = box_partition(grid, box)
    tokens = torch.arange(partition.order.shape[0])
    assert tokens[partition.order][partition.inverse].equal(tokens)
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, len(grid))[partition.order]
    boxes = places // torch.tensor(box)
    start = 0
    for length in partition.lengths.tolist():
        assert (boxes[start : start + length] == boxes[start]).all()
        start += length
    assert start == len(tokens) and len(partition.lengths) == len(boxes.unique(dim=0))


def test_partitions_take_turns_from_layer_to_layer():
    grid, sizes = (4, 6, 6), (2, (3, 3), (2, 3, 3))
    counts = [len(recurrent_partition(grid, sizes, layer).lengths) for layer in range(4)]
    assert counts == [2, 4, 8, 2]
    blocks = partition_blocks(recurrent_partition(grid, sizes, 2), copies=2)
    assert blocks.size == 18 and blocks.max_per_segment == 8 and blocks.count.tolist() == [8, 8]
    assert blocks.block_in_segment[144:].equal(blocks.block_in_segment[:144]) and blocks.segment[144:].eq(1).all()
    assert partition_blocks(box_partition((5,), (2,))).size == 1


def test_block_is_visible_where_all_its_tokens_are():
    levels = IntervalLevels(
        torch.tensor([[0, 3]]), torch.tensor([[5, 9]]), torch.tensor([[0, 1, 2, 3, 4, 5, 6, HIDDEN, 8, 9]])
    )
    blocks = cut_blocks(10, 3)
    assert interval_mask(*block_levels(levels, blocks)).all(0)[:, :4].tolist() == [
        [True, True, False, False],
        [False, True, False, True],
    ]
