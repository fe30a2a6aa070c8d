"""One policy for many episodes: each decides as if it were alone, with words and a memory of its own."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.core import PolicyCore
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.inference.batched import BatchedActor

WORDS = ("take the can", "take the cube", "take the lid")


@pytest.fixture(params=["without history", "with history"])
def checkpoint(request, core, tmp_path):
    if request.param == "with history":
        torch.manual_seed(0)
        core = PolicyCore(replace(core.architecture, history=3, history_selected=1), core.contract)
        torch.nn.init.normal_(core.model.history.output.weight)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    return write_checkpoint(
        tmp_path / "checkpoint", tensors, {"architecture": asdict(core.architecture)}, core.contract, {}
    )


def observation(seed):
    generator = np.random.default_rng(seed)
    pictures = {name: generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("wrist", "front")}
    return {"pixels": pictures, "agent_pos": generator.normal(20, 5, 2).astype(np.float32)}


def play(policy, partners):
    """Return three decisions of slot 0 while `partners` decide beside it."""
    for slot in (0, *partners):
        policy.begin(slot, WORDS[slot % 3], seed=0)
    chunks = []
    for step in range(3):
        seen = {slot: observation(100 * slot + step) for slot in (*partners, 0)}
        chunks.append(policy.decide(seen)[0][0])
    return np.stack(chunks)


@pytest.mark.parametrize("max_batch_size", [1, 2])
def test_other_rows_of_the_batch_change_no_bit(checkpoint, max_batch_size):
    policy = BatchedActor(checkpoint, max_batch_size, threads=None)
    alone = play(policy, ())
    for partners in ((1,), (2,), (1, 2), (3, 1, 2)):
        np.testing.assert_array_equal(play(policy, partners), alone)
    assert alone.dtype == np.float32 and not np.array_equal(alone[0], alone[1])


def test_batched_decisions_equal_those_of_an_actor(checkpoint):
    actor, policy = PolicyActor(checkpoint, threads=None), BatchedActor(checkpoint, 4, threads=None)
    actor.reset(WORDS[0], seed=0)
    expected = np.stack([actor.decide(observation(step))[: actor.contract.execute] for step in range(3)])
    np.testing.assert_allclose(play(policy, (1, 2)), expected, rtol=1e-4, atol=1e-4)
    looks = policy.overlay(0)
    assert list(looks) == list(actor.overlay())
    for name, view in actor.overlay().items():
        np.testing.assert_allclose(looks[name], view, rtol=1e-3, atol=1e-3)


def test_single_row_equals_an_actor_bit_for_bit(checkpoint):
    actor, policy = PolicyActor(checkpoint, threads=None), BatchedActor(checkpoint, 1, threads=None)
    actor.reset(WORDS[0], seed=0)
    expected = np.stack([actor.decide(observation(step))[: actor.contract.execute] for step in range(3)])
    np.testing.assert_array_equal(play(policy, (1, 2)), expected)


def test_decisions_run_one_by_one_where_the_batch_row_changes_bits(checkpoint, monkeypatch):
    class Leaning(PolicyCore):
        def decide(self, images, instruction_plan, state, captured=None, memory=None):
            actions, decision = super().decide(images, instruction_plan, state, captured, memory)
            return actions + 1e-6 * torch.arange(len(actions))[:, None, None] * actions.abs(), decision

    def load(*arguments, **options):
        loaded = load_policy(*arguments, **options)
        loaded.__class__ = Leaning
        return loaded

    from saccade.policy.inference import batched

    load_policy = batched.load_policy
    assert BatchedActor(checkpoint, 2, threads=1).rows == 2
    monkeypatch.setattr(batched, "load_policy", load)
    assert BatchedActor(checkpoint, 2, threads=1).rows == 1


def test_unknown_episode_raises_an_error(checkpoint):
    with pytest.raises(KeyError):
        BatchedActor(checkpoint, 2, threads=None).decide({4: observation(0)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_other_rows_of_the_batch_change_no_bit_on_a_gpu(checkpoint):
    policy = BatchedActor(checkpoint, 8, threads=None, device="cuda")
    alone = play(policy, ())
    np.testing.assert_array_equal(play(policy, (1, 2)), alone)
