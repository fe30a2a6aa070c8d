"""What block-sparse attention and its plans refuse: every error names the argument, what was got and expected."""

import pytest
import torch

from saccade.kernels.block_sparse import batched_block_sparse_attention, block_sparse_attention, causal, neighbourhood
from saccade.kernels.plan import (
    Selection,
    batch_plan,
    box_partition,
    build_plan,
    cut_blocks,
    pack_selection,
    pool,
    select_top_p,
)


def given(**changed):
    plan = build_plan(*causal(10))
    parts = {"query": torch.ones(10, 4, 8), "key": torch.ones(10, 2, 8), "value": torch.ones(10, 2, 8), "plan": plan}
    return parts | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.ones(11, 4, 8)}, r"query: got shape \[11, 4, 8\], expected \[10, any, any\]"),
        ({"query": torch.ones(10, 4)}, r"query: got shape \[10, 4\]"),
        ({"query": [1.0]}, "query: got list, expected a tensor"),
        ({"query": torch.ones(10, 4, 8).int()}, "query: got int32, expected bfloat16 or float16 or float32"),
        ({"query": torch.ones(10, 4, 8, device="meta")}, "query: got device meta, expected cpu"),
        ({"query": torch.ones(10, 4, 300)}, "query: got 300 numbers in a head, expected 1 to 256"),
        ({"query": torch.ones(10, 3, 8)}, "key: got 2 heads, expected a divisor of the query's number"),
        ({"key": torch.ones(10, 2, 9)}, r"key: got shape \[10, 2, 9\], expected \[10, any, 8\]"),
        ({"key": torch.ones(10, 2, 8).half()}, "key: got float16, expected float32"),
        ({"value": torch.ones(9, 2, 8)}, r"value: got shape \[9, 2, 8\], expected \[10, 2, 8\]"),
        ({"plan": build_plan(*causal(12))}, r"query: got shape \[10, 4, 8\], expected \[12, any, any\]"),
        ({"bias": torch.ones(2, 11)}, r"bias: got shape \[2, 11\], expected \[any, 10\]"),
        ({"bias": torch.ones(3, 10)}, "bias: got 3 heads, expected a divisor of the query's number"),
        ({"splits": -1}, "splits: got -1, expected 0 or more"),
    ],
)
def test_attention_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**given(**changed))


def test_a_plan_for_other_heads_is_refused():
    blocks = cut_blocks(10, 4)
    selection = pack_selection(torch.ones(3, 10, 3, dtype=torch.bool), blocks)
    plan = build_plan(*causal(10), selection=selection)
    with pytest.raises(ValueError, match="plan: got 3 heads, expected a divisor of the query's number"):
        block_sparse_attention(**given(plan=plan))


def test_a_batch_refuses():
    plan = batch_plan(*(torch.zeros(2, 5, dtype=torch.int64),) * 3)
    tokens = torch.ones(2, 4, 5, 8)
    with pytest.raises(ValueError, match=r"key: got shape \[3, 4, 5, 8\], expected \[2, any, any, 8\]"):
        batched_block_sparse_attention(tokens, torch.ones(3, 4, 5, 8), tokens, plan)
    with pytest.raises(ValueError, match=r"query: got shape \[12, 4, 8\], expected \[10, any, any\]"):
        batched_block_sparse_attention(*(torch.ones(2, 4, 6, 8),) * 3, plan)
    with pytest.raises(ValueError, match="plan: got 2 members of a batch, expected 1"):
        batched_block_sparse_attention(*(torch.ones(1, 4, 10, 8),) * 3, plan)
    with pytest.raises(ValueError, match="level: got 3 members of a batch, expected 2"):
        batch_plan(torch.zeros(2, 5).int(), torch.zeros(2, 5).int(), torch.zeros(3, 5).int())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"query_lengths": [4, 9], "key_lengths": [4, 6]},
            "query_lengths: got 13 tokens together, expected at most 10",
        ),
        ({"query_lengths": [4, 6], "key_lengths": [10]}, "key_lengths: got 1 segments, expected 2"),
        ({"query_lengths": [12, -2], "key_lengths": [4, 6]}, r"query_lengths: got \[12, -2\], expected no negative"),
        ({"query_lengths": [10]}, "query_lengths, key_lengths: got one of them, expected both or none"),
        ({"query_lengths": 3, "key_lengths": 3}, "query_lengths: got 3, expected a divisor of the tokens"),
        ({"query_tile": 48}, r"query_tile: got 48, expected one of \(16, 32, 64, 128\)"),
        ({"level": torch.zeros(2, 10).int()}, r"level: got shape \[2, 10\], expected \[1, any\]"),
        ({"low": torch.zeros(10)}, "low: got float32, expected int32 or int64"),
        ({"low": torch.zeros(4, 10).int()}, "low: got 4 channels, expected 1 to 3"),
        (
            {"selection": Selection(torch.zeros(1, 9, 1).int(), torch.zeros(10).int(), 1)},
            r"selection.selection_bits: got shape \[1, 9, 1\], expected \[any, 10, any\]",
        ),
    ],
)
def test_a_plan_refuses(options, message):
    given = dict(zip(("low", "high", "level"), causal(10), strict=True)) | options
    with pytest.raises(ValueError, match=message):
        build_plan(given.pop("low"), given.pop("high"), given.pop("level"), **given)


def test_masks_and_blocks_refuse():
    with pytest.raises(ValueError, match="window: got 0, expected 1 or more"):
        causal(5, window=0)
    with pytest.raises(ValueError, match=r"window: got \(3, 9\), expected 2 sizes, at least 1 and at most \(4, 4\)"):
        neighbourhood((4, 4), (3, 9))
    with pytest.raises(ValueError, match=r"box: got \(2,\), expected 2 sizes of 1 or more"):
        box_partition((4, 4), (2,))
    with pytest.raises(ValueError, match="size: got 0, expected 1 or more"):
        cut_blocks(10, 0)
    with pytest.raises(ValueError, match="share: got 0, expected more than 0, at most 1"):
        select_top_p(torch.zeros(1, 2, 3), 0)
    with pytest.raises(ValueError, match=r"tokens: got shape \[9, 1, 4\], expected \[10, any, any\]"):
        pool(torch.ones(9, 1, 4), cut_blocks(10, 5))
    with pytest.raises(ValueError, match=r"chosen: got shape \[1, 10, 3\], expected \[any, any, 2\]"):
        pack_selection(torch.ones(1, 10, 3, dtype=torch.bool), cut_blocks(10, 5))
