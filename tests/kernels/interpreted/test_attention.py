"""The attention kernels, interpreted: outputs and gradients against float64, unwritten memory poisoned."""

import pytest
import torch

from saccade.kernels.block_sparse import (
    causal,
    concatenate_segments,
    coupled,
    full_attention,
    hide_keys,
    neighbourhood,
    select_tokens,
)
from saccade.kernels.plan import Selection, box_partition, build_plan, cut_blocks, pack_selection

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")


@pytest.fixture(autouse=True)
def poisoned():
    """Whatever is allocated without being filled holds numbers that are none."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


def choices(lengths, size, heads, seed=1):
    """A random choice among blocks, and the same as a selection."""
    blocks = cut_blocks(sum(lengths), size, lengths=lengths)
    chosen = (
        torch.rand(heads, sum(lengths), blocks.max_per_segment, generator=torch.Generator().manual_seed(seed)) < 0.5
    )
    return chosen, pack_selection(chosen, blocks)


@pytest.mark.parametrize("width", [32, 64, 72, 128, 256])
def test_head_sizes(agree, width):
    agree(coupled(60, 10), [70], heads=(1, 1), width=width)


def test_grouped_queries_ragged_segments_and_a_tail_that_belongs_to_none(agree):
    lengths = [50, 1, 0, 30]
    levels = concatenate_segments([coupled(length - length // 4, length // 4) for length in [*lengths, 9]])
    agree(levels, lengths, heads=(4, 2), tiles=(32, 64))


def test_bias_with_hidden_keys(agree):
    bias = torch.randn(2, 75, generator=torch.Generator().manual_seed(2))
    bias[:, ::3] = float("-inf")
    bias[1, :20] = float("-inf")
    agree(causal(75), [75], heads=(2, 1), bias=bias)


def test_hidden_keys_and_queries_that_see_nothing(agree):
    levels = hide_keys(causal(80), torch.arange(80) % 3 == 0)
    levels = levels._replace(high=levels.high.clone())
    levels.high[0, 30:50] = -1
    comparison = agree(levels, [80], tiles=(16, 64))
    assert not comparison.output[30:50].any() and not comparison.gradients[0][30:50].any()


def test_boxes_of_a_grid_in_three_channels(agree):
    order = box_partition((3, 6, 6), (1, 6, 6)).order
    agree(select_tokens(neighbourhood((3, 6, 6), (2, 3, 3)), order, order), [108], heads=(1, 1))


def test_blocks_chosen_by_each_query_of_each_head(agree):
    chosen, selection = choices([70, 45], 16, heads=2)
    levels = concatenate_segments([full_attention(70, 70), full_attention(45, 45)])
    agree(levels, [70, 45], chosen=chosen, selection=selection, tiles=(32, 16), heads=(2, 1))


def test_blocks_of_tiles_that_are_taken_piece_by_piece(agree):
    chosen, selection = choices([100], 64, heads=1)
    agree(full_attention(100, 100), [100], chosen=chosen, selection=selection, heads=(1, 1), width=256)


def test_blocks_that_are_no_tiles_and_keys_that_need_no_choosing(agree):
    chosen, selection = choices([70], 7, heads=1)
    block = selection.block.clone()
    block[60:] = -1
    agree(causal(70), [70], chosen=chosen, selection=Selection(selection.selection_bits, block, 1))


@pytest.mark.parametrize("splits", [2, 5])
def test_split_keys_for_few_queries(agree, splits):
    agree(full_attention(9, 150), [9], [150], tiles=(16, 32), heads=(2, 1), splits=splits)


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_very_few_tokens(agree, queries, keys):
    agree(full_attention(queries, keys), [queries], [keys])


def test_results_repeat_bit_by_bit(compare):
    bias = torch.linspace(-1, 1, 90)[None]
    first, second = (compare(coupled(70, 20), [90], bias=bias, splits=2) for _ in range(2))
    assert first.output.equal(second.output) and first.log_sum_exp.equal(second.log_sum_exp)
    assert all(left.equal(right) for left, right in zip(first.gradients, second.gradients, strict=True))


def test_half_precision_is_as_good_as_its_numbers(compare):
    comparison = compare(coupled(60, 10), [70], dtype=torch.float16)
    assert max(comparison.errors.values()) < 1e-2


def test_the_operator_passes_the_check_of_torch():
    place = torch.arange(20)
    plan = build_plan(place * 0, place, place, query_tile=16, key_tile=16)
    parts = [torch.randn(20, 1, 16, requires_grad=True) for _ in range(3)]
    passed = torch.library.opcheck(torch.ops.saccade.block_sparse_attention, (*parts, None, *plan, 0.25, 0))
    assert set(passed.values()) == {"SUCCESS"}
