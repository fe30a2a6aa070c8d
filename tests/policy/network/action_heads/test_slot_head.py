"""The slots' head: one action for each step, from that step's slots alone."""

import pytest
import torch

from saccade.policy.network.action_heads.slot_head import SlotHead


@pytest.mark.parametrize("slots_per_step", [1, 3])
def test_each_step_is_decoded_from_its_own_slots(slots_per_step):
    torch.manual_seed(0)
    head = SlotHead(trunk=6, slots_per_step=slots_per_step, width=8, blocks=2, actions=4)
    states = torch.randn(2, 5 * slots_per_step, 6, requires_grad=True)
    actions = head(states)
    assert actions.shape == (2, 5, 4)
    (gradient,) = torch.autograd.grad(actions[1, 2].square().sum(), states)
    own = slice(2 * slots_per_step, 3 * slots_per_step)
    assert gradient[1, own].abs().amax(-1).all()
    gradient[1, own] = 0
    assert not gradient.any()
