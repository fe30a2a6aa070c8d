"""Low-rank factors: nothing at first, trained alone beside frozen weights, folded for acting, kept apart on disk."""

import dataclasses
import json

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import read_checkpoint, write_checkpoint
from saccade.policy.core import DemonstrationBatch, PolicyCore
from saccade.policy.inference.actor import PolicyActor
from saccade.policy.lerobot_files import lerobot_files
from saccade.policy.loading import load_policy
from saccade.policy.pretrained.adaptation import (
    LoraAdaptation,
    add_lora,
    fold_lora,
    read_lora_adaptation,
    set_checkpointing,
    trainable_parameters,
)

SENTENCES = ["take the red cube", "put it down"]
LEARNS_WHOLE = ("instruction.", "trunk.routers.", "state.", "slots", "view_condition", "expert.", "tower.fusion.")


@pytest.fixture
def base(small_architecture, two_camera_contract):
    """A policy of two pretrained-style towers and a Qwen2 trunk, stirred as trained ones are."""
    torch.manual_seed(0)
    shape = dataclasses.replace(small_architecture, towers=("test_vit", "test_vit2"), trunk_family="qwen2")
    core = PolicyCore(shape, two_camera_contract)
    randomize_parameters(core.model)
    return core


def randomize_parameters(model, among=""):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if among in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def decided(core, observations):
    core.model.eval()
    return core.decide(observations[0], core.encode_instruction(SENTENCES), observations[1])[0]


def loss_of(core, observations):
    core.model.train()
    batch = DemonstrationBatch(
        observations[0], SENTENCES, observations[1], torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool)
    )
    return core.loss(batch)[0].action.mean()


def test_fresh_factors_change_nothing(base, observations):
    before = decided(base, observations)
    base.add_lora(LoraAdaptation(rank=2, alpha=4.0))
    assert decided(base, observations).equal(before)


@pytest.mark.parametrize("towers", [True, False])
def test_only_factors_and_untrained_parts_are_trained(base, observations, towers):
    base.add_lora(LoraAdaptation(rank=2, alpha=2.0, towers=towers))
    randomize_parameters(base.model, "lora_")
    loss_of(base, observations).backward()
    trained = trainable_parameters(base.model)
    for name, parameter in base.model.named_parameters():
        pretrained = ".encoder." in name or name.startswith("trunk.decoder.")
        learns = not pretrained or "lora_" in name
        assert learns == (name in trained) == (parameter.grad is not None), name
        assert not learns or parameter.grad.any(), name
    kept = {name for name in trained if "lora_" not in name}
    assert all(name.startswith((*LEARNS_WHOLE, "tower.towers.")) for name in kept)
    assert all(any(name.startswith(part) for name in kept) for part in LEARNS_WHOLE)
    assert {name.split(".")[3] for name in kept if name.startswith("tower.towers.")} <= {
        "film",
        "aggregation",
        *"01234567",
    }
    factors = {name.partition(".lora_")[0] for name in trained if "lora_" in name}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in factors} == linear | (
        {"qkv", "proj", "fc1", "fc2"} if towers else set()
    )


def test_folded_factors_decide_the_same_and_are_removed(base, observations):
    names = list(base.model.state_dict())
    base.add_lora(LoraAdaptation(rank=2, alpha=4.0))
    at_first = decided(base, observations)
    randomize_parameters(base.model, "lora_")
    before = decided(base, observations)
    assert not torch.allclose(before, at_first, atol=1e-2)
    base.fold_lora()
    torch.testing.assert_close(decided(base, observations), before, rtol=1e-5, atol=1e-4)
    assert list(base.model.state_dict()) == names and base.adaptation is None
    assert len(trainable_parameters(base.model)) == len(list(base.model.parameters()))
    assert not any("lora" in type(module).__module__ for module in base.model.modules())
    base.add_lora(LoraAdaptation(rank=3, alpha=3.0))  # and may be put in again
    fold_lora(base.model)


def written(core, folder):
    config, texts = lerobot_files(core.architecture, core.contract, core.adaptation)
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in core.model.state_dict().items()}
    return write_checkpoint(folder, tensors, config, core.contract, {}, texts)


