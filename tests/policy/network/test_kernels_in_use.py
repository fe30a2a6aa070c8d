"""With the package's own operators a policy decides and learns as with PyTorch's, and costs as many operations."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GemmaConfig, GraniteConfig, LlamaConfig, Qwen2Config, Qwen3Config, SmolLM3Config

from saccade.errors import InputError
from saccade.kernels.common.dispatch import is_interpreted
from saccade.kernels.plan import AttentionPlan
from saccade.policy.checkpoint.folder import STARTER_FOLDER
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.loading import load_policy
from saccade.policy.network.action_heads.released_expert import BridgeOptions
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.attention import attend, full_attention_plan
from saccade.policy.network.capture import CapturedPolicy
from saccade.policy.network.layout import TokenLayout
from saccade.policy.network.losses import chunk_loss
from saccade.policy.network.tensor_tree import list_tensors
from saccade.policy.network.trunk import Trunk
from saccade.policy.pretrained.adaptation import set_checkpointing
from saccade.policy.profiling.cost import FakeNetwork, InputSizes, count_flops, decision_cost
from saccade.policy.profiling.synchronisation import find_synchronisations
from saccade.scripts.checkpoints.worker_policies import PolicyFactory
from saccade.scripts.evaluate.options import EvaluateConfig
from saccade.sim.desk.environment import DeskEnv

SIZES = InputSizes(image_size=32, batch=2)

DEGREES = 1e-3
"""How far two decisions on one observation may be apart: a thousandth of a degree, or of a percent of the gripper."""

TEXT_FIRST = {"sequence": ("text", "visual", "state", "slots"), "positions": "counted", "extra_slots": 5}
CHOICES = {
    "tiny": {},
    "small": {**TEXT_FIRST, "trunk_family": "qwen2", "trunk_heads": 4, "trunk_key_value_heads": 2},
    "llama, text first": {**TEXT_FIRST, "trunk_key_value_heads": 1},
    "qwen3, mutual": {**TEXT_FIRST, "trunk_family": "qwen3", "mask": "mutual", "trunk_head_size": 16},
    "straight through": {"router_signal": "straight_through"},
    "original": {
        "router": "original",
        "positions": "renumbered",
        "sequence": ("start", "visual", "state", "text", "slots"),
        "slot_queries": "zero",
        "readout": "slots",
        "prune_per_view": False,
    },
    "vla_adapter": {"readout": "vla_adapter", "mask": "causal"},
    "mergevla": {"readout": "mergevla", "mask": "full", "prune_from": 3},
}


COSTS = ("small", "original", "vla_adapter")
"""The choices that between them run every operation in every place."""
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=CHOICES.values(), ids=CHOICES)
def architecture(request, small_architecture):
    return replace(small_architecture, **request.param)


def both(architecture):
    """Return two networks with the same weights, stirred so that modulation and routers do something: PyTorch, ours."""
    torch.manual_seed(0)
    plain = SIZES.build(architecture)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = SIZES.build(replace(architecture, kernels="saccade"))
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def given(architecture):
    """Return pictures, text of two lengths and states."""
    torch.manual_seed(1)
    tokens = SIZES.tokens(architecture)
    tokens[1, 3:] = architecture.padding
    return SIZES.images(), tokens, torch.randn(2, SIZES.state)


def learned(network, inputs):
    """Return the loss of a chunk and the gradient of every parameter that has one."""
    target = torch.zeros(2, SIZES.chunk, SIZES.action)
    loss = chunk_loss(network(*inputs).actions, target, torch.zeros(2, SIZES.chunk, dtype=torch.bool)).mean()
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def assert_same_gradients(wanted, got):
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert float((got[name] - gradient).abs().max()) <= 1e-4 * scale + 1e-7, name


# --- what is decided


def test_kernels_decide_the_same(architecture):
    plain, ours = both(architecture)
    with torch.inference_mode():
        wanted, got = (network.eval()(*given(architecture)) for network in (plain, ours))
    torch.testing.assert_close(got.actions, wanted.actions, rtol=1e-5, atol=1e-5)
    for chosen, expected in zip(got.kept_indices, wanted.kept_indices, strict=True):
        assert (chosen is None and expected is None) or chosen.equal(expected)


def test_kernels_use_a_plan(small_architecture):
    plain, ours = both(replace(small_architecture, **CHOICES["small"]))
    tokens = given(small_architecture)[1]
    with torch.inference_mode():
        instruction_plan = [network.encode_instruction(tokens) for network in (plain, ours)]
    assert instruction_plan[0].expert_plan is None and isinstance(instruction_plan[1].expert_plan, AttentionPlan)
    layers = [[each.trunk_plan.unpruned, *each.trunk_plan.pruned.values()] for each in instruction_plan]
    assert all(tokens.attention_pattern.dtype == torch.bool for tokens in layers[0])
    assert all(isinstance(tokens.attention_pattern, AttentionPlan) for tokens in layers[1])
    # Each layer that prunes has fewer queries; all see the remembered text.
    queries, keys = (
        [getattr(each.attention_pattern, name).shape[1] for each in layers[1]] for name in ("low", "level")
    )
    assert queries[0] == max(queries) and len(set(queries)) == 3
    assert [key - query for query, key in zip(queries, keys, strict=True)] == [2 * small_architecture.text_length] * 3


@pytest.mark.parametrize("prune_from", [1, 3])
def test_sixteen_bit_decisions_are_close(small_architecture, prune_from):
    shape = replace(small_architecture, **CHOICES["small"], prune_from=prune_from)
    plain, ours = (network.to(torch.bfloat16).eval() for network in both(shape))
    with torch.inference_mode():
        wanted, got = (network(*given(shape)) for network in (plain, ours))
    # Rounded scores may rank two tokens the other way round; then the actions have no reason to be close.
    same = all(
        one is None or one.equal(other) for one, other in zip(got.kept_indices, wanted.kept_indices, strict=True)
    )
    error = float((got.actions - wanted.actions).abs().max() / wanted.actions.abs().max())
    assert got.actions.isfinite().all() and (error < 3e-2 or not same)
    assert same or prune_from == 1


def test_kernels_have_gradients_under_autocast(small_architecture):
    shape = replace(small_architecture, **CHOICES["small"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (wanted, gradients), (got, other) = (learned(network, given(shape)) for network in both(shape))
    assert float(got) == pytest.approx(float(wanted), rel=2e-2)
    assert gradients.keys() == other.keys() and all(each.isfinite().all() for each in other.values())


@pytest.fixture(scope="module")
def actors():
    return {kernels: PolicyActor(STARTER_FOLDER, threads=None, kernels=kernels) for kernels in ("torch", "saccade")}


@pytest.fixture(scope="module")
def episodes(actors):
    """Both actors' episodes of some tasks: what the first one saw at its decisions, and how they ended."""
    seen, ends = {}, {}
    for task in (("desk_object", "red_cube"), ("desk_object", "blue_can"), ("desk_spatial", "left")):
        for kernels, actor in actors.items():
            env = DeskEnv(*task)
            observation, info = env.reset(seed=3, options={"initial_state": 1})
            actor.reset(info["instruction"], seed=0)
            steps, over = 0, False
            while not over:
                if kernels == "torch" and steps % 8 == 0:
                    seen.setdefault(info["instruction"], []).append(observation)
                observation, _, terminated, truncated, info = env.step(actor.act(observation))
                steps, over = steps + 1, terminated or truncated
            ends.setdefault(task, []).append((steps, info["is_success"], info["picked"]))
            env.close()
    return seen, ends


