"""A policy with history under LeRobot: it remembers between decisions, and learns from moments of its dataset."""

import dataclasses

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import make_policy, make_pre_post_processors

from saccade.errors import InputError
from saccade.policy.configuration_saccade import SaccadeConfig
from saccade.policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from saccade.policy.core import DemonstrationBatch
from saccade.policy.modeling_saccade import SaccadePolicy
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.history import PastFrames
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import RecordedEpisode, stage_episode
from saccade.training.dataset import DemonstrationDataset

NAMES, UNITS = ("a.pos", "gripper.pos"), ("degrees", "percent")
CHUNK, EXECUTED, SIZE, CAMERAS, HISTORY = 4, 2, 32, ("front", "wrist"), 3
SMALL = Architecture(
    stem_width=16, stem_blocks=1, tower_blocks=1, trunk_layers=2, expert_blocks=2, history=HISTORY, history_selected=2
)


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    world = Offer(
        cameras=tuple(CameraSpec(name, SIZE, SIZE) for name in CAMERAS),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
    )
    folder, paths = tmp_path_factory.mktemp("made"), []
    for number, length in enumerate((12, 9)):
        generator = np.random.default_rng(number)
        images = {name: generator.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8) for name in CAMERAS}
        state, action = generator.normal(50, 9, (2, length, len(NAMES))).astype(np.float32)
        grounding = generator.uniform(size=(length, 6 + 4 * len(CAMERAS))).astype(np.float32)
        paths.append(folder / f"{number}.npz")
        stage_episode(paths[-1], RecordedEpisode(images, state, action, grounding, f"do task {number}"), world)
    write_dataset(folder / "dataset", world, paths, robot_type="toy")
    return LeRobotDatasetMetadata("local/toy", root=folder / "dataset")


@pytest.fixture
def policy(meta):
    torch.manual_seed(0)
    config = SaccadeConfig(device="cpu", architecture=SMALL, chunk_size=CHUNK, n_action_steps=EXECUTED)
    policy = make_policy(config, ds_meta=meta)
    torch.nn.init.normal_(policy.model.history.output.weight, std=0.3)
    return policy


def observation(seed, rows=2):
    generator = torch.Generator().manual_seed(seed)
    pixels = {
        f"observation.images.{name}": torch.randint(0, 256, (rows, 3, SIZE, SIZE), generator=generator) / 255
        for name in CAMERAS
    }
    state = 50 + 9 * torch.randn(rows, len(NAMES), generator=generator)
    return {**pixels, "observation.state": state, "task": ["do task 0", "do task 1"][:rows]}


def test_history_is_kept_until_a_reset(policy):
    policy.reset()
    actions = [policy.select_action(observation(seed)) for seed in range(2 * EXECUTED)]
    policy.eval()
    images, instructions, state = policy._read_observations(observation(0))
    instruction_plan, memory = policy.core.encode_instruction(instructions), policy.core.empty_memory(2)
    first, decision = policy.core.decide(images, instruction_plan, state, memory=memory)
    images, _, state = policy._read_observations(observation(EXECUTED))
    memory = memory.with_new_frame(decision.frame_tokens)
    second, _ = policy.core.decide(images, instruction_plan, state, memory=memory)
    assert torch.equal(torch.stack(actions, 1), torch.cat([first[:, :EXECUTED], second[:, :EXECUTED]], 1))
    policy.reset()
    alone = policy.select_action(observation(EXECUTED))
    assert not alone.allclose(actions[EXECUTED])
    # Another number of rows cannot be the same episodes.
    assert policy.predict_action_chunk(observation(1, rows=1)).shape == (1, CHUNK, len(NAMES))


def test_lerobot_batches_give_the_same_loss_as_saccade_batches(policy, meta, tmp_path):
    times = resolve_delta_timestamps(policy.config, meta)
    assert times["observation.state"] == [0, *(-number * EXECUTED / 30 for number in range(1, HISTORY + 1))]
    theirs = LeRobotDataset("local/toy", root=meta.root, delta_timestamps=times, video_backend="pyav")
    ours = DemonstrationDataset(meta.root, CHUNK, cache_folder=tmp_path, progress=False)
    ours.set_history(HISTORY, EXECUTED)
    rows = [11, 0, 17, 3]
    before, _ = make_pre_post_processors(policy.config, dataset_stats=meta.stats)
    batch = before(torch.utils.data.default_collate([theirs[row] for row in rows]))
    policy.train()
    loss, _ = policy(batch, reduction="none")
    mine = ours.batch(rows)
    demonstration_batch = DemonstrationBatch(
        images=mine["images"],
        instructions=[ours.instructions[place] for place in mine["instruction"].tolist()],
        state=mine["state"],
        action=mine["action"],
        padded=mine["action_is_pad"],
        grounding=mine["grounding"],
        past_frames=PastFrames(mine["past_images"], mine["past_member"], mine["past_place"]),
    )
    expected, _ = policy.core.loss(demonstration_batch)
    torch.testing.assert_close(loss, expected.action + 0.1 * expected.grounding, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    assert policy.model.history.age.grad.abs().sum() > 0
    # Frames before the episode are repetitions of its first one, which must not pass for memories.
    alone = {key: value for key, value in batch.items() if not key.endswith("is_pad") or key.startswith("action")}
    with pytest.raises(InputError, match="observation.images.front_is_pad: got nothing"):
        policy(alone)


def test_checkpoint_keeps_the_interval_of_its_history(policy, tmp_path):
    policy.save_pretrained(tmp_path / "checkpoint")
    loaded = PreTrainedConfig.from_pretrained(tmp_path / "checkpoint")
    assert SaccadePolicy.from_pretrained(tmp_path / "checkpoint").config.architecture == SMALL
    with pytest.raises(InputError, match="n_action_steps: got 3, expected 2"):
        SaccadePolicy.from_pretrained(tmp_path / "checkpoint", config=dataclasses.replace(loaded, n_action_steps=3))
