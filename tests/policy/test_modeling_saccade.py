"""The policy in LeRobot's form: its contract, its losses and actions, its checkpoints, its options."""

from __future__ import annotations

import dataclasses
import json

import draccus
import numpy as np
import pytest
import torch
from draccus.utils import ParsingError
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import make_policy, make_pre_post_processors

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import collect_provenance, read_checkpoint, write_checkpoint
from saccade.policy.configuration_saccade import SaccadeConfig
from saccade.policy.contract import ActionSpec, CameraSpec, ContractMismatch, GripperSpec, Offer, StateSpec
from saccade.policy.datasets.columns import read_columns
from saccade.policy.datasets.dataset_contract import dataset_offer, relative_elements
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.lerobot_files import lerobot_files
from saccade.policy.loading import load_policy
from saccade.policy.modeling_saccade import SaccadePolicy
from saccade.policy.network.architecture import Architecture
from saccade.policy.processor_saccade import make_saccade_pre_post_processors
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import RecordedEpisode, stage_episode
from saccade.training.configuration import LoopConfig

NAMES, UNITS = ("a.pos", "b.pos", "gripper.pos"), ("degrees", "degrees", "percent")
CHUNK, SIZE, CAMERAS = 6, 32, ("front", "wrist")
SMALL = Architecture(stem_width=16, stem_blocks=1, tower_blocks=1, trunk_layers=2, expert_blocks=2)


def offer(**changes) -> Offer:
    made = Offer(
        cameras=tuple(CameraSpec(name, SIZE, SIZE) for name in CAMERAS),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
    )
    return dataclasses.replace(made, **changes)


def record(folder, world):
    """Record two episodes in a world; return the dataset as LeRobot hands it to a policy."""
    paths = []
    for number, length in enumerate((25, 40)):
        generator = np.random.default_rng(number)
        images = {camera.name: generator.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8)
                  for camera in world.cameras}  # fmt: skip
        state, action = generator.normal(50, 9, (2, length, len(NAMES))).astype(np.float32)
        grounding = generator.uniform(size=(length, 6 + 4 * len(world.cameras))).astype(np.float32)
        paths.append(folder / f"{number}.npz")
        stage_episode(paths[-1], RecordedEpisode(images, state, action, grounding, f"do task {number}"), world)
    write_dataset(folder / "dataset", world, paths, robot_type="toy")
    return LeRobotDatasetMetadata("local/toy", root=folder / "dataset")


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return record(tmp_path_factory.mktemp("made"), offer())


def config(**options) -> SaccadeConfig:
    options = {"device": "cpu", "architecture": SMALL, "chunk_size": CHUNK, "n_action_steps": 3} | options
    return SaccadeConfig(**options)


@pytest.fixture(scope="module")
def policy(meta):
    torch.manual_seed(0)
    return make_policy(config(), ds_meta=meta)