def test_the_starter_decides_the_same_on_the_desk(actors, episodes):
    decisions = 0
    for instruction, observations in episodes[0].items():
        for actor in actors.values():
            actor.reset(instruction, seed=0)
        for observation in observations:
            wanted, got = (actor.decide(observation) for actor in actors.values())
            assert np.abs(got - wanted).max() < DEGREES
            for chosen, expected in zip(*(actor.decision.kept_indices for actor in actors.values()), strict=True):
                assert (chosen is None and expected is None) or chosen.equal(expected)
            decisions += 1
    assert decisions >= 24


def test_the_starter_s_episodes_end_the_same(episodes):
    for wanted, got in episodes[1].values():
        assert got == wanted and wanted[1]


def test_evaluation_sets_the_kernels_of_any_checkpoint():
    config = EvaluateConfig(kernels="saccade")
    actor = PolicyFactory(STARTER_FOLDER, config.device, config.precision, config.kernels)()
    assert actor.core.architecture.kernels == "saccade" and actor.core.model.trunk.fused
    assert load_policy(STARTER_FOLDER).architecture.kernels == "torch"


# --- what is learned


def test_kernels_have_the_same_gradients(architecture):
    (wanted, gradients), (got, other) = (learned(network, given(architecture)) for network in both(architecture))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients, other)


