"""Skills of one beginning, made without training: factors and an expert that are stirred, and profiles far apart."""

from __future__ import annotations

import copy

import pytest
import torch

from saccade.policy.checkpoint.contents import PREFIX
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.lerobot_files import lerobot_files
from saccade.policy.merging.origin import learned_digest, origin
from saccade.policy.merging.profile import Profile
from saccade.policy.pretrained.adaptation import Adaptation
from saccade_testing.instructions import INSTRUCTIONS


def profile_of(core, seen, instruction, seed):
    """The profile of a skill with one instruction: 30 observations around those of `seen`, in 10 episodes."""
    generator = torch.Generator().manual_seed(seed)
    pictures, state = (each.repeat(15, *[1] * (each.ndim - 1)) for each in seen)
    state = state + torch.randn(state.shape, generator=generator)
    features = core.describe(pictures, [instruction] * 30, state)
    return Profile.of(features, [0] * 30, [number // 3 for number in range(30)])


@pytest.fixture
def beginning(core, tmp_path):
    """The checkpoint that all skills begin as."""
    described, texts = lerobot_files(core.architecture, core.contract)
    tensors = {PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    return write_checkpoint(tmp_path / "beginning", tensors, described, core.contract, {}, texts)


@pytest.fixture
def make_skill(core, seen, beginning, tmp_path):
    """Write a skill's checkpoint; `spoil` changes its named tensors, `provenance` what is recorded of it."""

    def make(number, *, name=None, rank=2, spoil=None, provenance=None, contract=None):
        skill = copy.deepcopy(core)
        record = {"skill": origin(core.model.state_dict()), "init": str(beginning)} | (provenance or {})
        profile = profile_of(core, seen, INSTRUCTIONS[number], number)
        skill.adapt(Adaptation(rank=rank, alpha=2.0 * rank, skill=True))
        torch.manual_seed(100 + number)
        with torch.no_grad():
            for key, parameter in skill.model.named_parameters():
                if "lora_B" in key or key.startswith("expert."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
        tensors = {PREFIX + key: tensor for key, tensor in skill.model.state_dict().items()} | profile.tensors()
        if spoil is not None:
            spoil(tensors)
        record["learned"] = learned_digest(tensors)
        described, texts = lerobot_files(skill.architecture, skill.contract, skill.adaptation)
        folder = tmp_path / (name or f"skill{number}")
        return write_checkpoint(folder, tensors, described, contract or skill.contract, record, texts)

    return make
