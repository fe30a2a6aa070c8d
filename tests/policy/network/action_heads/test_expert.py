"""The expert: cross-attention only, to the trunk's last layers, one block for each."""

import pytest
import torch

from saccade.policy.network.action_heads.expert import Expert, ExpertBlock


@pytest.fixture
def expert():
    torch.manual_seed(0)
    return Expert(chunk=2, width=8, trunk=6, blocks=2, heads=2, actions=5)


def trunk_states(count, layers=2):
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(2, count, 6, generator=generator, requires_grad=True) for _ in range(layers)]


def test_expert_decides_a_whole_chunk(expert):
    assert expert(trunk_states(4), trunk_states(3)).shape == (2, 2, 5)


def test_each_block_reads_a_layer_of_its_own(expert):
    seen, decided = trunk_states(4), trunk_states(3)
    for gradient in torch.autograd.grad(expert(seen, decided).square().sum(), [*seen, *decided]):
        assert (gradient.abs().amax(-1) > 0).all()


def test_steps_of_a_chunk_do_not_attend_to_each_other():
    torch.manual_seed(0)
    block = ExpertBlock(8, 6, 2)
    actions = torch.randn(1, 3, 8, requires_grad=True)
    output = block(actions, torch.randn(1, 4, 6), torch.randn(1, 3, 6))
    (gradient,) = torch.autograd.grad(output[0, 1].square().sum(), actions)
    assert gradient[0, 1].any() and not gradient[0, [0, 2]].any()


def test_gate_is_neutral_at_first_and_scales_the_logits_of_visual_tokens():
    torch.manual_seed(0)
    block = ExpertBlock(8, 6, 1)
    actions, decided = torch.randn(1, 1, 8), torch.randn(1, 2, 6)
    seen = torch.randn(1, 3, 6)
    neutral = block(actions, seen, decided)
    with torch.no_grad():
        block.seen.weight[:8].div_(2)
        block.seen.bias[:8].div_(2)
        block.gate.fill_(50.0)  # twice the logits
    torch.testing.assert_close(block(actions, seen, decided), neutral)


def test_fewer_layers_than_blocks_is_an_error(expert):
    with pytest.raises(ValueError, match="zip"):
        expert(trunk_states(4, layers=1), trunk_states(3, layers=1))
