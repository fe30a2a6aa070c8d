"""The core: in and out in the contract's units, and a checkpoint that comes back whole or not at all."""

import dataclasses
import json
from dataclasses import asdict

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX, architecture_from_dict, load_tensors
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.contract import CameraSpec
from saccade.policy.core import DemonstrationBatch, PolicyCore, build_model
from saccade.policy.loading import load_policy

SENTENCES = ["take the red cube", "take the can"]


def write(folder, core, **config):
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    config = {"type": "saccade", "architecture": asdict(core.architecture)} | config
    return write_checkpoint(folder, tensors, config, core.contract, {})


def decided(core, images, state):
    return core.decide(images, core.encode_instruction(SENTENCES), state)


def demonstration_batch(observations, **changes):
    images, state = observations
    action = torch.tensor([[[11.0, 90.0], [12, 90], [13, 90]], [[-40.0, 10.0], [-41, 10], [-42, 10]]])
    batch = DemonstrationBatch(images, SENTENCES, state, action, torch.zeros(2, 3, dtype=torch.bool))
    return dataclasses.replace(batch, **changes)


def test_decisions_are_in_the_contract_s_units(core, observations):
    images, state = observations
    chunk, decision = decided(core, images, state)
    assert chunk.shape == (2, 3, 2) and chunk.dtype == torch.float32
    # A joint target is relative to the measured joint, a gripper's is absolute: by hand from the contract.
    span = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(chunk[..., 0], state[:, :1] + span * decision.actions[..., 0])
    torch.testing.assert_close(chunk[..., 1], 50 + 50 * decision.actions[..., 1])
    torch.testing.assert_close(core.normalizer.encode_actions(chunk, state), decision.actions, rtol=1e-3, atol=1e-4)


def test_loss_is_zero_for_the_policy_s_own_actions(core, observations):
    images, state = observations
    chunk, _ = decided(core, images, state)
    own, _ = core.loss(demonstration_batch(observations, action=chunk.clone()))
    other, _ = core.loss(demonstration_batch(observations))
    assert own.action.shape == (2,) and own.action.max() < 1e-4 < other.action.min()
    assert other.grounding == 0


def test_padded_steps_add_no_loss(core, observations):
    padded = torch.tensor([[False, False, True], [False, True, True]])
    batch = demonstration_batch(observations, padded=padded)
    nonsense = batch.action.masked_fill(padded[..., None], 1e4)
    losses = [core.loss(dataclasses.replace(batch, action=action))[0].action for action in (batch.action, nonsense)]
    torch.testing.assert_close(*losses)


def test_labels_are_read_view_by_view(core, observations):
    out = torch.full((2, 6 + 2 * 2 * 2), -1.0)
    assert core.loss(demonstration_batch(observations, grounding=out))[0].grounding == 0
    space = out.clone()
    space[:, :6] = 0.5  # metres in the arm's frame are no places in a picture
    assert core.loss(demonstration_batch(observations, grounding=space))[0].grounding == 0
    wrist = out.clone()
    wrist[:, 10:12] = 0.5  # the wrist camera's first point
    loss, decision = core.loss(demonstration_batch(observations, grounding=wrist))
    (gradient,) = torch.autograd.grad(loss.grounding, decision.logits)
    assert gradient[:, 1, 0].any()
    gradient[:, 1, 0] = 0
    assert not gradient.any()


def test_labels_of_other_cameras_are_refused(core, observations):
    with pytest.raises(InputError, match=r"grounding: got labels of shape \[10\], expected \[14\], for 2 cameras"):
        core.loss(demonstration_batch(observations, grounding=torch.zeros(2, 10)))


def test_loss_calls_the_wrapper_in_place_of_the_network(core, observations):
    calls = []

    class Wrapper(torch.nn.Module):
        def forward(self, images, tokens, state, past_frames):
            calls.append(tokens.shape)
            return core.model(images, tokens, state, past_frames)

    wrapped, _ = core.loss(demonstration_batch(observations), Wrapper())
    plain, _ = core.loss(demonstration_batch(observations))
    assert wrapped.action.equal(plain.action)
    assert calls == [(2, 24)]


