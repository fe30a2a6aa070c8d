"""A toy dataset, and trainings of seconds on it."""

import dataclasses

import numpy as np
import pytest

from saccade.errors import InputError
from saccade.policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from saccade.scripts.train.command import train_policy
from saccade.scripts.train.options import TrainConfig
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import RecordedEpisode, stage_episode
from saccade.training.configuration import LoopConfig

NAMES, UNITS = ("pan.pos", "gripper.pos"), ("degrees", "percent")
SHORT = LoopConfig(steps=4, batch_size=4, warmup=0, save_every=2, log_every=1, average=0.5)


def record(folder, seed=0, **changes):
    """Write a dataset of two episodes; return its folder."""
    offer = Offer(
        cameras=(CameraSpec("front", 32, 32), CameraSpec("wrist", 32, 32)),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
    )
    offer = dataclasses.replace(offer, **changes)
    paths = []
    folder.mkdir()
    for number, length in enumerate((12, 9)):
        generator = np.random.default_rng([seed, number])
        images = {
            camera.name: generator.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8) for camera in offer.cameras
        }
        state, action = generator.normal(50, 9, (2, length, 2)).astype(np.float32)
        grounding = generator.uniform(size=(length, 6 + 4 * len(offer.cameras))).astype(np.float32)
        paths.append(folder / f"{number}.npz")
        stage_episode(paths[-1], RecordedEpisode(images, state, action, grounding, f"take {number}"), offer)
    write_dataset(folder / "dataset", offer, paths, robot_type="toy")
    return folder / "dataset"


def config(demonstrations, out, **changes):
    default = TrainConfig(data=(demonstrations,), out=out, chunk=3, execute=2, loop=SHORT, precision="no", device="cpu")
    return dataclasses.replace(default, **changes)


def train(*arguments, **changes):
    return train_policy(config(*arguments, **changes), progress=False)


def refused(message, *arguments, **changes):
    with pytest.raises(InputError, match=message) as caught:
        train(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return caught.value


def content(folder):
    """Return every file of a folder with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