@pytest.fixture
def saved(policy, tmp_path):
    policy.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def observation(frames: int = 2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    pixels = {
        f"observation.images.{name}": torch.randint(0, 256, (frames, 3, SIZE, SIZE), generator=generator) / 255
        for name in CAMERAS
    }
    state = 50 + 9 * torch.randn(frames, len(NAMES), generator=generator)
    return {**pixels, "observation.state": state, "task": ["do task 0", "do task 1"][:frames]}


def demonstration() -> dict:
    padded = torch.zeros(2, CHUNK, dtype=torch.bool)
    padded[1, 4:] = True
    action = 50 + torch.arange(2.0 * CHUNK * len(NAMES)).reshape(2, CHUNK, len(NAMES)) / 10
    return observation() | {"action": action, "action_is_pad": padded, "index": torch.tensor([3, 50])}


def test_new_policy_takes_its_contract_from_all_frames(policy, meta):
    contract = policy.core.contract
    contract.check(offer())
    assert (contract.chunk, contract.execute) == (CHUNK, 3)
    assert contract.normalization.relative == (True, True, False)
    state = read_columns(meta.root).vectors["observation.state"].astype(np.float64)
    assert np.allclose(contract.normalization.state_high, np.quantile(state, 0.99, axis=0))
    assert all(name.startswith("model.") for name in policy.state_dict())


def test_offer_is_derived_from_the_features_if_none_is_declared(meta):
    columns = read_columns(meta.root)
    assert columns.offer is not None
    assert dataset_offer(dataclasses.replace(columns, offer=None)) == offer()
    other = offer(cameras=(CameraSpec("front", 64, 64), CameraSpec("wrist", SIZE, SIZE)))
    with pytest.raises(InputError, match=r"offer\.json"):
        dataset_offer(dataclasses.replace(columns, offer=other))


def test_names_that_are_missing_or_in_a_dictionary(meta):
    columns = read_columns(meta.root)
    features = {**columns.features}
    features["action"] = {**features["action"], "names": {"motors": list("xyz")}}
    features["observation.state"] = {**features["observation.state"], "names": None}
    info = {**columns.info, "features": features}
    found = dataset_offer(dataclasses.replace(columns, info=info, offer=None))
    assert found.action.names == ("x", "y", "z") and set(found.action.units) == {"unitless"}
    assert found.state.names[0] == "observation.state.0"
    assert relative_elements(found) == (False, False, False)


def test_losses(policy):
    batch = demonstration()
    policy.train()
    loss, parts = policy(batch)
    each, _ = policy(batch, reduction="none")
    assert loss.shape == () and each.shape == (2,) and torch.allclose(each.mean(), loss)
    assert parts["grounding_loss"] > 0
    assert loss.item() == pytest.approx(parts["action_loss"] + 0.1 * parts["grounding_loss"], rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    policy.zero_grad()
    # Steps past the end of the episode count for nothing.
    batch["action"][1, 4:] = 1e6
    assert torch.equal(policy(batch)[0], loss)


def test_without_labels_there_is_no_grounding_loss(policy):
    batch = demonstration()
    del batch["index"]
    assert policy(batch)[1]["grounding_loss"] == 0


def test_actions_are_queued_until_as_many_are_done_as_configured(policy):
    policy.reset()
    chunk = policy.predict_action_chunk(observation())
    assert chunk.shape == (2, CHUNK, len(NAMES))
    actions = [policy.select_action(observation(seed=seed)) for seed in range(4)]
    assert all(torch.equal(actions[step], chunk[:, step]) for step in range(3))
    assert torch.equal(actions[3], policy.predict_action_chunk(observation(seed=3))[:, 0])
    policy.reset()
    assert torch.equal(policy.select_action(observation(seed=3)), actions[3])


def test_bad_observations_are_named(policy):
    small = observation() | {"observation.images.wrist": torch.zeros(2, 3, 16, 16)}
    absent = {key: value for key, value in observation().items() if "front" not in key}
    for batch, name in ((small, "images.wrist"), (absent, "images.front"), (observation() | {"task": [""]}, "task")):
        with pytest.raises(InputError, match=name):
            policy.predict_action_chunk(batch)


def test_saved_policy_is_a_complete_checkpoint_and_acts_the_same_everywhere(policy, saved, meta):
    checkpoint = read_checkpoint(saved)
    assert checkpoint.contract == policy.core.contract
    assert checkpoint.provenance["dataset_fingerprint"] == read_columns(meta.root).fingerprint
    assert load_policy(saved).architecture == SMALL
    loaded = SaccadePolicy.from_pretrained(saved)
    batch = observation(frames=1)
    expected = policy.predict_action_chunk(batch)
    assert torch.equal(loaded.predict_action_chunk(batch), expected)
    actor = PolicyActor(saved, threads=None)
    actor.reset("do task 0", seed=0)
    pixels = {name: batch[f"observation.images.{name}"][0].mul(255).round().byte().permute(1, 2, 0).numpy()
              for name in CAMERAS}  # fmt: skip
    action = actor.act({"pixels": pixels, "agent_pos": batch["observation.state"][0].numpy()})
    assert np.array_equal(action, expected[0, 0].numpy())


def test_saving_again_beside_the_files_of_lerobot(policy, saved):
    (saved / "train_config.json").write_text("{}")
    policy.save_pretrained(saved)
    assert (saved / "train_config.json").exists() and read_checkpoint(saved).contract == policy.core.contract
    assert not (saved / ".saccade").exists()


def test_damaged_checkpoints_are_refused(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        SaccadePolicy.from_pretrained(saved)
    content[-1] ^= 1
    path.write_bytes(content)
    SaccadePolicy.from_pretrained(saved)
    (saved / "contract.json").unlink()
    with pytest.raises(InputError, match="must not act without"):
        SaccadePolicy.from_pretrained(saved)


def test_options_incompatible_with_a_checkpoint_are_refused(saved):
    loaded = PreTrainedConfig.from_pretrained(saved, cli_overrides=["--n_action_steps=5"])
    assert SaccadePolicy.from_pretrained(saved, config=loaded).core.contract.execute == 5
    for options, what in (({"chunk_size": 8}, "chunk_size"), ({"architecture": Architecture()}, "weights")):
        with pytest.raises(InputError, match=what):
            SaccadePolicy.from_pretrained(saved, config=dataclasses.replace(loaded, **options))
    with pytest.raises(InputError, match="strict"):
        SaccadePolicy.from_pretrained(saved, strict=False)


def test_policy_without_statistics_is_refused():
    features = {"input_features": {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
                                   "observation.state": PolicyFeature(FeatureType.STATE, (3,))},
                "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))}}  # fmt: skip
    with pytest.raises(InputError, match="without statistics"):
        SaccadePolicy(config(**features))
    with pytest.raises(InputError, match="no action"):
        SaccadePolicy(config(**features | {"output_features": {}}))


def test_fine_tuning_keeps_the_contract_and_checks_the_demonstrations(saved, policy, meta, tmp_path):
    options = PreTrainedConfig.from_pretrained(saved)
    options.pretrained_path = saved
    tuned = make_policy(options, ds_meta=meta)
    assert tuned.core.contract == policy.core.contract and tuned._grounding_labels is not None
    units = ("radians", "radians", "percent")
    foreign = record(tmp_path, offer(state=StateSpec(NAMES, units), action=ActionSpec(NAMES, units)))
    with pytest.raises(ContractMismatch, match="degrees"):
        make_policy(options, ds_meta=foreign)


def test_a_policy_may_use_some_of_the_cameras(meta):
    features = {"observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
                "observation.state": PolicyFeature(FeatureType.STATE, (3,))}  # fmt: skip
    one_eyed = SaccadePolicy(
        config(input_features=features, output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))}),
        dataset_meta=meta,
    )
    assert [camera.name for camera in one_eyed.core.contract.cameras] == ["wrist"]
    assert one_eyed(demonstration())[1]["grounding_loss"] == 0


def test_a_checkpoint_of_saccade_train_is_what_lerobot_writes(policy, tmp_path):
    described, texts = lerobot_files(SMALL, policy.core.contract)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in policy.model.state_dict().items()}
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, tensors, described, policy.core.contract, collect_provenance([], {}, None), texts)
    read = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    own = dataclasses.replace(policy.config, input_features=read.input_features, output_features=read.output_features)
    assert read == own and not read.push_to_hub
    for name in ("input_features", "output_features"):
        expected = getattr(policy.config, name)
        assert {key: tuple(each.shape) for key, each in getattr(read, name).items()} == {
            key: tuple(each.shape) for key, each in expected.items()
        }
    for pipeline in make_saccade_pre_post_processors(read):
        pipeline.save_pretrained(tmp_path / "theirs")
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == set(texts)
    for name, text in texts.items():
        assert json.loads(text) == json.loads((tmp_path / "theirs" / name).read_text())
    before, after = make_pre_post_processors(
        read, str(folder), preprocessor_overrides={"device_processor": {"device": "cpu"}}
    )
    loaded = SaccadePolicy.from_pretrained(folder, config=read)
    batch = observation()
    assert torch.equal(after(loaded.predict_action_chunk(before(batch))), policy.predict_action_chunk(batch))