def test_a_checkpoint_decides_the_same(core, observations, tmp_path):
    loaded = load_policy(write(tmp_path / "checkpoint", core))
    assert not loaded.model.training
    assert (loaded.contract, loaded.architecture) == (core.contract, core.architecture)
    images, state = observations
    assert decided(loaded, images, state)[0].equal(decided(core, images, state)[0])


def test_weights_of_another_network_are_refused(core, tmp_path, small_architecture):
    larger = dataclasses.replace(small_architecture, expert_width=32, expert_blocks=3)
    folder = write(tmp_path / "checkpoint", core, architecture=asdict(larger))
    with pytest.raises(InputError) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)
    assert "missing (expert.blocks.2." in caught.value.got and "of another shape (expert." in caught.value.got


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.popitem(), "1 missing"),
        (lambda own: own.update(foreign=torch.zeros(1)), r"1 left over \(foreign"),
        (lambda own: own.update(slots=torch.zeros(1, 9, 16)), r"1 of another shape \(slots"),
    ],
)
def test_every_tensor_must_be_there_and_fit(core, change, message):
    tensors = dict(core.model.state_dict())
    change(tensors)
    before = core.model.slots.clone()
    with pytest.raises(InputError, match=message):
        load_tensors(core.model, tensors, "a folder")
    assert core.model.slots.equal(before)


def test_a_checkpoint_of_something_else_is_refused(core, tmp_path):
    folder = write_checkpoint(tmp_path / "other", {"weight": torch.zeros(1)}, {"type": "act"}, core.contract, {})
    with pytest.raises(InputError, match=r"config.json: got no architecture"):
        load_policy(folder)


def test_fields_of_another_version_are_refused(small_architecture):
    values = asdict(small_architecture)
    assert architecture_from_dict(json.loads(json.dumps(values)), "here") == small_architecture
    with pytest.raises(InputError, match="here: architecture: got unknown fields: heads"):
        architecture_from_dict(values | {"heads": 1}, "here")


def test_field_missing_in_an_older_checkpoint_gets_its_earlier_behaviour(small_architecture):
    values = asdict(small_architecture)
    assert values.pop("mask") == "coupled" and values.pop("readout") == "expert"
    assert architecture_from_dict(values, "here") == small_architecture


@pytest.mark.parametrize("sizes", [((32, 32), (48, 48)), ((32, 48), (32, 48)), ((40, 40), (40, 40))])
def test_cameras_that_do_not_suit_the_network_are_refused(small_architecture, two_camera_contract, sizes):
    cameras = tuple(CameraSpec(name, *size) for name, size in zip(("front", "wrist"), sizes, strict=True))
    contract = dataclasses.replace(two_camera_contract, cameras=cameras)
    with pytest.raises(InputError, match="contract.cameras"):
        build_model(small_architecture, contract)


def test_any_number_of_cameras_is_supported(small_architecture, two_camera_contract, observations):
    contract = dataclasses.replace(two_camera_contract, cameras=two_camera_contract.cameras[:1])
    images, state = observations
    chunk, decision = decided(PolicyCore(small_architecture, contract), images[:, :1], state)
    assert chunk.shape == (2, 3, 2) and decision.positions.shape == (2, 1, 3, 2)


def test_a_checkpoint_is_loaded_without_drawing_random_weights(core, observations, tmp_path):
    folder = write(tmp_path / "checkpoint", core)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = load_policy(folder, dtype=torch.bfloat16)
    assert torch.get_rng_state().equal(before)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    images, state = observations
    chunk, exact = decided(loaded, images, state)[0], decided(core, images, state)[0]
    # A router may pick another token where two scores are near, so that only the scale is compared.
    assert (chunk - exact).abs().mean() < 0.2 * exact.abs().mean()
