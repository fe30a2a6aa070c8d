"""Linear attention without Triton: against the recurrence in float64, and as a citizen of torch."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from saccade.kernels.gate import linear_attention_cases
from saccade.kernels.gate.compile import table, try_compile
from saccade.kernels.linear_attention import alibi_log_decays, linear_attention
from saccade.kernels.linear_attention.reference import linear_attention_reference

CASES = {
    "ragged": ([70, 33, 128], 0, 2, 32, 32),
    "one_token": ([1], 0, 1, 1, 1),
    "empty_segments_and_a_tail": ([0, 64, 0, 65, 1], 7, 3, 20, 40),
    "wider_than_a_tile": ([130], 5, 2, 136, 72),
    "one_token_of_each": ([1] * 5, 0, 2, 8, 8),
    "no_tokens": ([0], 0, 1, 8, 8),
    "no_segments": ([], 3, 2, 8, 8),
}


def inputs(lengths, tail, heads, width, value_width, dtype=torch.float32, seed=0):
    """Query, key and value as views of one projection, log decay, boundaries, state."""
    generator = torch.Generator().manual_seed(seed)
    joint = torch.randn(sum(lengths) + tail, heads, 2 * width + value_width, generator=generator).to(dtype)
    query, key, value = joint.split([width, width, value_width], dim=-1)
    state = torch.randn(len(lengths), heads, width, value_width, generator=generator)
    state = state.double() if dtype == torch.float64 else state
    boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    parts = [part.detach().requires_grad_() for part in (query, key, value, state)]
    return (*parts[:3], alibi_log_decays(heads), boundaries, parts[3])


def with_gradients(function, given, seed=1):
    """Return output, final state and the gradients of query, key, value and state."""
    output, final = function(*given)
    generator = torch.Generator().manual_seed(seed)
    above = [torch.randn(part.shape, generator=generator).to(part) for part in (output, final)]
    leaves = (*given[:3], given[5])
    return (output, final, *torch.autograd.grad((output, final), leaves, above, materialize_grads=True))


def in_float64(given):
    parts = [part.detach().double().requires_grad_(part.requires_grad) for part in given]
    return (*parts[:4], given[4], parts[5])


def assert_near(got, expected, tolerance):
    for name, one, other in zip(("output", "final", "query", "key", "value", "state"), got, expected, strict=True):
        assert one.shape == other.shape
        if other.numel():
            error = (one.double() - other).abs().max() / other.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)]
)
def test_outputs_and_gradients_are_those_of_the_recurrence(case, dtype, tolerance):
    given = inputs(*CASES[case], dtype=dtype)
    expected = with_gradients(linear_attention_reference, in_float64(given))
    assert_near(with_gradients(linear_attention, given), expected, tolerance)


def test_gradients_are_those_of_finite_differences():
    query, key, value, log_decay, boundaries, state = inputs([3, 2], 1, 1, 2, 3, dtype=torch.float64)

    def run(*leaves):
        return linear_attention(*leaves[:3], log_decay, boundaries, leaves[3])

    assert torch.autograd.gradcheck(run, (query, key, value, state))


def test_without_a_state_it_starts_from_zero_and_the_scale_is_that_of_the_width():
    query, key, value, log_decay, boundaries, state = inputs([70, 5], 0, 2, 16, 8)
    output, final = linear_attention(query, key, value, log_decay, boundaries)
    zero = torch.zeros_like(state)
    again = linear_attention(query, key, value, log_decay, boundaries, zero, scale=0.25)
    assert output.equal(again[0])
    assert final.equal(again[1])


@pytest.mark.parametrize("cut", [1, 64, 77])
def test_a_state_carried_over_two_calls_is_that_of_one_call(cut):
    query, key, value, log_decay, _, state = inputs([150], 0, 2, 24, 16, dtype=torch.float64)
    whole = linear_attention(query, key, value, log_decay, torch.tensor([0, 150]), state)
    first, carried = linear_attention(query[:cut], key[:cut], value[:cut], log_decay, torch.tensor([0, cut]), state)
    second, final = linear_attention(
        query[cut:], key[cut:], value[cut:], log_decay, torch.tensor([0, 150 - cut]), carried
    )
    torch.testing.assert_close(torch.cat([first, second]), whole[0])
    torch.testing.assert_close(final, whole[1])
    gradients = [
        torch.autograd.grad((part.square().sum() + last.square().sum()), (query, state), retain_graph=True)
        for part, last in ((whole[0], whole[1]), (torch.cat([first, second]), final))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_segments_do_not_see_one_another():
    query, key, value, log_decay, boundaries, state = inputs([70, 33], 0, 2, 8, 8)
    together, finals = linear_attention(query, key, value, log_decay, boundaries, state)
    for index, (start, stop) in enumerate(itertools.pairwise(boundaries.tolist())):
        alone = [part[start:stop] for part in (query, key, value)]
        output, final = linear_attention(*alone, log_decay, torch.tensor([0, stop - start]), state[index : index + 1])
        torch.testing.assert_close(output, together[start:stop])
        torch.testing.assert_close(final[0], finals[index])


def test_two_runs_agree_bit_by_bit_and_no_memory_is_left_unwritten(poisoned_memory):
    given = inputs(*CASES["empty_segments_and_a_tail"])
    first, second = (with_gradients(linear_attention, given) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert not any(part.isnan().any() for part in first)
    assert not first[0][-7:].any()


@pytest.fixture
def poisoned_memory():
    """Fill what is allocated with NaN, as torch does for deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_operator_passes_opcheck():
    given = inputs([70, 5], 1, 2, 8, 4)
    torch.library.opcheck(torch.ops.saccade.linear_attention.default, (*given, 0.5))


