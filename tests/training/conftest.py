"""Fixtures for training: small datasets on disk."""

import numpy as np
import pytest

from saccade.policy.contract import ActionSpec, CameraSpec, Offer, StateSpec
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import RecordedEpisode, stage_episode

NAMES = ("a.pos", "b.pos", "c.pos")


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory):
    """Return a function that writes a dataset with episodes of given lengths and returns (root, episodes)."""

    def make(lengths, *, seed=0, rate=30.0, cameras=("front", "wrist"), size=32):
        folder = tmp_path_factory.mktemp("made")
        specs = tuple(CameraSpec(name=name, height=size, width=size) for name in cameras)
        vector = {"names": NAMES, "units": ("degrees",) * 3}
        action = ActionSpec(**vector, kind="absolute", frame="joint")
        offer = Offer(cameras=specs, state=StateSpec(**vector), action=action, control_hz=rate)
        episodes, paths = [], []
        for number, length in enumerate(lengths):
            generator = np.random.default_rng([seed, number])
            images = {}
            for name in cameras:
                images[name] = np.full((length, size, size, 3), generator.integers(0, 200, 3), dtype=np.uint8)
                images[name][np.arange(length), np.arange(length) % size] = 255
            # Every episode has another mean: the case in which a mean of quantiles is wrong.
            state, action, grounding = (
                (10 * number + generator.normal(0, 1, (length, width))).astype(np.float32)
                for width in (3, 3, 6 + 4 * len(cameras))
            )
            episodes.append(RecordedEpisode(images, state, action, grounding, f"task {number % 2} of {seed}"))
            paths.append(folder / f"{number}.npz")
            stage_episode(paths[-1], episodes[-1], offer)
        write_dataset(folder / "dataset", offer, paths, robot_type="toy")
        return folder / "dataset", episodes

    return make


@pytest.fixture(scope="session")
def demonstrations(make_dataset):
    return make_dataset((40, 5, 33))
