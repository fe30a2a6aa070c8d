"""Test the physics check: scenes settle as for the published results, or the check fails."""

import json

import pytest

from saccade.errors import WorldError
from saccade.sim.libero import physics_check
from saccade.sim.libero.assets import Assets
from saccade.sim.libero.physics_check import SettlingResult


def test_the_published_distance_passes():
    result = SettlingResult(14.53, "3.3.2", "1.4.0")
    assert result.as_published
    result.require_published(allowed=False)


@pytest.mark.parametrize("millimetres", [37.2, 8.0])
def test_other_distance_is_refused_unless_allowed(millimetres):
    result = SettlingResult(millimetres, "3.8.1", "1.4.0")
    assert not result.as_published
    with pytest.raises(
        WorldError, match=rf"got {millimetres} mm.*mujoco 3.8.1, expected 14.5 mm.*mujoco==3.3.2.*--allow-physics"
    ):
        result.require_published(allowed=False)
    result.require_published(allowed=True)


def test_result_is_cached_for_each_simulator_and_assets(tmp_path, monkeypatch):
    measured = []

    def measure_settle_distance(assets, progress):
        measured.append(assets.sha256)
        return 14.5

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(physics_check, "measure_settle_distance", measure_settle_distance)
    first, second = (Assets(tmp_path, digit * 64, "test") for digit in "ab")
    results = [physics_check.check_settling(assets, progress=False) for assets in (first, first, second)]
    assert measured == [first.sha256, second.sha256] and results[0] == results[1]
    files = list((tmp_path / "saccade" / "libero").iterdir())
    assert len(files) == 2 and all(json.loads(file.read_text())["settle_task5_mm"] == 14.5 for file in files)
    files[0].write_text("damaged")
    physics_check.check_settling(first, progress=False)
    physics_check.check_settling(second, progress=False)
    assert len(measured) == 3


def test_bowl_stays_on_the_ramekin_on_this_machine(pack):
    assert physics_check.measure_settle_distance(pack, states=3) == pytest.approx(14.5, abs=0.5)
