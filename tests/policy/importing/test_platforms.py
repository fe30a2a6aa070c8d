"""Platforms and statistics of released policies: the released code's arithmetic, and values that are refused."""

import dataclasses

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.contract import Contract
from saccade.policy.importing.platforms import PLATFORMS, find_platform, released_contract
from saccade.policy.normalization import Normalizer


def statistics_of(platform, seed=0):
    generator = np.random.default_rng(seed)

    def bounds(width):
        low = generator.normal(size=width)
        return {
            "q01": low.tolist(),
            "q99": (low + generator.uniform(0.5, 2, width)).tolist(),
            "min": (low - 0.3).tolist(),
            "max": (low + 2.3).tolist(),
        }

    state, action = bounds(len(platform.state.names)), bounds(len(platform.action.names))
    return {
        "only": {"action": action | {"mask": [True] * (len(platform.action.names) - 1) + [False]}, "proprio": state}
    }


def contract_of(name, statistics=None, **sizes):
    platform = find_platform(name)
    sizes = {"state": len(platform.state.names), "action": len(platform.action.names), "image_size": 224} | sizes
    return released_contract(platform, statistics_of(platform) if statistics is None else statistics, None, **sizes)


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_released_arithmetic_is_kept(name):
    platform, statistics = PLATFORMS[name], statistics_of(PLATFORMS[name])
    contract = contract_of(name, statistics)
    assert Contract.from_json(contract.to_json()) == contract
    normalizer = Normalizer(contract.normalization)
    low, high = platform.bounds
    generator = np.random.default_rng(1)
    state = generator.normal(scale=3, size=len(platform.state.names))
    given = {key: np.array(value) for key, value in statistics["only"]["proprio"].items()}
    expected = np.clip(2 * (state - given[low]) / (given[high] - given[low] + 1e-8) - 1, -1, 1)
    np.testing.assert_allclose(normalizer.encode_state(state), expected, rtol=0, atol=1e-14)
    assert (np.abs(expected) == 1).any()
    torch.testing.assert_close(normalizer.encode_state(torch.tensor(state)), torch.tensor(expected))
    actions = generator.normal(size=(platform.chunk, len(platform.action.names)))
    given = {key: np.array(value) for key, value in statistics["only"]["action"].items()}
    unmasked = 0.5 * (actions + 1) * (given[high] - given[low] + 1e-8) + given[low]
    decoded = normalizer.decode_actions(actions, state)
    np.testing.assert_allclose(decoded, np.where(given["mask"], unmasked, actions), rtol=0, atol=1e-14)
    np.testing.assert_allclose(normalizer.encode_actions(decoded, state), actions, rtol=0, atol=1e-12)


def test_a_constant_element_has_the_released_epsilon_as_its_span():
    statistics = statistics_of(PLATFORMS["libero"])
    statistics["only"]["proprio"]["q99"][0] = statistics["only"]["proprio"]["q01"][0]
    normalization = contract_of("libero", statistics).normalization
    assert normalization.state_high[0] == normalization.state_low[0] + 1e-8


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: find_platform("libro"), "Did you mean 'libero'"),
        (lambda: contract_of("aloha", state=8, action=7), "got 14 numbers .*expected 8.*--platform libero"),
        (lambda: contract_of("libero", state=3), "expected 3.*No platform here"),
        (lambda: contract_of("libero", {}), "none chosen of 0"),
        (lambda: contract_of("libero", {"only": {}}), "statistics: action: got none"),
        (lambda: contract_of("libero", {"only": {"action": {"q01": ["0"] * 7, "q99": [1] * 7}}}), "expected 7 numbers"),
        (lambda: contract_of("libero", statistics_of(PLATFORMS["bridge"])), "statistics: proprio.*expected 8 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(make, problem):
    with pytest.raises(InputError, match=problem):
        make()


def test_bounds_are_never_relative_to_the_state():
    normalization = contract_of("aloha").normalization
    with pytest.raises(InputError, match="relative"):
        dataclasses.replace(normalization, relative=(True,) * 14)