def test_it_compiles_to_one_graph_for_all_lengths():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_attention, fullgraph=True, dynamic=True, backend=counter)
    counts = set()
    # The sizes of the first call differ, for the compiler takes equal ones for the same.
    for lengths in ([70, 0, 9, 1, 33], [9, 3, 130], [64, 64, 2, 5]):
        given = inputs(lengths, 1, 2, 8, 4)
        assert_near(with_gradients(compiled, given), with_gradients(linear_attention, given), 1e-7)
        counts.add(counter.frame_count)
    assert len(counts) == 1


class Memory(torch.nn.Module):
    def forward(self, query, key, value, log_decay, boundaries, state):
        return linear_attention(query, key, value, log_decay, boundaries, state)


def test_it_exports_with_dynamic_lengths():
    given = [part.detach() for part in inputs([70, 33], 2, 2, 8, 4)]
    tokens, segments, ends = (torch.export.Dim.AUTO for _ in range(3))
    shapes = ({0: tokens}, {0: tokens}, {0: tokens}, {}, {0: ends}, {0: segments})
    exported = torch.export.export(Memory(), tuple(given), dynamic_shapes=shapes).module()
    other = [part.detach() for part in inputs([9, 3, 130], 0, 2, 8, 4)]
    for got, expected in zip(exported(*other), linear_attention(*other), strict=True):
        assert got.equal(expected)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda part: part[0], "query: got shape \\[2, 8\\], expected \\[any, any, any\\]"),
        (0, lambda part: part.int(), "query: got int32, expected bfloat16 or float16 or float32 or float64"),
        (1, lambda part: part[:-1], "key: got shape \\[4, 2, 8\\], expected \\[5, 2, 8\\]"),
        (1, lambda part: part.half(), "key: got float16, expected float32"),
        (1, lambda part: part.to("meta"), "key: got device meta, expected cpu"),
        (2, lambda part: part[:, :1], "value: got shape \\[5, 1, 4\\]"),
        (2, lambda part: part[..., :0], "value: got 0 numbers in a head, expected 1 or more"),
        (3, lambda part: part[:1], "log_decay: got shape \\[1\\], expected \\[2\\]"),
        (3, lambda part: part.double(), "log_decay: got float64, expected float32"),
        (3, lambda part: part.requires_grad_(), "log_decay: got a tensor that requires a gradient"),
        (4, lambda part: part.float(), "boundaries: got float32, expected int32 or int64"),
        (4, lambda part: part[:0], "boundaries: got 0 boundaries, expected 1 or more"),
        (4, lambda part: part + 1, "boundaries: got \\[1, 4, 6\\], expected them to ascend from 0 to at most 5"),
        (4, lambda part: torch.tensor([0, 4, 3]), "boundaries: got \\[0, 4, 3\\]"),
        (5, lambda part: part[0], "state: got shape \\[2, 8, 4\\], expected \\[2, 2, 8, 4\\]"),
        (5, lambda part: part[:1], "state: got shape \\[1, 2, 8, 4\\], expected \\[2, 2, 8, 4\\]"),
        (5, lambda part: part.bfloat16(), "state: got bfloat16, expected float32"),
    ],
)
def test_invalid_argument_is_named(argument, change, message):
    given = [part.detach() for part in inputs([3, 2], 0, 2, 8, 4)]
    given[argument] = change(given[argument])
    with pytest.raises(ValueError, match=message):
        linear_attention(*given)


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_and_use_its_tensor_cores():
    pytest.importorskip("triton")
    results = [try_compile(case) for case in linear_attention_cases.cases()]
    print(table(results))
    assert results
    assert not [(result.name, result.complaints) for result in results if result.complaints]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)]
)
def test_the_kernels_agree_on_a_gpu(case, dtype, tolerance, poisoned_memory):
    given = inputs(*CASES[case], dtype=dtype)
    expected = with_gradients(linear_attention_reference, in_float64(given))
    there = [part.detach().cuda().requires_grad_(part.requires_grad) for part in given]
    first, second = ([part.cpu() for part in with_gradients(linear_attention, there)] for _ in range(2))
    assert_near(first, expected, tolerance)
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


def test_the_decay_ladder_is_that_of_alibi():
    assert alibi_log_decays(8).tolist() == [-(2.0**-power) for power in range(1, 9)]
