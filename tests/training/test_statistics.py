import json
import shutil

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.datasets.columns import dataset_fingerprint, read_columns
from saccade.policy.normalization import action_chunks, demonstration_normalization
from saccade.training.statistics import exact_statistics, write_exact_statistics


def test_written_statistics_are_those_of_all_frames(demonstrations, tmp_path):
    from lerobot.datasets import LeRobotDatasetMetadata

    root, episodes = demonstrations
    shutil.copytree(root, tmp_path / "copy")
    before = json.loads((tmp_path / "copy/meta/stats.json").read_text())
    fingerprint = dataset_fingerprint(tmp_path / "copy")
    write_exact_statistics(tmp_path / "copy")
    assert dataset_fingerprint(tmp_path / "copy") == fingerprint
    stats = LeRobotDatasetMetadata("local/copy", root=tmp_path / "copy").stats
    for key, column in (("observation.state", "state"), ("action", "action"), ("grounding", "grounding")):
        values = np.concatenate([getattr(episode, column) for episode in episodes]).astype(np.float64)
        for name, quantile in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            np.testing.assert_allclose(stats[key][name], np.quantile(values, quantile, axis=0))
        np.testing.assert_allclose(stats[key]["mean"], values.mean(0))
        np.testing.assert_allclose(stats[key]["std"], values.std(0))
        np.testing.assert_array_equal(stats[key]["min"], values.min(0))
        np.testing.assert_array_equal(stats[key]["max"], values.max(0))
        assert stats[key]["count"] == [78]
    assert abs(before["action"]["q99"][0] - stats["action"]["q99"][0]) > 3, "LeRobot's own aggregate is wrong"
    for key in ("observation.images.front", "observation.images.wrist"):
        np.testing.assert_array_equal(stats[key]["q99"], np.array(before[key]["q99"]))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        exact_statistics(np.array([[1.0], [np.inf]]))


def test_chunks_repeat_the_last_action_of_the_episode():
    action = np.arange(5, dtype=np.float32)[:, None]
    chunks, valid = action_chunks(action, np.array([3, 3, 3, 5, 5]), 3)
    np.testing.assert_array_equal(chunks[..., 0], [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]])
    np.testing.assert_array_equal(valid, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]])


def test_the_normalization_counts_only_steps_inside_episodes(demonstrations):
    root, _ = demonstrations
    columns = read_columns(root)
    state, action = columns.vectors["observation.state"], columns.vectors["action"]
    ends = np.repeat(columns.ends, columns.ends - columns.starts)
    fitted = demonstration_normalization(state, action, ends, chunk=4, relative=(True, True, False))
    index = np.array([i for i in range(78) if i + 3 < ends[i]])
    expected = np.quantile(np.abs(action[index + 3] - state[index])[:, 0], 0.99)
    np.testing.assert_allclose(fitted.action_high[3][0], expected, rtol=1e-6)
    np.testing.assert_allclose(fitted.action_low[3][2], np.quantile(action[index + 3, 2].astype(float), 0.01))
    np.testing.assert_allclose(fitted.state_high, np.quantile(state.astype(float), 0.99, axis=0))
