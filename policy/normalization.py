"""Normalization of states and actions between the contract's units and the network's, and its statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from .contract import Normalization


class Normalizer:
    """Normalize states and action chunks to about [-1, 1], and convert chunks back to the contract's units.

    The methods take floating point numpy arrays or torch tensors and return the same kind, dtype and device. Nothing is
    clipped, so that decoding inverts encoding; only the method "bounds" clips states, as OpenVLA was trained.
    All methods raise InputError for a shape or dtype that does not fit.

    Args:
        normalization: The contract's statistics.
    """

    def __init__(self, normalization: Normalization) -> None:
        state_low, state_high = np.array(normalization.state_low), np.array(normalization.state_high)
        action_low, action_high = np.array(normalization.action_low), np.array(normalization.action_high)
        # Centre and half span: one subtraction and one division.
        self._state_middle, self._state_half = (state_low + state_high) / 2, (state_high - state_low) / 2
        self._action_middle, self._action_half = (action_low + action_high) / 2, (action_high - action_low) / 2
        self._clips_state = normalization.method == "bounds"
        self._relative = np.array(normalization.relative, dtype=np.float64)
        # A relative element has its state at the same index (the contract checks this); for the others the factor is 0.
        self._state_indices = [min(place, len(state_low) - 1) for place in range(len(self._relative))]

    def encode_state(self, state: Any) -> Any:
        """Normalize states [..., S]."""
        _check("state", state, self._state_middle.shape)
        encoded = (state - _cast_like(self._state_middle, state)) / _cast_like(self._state_half, state)
        return encoded.clip(-1.0, 1.0) if self._clips_state else encoded

    def encode_actions(self, actions: Any, state: Any) -> Any:
        """Normalize action chunks [..., T, A]; `state` [..., S] is that at the decision, in the contract's units."""
        _check("actions", actions, self._action_middle.shape)
        middle = _cast_like(self._action_middle, actions) + self._origin(state)
        return (actions - middle) / _cast_like(self._action_half, actions)

    def decode_actions(self, encoded: Any, state: Any) -> Any:
        """Convert normalized chunks [..., T, A] to the contract's units; `state` [..., S] is that at the decision."""
        _check("actions", encoded, self._action_middle.shape)
        middle = _cast_like(self._action_middle, encoded) + self._origin(state)
        return encoded * _cast_like(self._action_half, encoded) + middle

    def _origin(self, state: Any) -> Any:
        """Return the origin [..., 1, A] of relative elements, zero for the others, from states [..., S]."""
        _check("state", state, self._state_middle.shape)
        return (state[..., self._state_indices] * _cast_like(self._relative, state))[..., None, :]


def fit_normalization(
    states: np.ndarray,
    chunks: np.ndarray,
    relative: tuple[bool, ...],
    *,
    minimum_span: float = 0.0,
    valid: np.ndarray | None = None,
) -> Normalization:
    """Fit the statistics on all decisions of the demonstrations, with exact quantiles.

    States and absolute elements take their 1st and 99th percentile. A relative element takes plus and minus the 99th
    percentile of its distance from the state, so that no motion is zero.

    Args:
        states: [F, S], the states at F decisions.
        chunks: [F, T, A], absolute targets from each decision on.
        relative: [A], whether an element is taken relative to the state.
        minimum_span: Smaller spans (in the contract's units) are widened to it about their centre.
        valid: Boolean [F, T], false for steps past the end of an episode, which are left out.

    Raises:
        InputError: Numbers are not finite, no episode reaches a step, or an element never moved without a
            `minimum_span`.
    """
    valid = np.ones(chunks.shape[:2], dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    for what, array in (("states", states), ("chunks", chunks)):
        if not np.isfinite(array).all():
            fix = "Remove the episode with the damaged frame."
            raise InputError(what, got="numbers that are not finite", expected="finite numbers", fix=fix)
    if not valid.any(axis=0).all():
        fix = "Shorten the chunk below the length of the longest episode."
        raise InputError("chunks", got="steps that no episode reaches", expected="each step in some episode", fix=fix)
    state_low, state_high = np.quantile(states.astype(np.float64), (0.01, 0.99), axis=0)
    low, high = np.empty(chunks.shape[1:]), np.empty(chunks.shape[1:])
    for step in range(chunks.shape[1]):
        targets = chunks[valid[:, step], step].astype(np.float64)
        for index, is_relative in enumerate(relative):
            if is_relative:
                distance = np.abs(targets[:, index] - states[valid[:, step], index])
                high[step, index] = np.quantile(distance, 0.99)
                low[step, index] = -high[step, index]
            else:
                low[step, index], high[step, index] = np.quantile(targets[:, index], (0.01, 0.99))
    state_low, state_high = _widen(state_low, state_high, minimum_span)
    low, high = _widen(low, high, minimum_span)
    return Normalization(
        state_low=tuple(state_low.tolist()),
        state_high=tuple(state_high.tolist()),
        action_low=tuple(map(tuple, low.tolist())),
        action_high=tuple(map(tuple, high.tolist())),
        relative=tuple(relative),
    )


def action_chunks(action: np.ndarray, ends: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the action chunk that starts at each frame.

    Args:
        action: [F, A].
        ends: int [F], the index after the last frame of each frame's episode.
        chunk: Steps of a chunk, T.

    Returns:
        Chunks [F, T, A], which repeat the last action past the end of an episode, and which steps are inside it,
        boolean [F, T].
    """
    steps = np.arange(len(action))[:, None] + np.arange(chunk)
    return action[np.minimum(steps, ends[:, None] - 1)], steps < ends[:, None]


def demonstration_normalization(
    state: np.ndarray,
    action: np.ndarray,
    ends: np.ndarray,
    *,
    chunk: int,
    relative: tuple[bool, ...],
    minimum_span: float = 0.0,
) -> Normalization:
    """Fit the statistics on demonstrations: state [F, S], action [F, A]; `ends` and `chunk` as in `action_chunks`."""
    chunks, valid = action_chunks(action, ends, chunk)
    return fit_normalization(state, chunks, relative, minimum_span=minimum_span, valid=valid)


def _widen(low: np.ndarray, high: np.ndarray, minimum_span: float) -> tuple[np.ndarray, np.ndarray]:
    missing = np.maximum(minimum_span - (high - low), 0.0) / 2
    return low - missing, high + missing


def _cast_like(constant: np.ndarray, values: Any) -> Any:
    """Return `constant` as an array or tensor of the kind, dtype and device of `values`."""
    return constant.astype(values.dtype) if isinstance(values, np.ndarray) else values.new_tensor(constant)


def _check(what: str, values: Any, shape: tuple[int, ...]) -> None:
    if tuple(values.shape[-len(shape) :]) != shape:
        expected = f"[..., {', '.join(map(str, shape))}], the contract's layout"
        fix = "Pass vectors in the layout of the contract: see contract.json."
        raise InputError(f"{what}: shape", got=list(values.shape), expected=expected, fix=fix)
    floating = values.dtype.kind == "f" if isinstance(values, np.ndarray) else values.is_floating_point()
    if not floating:
        fix = "Convert to float32 first: integers would be rounded."
        raise InputError(f"{what}: dtype", got=values.dtype, expected="floating point", fix=fix)
