"""Sensor corruption: it keeps shapes, is repeatable, and grows with the level."""

import numpy as np
import pytest

from saccade.sim.perturbation.axes import LEVELS
from saccade.sim.perturbation.sensor import CORRUPTIONS, SensorCorruption

UNITS = ("degrees",) * 5 + ("percent",)


def observation(size=64):
    rows, columns = np.mgrid[0:size, 0:size]
    image = np.stack([rows * 3, columns * 3, 90 + 60 * ((rows // 8 + columns // 8) % 2)], axis=-1).astype(np.uint8)
    return {"pixels": {"front": image, "wrist": image[::-1].copy()}, "agent_pos": np.arange(6, dtype=np.float32)}


def sensor(kind, level):
    """Return a sensor corruption of a kind, from the first seed that draws it."""
    return next(
        found
        for seed in range(200)
        if (found := SensorCorruption(level, np.random.default_rng(seed), UNITS)).kind == kind
    )


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_grows_with_the_level(kind):
    before = observation()
    changes = []
    for level in LEVELS:
        after = sensor(kind, level)(before)
        assert after["agent_pos"].dtype == np.float32 and after["agent_pos"].shape == (6,)
        assert all(view.dtype == np.uint8 and view.shape == (64, 64, 3) for view in after["pixels"].values())
        views = [after["pixels"][name].astype(float) - before["pixels"][name] for name in ("front", "wrist")]
        state = after["agent_pos"] - before["agent_pos"]
        assert (np.abs(state).max() > 0) == (kind == "state")
        assert all((np.abs(view).max() > 0) == (kind != "state") for view in views)
        changes.append(float(np.std(state)) if kind == "state" else float(np.abs(views[0]).mean()))
    assert changes == sorted(changes)
    np.testing.assert_array_equal(before["pixels"]["front"], observation()["pixels"]["front"])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_does_not_depend_on_which_steps_are_rendered(kind):
    full, half = sensor(kind, 3), sensor(kind, 3)
    blind = {"agent_pos": observation()["agent_pos"]}
    for step in range(4):
        seen = full(observation())
        if step % 2:
            assert "pixels" not in half(blind)
            continue
        again = half(observation())
        np.testing.assert_array_equal(seen["agent_pos"], again["agent_pos"])
        for camera, view in seen["pixels"].items():
            np.testing.assert_array_equal(view, again["pixels"][camera])


def test_state_noise_is_scaled_to_the_unit():
    noisy = sensor("state", 5)
    values = np.stack([noisy(observation())["agent_pos"] - observation()["agent_pos"] for _ in range(200)])
    assert np.allclose(values.std(axis=0)[:5], 2.0, rtol=0.3) and np.isclose(values.std(axis=0)[5], 4.0, rtol=0.3)
