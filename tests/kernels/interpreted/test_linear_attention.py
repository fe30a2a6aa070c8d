"""The kernels of linear attention, run by Triton's interpreter, against the recurrence in float64."""

import itertools
import os

import pytest
import torch

from saccade.kernels.linear_attention import alibi_log_decays, linear_attention, torch_path
from saccade.kernels.linear_attention.reference import linear_attention_reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process started with TRITON_INTERPRET=1", allow_module_level=True)

from saccade.kernels.linear_attention import kernel

CASES = {
    "ragged": ([70, 33, 128], 0, 2, 32, 32),
    "one_token": ([1], 0, 1, 1, 1),
    "empty_segments_and_a_tail": ([0, 64, 0, 65, 1], 7, 2, 20, 40),
    "wider_than_a_tile": ([66], 70, 1, 40, 72),
    "no_tokens": ([0], 0, 1, 8, 8),
    "no_segments": ([], 3, 2, 8, 8),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what is allocated with NaN, as torch does for deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def inputs(lengths, tail, heads, width, value_width, dtype=torch.float32, seed=0):
    """Query, key and value as views of one projection, log decay, boundaries, state."""
    generator = torch.Generator().manual_seed(seed)
    joint = torch.randn(sum(lengths) + tail, heads, 2 * width + value_width, generator=generator).to(dtype)
    query, key, value = joint.split([width, width, value_width], dim=-1)
    state = torch.randn(len(lengths), heads, width, value_width, generator=generator)
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    parts = [part.detach().requires_grad_() for part in (query, key, value, state)]
    return (*parts[:3], alibi_log_decays(heads), boundaries, parts[3])


def with_gradients(function, given, seed=1):
    """Return output, final state and the gradients of query, key, value and state."""
    output, final = function(*given)
    generator = torch.Generator().manual_seed(seed)
    above = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in (output, final)]
    leaves = (*given[:3], given[5])
    return (output, final, *torch.autograd.grad((output, final), leaves, above, materialize_grads=True))


def errors(given, got):
    """Return the largest error of each result, as a share of the largest expected value, or of 1."""
    parts = [part.detach().double().requires_grad_(part.requires_grad) for part in given]
    expected = with_gradients(linear_attention_reference, (*parts[:4], given[4], parts[5]))
    shares = {}
    for name, one, other in zip(("output", "final", "query", "key", "value", "state"), got, expected, strict=True):
        assert one.shape == other.shape
        if other.numel():
            difference = (one.double() - other).detach().abs().max()
            shares[name] = float(difference / other.detach().abs().max().clamp(min=1))
    return shares


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_recurrence(case):
    given = inputs(*CASES[case])
    found = errors(given, with_gradients(linear_attention, given))
    assert all(error <= 2e-6 for error in found.values()), found


@pytest.mark.parametrize(("lengths", "tail"), [([1, 200] * 65, 0), ([0, 0], 300), ([64, 128], 1), ([], 0)])
def test_the_table_of_chunks_lists_each_once_and_is_empty_behind_them(lengths, tail):
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)])
    tokens = sum(lengths) + tail
    chunks, first = kernel.chunk_plan(boundaries, tokens)
    expected = torch_path.chunk_plan(boundaries, tokens)
    count = len(expected.start)
    assert first.tolist() == expected.first
    assert chunks[:count, 1].equal(expected.start.int())
    assert chunks[:count, 2].equal(expected.stop.int())
    assert chunks[:count, 0].tolist() == [
        segment for segment, length in enumerate(lengths) for _ in range(-(-length // kernel.CHUNK))
    ]
    assert (chunks[count:, 0] == -1).all()
    behind = [(start, stop) for _, start, stop in chunks[count:].tolist() if start < stop]
    assert [place for start, stop in behind for place in range(start, stop)] == list(range(tokens - tail, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_go_in_and_out(dtype):
    given = inputs([70, 3], 1, 2, 16, 24, dtype=dtype)
    got = with_gradients(linear_attention, given)
    assert [part.dtype for part in got] == [dtype, torch.float32, dtype, dtype, dtype, torch.float32]
    # The interpreter cuts bfloat16 off where a device rounds it: up to two units in its last place.
    found = errors(given, got)
    assert all(error <= (1.6e-2 if dtype == torch.bfloat16 else 1e-3) for error in found.values()), found


def test_a_state_carried_over_two_calls_is_that_of_one_call():
    query, key, value, log_decay, _, state = inputs([100], 0, 1, 16, 16)
    whole = linear_attention(query, key, value, log_decay, torch.tensor([0, 100]), state)
    first, carried = linear_attention(query[:70], key[:70], value[:70], log_decay, torch.tensor([0, 70]), state)
    second, final = linear_attention(query[70:], key[70:], value[70:], log_decay, torch.tensor([0, 30]), carried)
    torch.testing.assert_close(torch.cat([first, second]), whole[0], rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(final, whole[1], rtol=2e-6, atol=2e-5)
    gradients = [
        torch.autograd.grad((part.sum() + last.sum()), (query, state), retain_graph=True)
        for part, last in (whole, (torch.cat([first, second]), final))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-5)


def test_two_runs_agree_bit_by_bit():
    given = inputs([65, 3], 2, 1, 16, 16)
    first, second = (with_gradients(linear_attention, given) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


def test_strides_do_not_matter():
    given = inputs([65, 3], 2, 2, 16, 24)
    expected = linear_attention(*given)
    reordered = [part.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0) for part in given[:3]]
    by_head = [part.detach().transpose(0, 1).contiguous().transpose(0, 1) for part in given[:3]]
    for parts in (reordered, by_head):
        for got, wanted in zip(linear_attention(*parts, *given[3:]), expected, strict=True):
            assert got.equal(wanted)
