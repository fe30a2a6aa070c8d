"""`saccade train` with pretrained trunk and towers, LoRA, and skills."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from saccade.policy.checkpoint.folder import read_checkpoint
from saccade.policy.loading import load_policy
from saccade.policy.merging.digests import base_digests
from saccade.policy.pretrained.adaptation import LoraAdaptation
from saccade.training.averaging import WeightAverage
from saccade_testing.toy_training import SHORT, refused, train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with a trunk as models are published, and the weights of two towers."""
    import timm
    from transformers import AutoModelForCausalLM, Qwen2Config

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
