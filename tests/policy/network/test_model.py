"""The whole network: shapes that never change, gradients everywhere, losses over what is real."""

from dataclasses import replace

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.network.instruction import ByteTokenizer
from saccade.policy.network.losses import chunk_loss, grounding_loss
from saccade.policy.network.model import SaccadeModel


@pytest.fixture
def model(small_architecture):
    torch.manual_seed(0)
    model = SaccadeModel(small_architecture, views=2, image_size=32, state=3, action=4, chunk=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(seed, sentences):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(sentences), 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, ByteTokenizer(24)(sentences), torch.randn(len(sentences), 3, generator=generator)


def test_decision_shapes(model):
    decision = model(*inputs(0, ["pick the cube", "b"]))
    assert decision.actions.shape == (2, 5, 4) and decision.actions.dtype == torch.float32
    assert decision.positions.shape == (2, 2, 3, 2)
    assert decision.logits.shape == (2, 2, 3, 4, 4)
    assert [None if places is None else places.shape for places in decision.kept_indices] == [None, (2, 4), (2, 2)]
    assert ((decision.positions > 0) & (decision.positions < 1)).all()


def test_shapes_are_independent_of_the_inputs(model):
    shapes: list[list[tuple]] = [[]]

    def note(module, given, output):
        if isinstance(output, torch.Tensor):
            shapes[-1].append((type(module).__name__, tuple(output.shape)))

    for module in model.modules():
        module.register_forward_hook(note)
    for seed, sentences in ((0, ["a", "bb"]), (1, ["the cup left of bowls", "c"]), (2, ["dd", "dd"])):
        model(*inputs(seed, sentences))
        shapes.append([])
    assert len(shapes[0]) > 50
    assert shapes[0] == shapes[1] == shapes[2]


def test_every_parameter_learns(model):
    decision = model(*inputs(0, ["pick the cube", "b"]))
    (decision.actions.square().sum() + decision.logits.square().sum()).backward()
    silent = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert not silent
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("changed", ["images", "instruction", "state"])
def test_actions_depend_on_every_input(model, changed):
    model.eval()
    images, tokens, state = inputs(0, ["the cup", "the cup"])
    before = model(images, tokens, state).actions
    if changed == "images":
        images = images.roll(5, -1)
    if changed == "instruction":
        tokens = ByteTokenizer(24)(["the can", "the can"])
    if changed == "state":
        state = state + 0.5
    assert not model(images, tokens, state).actions.allclose(before, atol=1e-4)


def test_views_are_distinguished(model):
    model.eval()
    images, tokens, state = inputs(0, ["the cup"])
    before = model(images, tokens, state)
    swapped = model(images.flip(1), tokens, state)
    assert not swapped.actions.allclose(before.actions, atol=1e-5)
    assert not swapped.positions.flip(1).allclose(before.positions, atol=1e-5)


def test_decisions_of_a_batch_are_independent(model):
    model.eval()
    images, tokens, state = inputs(0, ["a", "the cup left of bowls"])
    together = model(images, tokens, state).actions
    alone = torch.cat([model(images[i : i + 1], tokens[i : i + 1], state[i : i + 1]).actions for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_autocast_decisions_are_close(model):
    model.eval()
    given = inputs(0, ["the cup", "a"])
    plain = model(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*given)
    assert mixed.actions.dtype == torch.float32
    # A router may pick another token where two scores are near, so that only the scale is compared.
    assert (mixed.actions - plain.actions).abs().mean() < 0.2 * plain.actions.abs().mean()


def test_the_chunk_loss_is_a_mean_over_real_steps():
    predicted, target = torch.zeros(3, 2, 2), torch.tensor([[[1.0, 3], [50, 50]]]).expand(3, -1, -1)
    padded = torch.tensor([[False, True], [False, False], [True, True]])
    assert chunk_loss(predicted, target, padded).tolist() == [2.0, 26.0, 0.0]


def test_the_grounding_loss_takes_all_views(model):
    decision = model(*inputs(0, ["a"]))
    out_of_view = torch.full((1, 2, 2, 2), -1.0)
    assert grounding_loss(decision, out_of_view) == 0
    losses = []
    for view in range(2):
        labels = out_of_view.clone()
        labels[0, view, 0] = 0.4
        losses.append(grounding_loss(decision, labels))
    both = out_of_view.clone()
    both[0, :, 0] = 0.4
    torch.testing.assert_close(grounding_loss(decision, both), torch.stack(losses).mean())


VARIANTS = {
    "mean": {"instruction_features": "mean"},
    "mean_padded": {"instruction_features": "mean_padded"},
    "original router": {"router": "original", "prune_per_view": False, "positions": "renumbered"},
    "straight through": {"router_signal": "straight_through", "positions": "counted"},
    "slots of steps": {"readout": "slots"},
    "slots of elements": {
        "readout": "slots",
        "slot_unit": "element",
        "slot_queries": "zero",
        "extra_slots": 1,
        "read_shifted": True,
        "sequence": ("start", "visual", "state", "text", "slots"),
    },
    "mergevla": {"readout": "mergevla", "extra_slots": 2, "sequence": ("start", "visual", "text", "slots")},
    "vla_adapter": {
        "readout": "vla_adapter",
        "read_shifted": True,
        "mask": "causal",
        "expert_rotation": "mixed",
        "expert_start": "zero",
        "sequence": ("start", "visual", "text", "slots"),
    },
    "text first": {"sequence": ("text", "visual", "state", "slots")},
    "qwen": {"trunk_family": "qwen2", "trunk_key_value_heads": 1},
    "wide heads": {"trunk_family": "qwen3", "trunk_head_size": 12},
    "full mask": {"mask": "full"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_gradients_for_every_part(small_architecture, variant):
    torch.manual_seed(0)
    shape = replace(small_architecture, **VARIANTS[variant])
    model = SaccadeModel(shape, views=2, image_size=32, state=3, action=4, chunk=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    decision = model(*inputs(0, ["pick the cube", "b"]))
    assert decision.actions.shape == (2, 5, 4)
    (decision.actions.square().sum() + decision.logits.square().sum()).backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not silent
    if shape.slot_queries == "zero":
        assert "slots" not in dict(model.named_parameters()) and not model.slots.any()


def test_instruction_plan_is_reused_for_all_decisions(model):
    model.eval()
    prepared = model.encode_instruction(inputs(0, ["the cup", "a"])[1])
    for seed in range(3):
        images, tokens, state = inputs(seed, ["the cup", "a"])
        assert model.decide(images, prepared, state).actions.equal(model(images, tokens, state).actions)


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({}, {"view_condition"}),  # routers listen to the instruction, but no tower does
        ({"prune_from": 3}, {"instruction", "view_condition"}),
        ({"towers": ("test_vit3", "test_vit"), "fusion": "gated", "prune_from": 3}, set()),
    ],
)
def test_unused_parameters_are_frozen(small_architecture, changes, still):
    shape = replace(small_architecture, **{"towers": ("test_vit",), "tower_film": False} | changes)
    model = SaccadeModel(shape, views=2, image_size=32, state=3, action=4, chunk=5)
    model(*inputs(0, ["pick the cube", "b"])).actions.square().sum().backward()
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert not {name for name, each in learning.items() if each.grad is None}
    assert {name.split(".")[0] for name, each in model.named_parameters() if not each.requires_grad} == still


def test_an_unknown_family_of_trunks_is_refused(small_architecture):
    with pytest.raises(InputError, match="architecture.trunk_family: .*Did you mean 'llama'"):
        SaccadeModel(
            replace(small_architecture, trunk_family="lama"), views=1, image_size=32, state=1, action=1, chunk=1
        )
