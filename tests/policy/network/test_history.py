"""A memory of past frames: nothing where nothing is remembered, the right frames where something is, in their order."""

import dataclasses
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import STARTER_FOLDER, write_checkpoint
from saccade.policy.core import DemonstrationBatch, PolicyCore
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.loading import load_policy
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.capture import CapturedPolicy
from saccade.policy.network.history import FrameMemory, History, PastFrames
from saccade.policy.network.presets import with_enabled_fields
from saccade.policy.network.tensor_tree import list_tensors
from saccade.policy.profiling.cost import FakeNetwork, InputSizes, decision_cost
from saccade.policy.profiling.synchronisation import find_synchronisations

FRAMES, SELECTED, TOKENS, WIDTH = 5, 2, 3, 16


@pytest.fixture
def history():
    """A history that listens to what it remembers, as a trained one does."""
    torch.manual_seed(0)
    module = History(width=WIDTH, heads=2, frames=FRAMES, selected=SELECTED).eval()
    torch.nn.init.normal_(module.output.weight, std=0.5)
    torch.nn.init.normal_(module.age, std=0.5)
    return module


def remembered(*valid, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, FRAMES, TOKENS, 2 * WIDTH, generator=generator)
    return FrameMemory(tokens, torch.tensor(valid or [True] * FRAMES).expand(batch, -1).clone())