def test_options_round_trip_through_json_and_the_command_line():
    parsed = draccus.parse(SaccadeConfig, None, args=["--device=cpu", "--architecture.trunk_layers=6", "--grounding=0"])
    assert parsed.architecture == dataclasses.replace(Architecture(), trunk_layers=6) and parsed.grounding == 0
    encoded = json.loads(json.dumps(draccus.encode(parsed, PreTrainedConfig)))
    assert draccus.decode(PreTrainedConfig, encoded) == parsed


def test_bad_options_say_what_is_wrong_on_the_command_line():
    for option, value in (("n_action_steps", 99), ("n_obs_steps", 2), ("normalization_mapping", "{STATE: QUANTILES}"),
                          ("architecture.trunk_width", 30)):  # fmt: skip
        with pytest.raises(ParsingError, match=rf"{option}: got [^.]*, expected "):
            draccus.parse(SaccadeConfig, None, args=["--device=cpu", f"--{option}={value}"], exit_on_error=False)


def test_optimizer_and_schedule_are_those_of_saccade_train(policy):
    loop, options = LoopConfig(steps=1000), policy.config
    preset = options.get_optimizer_preset()
    assert (preset.lr, preset.weight_decay) == (loop.learning_rate, loop.weight_decay)
    assert preset.grad_clip_norm == loop.gradient_clip and options.grounding == loop.grounding
    optimizer = preset.build(policy.get_optim_params())
    decays = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(decays) == {0.0, 0.01} and all(parameter.ndim >= 2 for parameter in decays[0.01])
    assert sum(map(len, decays.values())) == len(list(policy.parameters()))
    scheduler = options.get_scheduler_preset().build(optimizer, loop.steps)
    for step in range(loop.steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(loop.learning_rate_at(step))
        optimizer.step()
        scheduler.step()
