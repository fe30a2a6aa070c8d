"""Fixtures for merging: skills of one base policy without training, with random factors and distant profiles."""

from __future__ import annotations

import copy

import pytest
import torch

from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.lerobot_files import lerobot_files
from saccade.policy.merging.digests import base_digests, learned_digest
from saccade.policy.merging.profile import SkillProfile
from saccade.policy.pretrained.adaptation import LoraAdaptation
from saccade_testing.instructions import INSTRUCTIONS


def profile_of(core, observations, instruction, seed):
    """Return the profile of a skill with one instruction: 30 samples near `observations`, in 10 episodes."""
    generator = torch.Generator().manual_seed(seed)
    images, state = (each.repeat(15, *[1] * (each.ndim - 1)) for each in observations)
    state = state + torch.randn(state.shape, generator=generator)
    features = core.routing_features(images, [instruction] * 30, state)
    return SkillProfile.from_features(features, [0] * 30, [number // 3 for number in range(30)])


@pytest.fixture
def base_checkpoint(core, tmp_path):
    """The base checkpoint of all skills."""
    config_json, text_files = lerobot_files(core.architecture, core.contract)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    return write_checkpoint(tmp_path / "base", tensors, config_json, core.contract, {}, text_files)


@pytest.fixture
def make_skill(core, observations, base_checkpoint, tmp_path):
    """Return a function that writes a skill's checkpoint; `spoil` changes its tensors, `provenance` its record."""

    def make(number, *, name=None, rank=2, spoil=None, provenance=None, contract=None):
        skill = copy.deepcopy(core)
        record = {"skill": base_digests(core.model.state_dict()), "init": str(base_checkpoint)} | (provenance or {})
        profile = profile_of(core, observations, INSTRUCTIONS[number], number)
        skill.add_lora(LoraAdaptation(rank=rank, alpha=2.0 * rank, skill=True))
        torch.manual_seed(100 + number)
        with torch.no_grad():
            for key, parameter in skill.model.named_parameters():
                if "lora_B" in key or key.startswith("expert."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
        tensors = {MODEL_PREFIX + key: tensor for key, tensor in skill.model.state_dict().items()} | profile.tensors()
        if spoil is not None:
            spoil(tensors)
        record["learned"] = learned_digest(tensors)
        config_json, text_files = lerobot_files(skill.architecture, skill.contract, skill.adaptation)
        folder = tmp_path / (name or f"skill{number}")
        return write_checkpoint(folder, tensors, config_json, contract or skill.contract, record, text_files)

    return make
