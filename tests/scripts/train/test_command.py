"""`saccade train`: training, fine-tuning, resuming, LoRA, and bad input in one line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, Qwen2Config

from saccade.errors import InputError
from saccade.policy.checkpoint.folder import read_checkpoint
from saccade.policy.contract import ActionSpec, CameraSpec, GripperSpec, Offer, StateSpec
from saccade.policy.datasets.columns import read_columns
from saccade.policy.loading import load_policy
from saccade.policy.merging.digests import base_digests
from saccade.policy.network.architecture import PRESETS
from saccade.policy.pretrained.adaptation import LoraAdaptation
from saccade.scripts.main import main
from saccade.scripts.train.command import train_policy
from saccade.scripts.train.options import TrainConfig
from saccade.sim.demonstrations.dataset_writer import write_dataset
from saccade.sim.demonstrations.staging import RecordedEpisode, stage_episode
from saccade.training.averaging import WeightAverage
from saccade.training.configuration import LoopConfig

NAMES, UNITS = ("pan.pos", "gripper.pos"), ("degrees", "percent")
SHORT = LoopConfig(steps=4, batch_size=4, warmup=0, save_every=2, log_every=1, average=0.5)


def record(folder, seed=0, **changes):
    """Write a dataset of two episodes; return its folder."""
    offer = Offer(
        cameras=(CameraSpec("front", 32, 32), CameraSpec("wrist", 32, 32)),
        state=StateSpec(NAMES, UNITS),
        action=ActionSpec(NAMES, UNITS, gripper=GripperSpec("gripper.pos", closed=0, open=100)),
        control_hz=30,
    )
    offer = dataclasses.replace(offer, **changes)
    paths = []
    folder.mkdir()
    for number, length in enumerate((12, 9)):
        generator = np.random.default_rng([seed, number])
        images = {
            camera.name: generator.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8) for camera in offer.cameras
        }
        state, action = generator.normal(50, 9, (2, length, 2)).astype(np.float32)
        grounding = generator.uniform(size=(length, 6 + 4 * len(offer.cameras))).astype(np.float32)
        paths.append(folder / f"{number}.npz")
        stage_episode(paths[-1], RecordedEpisode(images, state, action, grounding, f"take {number}"), offer)
    write_dataset(folder / "dataset", offer, paths, robot_type="toy")
    return folder / "dataset"


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "toy")


@pytest.fixture(autouse=True)
def small_preset_and_fresh_state(monkeypatch, tmp_path_factory, small_architecture):
    """Use a small network as the preset, a temporary frame cache, and a fresh Accelerate."""
    monkeypatch.setitem(PRESETS, "tiny", small_architecture)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def config(demonstrations, out, **changes):
    default = TrainConfig(data=(demonstrations,), out=out, chunk=3, execute=2, loop=SHORT, precision="no", device="cpu")
    return dataclasses.replace(default, **changes)


def train(*arguments, **changes):
    return train_policy(config(*arguments, **changes), progress=False)


@pytest.fixture(scope="module")
def trained(demonstrations, tmp_path_factory, small_architecture):
    """The folder of a finished training, to be copied."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", small_architecture)
        patch.setenv("SACCADE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        train(demonstrations, out, threads=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return out


def content(folder):
    """Return every file of a folder with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_training_writes_checkpoint_state_log_and_options(trained, demonstrations):
    assert sorted(os.listdir(trained)) == ["checkpoint", "log.jsonl", "train.json", "training_state"]
    assert [json.loads(line)["step"] for line in (trained / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    provenance = read_checkpoint(trained / "checkpoint").provenance
    options = json.loads((trained / "train.json").read_text())
    assert provenance["step"] == 4 and provenance["seeds"] == {"seed": 0}
    assert provenance["dataset_fingerprint"] == options["dataset_fingerprint"]
    assert provenance["options"] == {key: options[key] for key in provenance["options"]}


def test_contract_is_fitted_with_relative_joint_targets(trained):
    contract = load_policy(trained / "checkpoint").contract
    assert [camera.name for camera in contract.cameras] == ["front", "wrist"]
    assert (contract.control_hz, contract.chunk, contract.execute) == (30, 3, 2)
    assert contract.normalization.relative == (True, False)


def test_statistics_cover_all_datasets(demonstrations, tmp_path):
    other = record(tmp_path / "other", seed=1)
    train(demonstrations, tmp_path / "one")
    train(demonstrations, tmp_path / "both", data=(demonstrations, other))
    one, both = (load_policy(tmp_path / name / "checkpoint").contract.normalization for name in ("one", "both"))
    assert one.state_low != both.state_low
    columns = [read_columns(folder).vectors for folder in (demonstrations, other)]
    states = np.concatenate([vectors["observation.state"] for vectors in columns]).astype(np.float64)
    np.testing.assert_allclose(both.state_low, np.quantile(states, 0.01, axis=0), rtol=1e-6)


def test_training_works_without_grounding_labels(demonstrations, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(demonstrations, unlabelled)
    info = json.loads((unlabelled / "meta" / "info.json").read_text())
    del info["features"]["grounding"]
    (unlabelled / "meta" / "info.json").write_text(json.dumps(info))
    result = train(unlabelled, tmp_path / "run")
    assert result.steps == 4 and result.grounding == 0


def test_a_dataset_without_an_offer_is_read_by_its_joint_names(demonstrations, tmp_path):
    undeclared = tmp_path / "undeclared"
    shutil.copytree(demonstrations, undeclared)
    (undeclared / "meta" / "offer.json").unlink()
    train(undeclared, tmp_path / "run")
    contract = load_policy(tmp_path / "run" / "checkpoint").contract
    assert contract.action.gripper.name == "gripper.pos" and contract.normalization.relative == (True, False)


def test_fine_tuning_keeps_the_contract_of_the_checkpoint(trained, tmp_path):
    other = record(tmp_path / "other", seed=5)
    still = dataclasses.replace(SHORT, steps=1, learning_rate=1e-9, weight_decay=0.0)
    train(other, tmp_path / "run", init=str(trained), chunk=7, execute=7, loop=still)
    before, after = (load_policy(folder / "checkpoint") for folder in (trained, tmp_path / "run"))
    assert after.contract == before.contract
    for name, tensor in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    assert read_checkpoint(tmp_path / "run" / "checkpoint").provenance["init"] == str(trained)


def test_a_killed_training_resumes_bit_for_bit(trained, demonstrations, tmp_path, monkeypatch):
    from saccade.training import loop

    write_state = loop.write_state

    def killed(folder, state, *rest):
        if state.step == 4:
            raise KeyboardInterrupt
        write_state(folder, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train(demonstrations, tmp_path / "run")
    train(demonstrations, tmp_path / "run", resume=True, threads=1)
    weights = [(folder / "checkpoint" / "model.safetensors").read_bytes() for folder in (trained, tmp_path / "run")]
    assert weights[0] == weights[1]
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"step": 4,') == 1


def test_overwrite_deletes_everything_that_resume_reads(trained, demonstrations, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    shutil.copytree(trained / "training_state", out / ".training_state.previous")
    shutil.copytree(trained / "checkpoint", out / ".checkpoint.previous")
    from saccade.training import loop

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(demonstrations, out, overwrite=True)
    assert sorted(os.listdir(out)) == ["log.jsonl", "train.json"]
    assert (out / "log.jsonl").read_text() == ""


def test_a_too_long_instruction_is_reported_before_anything_is_deleted(demonstrations, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = content(tmp_path / "run")
    refused("instruction: got .* bytes", demonstrations, tmp_path / "run",
            overwrite=True, change=("text_length=3",))  # fmt: skip
    assert content(tmp_path / "run") == before


def refused(message, *arguments, **changes):
    with pytest.raises(InputError, match=message) as caught:
        train(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder_in_use_is_not_changed(trained, demonstrations, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = content(out)
    refused("which holds a training.*--resume", demonstrations, out)
    refused("dataset .*nowhere", tmp_path / "nowhere", out, overwrite=True)
    refused("checkpoint .*nowhere", demonstrations, out, overwrite=True, init=str(tmp_path / "nowhere"))
    refused("resume: steps: got 9, expected 4", demonstrations, out, resume=True,
            loop=dataclasses.replace(SHORT, steps=9))  # fmt: skip
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        refused("which holds other files", demonstrations, tmp_path / "foreign", overwrite=overwrite)
    refused("a file", demonstrations, tmp_path / "foreign" / "thesis.txt")
    assert content(out) == before
    assert os.listdir(tmp_path / "foreign") == ["thesis.txt"]


def test_resume_needs_the_options_of_the_first_run(trained, demonstrations, tmp_path):
    refused("--resume: got no training", demonstrations, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    path = out / "train.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps(options | {"overwrite": True}))
    often = dataclasses.replace(SHORT, save_every=1, log_every=3)
    assert train(demonstrations, out, resume=True, loop=often).steps == 4  # finished already
    for change, message in (
        ({"precision": "bf16"}, "resume: precision: got no, expected bf16"),
        ({"loop": options["loop"] | {"seed": 3}}, "resume: seed: got 0, expected 3"),
        ({"processes": 2}, "resume: processes: got 1, expected 2"),
        ({"dataset_fingerprint": "other"}, "resume: dataset_fingerprint"),
    ):
        path.write_text(json.dumps(options | change))
        refused(message, demonstrations, out, resume=True)
    for text in ("{", "[]"):
        path.write_text(text)
        refused("train.json: got a damaged file", demonstrations, out, resume=True)


def test_a_damaged_state_is_rejected_and_kept(trained, demonstrations, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    path = out / "training_state" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    log = (out / "log.jsonl").read_bytes()
    refused("state.safetensors: got .*damaged.*--overwrite", demonstrations, out, resume=True)
    assert (out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": (CameraSpec("front", 32, 32), CameraSpec("top", 32, 32))}, "cameras.wrist"),
        ({"state": StateSpec(NAMES, ("radians", "percent"))}, "state.units"),
        ({"control_hz": 15}, "control_hz"),
    ],
)
def test_demonstrations_of_another_environment_do_not_fit_a_checkpoint(trained, tmp_path, change, message):
    other = record(tmp_path / "other", **change)
    with pytest.raises(InputError, match=message):
        train(other, tmp_path / "run", init=str(trained))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execute": 4}, "--execute: got 4, expected 1 to --chunk"),
        ({"threads": 0}, "threads: got 0"),
        ({"preset": "tinny"}, "preset: got 'tinny'.*Did you mean 'tiny'"),
        ({"resume": True, "overwrite": True}, "--resume: got --resume and --overwrite"),
    ],
)
def test_invalid_options_are_rejected(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, tmp_path / "run", **options)


def test_a_tracker_that_is_not_installed_is_rejected(demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"--report-to: got wandb.*lerobot_policy_saccade\[wandb\]", demonstrations, tmp_path / "run",
            report_to=("wandb",))  # fmt: skip


def test_the_log_is_sent_to_trackers(demonstrations, tmp_path, monkeypatch):
    from accelerate import Accelerator

    logged = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config: logged.append(config["precision"]))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: logged.append((step, sorted(values)[:2])))
    train(demonstrations, tmp_path / "run", report_to=("wandb",))
    assert logged == ["no", *((step, ["gradient_norm", "grounding"]) for step in (1, 2, 3, 4))]


def test_the_command_reports_bad_input_in_one_line(demonstrations, tmp_path, capsys):
    out, options = str(tmp_path / "run"), ["--chunk", "3", "--execute", "2", "--device", "cpu", "--steps", "2"]
    for arguments, message in (
        (["--data", str(tmp_path / "nowhere"), *options], "no such folder"),
        (["--data", str(demonstrations), *options, "--init", str(tmp_path)], "contract.json"),
        (["--data", str(demonstrations), *options, "--preset", "huge"], "preset"),
        (["--data", str(demonstrations), *options, "--steps", "0"], "steps: got 0"),
    ):
        assert main(["train", "--out", out, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("saccade: error: ") and error.count("\n") == 1 and message in error
        assert not os.path.exists(out)


def test_the_command_trains(demonstrations, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--chunk", "3", "--execute", "2", "--device", "cpu", "--steps", "2", "--batch-size", "2"]
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments]) == 0
    assert "trained to step 2" in capsys.readouterr().out
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments]) == 2
    assert main(["train", "--data", str(demonstrations), "--out", str(out), *arguments, "--resume"]) == 0


def test_options_are_parsed_without_torch():
    probe = (
        "import sys; import saccade.scripts.train.command; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with a trunk as models are published, and the weights of two towers."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    configuration = Qwen2Config(vocab_size=300, num_key_value_heads=2, pad_token_id=256, **sizes)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder / "trunk")
    tokenizer = Tokenizer(BPE({letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>", "<|im_start|>"])
    tokenizer.save(str(folder / "trunk" / "tokenizer.json"))
    (folder / "trunk" / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    for name in ("test_vit", "test_vit2"):
        save_file(timm.create_model(name, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    return folder


def adapted_options(folder, **changes):
    options = {
        "trunk": str(folder / "trunk"),
        "towers": tuple(str(folder / f"{name}.safetensors") for name in ("test_vit", "test_vit2")),
        "change": ("towers=test_vit,test_vit2", "prompt=<|im_start|>do {instruction}", "positions=counted"),
        "lora": 4,
        "lora_alpha": 8.0,
        "checkpointing": True,
        "loop": dataclasses.replace(SHORT, steps=2, save_every=1, learning_rate=1e-2),
    }
    return options | changes


def test_pretrained_parts_get_lora_resume_and_are_fine_tuned(demonstrations, pretrained, tmp_path, monkeypatch):
    options = adapted_options(pretrained)
    train(demonstrations, tmp_path / "whole", **options, threads=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WeightAverage, "tensors", kill_second_call(WeightAverage.tensors))
        train(demonstrations, tmp_path / "run", **options, threads=1)
    for name, value in (("lora", 2), ("lora_alpha", 4.0), ("trunk", None), ("towers", ())):
        changes = {name: value} | ({"change": (*options["change"], "tokenizer=bytes")} if name == "trunk" else {})
        refused(
            f"(resume: ({name}|change)|lora): got ", demonstrations, tmp_path / "run", **options | changes, resume=True
        )
    train(demonstrations, tmp_path / "run", **options | {"checkpointing": False}, resume=True, threads=1)
    weights = [(tmp_path / run / "checkpoint" / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]

    checkpoint = tmp_path / "run" / "checkpoint"
    tensors = read_checkpoint(checkpoint).tensors
    published = load_file(pretrained / "trunk" / "model.safetensors")
    query = "layers.0.self_attn.q_proj"
    assert tensors[f"model.trunk.decoder.{query}.base_layer.weight"].equal(published[f"model.{query}.weight"])
    assert tensors[f"model.trunk.decoder.{query}.lora_B.default.weight"].any()
    block = load_file(pretrained / "test_vit2.safetensors")["blocks.0.attn.qkv.weight"]
    assert tensors["model.tower.towers.1.encoder.blocks.0.attn.qkv.base_layer.weight"].equal(block)
    core = load_policy(checkpoint)
    images = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    chunk, _ = core.decide(images, core.encode_instruction(["take 1"]), torch.full((1, 2), 50.0))
    assert chunk.shape == (1, 3, 2) and chunk.isfinite().all()

    once = dataclasses.replace(SHORT, steps=1)
    train(demonstrations, tmp_path / "tuned", init=str(checkpoint), loop=once)
    assert load_policy(tmp_path / "tuned" / "checkpoint", fold_lora=False).adaptation == LoraAdaptation(4, 8.0)
    # As the base checkpoint of a skill, its LoRA is folded in.
    train(demonstrations, tmp_path / "skill", init=str(checkpoint), lora=2, loop=once)
    skill = read_checkpoint(tmp_path / "skill" / "checkpoint")
    folded = load_policy(checkpoint).model.state_dict()
    assert skill.tensors[f"model.trunk.decoder.{query}.base_layer.weight"].equal(
        folded[f"trunk.decoder.{query}.weight"]
    )
    assert skill.provenance["skill"] == base_digests(folded)


def kill_second_call(function):
    calls = []

    def killed(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(self)

    return killed


def test_a_skill_trains_lora_and_the_expert_only(trained, demonstrations, tmp_path):
    loop = dataclasses.replace(SHORT, steps=2, learning_rate=1e-2)
    train(demonstrations, tmp_path / "run", init=str(trained), lora=2, loop=loop)
    base_weights = load_policy(trained / "checkpoint").model.state_dict()
    skill = read_checkpoint(tmp_path / "run" / "checkpoint")
    assert skill.provenance["skill"] == base_digests(base_weights)
    changed = set()
    for name, tensor in base_weights.items():
        layer, _, own = name.rpartition(".")
        factors = f"model.{layer}.lora_B.default.weight"
        adapted = own == "weight" and factors in skill.tensors
        stored = skill.tensors.get(f"model.{layer}.base_layer.{own}", skill.tensors.get(f"model.{name}"))
        assert name.startswith("expert.") or stored.equal(tensor)
        if (adapted and skill.tensors[factors].any()) or not stored.equal(tensor):
            changed.add(name.split(".")[0])
    assert {"expert", "tower", "trunk"} <= changed

    # It can be trained further as a skill only.
    checkpoint = str(tmp_path / "run" / "checkpoint")
    train(demonstrations, tmp_path / "longer", init=checkpoint, loop=loop)
    longer = read_checkpoint(tmp_path / "longer" / "checkpoint")
    assert longer.provenance["skill"] == skill.provenance["skill"]
    routing = [name for name in skill.tensors if name.startswith("routing.")]
    assert routing and all(longer.tensors[name].equal(skill.tensors[name]) for name in routing)
    refused("lora: got rank 4.*expected rank 2, alpha 2", demonstrations, tmp_path / "other",
            init=checkpoint, lora=4, loop=loop)  # fmt: skip


def test_invalid_options_for_pretrained_parts_are_rejected(demonstrations, pretrained, trained, tmp_path):
    out, options = tmp_path / "run", adapted_options(pretrained)
    refused("tokenizer.json: got none.*--trunk.*--change tokenizer=bytes", demonstrations, out,
            **options | {"trunk": None, "lora": 0, "lora_alpha": None,
                         "change": (*options["change"], "tokenizer=trunk")})  # fmt: skip
    refused("trunk_width: got 16, expected 32", demonstrations, out,
            **options | {"change": (*options["change"], "trunk_width=32")})  # fmt: skip
    refused("trunk .*nowhere", demonstrations, out, **options | {"trunk": str(tmp_path / "nowhere")})
    refused("weights of the towers: got 1, expected 2", demonstrations, out,
            **options | {"towers": options["towers"][:1]})  # fmt: skip
    refused("--trunk: got --trunk and --init", demonstrations, out, **options | {"init": str(trained)})
    refused("lora: got -1", demonstrations, out, lora=-1)
    refused("lora: got no --trunk, expected pretrained weights", demonstrations, out, lora=4)
    refused("lora: got no --towers", demonstrations, out, **options | {"towers": ()})
    refused("change: got mask, in a policy", demonstrations, out, init=str(trained), change=("mask=mutual",))
    refused("--lora-alpha: got 3.0 with rank 0", demonstrations, out, lora_alpha=3.0)
    assert not out.exists()
