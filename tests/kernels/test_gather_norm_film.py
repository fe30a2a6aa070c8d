"""gather_norm_film without Triton: against its definition in float64, and as a citizen of torch."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from saccade.kernels.gate import gather_norm_film_cases
from saccade.kernels.gate.compile import table, try_compile
from saccade.kernels.gather_norm_film import gather_norm_film
from saccade.kernels.gather_norm_film.reference import gather_norm_film_reference

CASES = {
    "some_kept": (3, 50, 48, 17),
    "all_kept_in_place": (3, 50, 48, None),
    "all_kept_by_name": (2, 9, 100, 9),
    "all_pruned": (2, 9, 100, 0),
    "one_token": (1, 1, 1, 1),
    "no_tokens": (2, 0, 7, 0),
    "no_samples": (0, 4, 7, 2),
    "wide": (2, 7, 960, 5),
}


def inputs(batch, sources, width, rows, *, dtype=torch.float32, modulated=True, absent=0, seed=0):
    """Return tokens sliced out of a sequence, indices, weight and modulation; the last `absent` indices are -1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, sources + 3, width, generator=generator)[:, 2:-1].to(dtype)
    weight, scale, shift = (torch.randn(shape, generator=generator) for shape in ((width,), *[(batch, width)] * 2))
    if dtype == torch.float64:
        weight, scale, shift = weight.double(), scale.double(), shift.double()
    parts = [part.detach().requires_grad_() for part in (tokens, weight, scale, shift)]
    indices = None
    if rows is not None:
        indices = torch.rand(batch, sources, generator=generator).argsort(-1)[:, :rows].sort(-1).values
        indices[:, rows - absent :] = -1
    return parts[0], indices, parts[1], tuple(parts[2:]) if modulated else None


def with_gradients(function, given, *, residual=True, seed=1):
    """Return the kept tokens, the modulated ones and the gradients of tokens, weight, scale and shift."""
    outputs = function(*given)
    generator = torch.Generator().manual_seed(seed)
    above = [torch.randn(part.shape, generator=generator).to(part) for part in outputs]
    leaves = (given[0], given[2], *(given[3] or ()))
    chosen = slice(None) if residual else slice(1, None)
    return (*outputs, *torch.autograd.grad(outputs[chosen], leaves, above[chosen], materialize_grads=True))


def in_float64(given):
    tokens, indices, weight, modulation = given
    parts = [part.detach().double().requires_grad_() for part in (tokens, weight, *(modulation or ()))]
    return parts[0], indices, parts[1], tuple(parts[2:]) or None


def assert_near(got, expected, tolerance):
    names = ("kept", "modulated", "tokens", "weight", "scale", "shift")
    for name, one, other in zip(names, got, expected, strict=False):
        assert one.shape == other.shape
        if other.numel():
            error = (one.double() - other).abs().max() / other.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 5e-3)]
)
def test_outputs_and_gradients_are_those_of_the_definition(case, modulated, dtype, tolerance):
    given = inputs(*CASES[case], dtype=dtype, modulated=modulated)
    expected = with_gradients(gather_norm_film_reference, in_float64(given))
    got = with_gradients(gather_norm_film, given)
    assert len(got) == len(expected)
    assert_near(got, expected, tolerance)


@pytest.mark.parametrize("residual", [True, False])
def test_index_minus_one_gives_zeros_and_gradients_are_not_lost(residual):
    given = inputs(2, 9, 8, 6, absent=2)
    got = with_gradients(gather_norm_film, given, residual=residual)
    assert_near(got, with_gradients(gather_norm_film_reference, in_float64(given), residual=residual), 1e-6)
    assert not got[0][:, 4:].any()
    assert not got[1][:, 4:].any()
    pruned = torch.ones(2, 9, dtype=torch.bool).scatter_(1, given[1][:, :4], False)
    assert not got[2][pruned].any()
    assert got[2][~pruned].all()


def test_index_minus_one_works_without_any_token():
    tokens, _, weight, modulation = inputs(2, 0, 8, None)
    for part in with_gradients(gather_norm_film, (tokens, torch.full((2, 3), -1), weight, modulation)):
        assert not part.any()


def test_gradients_are_those_of_finite_differences():
    tokens, indices, weight, modulation = inputs(2, 4, 3, 2, dtype=torch.float64)

    def run(tokens, weight, *modulation):
        return gather_norm_film(tokens, indices, weight, modulation)

    assert torch.autograd.gradcheck(run, (tokens, weight, *modulation))


def test_tokens_may_have_fewer_bits_than_what_modulates_them_and_indices_any_integer():
    tokens, indices, weight, modulation = inputs(2, 9, 8, 4, dtype=torch.bfloat16)
    kept, result = gather_norm_film(tokens, indices.int(), weight, modulation)
    assert kept.dtype == result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert [part.grad.dtype for part in (tokens, weight, *modulation)] == [torch.bfloat16, *[torch.float32] * 3]


def test_without_indices_the_tokens_are_handed_back():
    tokens, _, weight, modulation = inputs(2, 9, 8, None)
    assert gather_norm_film(tokens, None, weight, modulation)[0] is tokens


