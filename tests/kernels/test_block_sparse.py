"""Interval-level attention: the mask cell by cell, queries that see nothing, and agreement between precisions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.kernels.block_sparse import attention, interval_mask


def tokens(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def by_hand(query, key, value, mask):
    """Attention with plain loops over what each query sees."""
    output = torch.zeros(*query.shape[:-1], value.shape[-1])
    for place in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:-1])).tolist():
        batch, head, row = place
        seen = mask.expand(*query.shape[:-1], key.shape[-2])[batch, head, row].nonzero()[:, 0]
        if len(seen):
            weight = (key[batch, head, seen] @ query[batch, head, row] / query.shape[-1] ** 0.5).softmax(0)
            output[batch, head, row] = weight @ value[batch, head, seen]
    return output


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_query_sees_the_keys_whose_level_lies_between_its_bounds(data):
    small = st.integers(-2, 6)
    queries, keys = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    low, high = (data.draw(st.lists(small, min_size=queries, max_size=queries)) for _ in range(2))
    level = data.draw(st.lists(small, min_size=keys, max_size=keys))
    mask = interval_mask(*(torch.tensor(values, dtype=torch.int64) for values in (low, high, level)))
    assert mask.tolist() == [[low[q] <= level[k] <= high[q] for k in range(keys)] for q in range(queries)]


def test_bounds_and_levels_may_differ_per_batch_row():
    low, high = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2])
    level = torch.tensor([[0, 1, 2], [0, 9, 2]])
    mask = interval_mask(low, high, level)
    assert mask.shape == (2, 3, 3)
    assert mask[0].equal(torch.ones(3, 3, dtype=torch.bool).tril())
    assert not mask[1, :, 1].any()


@pytest.mark.parametrize(("queries", "keys", "width"), [(1, 1, 1), (3, 5, 7), (5, 3, 8), (17, 33, 12)])
def test_it_agrees_with_attention_by_hand(queries, keys, width):
    query, key, value = (tokens(2, 3, size, width, seed=size) for size in (queries, keys, keys + 1))
    value = value[:, :, :keys]
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(5)) < 0.5
    torch.testing.assert_close(attention(query, key, value, mask), by_hand(query, key, value, mask))
    everything = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    torch.testing.assert_close(attention(query, key, value), by_hand(query, key, value, everything))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fully_masked_query_gets_zero_output_and_gradient(dtype):
    query, key, value = (tokens(2, 2, 5, 8, dtype=dtype, seed=seed) for seed in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, 0, 2] = False
    mask[1] = False
    output = attention(query, key, value, mask)
    output.float().square().sum().backward()
    assert output.dtype == dtype
    assert not output[0, :, 2].any() and not output[1].any()
    assert output[0, :, :2].any()
    for part in (query, key, value):
        assert part.grad.isfinite().all()
        assert not part.grad[1].any()
    assert not query.grad[0, :, 2].any()


def test_hidden_tokens_change_nothing():
    query, key, value = (tokens(1, 2, 4, 8, seed=seed) for seed in range(3))
    mask = torch.tensor([True, True, False, True]).expand(1, 1, 4, 4)
    poisoned = value.detach().clone()
    poisoned[:, :, 2] = 1e9
    shown = [0, 1, 3]
    torch.testing.assert_close(
        attention(query, key, poisoned, mask), attention(query, key[:, :, shown], value[:, :, shown])
    )


def test_bfloat16_agrees_with_float32_in_outputs_and_gradients():
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        # The same numbers for both: those that bfloat16 can hold.
        parts = [tokens(2, 2, 9, 16, dtype=torch.bfloat16, seed=seed).detach().to(dtype) for seed in range(3)]
        parts = [part.requires_grad_() for part in parts]
        output = attention(*parts, mask)
        output.float().square().sum().backward()
        found[dtype] = [output.detach().float(), *(part.grad.float() for part in parts)]
    for exact, rounded in zip(*found.values(), strict=True):
        torch.testing.assert_close(exact, rounded, rtol=2e-2, atol=2e-2)


def test_autocast_does_not_change_what_is_computed_on_the_cpu():
    query, key, value = (tokens(1, 1, 4, 8, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    plain = attention(query, key, value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(query, key, value).equal(plain)