def current_tokens(seed=9, batch=1):
    return torch.randn(batch, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_empty_memory_leaves_the_current_tokens_unchanged(history):
    assert history(current_tokens(), history.empty_memory(1, TOKENS)).equal(current_tokens())


def test_history_is_the_identity_at_first_and_contributes_after_training(history):
    assert not history(current_tokens(), remembered()).allclose(current_tokens())
    history.start_as_identity()
    assert history(current_tokens(), remembered()).equal(current_tokens())


def test_missing_frames_have_no_influence(history):
    valid = (True, False, True, False, False)
    expected = history(current_tokens(), remembered(*valid))
    for poison in (float("nan"), float("inf"), 1e30):
        memory = remembered(*valid)
        memory.tokens[:, [1, 3, 4]] = poison
        got = history(current_tokens(), memory)
        assert got.equal(expected)
        memory.tokens.requires_grad_(True)
        history(current_tokens(), memory).sum().backward()
        assert memory.tokens.grad.isfinite().all() and not memory.tokens.grad[:, [1, 3, 4]].any()


def test_rows_of_a_batch_have_separate_memories(history):
    memory = remembered(batch=3)
    memory.valid[1, 2:] = False
    memory.valid[2] = False
    together = history(current_tokens(batch=3), memory)
    for row in range(3):
        alone = history(current_tokens(batch=3)[row : row + 1], FrameMemory(memory.tokens[[row]], memory.valid[[row]]))
        assert alone[0].allclose(together[row], atol=1e-6)


def test_order_of_frames_matters(history):
    memory = remembered()
    turned = FrameMemory(memory.tokens.flip(1), memory.valid)
    assert not history(current_tokens(), memory).allclose(history(current_tokens(), turned), atol=1e-3)
    with torch.no_grad():
        history.age.zero_()
    assert history(current_tokens(), memory).allclose(history(current_tokens(), turned), atol=1e-5)


def test_the_gradient_reaches_every_frame_chosen_or_not(history):
    memory = remembered()
    memory.tokens.requires_grad_(True)
    history(current_tokens(), memory).square().sum().backward()
    assert (memory.tokens.grad.abs().sum((0, 2, 3)) > 0).all()


def test_selecting_all_frames_equals_plain_attention(history):
    history.selected = FRAMES
    memory = remembered()
    query = history.query(history.norm(current_tokens())).unflatten(-1, (2, -1)).transpose(1, 2)
    key, value = (
        part.flatten(1, 2).unflatten(-1, (2, -1)).transpose(1, 2) for part in (memory.tokens + history.age).chunk(2, -1)
    )
    gathered = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    assert history(current_tokens(), memory).allclose(current_tokens() + history.output(gathered), atol=1e-5)


def test_the_newest_frame_comes_first_and_the_oldest_is_forgotten(history):
    memory = history.empty_memory(2, TOKENS)
    for number in range(FRAMES + 2):
        memory = memory.with_new_frame(torch.full((2, TOKENS, 2 * WIDTH), float(number)))
        assert memory.valid.sum(1).tolist() == [min(number + 1, FRAMES)] * 2
    assert memory.tokens[0, :, 0, 0].tolist() == [6, 5, 4, 3, 2]


def test_it_learns_to_choose_the_frame_that_matters():
    """One remembered frame of eight is marked and says which way; only choosing it tells the answer exactly."""
    torch.manual_seed(0)
    history, frames = History(width=WIDTH, heads=2, frames=8, selected=1), 8
    reader = torch.nn.Linear(WIDTH, 1)
    optimizer = torch.optim.Adam([*history.parameters(), *reader.parameters()], lr=1e-2)
    mark, meaning = torch.randn(2, WIDTH)

    def errors(batch):
        seen = torch.randn(batch, frames, TOKENS, WIDTH)
        cue, answer = torch.randint(frames, (batch,)), torch.randint(2, (batch,)) * 2.0 - 1
        seen[torch.arange(batch), cue] += 2 * mark
        seen[torch.arange(batch), cue, 0] += 2 * answer[:, None] * meaning
        memory = FrameMemory(history.encode_frames(seen), torch.ones(batch, frames, dtype=torch.bool))
        said = reader(history(torch.zeros(batch, 1, WIDTH), memory))[:, 0, 0]
        return (said - answer).abs()

    for _ in range(150):
        errors(32).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert (errors(256) < 1).float().mean() > 0.95


REMEMBERS = {"history": 3, "history_selected": 2}


@pytest.fixture
def core_with_history(small_architecture, two_camera_contract):
    torch.manual_seed(0)
    core = PolicyCore(replace(small_architecture, **REMEMBERS), two_camera_contract)
    with torch.no_grad():
        for parameter in core.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    core.model.eval()
    return core


def video_frames(length, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (length, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pictures, torch.randn(length, 2, generator=generator) * 9


def observation(pictures, state):
    return {
        "pixels": {
            name: view.permute(1, 2, 0).numpy() for name, view in zip(("front", "wrist"), pictures, strict=True)
        },
        "agent_pos": state.numpy(),
    }


@pytest.fixture
def checkpoint(core_with_history, tmp_path):
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core_with_history.model.state_dict().items()}
    config = {"architecture": asdict(core_with_history.architecture)}
    return write_checkpoint(tmp_path / "checkpoint", tensors, config, core_with_history.contract, {})


def test_memory_of_the_actor_equals_encoding_the_frames_again(checkpoint, core_with_history):
    """The chunks of an episode are those of one training batch of the same decisions, each with its past."""
    pictures, state = video_frames(6)
    actor = PolicyActor(checkpoint, threads=None)
    actor.reset("take the can", 0)
    chunks = [actor.decide(observation(*each)) for each in zip(pictures, state, strict=True)]
    back = torch.arange(6)[:, None] - torch.arange(1, 4)
    past_frames = PastFrames(pictures[:0], torch.zeros(0, dtype=torch.int64), back.clamp(min=-1))
    with torch.no_grad():
        tokens = core_with_history.tokenizer(["take the can"] * 6)
        decision = core_with_history.model(
            pictures, tokens, core_with_history.normalizer.encode_state(state), past_frames
        )
    expected = core_with_history.normalizer.decode_actions(decision.actions, state)
    np.testing.assert_allclose(np.stack(chunks), expected.numpy(), atol=1e-3)
    # Frames that no row decides on pass the towers under their row's instruction.
    past_frames = PastFrames(pictures[2:5].flip(0), torch.zeros(3, dtype=torch.int64), torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        tokens, state = (
            core_with_history.tokenizer(["take the can"]),
            core_with_history.normalizer.encode_state(state[5:]),
        )
        last = core_with_history.model(pictures[5:], tokens, state, past_frames)
    torch.testing.assert_close(last.actions[0], decision.actions[5], atol=1e-5, rtol=1e-4)


def test_past_frames_change_decisions_until_a_reset(checkpoint):
    pictures, state = video_frames(3)
    actor = PolicyActor(checkpoint, threads=None)

    def last(numbers):
        actor.reset("take the can", 0)
        return [actor.decide(observation(pictures[number], state[number])) for number in numbers][-1]

    first, again, other, alone = last([0, 2]), last([0, 2]), last([1, 2]), last([2])
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - alone).max() > 1e-3


def test_captured_policy_uses_history(core_with_history):
    def capture_graph(run):
        output = run()

        def replay():
            for old, new in zip(list_tensors(output), list_tensors(run()), strict=True):
                old.copy_(new)

        return output, replay

    pictures, state = video_frames(5)
    instruction_plan = core_with_history.encode_instruction(["take the can"])
    captured = CapturedPolicy(
        core_with_history.model, pictures[:1], instruction_plan, state[:1], capture_graph=capture_graph
    )
    kept = None
    memory = core_with_history.empty_memory(1)
    for number in range(5):
        seen = pictures[number][None], instruction_plan, state[number][None]
        plain, _ = core_with_history.decide(*seen, memory=memory)
        chunk, decision = core_with_history.decide(*seen, captured=captured, memory=kept)
        assert chunk.allclose(plain, atol=1e-4)
        memory = memory.with_new_frame(decision.frame_tokens)
        kept = memory


def test_loss_has_gradients_for_the_towers_through_past_frames(core_with_history):
    pictures, state = video_frames(2)
    batch = DemonstrationBatch(pictures, ["take the can"] * 2, state, torch.zeros(2, 3, 2), torch.zeros(2, 3).bool())
    earlier, _ = video_frames(2, seed=5)
    past_frames = PastFrames(earlier, torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 2, 3], [-1, -1, -1]]))
    core_with_history.model.train()
    loss, decision = core_with_history.loss(replace(batch, past_frames=past_frames))
    grounding = torch.linspace(0.1, 0.4, 28).reshape(2, 14)
    unknown = grounding.index_fill(1, torch.arange(6), torch.nan)
    taught, pointing = (
        core_with_history.loss(replace(batch, past_frames=past_frames, grounding=each))[0].grounding
        for each in (grounding, unknown)
    )
    off = 2 * (decision.recalled_points - 10 * grounding[:, :6]).abs().mean()
    torch.testing.assert_close(taught - pointing, off, atol=1e-4, rtol=1e-4)
    (loss.action.sum() + taught).backward()
    history = core_with_history.model.history
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in history.parameters())
    core_with_history.model.zero_grad()
    # Without labels it takes part all the same: in several processes nothing may wait for a gradient.
    core_with_history.loss(replace(batch, past_frames=past_frames))[0].grounding.backward()
    assert not history.recall.weight.grad.any()
    without, _ = core_with_history.loss(batch)
    assert loss.action[1].allclose(without.action[1], atol=1e-6)
    assert not loss.action[0].allclose(without.action[0], atol=1e-4)
    assert decision.frame_tokens.shape == (2, 8, 32)