@pytest.fixture
def poisoned_memory():
    """Fill what is allocated with NaN, as torch does for deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_two_runs_agree_bit_by_bit_and_no_memory_is_left_unwritten(poisoned_memory):
    given = inputs(2, 33, 20, 12, absent=3)
    first, second = (with_gradients(gather_norm_film, given) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert not any(part.isnan().any() for part in first)


@pytest.mark.parametrize(("rows", "modulated"), [(3, True), (None, True), (3, False)])
def test_operator_passes_opcheck(rows, modulated):
    tokens, indices, weight, modulation = inputs(2, 5, 4, rows, modulated=modulated)
    arguments = (tokens, indices, weight, *(modulation or (None, None)), 1e-6)
    torch.library.opcheck(torch.ops.saccade.gather_norm_film.default, arguments)


def test_it_compiles_to_one_graph_for_all_lengths():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gather_norm_film, fullgraph=True, dynamic=True, backend=counter)
    counts = set()
    for batch, sources, rows in ((2, 9, 5), (3, 40, 17), (4, 64, 64)):
        given = inputs(batch, sources, 8, rows)
        assert_near(with_gradients(compiled, given), with_gradients(gather_norm_film, given), 1e-6)
        counts.add(counter.frame_count)
    assert len(counts) == 1


class Norm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, tokens, indices, scale, shift):
        return gather_norm_film(tokens, indices, self.weight, (scale, shift))


def test_it_exports_with_dynamic_lengths():
    module = Norm(8)

    def given(batch, sources, rows):
        tokens, indices, _, modulation = inputs(batch, sources, 8, rows)
        return tuple(part.detach() for part in (tokens, indices, *modulation))

    batch, sources, rows = (torch.export.Dim.AUTO for _ in range(3))
    shapes = ({0: batch, 1: sources}, {0: batch, 1: rows}, {0: batch}, {0: batch})
    exported = torch.export.export(module, given(2, 9, 5), dynamic_shapes=shapes).module()
    other = given(3, 40, 17)
    for got, expected in zip(exported(*other), module(*other), strict=True):
        assert got.equal(expected)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        ("tokens", lambda part: part[0], "tokens: got shape \\[5, 4\\], expected \\[any, any, any\\]"),
        ("tokens", lambda part: part.int(), "tokens: got int32, expected bfloat16 or float16 or float32 or float64"),
        ("tokens", lambda part: part[..., :0], "tokens: got 0 numbers in a token, expected 1 to 8192"),
        ("indices", lambda part: part.float(), "indices: got float32, expected int32 or int64"),
        ("indices", lambda part: part[0], "indices: got shape \\[3\\], expected \\[2, any\\]"),
        ("indices", lambda part: part[:1], "indices: got shape \\[1, 3\\], expected \\[2, any\\]"),
        ("indices", lambda part: part.to("meta"), "indices: got device meta, expected cpu"),
        ("indices", lambda part: part + 5, "indices: got 5 to 7, expected -1 for none, else 0 to 4"),
        ("indices", lambda part: part - 2, "indices: got -2 to 0"),
        ("indices", lambda part: part * 0, "indices: got an index twice in one sample"),
        ("weight", lambda part: part[:-1], "weight: got shape \\[3\\], expected \\[4\\]"),
        ("weight", lambda part: part.bfloat16(), "weight: got bfloat16, expected float32"),
        ("weight", lambda part: part.to("meta"), "weight: got device meta, expected cpu"),
        ("modulation", lambda part: part[:1], "modulation: got 1 tensors, expected scale and shift"),
        ("modulation", lambda part: (part[0][:1], part[1]), "scale: got shape \\[1, 4\\], expected \\[2, 4\\]"),
        ("modulation", lambda part: (part[0], part[1][0]), "shift: got shape \\[4\\], expected \\[2, 4\\]"),
        ("modulation", lambda part: (part[0], part[1].half()), "shift: got float16"),
    ],
)
def test_invalid_argument_is_named(argument, change, message):
    tokens, _, weight, modulation = inputs(2, 5, 4, 3)
    given = {"tokens": tokens, "indices": torch.tensor([[0, 1, 2]] * 2), "weight": weight, "modulation": modulation}
    given[argument] = change(given[argument])
    with pytest.raises(ValueError, match=message):
        gather_norm_film(**given)


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu():
    pytest.importorskip("triton")
    results = [try_compile(case) for case in gather_norm_film_cases.cases()]
    print(table(results))
    assert results
    assert not [(result.name, result.complaints) for result in results if result.complaints]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_the_kernels_agree_on_a_gpu(case, modulated, dtype, tolerance, poisoned_memory):
    given = inputs(*CASES[case], dtype=dtype, modulated=modulated)
    expected = with_gradients(gather_norm_film_reference, in_float64(given))
    tokens, indices, weight, modulation = given
    parts = [part.detach().cuda().requires_grad_() for part in (tokens, weight, *(modulation or ()))]
    there = (parts[0], None if indices is None else indices.cuda(), parts[1], tuple(parts[2:]) or None)
    first, second = ([part.cpu() for part in with_gradients(gather_norm_film, there)] for _ in range(2))
    assert_near(first, expected, tolerance)
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