def test_a_checkpoint_keeps_weights_and_factors_apart(base, observations, tmp_path):
    dense = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    base.add_lora(LoraAdaptation(rank=2, alpha=4.0))
    randomize_parameters(base.model, "lora_")
    before = decided(base, observations)
    folder = written(base, tmp_path / "checkpoint")
    query = "trunk.decoder.layers.0.self_attn.q_proj"
    tensors = read_checkpoint(folder).tensors
    assert tensors[f"{MODEL_PREFIX}{query}.base_layer.weight"].equal(dense[f"{query}.weight"])
    assert tensors[f"{MODEL_PREFIX}{query}.lora_A.default.weight"].shape == (2, 16)
    apart, folded = load_policy(folder, fold_lora=False), load_policy(folder)
    assert apart.adaptation == LoraAdaptation(rank=2, alpha=4.0) and folded.adaptation is None
    assert decided(apart, observations).equal(before)
    torch.testing.assert_close(decided(folded, observations), before, rtol=1e-5, atol=1e-4)
    assert list(folded.model.state_dict()) == list(dense)
    assert PolicyActor(folder, threads=None).core.adaptation is None
    # Folded, it is an ordinary checkpoint.
    again = load_policy(written(folded, tmp_path / "folded"))
    assert decided(again, observations).equal(decided(folded, observations))


def test_lerobot_loads_and_saves_an_adapted_policy(base, observations, tmp_path):
    from saccade.policy.modeling_saccade import SaccadePolicy

    base.add_lora(LoraAdaptation(rank=2, alpha=4.0))
    randomize_parameters(base.model, "lora_")
    written(base, tmp_path / "ours")
    policy = SaccadePolicy.from_pretrained(tmp_path / "ours")
    assert policy.config.adaptation == base.adaptation
    policy.save_pretrained(tmp_path / "theirs")
    again = load_policy(tmp_path / "theirs", fold_lora=False)
    assert again.adaptation == base.adaptation
    assert decided(again, observations).equal(decided(base, observations))


def test_activation_checkpointing_changes_no_gradient(base, observations):
    base.add_lora(LoraAdaptation(rank=2, alpha=4.0))
    randomize_parameters(base.model, "lora_")
    gradients = []
    for on in (False, True):
        set_checkpointing(base.model, on=on)
        assert base.model.trunk.checkpointing == on
        assert {tower.checkpointing for tower in base.model.tower.towers} == {on}
        base.model.zero_grad(set_to_none=True)
        loss_of(base, observations).backward()
        gradients.append([parameter.grad for parameter in trainable_parameters(base.model).values()])
    assert all(one.equal(other) for one, other in zip(*gradients, strict=True))


def test_a_small_tower_learns_as_a_whole(core, observations):
    core.add_lora(LoraAdaptation(rank=1, alpha=1.0))
    set_checkpointing(core.model, on=True)
    trained = trainable_parameters(core.model)
    assert all(name in trained for name, _ in core.model.named_parameters() if name.startswith("tower."))
    assert not any(name.endswith("base_layer.weight") for name in trained)


def test_factors_are_inserted_once(base):
    add_lora(base.model, LoraAdaptation(rank=1, alpha=1.0))
    with pytest.raises(InputError, match="adaptation: got a policy with factors"):
        add_lora(base.model, LoraAdaptation(rank=1, alpha=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "adaptation.rank: got 0"),
        ({"rank": 1.5}, "adaptation.rank: got 1.5"),
        ({"alpha": -1.0}, "adaptation.alpha: got -1"),
        ({"alpha": float("nan")}, "adaptation.alpha: got nan"),
        ({"towers": 1}, "adaptation.towers: got 1"),
        ({"kind": "dora"}, "here: adaptation: got .*kind"),
    ],
)
def test_values_that_do_not_fit_are_refused(change, message):
    values = json.loads(json.dumps({"rank": 2, "alpha": 2.0})) | change
    with pytest.raises(InputError, match=message):
        read_lora_adaptation({"adaptation": values}, "here")
