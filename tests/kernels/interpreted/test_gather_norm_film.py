"""The kernels of gather_norm_film, run by Triton's interpreter, against the definition in float64."""

import os

import pytest
import torch

from saccade.kernels.gather_norm_film import gather_norm_film
from saccade.kernels.gather_norm_film.reference import gather_norm_film_reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process started with TRITON_INTERPRET=1", allow_module_level=True)

from saccade.kernels.gather_norm_film import kernel

CASES = {
    "some_kept": (3, 50, 48, 17),
    "all_kept_in_place": (3, 50, 48, None),
    "all_kept_by_name": (2, 9, 100, 9),
    "all_pruned": (2, 9, 100, 0),
    "one_token": (1, 1, 1, 1),
    "no_tokens": (2, 0, 7, 0),
    "no_samples": (0, 4, 7, 2),
    "wider_than_a_tile": (1, 3, 2100, 2),
    "more_kept_than_a_block_inverts": (1, 300, 8, 140),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what is allocated with NaN, as torch does for deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def inputs(batch, sources, width, rows, *, dtype=torch.float32, modulated=True, absent=0, seed=0):
    """Return tokens sliced out of a sequence, indices, weight and modulation; the last `absent` indices are -1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, sources + 3, width, generator=generator)[:, 2:-1].to(dtype)
    weight, scale, shift = (torch.randn(shape, generator=generator) for shape in ((width,), *[(batch, width)] * 2))
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
    above = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in outputs]
    leaves = (given[0], given[2], *(given[3] or ()))
    chosen = slice(None) if residual else slice(1, None)
    return (*outputs, *torch.autograd.grad(outputs[chosen], leaves, above[chosen], materialize_grads=True))


def errors(given, got, **options):
    """Return the largest error of each result, as a share of the largest expected value, or of 1."""
    tokens, indices, weight, modulation = given
    parts = [part.detach().double().requires_grad_() for part in (tokens, weight, *(modulation or ()))]
    doubled = (parts[0], indices, parts[1], tuple(parts[2:]) or None)
    expected = with_gradients(gather_norm_film_reference, doubled, **options)
    assert len(got) == len(expected)
    shares = {}
    for name, one, other in zip(
        ("kept", "modulated", "tokens", "weight", "scale", "shift"), got, expected, strict=False
    ):
        assert one.shape == other.shape
        if other.numel():
            difference = (one.double() - other).detach().abs().max()
            shares[name] = float(difference / other.detach().abs().max().clamp(min=1))
    return shares


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modulated", [True, False])
def test_outputs_and_gradients_are_those_of_the_definition(case, modulated):
    given = inputs(*CASES[case], modulated=modulated)
    found = errors(given, with_gradients(gather_norm_film, given))
    assert all(error <= 1e-6 for error in found.values()), found


@pytest.mark.parametrize("residual", [True, False])
def test_index_minus_one_gives_zeros_and_pruned_tokens_no_gradient(residual):
    given = inputs(2, 9, 8, 6, absent=2)
    got = with_gradients(gather_norm_film, given, residual=residual)
    found = errors(given, got, residual=residual)
    assert all(error <= 1e-6 for error in found.values()), found
    assert not got[0][:, 4:].any()
    assert not got[1][:, 4:].any()
    pruned = torch.ones(2, 9, dtype=torch.bool).scatter_(1, given[1][:, :4], False)
    assert not got[2][pruned].any()
    assert got[2][~pruned].all()


def test_an_index_out_of_range_is_treated_as_minus_one():
    tokens, indices, weight, modulation = inputs(2, 5, 8, 3)
    beyond = torch.cat([indices, torch.full((2, 1), 5)], dim=1)
    nowhere = torch.cat([indices, torch.full((2, 1), -1)], dim=1)
    got, expected = (with_gradients(gather_norm_film, (tokens, at, weight, modulation)) for at in (beyond, nowhere))
    assert all(one.equal(other) for one, other in zip(got, expected, strict=True))


def test_index_minus_one_works_without_any_token():
    tokens, _, weight, modulation = inputs(2, 0, 8, None)
    for part in with_gradients(gather_norm_film, (tokens, torch.full((2, 3), -1), weight, modulation)):
        assert not part.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_go_in_and_out(dtype):
    given = inputs(2, 33, 20, 12, dtype=dtype, absent=2)
    got = with_gradients(gather_norm_film, given)
    assert [part.dtype for part in got] == [*[dtype] * 3, *[torch.float32] * 3]
    # The interpreter cuts bfloat16 off where a device rounds it: up to two units in its last place.
    found = errors(given, got)
    assert all(error <= (1.6e-2 if dtype == torch.bfloat16 else 1e-3) for error in found.values()), found


def test_several_steps_of_a_program_sum_to_what_one_step_does(monkeypatch):
    given = inputs(2, 40, 512, 25)
    found = {}
    for programs in (1024, 3):
        monkeypatch.setattr(kernel, "PROGRAMS", programs)
        found[programs] = with_gradients(gather_norm_film, given)
        again = with_gradients(gather_norm_film, given)
        assert all(one.equal(other) for one, other in zip(found[programs], again, strict=True))
    assert all(error <= 1e-6 for error in errors(given, found[3]).values())
    assert found[3][2].equal(found[1024][2])
