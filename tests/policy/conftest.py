"""A contract of two cameras and two joints, and a policy of the smallest network for it."""

import pytest
import torch

from saccade.policy.contract import ActionSpec, CameraSpec, Contract, GripperSpec, Normalization, StateSpec
from saccade.policy.core import PolicyCore

NAMES, UNITS = ("pan.pos", "gripper.pos"), ("degrees", "percent")


@pytest.fixture(scope="session")
def two_camera_contract():
    return Contract(
        cameras=(CameraSpec("front", 32, 32), CameraSpec("wrist", 32, 32)),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
        normalization=Normalization(
            state_low=(-90, 0),
            state_high=(90, 100),
            action_low=((-1, 0), (-2, 0), (-3, 0)),
            action_high=((1, 100), (2, 100), (3, 100)),
            relative=(True, False),
        ),
        chunk=3,
        execute=2,
    )


@pytest.fixture
def core(small_architecture, two_camera_contract):
    """A policy with perturbed weights, so that its actions depend on the instruction like those of a trained policy."""
    torch.manual_seed(0)
    core = PolicyCore(small_architecture, two_camera_contract)
    with torch.no_grad():
        for parameter in core.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    core.model.eval()
    return core


@pytest.fixture
def observations():
    """Images uint8 [2, 2, 3, 32, 32] and states [2, 2], in the contract's units."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([[10.0, 50.0], [-40.0, 0.0]])
