"""The record in a skill's checkpoint: its base checkpoint, and the routing features of its demonstrations."""

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
"""Frames of a profile, and the batch size of their forward passes."""


@dataclass(frozen=True)
class SkillRecord:
    """What merging needs to know of a skill besides its weights.

    Attributes:
        base_digests: Identifies the base weights, see `merging.digests.base_digests`.
        profile: Routing features of the demonstrations, see `merging.profile`.
    """

    base_digests: dict[str, str]
    profile: SkillProfile


def new_skill_record(core: PolicyCore, dataset: DemonstrationDataset) -> SkillRecord:
    """Compute the record of a skill that is fine-tuned from `core` on a dataset.

    Half of the frames are first frames of an episode, where the router decides. The others are random frames of it.

    Args:
        core: The base policy, before its first training step.
        dataset: The demonstrations of the skill.
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
        instructions = [dataset.instructions[number] for number in batch["instruction"].tolist()]
        features.append(core.routing_features(batch["images"][:, views], instructions, batch["state"]).cpu())
    core.model.train(training)
    profile = SkillProfile.from_features(
        torch.cat(features),
        torch.from_numpy(dataset.instruction[frames]),
        torch.from_numpy(dataset.episode[frames]),
    )
    return SkillRecord(base_digests(core.model.state_dict()), profile)


def read_skill_record(folder: Path) -> SkillRecord:
    """Read the record from a skill's checkpoint, for a skill whose training is continued."""
    checkpoint = read_checkpoint(folder)
    return SkillRecord(checkpoint.provenance["skill"], SkillProfile.read(checkpoint.tensors, str(folder)))


def _balanced_episodes(dataset: DemonstrationDataset, max_episodes: int) -> np.ndarray:
    """Return the indices of at most `max_episodes` episodes, balanced over the instructions."""
    episode_instruction = dataset.instruction[dataset.episode_starts]
    # The first episode of every instruction, then the second of every instruction, and so on.
    occurrence = np.zeros(len(episode_instruction), dtype=np.int64)
    for instruction in np.unique(episode_instruction):
        own = np.flatnonzero(episode_instruction == instruction)
        occurrence[own] = np.arange(len(own))
    return np.sort(np.argsort(occurrence, kind="stable")[:max_episodes])
