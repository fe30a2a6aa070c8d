"""The bridge expert: number for number what the public VLA-Adapter and MergeVLA compute, and what its options mean."""

import pytest
import torch
from safetensors.torch import load_file

from saccade.errors import InputError
from saccade.policy.network.action_heads.released_expert import BridgeExpert, BridgeOptions, RotaryTable
from saccade_testing.released_adapter_weights import tensors
from saccade_testing.released_weights import RECORDED, layout

SIZES = dict(width=32, blocks=3, steps=8, actions=7)
ADAPTER = BridgeOptions(**SIZES, self_attention=True, gate="tanh", rotation="mixed", start="zero")
RELEASED = {
    "mergevla": BridgeOptions(**SIZES, rotation="mixed", start="zero"),
    "vla_adapter": ADAPTER,
    "vla_adapter_original": BridgeOptions(**SIZES, self_attention=True, gate="tanh", rotation="none", start="zero"),
}
STREAMS = {
    "mergevla": {
        "query": ["q_proj_adapter"],
        "query_seen": ["q_proj_task"],
        "key_value_decided": ["k_adapter", "v_adapter"],
        "key_value_seen": ["k_task", "v_task"],
    },
    "vla_adapter": {
        "query": ["q_proj"],
        "key_value_self": ["k_self", "v_self"],
        "key_value_decided": ["k_adapter", "v_adapter"],
        "key_value_seen": ["k_task", "v_task"],
    },
    "vla_adapter_original": {
        "query": ["q_proj"],
        "key_value_self": ["k_proj", "v_proj"],
        "key_value_decided": ["k_proj", "v_proj"],
        "key_value_seen": ["k_proj", "v_proj"],
    },
}
PLAIN = {"output": "o_proj", "feed_forward_norm": "ffn.0", "feed_forward": "ffn.1"}
ENDS = {"start.norm": "layer_norm1", "start.project": "fc1", "norm": "layer_norm2", "head": "fc2"}


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED / "bridge_expert.safetensors")


def released_expert(variant):
    """An expert with the weights of the public one, under our names."""
    family = variant.removesuffix("_original")
    weights = tensors(layout(family)["bridge"][variant])
    mine = {}
    for kind in ("weight", "bias"):
        for ours, theirs in ENDS.items():
            mine[f"{ours}.{kind}"] = weights[f"module.model.{theirs}.{kind}"]
        for block in range(SIZES["blocks"]):
            prefix = f"module.model.mlp_resnet_blocks.{block}"
            for ours, theirs in (STREAMS[variant] | {name: [only] for name, only in PLAIN.items()}).items():
                parts = [weights[f"{prefix}.{part}.{kind}"] for part in theirs]
                mine[f"blocks.{block}.{ours}.{kind}"] = torch.cat(parts)
            mine[f"blocks.{block}.gate"] = weights[f"{prefix}.gating_factor"]
    expert = BridgeExpert(RELEASED[variant]).eval()
    expert.load_state_dict(mine)
    return expert


def streams(recorded):
    return recorded["seen"].unbind(1), recorded["decided"].unbind(1), recorded["state"]


@pytest.mark.parametrize("variant", RELEASED)
def test_actions_equal_those_of_the_public_code(variant, recorded):
    expert, blocks = released_expert(variant), []
    for block in expert.blocks:
        block.register_forward_hook(lambda _, __, output: blocks.append(output))
    with torch.no_grad():
        actions = expert(*streams(recorded))
    torch.testing.assert_close(torch.stack(blocks, 1), recorded[f"{variant}.blocks"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actions, recorded[f"{variant}.actions"], rtol=1e-5, atol=1e-5)


def test_only_the_rotation_tells_the_steps_of_a_chunk_apart(recorded):
    with torch.no_grad():
        rotated, plain = (released_expert(name)(*streams(recorded)) for name in ("mergevla", "vla_adapter_original"))
    assert (plain == plain[:, :1]).all()
    assert (rotated != rotated[:, :1]).any(-1)[:, 1:].all()


@pytest.mark.parametrize("self_attention", [True, False])
def test_steps_see_each_other_only_with_self_attention(self_attention):
    torch.manual_seed(0)
    expert = BridgeExpert(BridgeOptions(**SIZES, self_attention=self_attention))
    visual_states, slot_states = torch.randn(3, 1, 6, 32), torch.randn(3, 1, 5, 32)
    actions = expert(visual_states, slot_states, torch.randn(1, 32))
    (gradient,) = torch.autograd.grad(actions[0, 1].square().sum(), expert.start.rows)
    others = gradient[[0, *range(2, 8)]]
    assert gradient[1].any() and bool(others.any()) == self_attention


def test_each_block_reads_its_own_layer_and_the_state():
    torch.manual_seed(0)
    expert = BridgeExpert(BridgeOptions(**SIZES))
    inputs = [torch.randn(3, 2, 6, 32), torch.randn(3, 2, 5, 32), torch.randn(2, 32)]
    inputs = [part.requires_grad_() for part in inputs]
    gradients = torch.autograd.grad(expert(*inputs).square().sum(), inputs)
    assert all(gradient.abs().amax(-1).gt(0).all() for gradient in gradients)


def test_paired_rotation_depends_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 8, generator=generator).expand(-1, -1, 6, -1) for _ in range(2))

    def logits(rotation):
        table = RotaryTable.build(6, 8, rotation, query)
        return (table.rotate(query) @ table.rotate(key).transpose(-1, -2))[0, 0]

    paired, mixed = logits("paired"), logits("mixed")
    torch.testing.assert_close(paired[1:, 1:], paired[:-1, :-1])
    assert (mixed[1:, 1:] - mixed[:-1, :-1]).abs().max() > 0.1


def test_closed_gate_averages_the_visual_tokens():
    torch.manual_seed(0)
    block = BridgeExpert(BridgeOptions(**SIZES, gate="tanh", rotation="none")).blocks[0]
    actions, visual_states, slot_states = torch.randn(1, 8, 32), torch.randn(1, 6, 32), torch.randn(1, 1, 32)
    table = None
    blind = block(actions, visual_states, slot_states, table)
    with torch.no_grad():
        block.key_value_seen.weight[:32].normal_()
    torch.testing.assert_close(block(actions, visual_states, slot_states, table), blind)


@pytest.mark.parametrize(
    "wrong",
    [dict(gate="relu"), dict(rotation="half"), dict(start="noise"), dict(heads=3), dict(width=8), dict(blocks=0)],
)
def test_incompatible_options_are_refused(wrong):
    with pytest.raises(InputError, match="bridge expert"):
        BridgeOptions(**(SIZES | wrong))


def test_missing_layer_is_refused():
    expert = BridgeExpert(BridgeOptions(**SIZES))
    with pytest.raises(InputError, match="layers of seen: got 2, expected 3"):
        expert(torch.randn(2, 1, 6, 32), torch.randn(3, 1, 5, 32), torch.randn(1, 32))
