"""The actor: decides once for several steps, from a checkpoint, and forgets between episodes."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.inference.actor import PolicyActor


@pytest.fixture
def checkpoint(core, tmp_path):
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    config = {"architecture": asdict(core.architecture)}
    return write_checkpoint(tmp_path / "checkpoint", tensors, config, core.contract, {})


def observation(seed):
    generator = np.random.default_rng(seed)
    pictures = {name: generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("wrist", "front")}
    return {"pixels": pictures, "agent_pos": np.array([5.0, 50.0], dtype=np.float32)}


def test_actor_executes_the_contract_s_steps_and_decides_again(checkpoint, core):
    actor = PolicyActor(checkpoint, threads=None)
    actor.reset("take the can", seed=0)
    actions = [actor.act(observation(step)) for step in range(5)]
    assert all(action.shape == (2,) and action.dtype == np.float32 for action in actions)
    assert len(actor.decision_seconds) == 3  # two of three steps each, and one step of the third decision
    expected = []
    for step in (0, 2, 4):
        seen = observation(step)
        views = torch.from_numpy(np.stack([seen["pixels"]["front"], seen["pixels"]["wrist"]])).permute(0, 3, 1, 2)
        chunk, _ = core.decide(
            views[None], core.encode_instruction(["take the can"]), torch.from_numpy(seen["agent_pos"])[None]
        )
        expected.extend(chunk[0, :2].numpy())
    np.testing.assert_array_equal(actions, expected[:5])


def test_reset_clears_the_previous_episode(checkpoint):
    actor = PolicyActor(checkpoint, threads=None)
    runs = []
    for seed in (0, 1):
        actor.reset("take the can", seed)
        assert actor.decision is None and actor.decision_seconds == []
        runs.append([actor.act(observation(step)) for step in range(3)])
    np.testing.assert_array_equal(*runs)


def test_actions_depend_on_the_instruction(checkpoint):
    actor = PolicyActor(checkpoint, threads=None)
    actions = []
    for instruction in ("take the can", "take the cube"):
        actor.reset(instruction, seed=0)
        actions.append(actor.act(observation(0)))
    assert not np.allclose(*actions)


def test_unreadable_instruction_is_refused(checkpoint):
    actor = PolicyActor(checkpoint, threads=None)
    with pytest.raises(InputError, match="instruction: got 44 bytes"):
        actor.reset("take " * 9, seed=0)


def test_instruction_is_encoded_once(checkpoint):
    actor, read = PolicyActor(checkpoint, threads=None), []
    actor.core.model.instruction.register_forward_hook(lambda module, given, output: read.append(output))
    for instruction in ("take the can", "take the can", "take the cube"):
        actor.reset(instruction, seed=0)
        for step in range(5):
            actor.act(observation(step))
    assert len(read) == 2


def test_threads_are_set_for_the_process_when_asked(checkpoint):
    before = torch.get_num_threads()
    try:
        PolicyActor(checkpoint, threads=None)
        assert torch.get_num_threads() == before
        PolicyActor(checkpoint, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