@pytest.mark.parametrize("change", [{"history": 3}, {"history": 3, "history_selected": 4}, {"history_selected": 2}])
def test_frames_to_select_must_be_remembered(change):
    with pytest.raises(InputError, match="architecture.history_selected: got"):
        Architecture(**change)


@pytest.mark.parametrize("change", [{"history": -1}, {"history": 1.5}, {"history": 2, "history_selected": -1}])
def test_numbers_of_frames_must_be_integers(change):
    with pytest.raises(InputError, match="architecture.history.*expected a whole number above 0"):
        Architecture(**change)


def test_history_enabled_in_a_trained_policy_changes_nothing_at_first():
    before = load_policy(STARTER_FOLDER)
    after = load_policy(STARTER_FOLDER, change=("history=3", "history_selected=1"))
    assert (
        before.new_parameters == ()
        and all(name.startswith("history.") for name in after.new_parameters)
        and len(after.new_parameters) == 12
    )
    names = before.model.state_dict()
    assert all(tensor.equal(names[name]) for name, tensor in after.model.state_dict().items() if name in names)
    pictures = torch.randint(0, 256, (3, 1, 2, 3, 128, 128), dtype=torch.uint8)
    instruction_plan, state = before.encode_instruction(["put the red cube in the bin"]), torch.zeros(1, 6)
    memory = after.empty_memory(1)
    for each in pictures:
        chunk, decision = after.decide(each, instruction_plan, state, memory=memory)
        memory = memory.with_new_frame(decision.frame_tokens)
        assert chunk.equal(before.decide(each, instruction_plan, state)[0])


