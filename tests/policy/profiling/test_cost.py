"""Costs that are counted agree with what is computed by hand and with what a real run allocates."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from saccade.errors import InputError
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.presets import PRESETS
from saccade.policy.profiling.cost import (
    FakeNetwork,
    InputSizes,
    count_flops,
    decision_cost,
    peak_bytes,
    training_flops,
    training_peak_bytes,
    training_step,
)

SIZES = InputSizes(image_size=96, batch=4)
DEEP_SIZES = InputSizes(image_size=32, batch=16)


@pytest.fixture(scope="module")
def pretrained_like():
    return Architecture(
        text_length=24,
        towers=("vit_tiny_patch16_224.augreg_in21k",),
        aggregation_tokens=16,
        trunk_width=192,
        trunk_feed_forward=512,
    )


def test_a_linear_layer_computes_two_operations_a_weight():
    layer = nn.Linear(5, 7)
    assert count_flops(lambda: layer(torch.zeros(3, 5))).total == 2 * 3 * 5 * 7


def test_a_backward_pass_computes_twice_as_much_and_nothing_for_frozen_weights():
    layer, given = nn.Linear(5, 7), torch.zeros(3, 5, requires_grad=True)
    assert count_flops(lambda: layer(given).sum().backward()).total == 3 * 2 * 3 * 5 * 7
    layer.weight.requires_grad_(False)
    assert count_flops(lambda: layer(given).sum().backward()).total == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_two_products_with_any_mask(masked):
    batch, heads, queries, keys, width = 2, 3, 4, 6, 8
    query = torch.zeros(batch, heads, queries, width)
    key = torch.zeros(batch, heads, keys, width)
    mask = torch.zeros(queries, keys, dtype=torch.bool) if masked else None
    counted = count_flops(lambda: functional.scaled_dot_product_attention(query, key, key, attn_mask=mask))
    assert counted.total == 2 * 2 * batch * heads * queries * keys * width


def test_meta_network_counts_as_many_operations_as_the_real_one(small_architecture):
    sizes = InputSizes(image_size=32, batch=2)
    real = sizes.build(small_architecture).requires_grad_(False).eval()
    instruction_plan = real.encode_instruction(sizes.tokens(small_architecture))
    with torch.no_grad():
        wanted = count_flops(lambda: real.decide(sizes.images(), instruction_plan, sizes.states()), real)
    counted = decision_cost(small_architecture, sizes)
    assert counted.decide == wanted
    assert counted.parameters == sum(each.numel() for each in real.parameters())
    assert sum(wanted.parts.values()) == wanted.total
    assert all(wanted.parts[part] > 0 for part in ("towers", "trunk", "expert"))


def test_parts_are_the_same_in_training(pretrained_like):
    network = SIZES.build(pretrained_like)
    step = training_step(network, SIZES)
    parts = count_flops(step, network).parts
    assert all(parts[part] > 0 for part in ("towers", "fusion", "trunk", "expert"))


def test_pruning_and_fewer_tokens_save_operations(pretrained_like):
    costs = [
        decision_cost(Architecture(**{**vars(pretrained_like), **change}), SIZES).decide.parts
        for change in ({}, {"keep_floor": 1.0}, {"aggregation_tokens": 0})
    ]
    assert costs[0]["trunk"] < costs[1]["trunk"] < costs[2]["trunk"]
    assert costs[2]["towers"] < costs[0]["towers"]


def test_seven_billion_parameters_need_no_memory():
    network = FakeNetwork(lambda: InputSizes().build(PRESETS["large"])).network
    assert 7e9 < sum(each.numel() for each in network.parameters()) < 8.5e9


def test_a_decision_s_peak_is_the_weights_and_little_more(pretrained_like):
    cost = decision_cost(pretrained_like, InputSizes(image_size=96))
    assert cost.weight_bytes == 2 * cost.parameters
    assert cost.weight_bytes < cost.peak_bytes < 1.3 * cost.weight_bytes
    assert 0 < cost.encode_instruction.total < cost.decide.total


def test_meta_network_keeps_shared_and_frozen_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
            self.second.bias = self.first.bias

    network = FakeNetwork(Tied, dtype=torch.bfloat16).network
    assert network.first.bias is network.second.bias and network.first.bias.requires_grad
    assert not network.second.weight.requires_grad and network.second.weight.dtype == torch.bfloat16


def test_memory_that_is_freed_does_not_count():
    def run():
        for _ in range(5):
            torch.zeros(1000)
        kept = torch.zeros(500)
        return kept.view(2, 250) + 1  # a view and a result as large as what was kept

    assert peak_bytes(run, [torch.zeros(100)]) == 400 + 4000
    assert peak_bytes(lambda: [torch.zeros(10) for _ in range(3)], []) == 120


@pytest.fixture(scope="module")
def deep():
    """A trunk whose activations outweigh everything, so that checkpointing has something to save."""
    return Architecture(
        text_length=24,
        stem_width=16,
        stem_blocks=1,
        tower_width=16,
        tower_blocks=1,
        trunk_width=64,
        trunk_layers=4,
        trunk_feed_forward=512,
        expert_width=16,
        expert_blocks=1,
    )


@pytest.fixture(scope="module")
def peaks(deep):
    return {
        checkpointing: training_peak_bytes(
            lambda: DEEP_SIZES.build(deep), DEEP_SIZES, dtype=torch.float32, checkpointing=checkpointing
        )
        for checkpointing in (False, True)
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_peak_equals_the_allocator_s(deep, peaks, checkpointing):
    network = DEEP_SIZES.build(deep).train()
    step = training_step(network, DEEP_SIZES, checkpointing=checkpointing)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    live = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    # Weights were there before, and the moments of AdamW would be.
    held = sum(each.nbytes for each in network.parameters()) * 3
    assert peaks[checkpointing] == pytest.approx(held + most, rel=0.05)


def test_checkpointing_saves_memory_and_costs_operations(deep, peaks):
    assert peaks[True] < 0.8 * peaks[False]
    kept, again = (
        training_flops(lambda: DEEP_SIZES.build(deep), DEEP_SIZES, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert 1.1 * kept.total < again.total < 1.5 * kept.total


def test_invalid_sizes_are_refused():
    with pytest.raises(InputError, match="multiple of its patch"):
        decision_cost(PRESETS["small"], InputSizes(image_size=100))
