"""What makes the host wait is found wherever it hides, and a decision has none of it."""

import pytest
import torch
from torch import nn

from saccade.policy.network.architecture import Architecture
from saccade.policy.profiling.cost import FakeNetwork, InputSizes
from saccade.policy.profiling.synchronisation import find_synchronisations

SIZES = InputSizes(image_size=32, batch=2)


@pytest.mark.parametrize(
    ("operation", "run"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: float(x[0, 0])),
        ("_local_scalar_dense", lambda x: 1 if (x > 0).any() else 0),
        ("nonzero", lambda x: x.nonzero()),
        ("nonzero", lambda x: torch.where(x > 0)),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("index", lambda x: x[x > 0]),
        ("index_put_", lambda x: x.clone().index_put_((x > 5,), torch.zeros(()))),
        ("_unique2", lambda x: x.unique()),
        ("equal", lambda x: torch.equal(x, x)),
        ("allclose", lambda x: torch.allclose(x, x)),
        ("repeat_interleave", lambda x: x[0].repeat_interleave(torch.arange(3), dim=0)),
        ("lift_fresh", lambda x: x + torch.tensor([1.0, 2.0, 3.0])),
        ("lift_fresh", lambda x: x[[0, 1]]),
    ],
)
def test_synchronizations_are_found_on_any_machine(operation, run):
    found = find_synchronisations(lambda: run(torch.ones(3, 3)))
    assert operation in {each.operation for each in found}
    assert all("test_synchronisation.py" in each.where for each in found)


@pytest.mark.parametrize(
    ("operation", "run"),
    [
        ("_to_copy", lambda x: x.cpu()),
        ("_to_copy", lambda x: torch.zeros(3).to(x.device)),
        ("_to_copy", lambda x: torch.tensor(1.0, device=x.device)),
        ("copy_", lambda x: torch.zeros(3, 3).copy_(x)),
        ("copy_", lambda x: x.copy_(torch.zeros(3, 3))),
        ("lift_fresh", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
    ],
)
def test_copies_between_devices_are_found_with_a_fake_device(operation, run):
    fake_network = FakeNetwork(lambda: nn.Linear(3, 3), device="cuda")
    with fake_network.fake_mode(), torch.no_grad():
        found = find_synchronisations(lambda: run(torch.zeros(3, 3, device="cuda")))
    assert [each.operation for each in found] == [operation]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.clone().__setitem__((slice(None), 0), 3.0),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.repeat_interleave(2, dim=0),
        lambda x: x[torch.arange(2, device=x.device)],
        lambda x: x.topk(2).indices.sort(-1).values,
        lambda x: x.to(torch.bfloat16),
        lambda x: torch.zeros_like(x).copy_(x),
    ],
)
def test_asynchronous_operations_are_not_reported(run):
    assert find_synchronisations(lambda: run(torch.ones(3, 3))) == []
    fake_network = FakeNetwork(lambda: nn.Linear(3, 3), device="cuda")
    with fake_network.fake_mode():
        assert find_synchronisations(lambda: run(torch.ones(3, 3, device="cuda"))) == []


CHOICES = {
    "tiny": {},
    "pretrained": {"towers": ("vit_tiny_patch16_224.augreg_in21k",) * 2, "router_signal": "straight_through"},
    "text first": {"sequence": ("text", "visual", "state", "slots"), "positions": "counted"},
    "slots": {"readout": "slots", "slot_unit": "element", "extra_slots": 1, "expert_width": 16},
    "original": {
        "router": "original",
        "positions": "renumbered",
        "sequence": ("start", "visual", "state", "text", "slots"),
        "slot_queries": "zero",
        "readout": "slots",
    },
    "dense": {
        "towers": ("vit_tiny_patch16_224.augreg_in21k",) * 2,
        "aggregation_tokens": 0,
        "tower_film": False,
        "fusion": "concatenated",
        "mask": "full",
        "prune_from": 3,
        "readout": "slots",
    },
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_decision_never_synchronizes(small_architecture, choices, device):
    architecture = Architecture(**{**vars(small_architecture), **choices})
    fake_network = FakeNetwork(lambda: SIZES.build(architecture).eval(), device=device)
    with fake_network.fake_mode(), torch.no_grad():
        network = fake_network.network
        instruction_plan = network.encode_instruction(SIZES.tokens(architecture, device))
        images, state = SIZES.images(device), SIZES.states(device)
        assert find_synchronisations(lambda: network.decide(images, instruction_plan, state)) == []