def test_only_parts_that_start_as_the_identity_can_be_enabled(checkpoint, core_with_history):
    with pytest.raises(InputError, match="change: got mask, in a policy that is trained, expected one of history"):
        with_enabled_fields(Architecture(), ["mask=mutual"])
    with pytest.raises(InputError, match="trunk_layer"):
        with_enabled_fields(Architecture(), ["trunk_layer=5"])
    with pytest.raises(InputError, match="1 of another shape .history.age"):
        load_policy(checkpoint, change=("history=4",))
    wider = load_policy(checkpoint, change=("history_selected=3",))
    assert wider.new_parameters == () and wider.model.history.selected == 3
    with pytest.raises(InputError, match="12 left over .history.age"):
        load_policy(checkpoint, change=("history=0", "history_selected=0"))


def test_a_checkpoint_without_its_history_is_damaged(core_with_history, tmp_path):
    state = core_with_history.model.state_dict()
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in state.items() if not name.startswith("history.")}
    config = {"architecture": asdict(core_with_history.architecture)}
    write_checkpoint(tmp_path / "checkpoint", tensors, config, core_with_history.contract, {})
    for change in ((), ("history_selected=3",)):
        with pytest.raises(InputError, match="12 missing .history.age"):
            load_policy(tmp_path / "checkpoint", change=change)


def test_decision_never_synchronizes_and_its_cost_is_independent_of_episode_length(small_architecture):
    architecture = dataclasses.replace(small_architecture, **REMEMBERS)
    sizes = InputSizes(image_size=32)
    fake_network = FakeNetwork(lambda: sizes.build(architecture).requires_grad_(False).eval(), device="cuda")
    network = fake_network.network
    with fake_network.fake_mode():
        images, state = sizes.images("cuda"), sizes.states("cuda")
        instruction_plan = network.encode_instruction(sizes.tokens(architecture, "cuda"))
        memory = network.empty_memory(1)

        def decide():
            memory.with_new_frame(network.decide(images, instruction_plan, state, memory).frame_tokens)

        assert find_synchronisations(decide) == []
    with_history, without = (decision_cost(each, sizes).decide for each in (architecture, small_architecture))
    width, visual, queries = 16, 2 * 4, 2 * 4 + 1
    projections = 2 * width * (queries * width + visual * 2 * width + queries * width)
    # Pooled frames: three, and room for a last one that is short and for none.
    pooled = 3 + 2
    attention = 4 * width * queries * (3 * visual + pooled)
    recall = 2 * width * 6
    assert with_history.total - without.total == projections + 2 * width * pooled + attention + recall
    assert with_history.parts["trunk"] == without.parts["trunk"]