@pytest.mark.slow
@pytest.mark.skipif(is_interpreted(), reason="this is the interpreted run")
def test_triton_kernels_have_the_same_gradients():
    # Triton reads the variable once, when it is imported: the test above, in a process of its own.
    chosen = "test_kernels_have_the_same_gradients and small"
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", chosen, "-p", "no:cacheprovider"]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout + run.stderr


def test_checkpointing_gives_the_same_gradients(small_architecture):
    shape = replace(small_architecture, **CHOICES["small"])
    plain, ours = both(shape)
    set_checkpointing(ours, on=True)
    (wanted, gradients), (got, other) = (learned(network, given(shape)) for network in (plain, ours))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients, other)


FAMILIES = {
    "llama": (LlamaConfig, True),
    "qwen2": (Qwen2Config, True),
    "qwen3": (Qwen3Config, True),
    "smollm3": (SmolLM3Config, True),
    "gemma": (GemmaConfig, False),  # its norm adds one to its weight
    "granite": (GraniteConfig, False),  # its layers scale what they add
}


@pytest.mark.parametrize(("kind", "fused"), FAMILIES.values(), ids=FAMILIES)
def test_a_pruned_layer_of_every_family_has_the_same_gradient(kind, fused):
    layout = TokenLayout(visual=6, text=4, slots=3)
    configuration = kind(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        pad_token_id=0,
        initializer_range=0.3,
        **({"residual_multiplier": 0.5, "attention_multiplier": 0.5} if kind is GraniteConfig else {}),
    )
    torch.manual_seed(0)
    trunks = [
        Trunk(configuration, layout, groups=2, keep=(1,), condition=5, kernels=kernels)
        for kernels in ("torch", "saccade")
    ]
    trunks[1].load_state_dict(trunks[0].state_dict())
    assert trunks[1].fused == fused and not trunks[0].fused
    given = torch.randn(2, layout.length, 16)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    results = []
    for trunk in trunks:
        sequence = given.clone().requires_grad_()
        plan = trunk.plan(sequence[:, layout.span("text")], valid, torch.ones(2, 5))
        output = trunk(sequence, plan).hidden[0]
        output.sin().sum().backward()
        results.append((output, sequence.grad, {name: each.grad for name, each in trunk.named_parameters()}))
    (wanted, wanted_gradient, wanted_parts), (got, gradient, parts) = results
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)
    assert wanted_parts["decoder.layers.0.input_layernorm.weight"].any()
    for name in wanted_parts:
        if wanted_parts[name] is not None:
            torch.testing.assert_close(parts[name], wanted_parts[name], rtol=1e-4, atol=1e-5)


# --- what it costs


@pytest.mark.parametrize("architecture", [CHOICES[name] for name in COSTS], ids=COSTS, indirect=True)
def test_a_decision_counts_as_many_operations(architecture):
    plain, ours = (decision_cost(replace(architecture, kernels=kernels), SIZES) for kernels in ("torch", "saccade"))
    assert ours.decide == plain.decide and ours.encode_instruction == plain.encode_instruction


