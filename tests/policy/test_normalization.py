"""Normalisation: decoding inverts encoding, on arrays and tensors, and the fit is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as draw
from hypothesis.extra import numpy as draw_numpy

from saccade.errors import InputError
from saccade.policy.contract import Normalization
from saccade.policy.normalization import Normalizer, fit_normalization

STATES, STEPS, ACTIONS = 3, 4, 2
numbers = draw.floats(-1000, 1000, width=32)


@draw.composite
def normalizations(drawn: draw.DrawFn) -> Normalization:
    spans = draw.floats(0.5, 1000, width=32)
    state_low = drawn(draw_numpy.arrays(np.float64, STATES, elements=numbers))
    action_low = drawn(draw_numpy.arrays(np.float64, (STEPS, ACTIONS), elements=numbers))
    return Normalization(
        state_low=state_low,
        state_high=state_low + drawn(draw_numpy.arrays(np.float64, STATES, elements=spans)),
        action_low=action_low,
        action_high=action_low + drawn(draw_numpy.arrays(np.float64, (STEPS, ACTIONS), elements=spans)),
        relative=drawn(draw.tuples(draw.booleans(), draw.booleans())),
    )


@settings(max_examples=60, deadline=None)
@given(
    normalizations(),
    draw_numpy.arrays(np.float64, (5, STATES), elements=numbers),
    draw_numpy.arrays(np.float64, (5, STEPS, ACTIONS), elements=numbers),
)
def test_round_trip(normalization, state, actions):
    normalizer = Normalizer(normalization)
    encoded = normalizer.encode_actions(actions, state)
    np.testing.assert_allclose(normalizer.decode_actions(encoded, state), actions, atol=1e-9)
    low, high = np.array(normalization.state_low), np.array(normalization.state_high)
    np.testing.assert_allclose(
        normalizer.encode_state(state), 2 * (state - low) / (high - low) - 1, rtol=1e-9, atol=1e-9
    )
    tensors = torch.from_numpy(actions), torch.from_numpy(state)
    np.testing.assert_allclose(normalizer.encode_actions(*tensors).numpy(), encoded, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        normalizer.decode_actions(torch.from_numpy(encoded), tensors[1]).numpy(), actions, atol=1e-9
    )


def test_normalization_formula():
    normalizer = Normalizer(
        Normalization((0, 0, 0), (10, 20, 40), ((-1, 0), (-2, 0)), ((1, 100), (2, 100)), (True, False))
    )
    state = np.array([5.0, 20.0, 0.0], np.float32)
    np.testing.assert_allclose(normalizer.encode_state(state), [0, 1, -1])
    actions = np.array([[6.0, 100.0], [3.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalizer.encode_actions(actions, state), [[1, 1], [-1, -1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kind_and_dtype_are_kept(dtype):
    normalizer = Normalizer(Normalization((0,), (1,), ((0, 0),), ((1, 1),), (True, False)))
    state, actions = np.zeros((2, 1), dtype), np.zeros((2, 1, 2), dtype)
    assert normalizer.encode_actions(actions, state).dtype == dtype
    assert normalizer.encode_state(state).dtype == dtype
    encoded = normalizer.encode_actions(torch.from_numpy(actions), torch.from_numpy(state))
    assert isinstance(encoded, torch.Tensor) and encoded.dtype == torch.from_numpy(actions).dtype


def test_wrong_shapes_and_whole_numbers_are_refused():
    normalizer = Normalizer(Normalization((0,), (1,), ((0, 0),), ((1, 1),), (True, False)))
    with pytest.raises(InputError, match="state: shape"):
        normalizer.encode_state(np.zeros(2))
    with pytest.raises(InputError, match="actions: shape"):
        normalizer.decode_actions(np.zeros((3, 2)), np.zeros(1))
    with pytest.raises(InputError, match="state: dtype"):
        normalizer.encode_state(np.zeros(1, np.int64))
    with pytest.raises(InputError, match="state: dtype"):
        normalizer.encode_state(torch.zeros(1, dtype=torch.int64))


def test_fit_takes_exact_quantiles_and_leaves_padding_out():
    random = np.random.default_rng(0)
    states = random.normal(size=(500, 3)).astype(np.float32) * 30
    chunks = states[:, None, :2] + random.normal(size=(500, 4, 2)).astype(np.float32) * np.arange(1, 5)[:, None]
    valid = np.ones((500, 4), bool)
    valid[-3:, 1:] = False
    chunks[-3:, 1:] = 1e6
    fitted = fit_normalization(states, chunks, (True, False), valid=valid)
    np.testing.assert_allclose(fitted.state_low, np.quantile(states.astype(np.float64), 0.01, axis=0))
    distance = np.abs(chunks[:-3, 2, 0] - states[:-3, 0].astype(np.float64))
    assert fitted.action_high[2][0] == pytest.approx(np.quantile(distance, 0.99))
    assert fitted.action_low[2][0] == -fitted.action_high[2][0]
    assert fitted.action_low[2][1] == pytest.approx(np.quantile(chunks[:-3, 2, 1], 0.01))


def test_fit_refuses_or_widens_constant_dimensions():
    states, chunks = np.full((9, 1), 7.0), np.full((9, 2, 1), 7.0)
    with pytest.raises(InputError, match="never moved"):
        fit_normalization(states, chunks, (True,))
    fitted = fit_normalization(states, chunks, (True,), minimum_span=2.0)
    assert (fitted.state_low, fitted.state_high, fitted.action_high[1]) == ((6.0,), (8.0,), (1.0,))


def test_fit_refuses_damaged_data():
    states, chunks = np.random.default_rng(0).normal(size=(9, 1)), np.zeros((9, 2, 1))
    chunks[3, 1, 0] = np.nan
    with pytest.raises(InputError, match="chunks: got numbers that are not finite"):
        fit_normalization(states, chunks, (False,))
    with pytest.raises(InputError, match="no episode reaches"):
        fit_normalization(states, np.zeros((9, 2, 1)), (False,), valid=np.array([[True, False]] * 9))
