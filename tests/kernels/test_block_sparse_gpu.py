"""Block-sparse attention on a GPU: what an interpreter cannot show, such as short numbers, graphs and waiting."""

import pytest
import torch

from saccade.kernels.block_sparse import (
    block_sparse_attention,
    causal,
    concatenate_segments,
    coupled,
    full_attention,
    neighbourhood,
)
from saccade.kernels.plan import build_plan, cut_blocks, pack_selection, pool, select_top_k, tile_lists
from saccade.kernels.plan.index import lists_in_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

LENGTHS = [603, 1, 0, 130, 64]


def ragged():
    return concatenate_segments([coupled(length - length // 8, length // 8) for length in LENGTHS])


def limits(dtype):
    """Return how far outputs and gradients may be off, and log-sum-exps."""
    if dtype == torch.float32:
        return 1e-4, 1e-4
    return 12 * torch.finfo(dtype).eps, 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [32, 64, 72, 80, 128, 256])
def test_ragged_segments_in_all_dtypes(compare, width, dtype):
    errors = compare(ragged(), LENGTHS, heads=(8, 2), width=width, dtype=dtype, device="cuda").errors
    print(errors)
    assert errors.pop("log_sum_exp") < limits(dtype)[1]
    assert max(errors.values()) < limits(dtype)[0]


@pytest.mark.parametrize("splits", [0, 3])
@pytest.mark.parametrize("tiles", [(16, 16), (32, 128), (64, 64), (128, 32)])
def test_tiles_and_splits(compare, tiles, splits):
    bias = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    bias[:, ::5] = float("-inf")
    errors = compare(
        full_attention(56, 1000),
        [56],
        [1000],
        heads=(4, 2),
        width=64,
        bias=bias,
        tiles=tiles,
        splits=splits,
        device="cuda",
    ).errors
    assert max(errors.values()) < 1e-3


@pytest.mark.parametrize("size", [64, 20])
def test_chosen_blocks_and_boxes(compare, size):
    blocks = cut_blocks(512, size)
    chosen = torch.rand(4, 512, blocks.max_per_segment, generator=torch.Generator().manual_seed(0)) < 0.3
    levels = neighbourhood((8, 8, 8), (3, 5, 5))
    errors = compare(
        levels, [512], heads=(4, 2), width=64, chosen=chosen, selection=pack_selection(chosen, blocks), device="cuda"
    ).errors
    assert max(errors.values()) < 1e-4


def test_results_repeat_bit_by_bit(compare):
    bias = torch.linspace(-1, 1, sum(LENGTHS))[None]
    options = {"heads": (8, 2), "width": 64, "dtype": torch.bfloat16, "bias": bias, "device": "cuda"}
    first, second = (compare(ragged(), LENGTHS, **options) for _ in range(2))
    assert first.output.equal(second.output) and first.log_sum_exp.equal(second.log_sum_exp)
    assert all(left.equal(right) for left, right in zip(first.gradients, second.gradients, strict=True))


def test_lists_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    low, level = (
        torch.randint(-9, 9, (2, 900), generator=generator, dtype=torch.int32).sort(1).values for _ in range(2)
    )
    selection_bits = torch.randint(-(2**31), 2**31 - 1, (2, 900, 2), generator=generator, dtype=torch.int32)
    block = torch.randint(-1, 64, (900,), generator=generator, dtype=torch.int32)
    offsets = torch.tensor([0, 400, 400, 850], dtype=torch.int32)
    given = (low, low + 6, level, offsets, offsets, selection_bits, block)
    found = tile_lists(*(part.cuda() for part in given), 64, 32, 18, 32)
    for result, reference in zip(found, lists_in_torch(*given, (64, 32), (18, 32)), strict=True):
        assert result.cpu().equal(reference)


def test_nothing_waits_for_the_host_and_a_graph_can_be_captured():
    query, key, value = (torch.randn(900, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    high = torch.arange(900, device="cuda")
    lengths = torch.tensor([500, 400], device="cuda")

    def step():
        blocks = cut_blocks(900, 64, lengths=lengths, longest=500, device="cuda")
        means = pool(key, blocks)
        scores = torch.randn(4, 900, blocks.max_per_segment, device="cuda") + means.float().mean()
        plan = build_plan(
            high * 0,
            high,
            high,
            query_lengths=lengths,
            key_lengths=lengths,
            selection=pack_selection(select_top_k(scores, 3), blocks),
        )
        return block_sparse_attention(query, key, value, plan)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    plan = build_plan(*(part.cuda() for part in causal(900)))
    expected, _ = block_sparse_attention(query, key, value, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, _ = block_sparse_attention(query, key, value, plan)
    graph.replay()
    assert output.equal(expected)


def test_kernels_are_built_once_for_all_lengths():
    from saccade.kernels.block_sparse.kernel_forward import forward_kernel

    def built():
        return sum(len(caches[0]) for caches in forward_kernel.device_caches.values())

    counts = []
    for tokens in (64, 65, 128, 1, 700, 1024):
        plan = build_plan(*(part.cuda() for part in causal(tokens)))
        parts = (torch.randn(tokens, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        block_sparse_attention(*parts, plan, splits=1)
        counts.append(built())
    assert len(set(counts)) == 1