def test_attention_counts_two_products_and_seven_backward():
    batch, heads, groups, queries, keys, width = 3, 4, 2, 5, 7, 8
    plan = full_attention_plan(batch, queries, keys, torch.device("cpu"))
    query = torch.zeros(batch, heads, queries, width, requires_grad=True)
    key = torch.zeros(batch, groups, keys, width, requires_grad=True)
    product = 2 * batch * heads * queries * keys * width
    assert count_flops(lambda: attend(query, key, key, plan)).total == 2 * product
    assert count_flops(lambda: attend(query, key, key, plan).sum().backward()).total == (2 + 7) * product


@pytest.mark.parametrize("architecture", [CHOICES[name] for name in COSTS], ids=COSTS, indirect=True)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_encoding_and_deciding_never_synchronize(architecture, device):
    shape = replace(architecture, kernels="saccade")
    fake_network = FakeNetwork(lambda: SIZES.build(shape).eval(), device=device)
    with fake_network.fake_mode(), torch.no_grad():
        tokens, images, state = SIZES.tokens(shape, device), SIZES.images(device), SIZES.states(device)
        instruction_plan = fake_network.network.encode_instruction(tokens)
        assert find_synchronisations(lambda: fake_network.network.decide(images, instruction_plan, state)) == []
        assert find_synchronisations(lambda: fake_network.network.encode_instruction(tokens)) == []


def test_a_captured_policy_takes_new_plans(small_architecture):
    shape = replace(small_architecture, **CHOICES["small"])
    _, ours = both(shape)
    ours.eval()

    def capture_graph(run):
        output = run()

        def replay():
            for old, new in zip(list_tensors(output), list_tensors(run()), strict=True):
                old.copy_(new)

        return output, replay

    images, tokens, state = given(shape)
    with torch.inference_mode():
        first, second = ours.encode_instruction(tokens), ours.encode_instruction(tokens.flip(0))
        captured = CapturedPolicy(ours, images, first, state, capture_graph=capture_graph)
        captured.set_instruction(second)
        assert captured.decide(images, state).actions.equal(ours.decide(images, second, state).actions)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
def test_a_cuda_graph_decides_as_pytorch_does(small_architecture, dtype, tolerance):
    shape = replace(small_architecture, **CHOICES["small"], prune_from=3)
    plain, ours = (network.to("cuda", dtype).eval() for network in both(shape))
    images, tokens, state = (each.to("cuda") for each in given(shape))
    with torch.inference_mode():
        captured = CapturedPolicy(ours, images, ours.encode_instruction(tokens), state)
        captured.set_instruction(ours.encode_instruction(tokens.flip(0)))
        wanted = plain.decide(images, plain.encode_instruction(tokens.flip(0)), state).actions
        got = captured.decide(images, state).actions
    assert float((got - wanted).abs().max() / wanted.abs().max()) < tolerance


# --- what is refused


def test_unknown_kernels_are_refused_with_the_choices():
    with pytest.raises(InputError, match=r"architecture.kernels: .*triton.*torch, saccade"):
        Architecture(kernels="triton")
    with pytest.raises(InputError, match=r"architecture.kernels: .*Did you mean 'saccade'"):
        PolicyActor(STARTER_FOLDER, threads=None, kernels="sacade")
    with pytest.raises(InputError, match="bridge expert: kernels"):
        BridgeOptions(width=8, blocks=1, steps=2, actions=1, kernels="cuda")


def test_heads_that_are_too_wide_are_refused(small_architecture):
    wide = replace(small_architecture, trunk_head_size=258, kernels="saccade")
    with pytest.raises(InputError, match=r"saccade, with heads of 258 numbers in the trunk, expected heads of at most"):
        SIZES.build(wide)
    wide = replace(small_architecture, expert_width=520, kernels="saccade")
    with pytest.raises(InputError, match="heads of 260 numbers in the expert"):
        SIZES.build(wide)
    assert SIZES.build(replace(wide, kernels="torch")).architecture.expert_width == 520
