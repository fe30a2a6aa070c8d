"""What a skill's checkpoint records beside its weights: its beginning, and how that sees the demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..policy.checkpoint.folder import read_checkpoint
from ..policy.core import PolicyCore
from ..policy.lerobot_files import camera_name
from ..policy.merging.digests import base_digests
from ..policy.merging.profile import SkillProfile
from .dataset import DemonstrationDataset

PROFILE_FRAMES, PROFILE_BATCH = 480, 16
"""Frames that make a profile, and how many are seen at once."""


@dataclass(frozen=True)
class SkillRecord:
    """A skill's `base_digests`, see `merging.digests`, and its `profile`, see `merging.profile`."""

    base_digests: dict[str, str]
    profile: SkillProfile


def new_skill_record(core: PolicyCore, dataset: DemonstrationDataset) -> SkillRecord:
    """Return the record of a skill that begins as `core` and learns from a dataset.

    Half of the frames begin an episode, where a router decides; the others lie anywhere in it.
    """
    generator = np.random.default_rng(0)
    episodes = _balanced_episodes(dataset, PROFILE_FRAMES // 2)
    starts, ends = dataset.episode_starts[episodes], dataset.episode_ends[episodes]
    frames = np.concatenate([starts, generator.integers(starts, ends)])
    cameras = [camera_name(key) for key in dataset.camera_keys]
    views = [cameras.index(camera.name) for camera in core.contract.cameras]
    training = core.model.training
    core.model.eval()
    features = []
    for first in range(0, len(frames), PROFILE_BATCH):
        batch = dataset.batch(frames[first : first + PROFILE_BATCH])
        instructions = [dataset.instructions[place] for place in batch["instruction"].tolist()]
        features.append(core.routing_features(batch["images"][:, views], instructions, batch["state"]).cpu())
    core.model.train(training)
    profile = SkillProfile.from_features(torch.cat(features), dataset.instruction[frames], dataset.episode[frames])
    return SkillRecord(base_digests(core.model.state_dict()), profile)


def read_skill_record(folder: Path) -> SkillRecord:
    """Return the record of a skill that goes on learning: the one that its checkpoint has."""
    checkpoint = read_checkpoint(folder)
    return SkillRecord(checkpoint.provenance["skill"], SkillProfile.read(checkpoint.tensors, str(folder)))


def _balanced_episodes(dataset: DemonstrationDataset, max_episodes: int) -> np.ndarray:
    """Return the numbers of at most so many episodes, as many of one instruction as of another."""
    episode_instruction = dataset.instruction[dataset.episode_starts]
    # Every instruction's first, then every one's second, and so on.
    occurrence = np.zeros(len(episode_instruction), dtype=np.int64)
    for instruction in np.unique(episode_instruction):
        own = np.flatnonzero(episode_instruction == instruction)
        occurrence[own] = np.arange(len(own))
    return np.sort(np.argsort(occurrence, kind="stable")[:max_episodes])
