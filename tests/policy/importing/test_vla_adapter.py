"""Import of VLA-Adapter and MergeVLA: the same actions as the public code."""

import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from saccade.errors import InputError
from saccade.policy.checkpoint.contents import MODEL_PREFIX
from saccade.policy.checkpoint.folder import write_checkpoint
from saccade.policy.importing.platforms import find_platform
from saccade.policy.importing.released import ImportOptions, ReleasedCheckpoint
from saccade.policy.importing.vla_adapter import SPECIAL_TOKENS, import_vla_adapter
from saccade.policy.loading import load_policy
from saccade.policy.network.tokenizer import make_tokenizer
from saccade_testing.released_adapter_weights import TRAINED, write_released
from saccade_testing.released_weights import RECORDED

VARIANTS = {
    "vla_adapter": ("vla_adapter", ""),
    "vla_adapter_original": ("vla_adapter", "original."),
    "mergevla": ("mergevla", ""),
}
MODEL, HEAD, STATE = "model.safetensors", f"action_head--{TRAINED}", f"proprio_projector--{TRAINED}"
TOLERANCE = 1e-4
"""Relative to the largest value; float32 and float64 of the public code differ by a hundredth of this."""


def write_tokenizer(folder):
    """A byte tokenizer with the special tokens of Qwen2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def imported(folder, platform="libero", statistics=None):
    return import_vla_adapter(
        ReleasedCheckpoint(folder), ImportOptions(find_platform(platform), statistics, text_length=200)
    )


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder of each variant, as released."""
    root = tmp_path_factory.mktemp("released")
    return {
        name: write_tokenizer(write_released(root / name, family, original=bool(prefix)))
        for name, (family, prefix) in VARIANTS.items()
    }


@pytest.fixture(scope="module")
def policies(released):
    """The imported policy of each variant."""
    return {name: imported(folder) for name, folder in released.items()}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def copy(released, tmp_path):
    """A copy of VLA-Adapter's folder that a test can damage."""
    return shutil.copytree(released["vla_adapter"], tmp_path / "copy")


def stored(policy, checkpoint):
    """An imported policy, written to a checkpoint and read from it."""
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in policy.tensors.items()}
    config = {"architecture": asdict(policy.architecture)}
    write_checkpoint(checkpoint, tensors, config, policy.contract, {}, {"tokenizer.json": policy.tokenizer_text})
    return load_policy(checkpoint)


def decided(core, recorded):
    """The actions for the recorded inputs, and the outputs of towers, projector, trunk and expert."""
    found, blocks = {}, []
    for name, tower in zip(("tower.first", "tower.second"), core.model.tower.towers, strict=True):
        tower.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    core.model.tower.register_forward_hook(lambda _, __, seen: found.update(projected=seen.tokens.flatten(0, 1)[None]))
    core.model.state.register_forward_hook(lambda _, __, output: found.update(state=output))
    core.model.trunk.register_forward_hook(lambda _, given, output: found.update(trunk=(given[0], *output.hidden)))
    for block in core.model.expert.blocks:
        block.register_forward_hook(lambda _, __, output: blocks.append(output[0]))
    tokens = torch.full((1, core.architecture.text_length), core.architecture.padding)
    tokens[:, : recorded["input_ids"].shape[1]] = recorded["input_ids"]
    pictures, state = recorded["pictures"].permute(0, 3, 1, 2)[None], recorded["proprio"].float()[None]
    with torch.inference_mode():
        actions, decision = core.decide(pictures, core.model.encode_instruction(tokens), state)
    prompt, layout = recorded["input_ids"].shape[1], core.model.layout
    slots = layout.span("slots")
    real = [*range(layout.span("text").start + prompt - 1), *range(slots.start, slots.stop)]
    found |= {f"hidden.{layer}": found["trunk"][layer][:, real] for layer in (0, 12, 24)}
    found |= {"blocks": torch.stack(blocks), "normalised_actions": decision.actions[0], "actions": actions[0]}
    found["proprio_normalised"] = core.normalizer.encode_state(state)[0]
    return found


def errors(found, recorded, prefix):
    """The largest error of each recorded tensor, relative to its largest value."""
    ours = {"blocks", "normalised_actions", "actions"}
    names = ["tower.first", "tower.second", "projected", "state", "hidden.0", "hidden.12", "hidden.24", *sorted(ours)]
    measured = {}
    for name in [*names, "proprio_normalised"]:
        expected = recorded[prefix + name if name in ours else name].float()
        if name.startswith("hidden."):
            expected = expected[:, :-1]  # without the stop token, which no token that is read attends to
        measured[name] = ((found[name] - expected).abs().max() / expected.abs().max()).item()
    return measured


def test_actions_equal_those_of_the_public_code(policies, variant, tmp_path):
    family, prefix = VARIANTS[variant]
    recorded = load_file(RECORDED / f"{family}.safetensors")
    measured = errors(decided(stored(policies[variant], tmp_path / "ours"), recorded), recorded, prefix)
    assert {name: error for name, error in measured.items() if not error < TOLERANCE} == {}, measured


SAID = {
    "vla_adapter": "VLA-Adapter Pro",
    "vla_adapter_original": "VLA-Adapter before Pro, whose chunks repeat one and the same action",
    "mergevla": "MergeVLA, a single skill",
}


def test_the_description_and_the_use_of_every_tensor_are_reported(policies, variant):
    policy = policies[variant]
    assert policy.description.startswith(SAID[variant])
    assert policy.used + sum(policy.ignored.values()) == sum(len(list(weights)) for weights in policy.files)
    # After the block that is used: 14 tensors of the first tower's, 12 of the second's, their norms, a pooling.
    reasons = {"tower layers after the block that is used": 14 + 12 + 2 + 2 + 13}
    if variant == "vla_adapter":
        reasons["FiLM in the expert, which is never run"] = 24 * 2
    assert policy.ignored == reasons


def test_published_names_and_dtypes(tmp_path):
    folder = write_released(tmp_path / "theirs", "mergevla", ending="checkpoint.pt", released_types=True)
    policy = imported(write_tokenizer(folder))
    assert policy.tensors["slots"].dtype == torch.bfloat16
    # With the colour normalisation folded in, it does not fit bfloat16.
    assert policy.tensors["tower.towers.0.encoder.patch_embed.proj.weight"].dtype == torch.float32


def test_queries_beyond_the_chunk_are_slots_too(policies):
    shape = policies["mergevla"].architecture
    assert shape.extra_slots == 64 - 8 and shape.read_shifted and shape.prune_from == shape.trunk_layers


def test_the_prompt_is_that_of_qwen_and_its_padding_a_special_token(policies):
    policy = policies["vla_adapter"]
    read = make_tokenizer(replace(policy.architecture, text_length=300), policy.tokenizer_text)
    tokenizer = Tokenizer.from_str(policy.tokenizer_text)
    (tokens,) = read(["Put the bowl  on the plate"]).tolist()
    said = tokenizer.decode(tokens, skip_special_tokens=False)
    assert said.replace(SPECIAL_TOKENS[2], "").endswith(
        "take to put the bowl on the plate?<|im_end|>\n<|im_start|>assistant\n"
    )
    start, end, padding = map(tokenizer.token_to_id, SPECIAL_TOKENS)
    assert tokens[0] == start and tokens.count(start) == 3 and tokens.count(end) == 2
    assert tokens[-1] == padding == policy.architecture.padding


def rewrite_model(folder, change):
    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL)


def rewrite_part(folder, name, change):
    tensors = torch.load(folder / name, weights_only=True)
    change(tensors)
    torch.save(tensors, folder / name)


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite_tokenizer(folder, **changes):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | changes))


def rewrite_bytes(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))


VALUES = "model.mlp_resnet_blocks.7.v_task.bias"
SPOILT = {
    "projector": (lambda f: rewrite_model(f, lambda model: model.pop("projector.fc2.bias")), "missing: projector.fc2"),
    "queries": (lambda f: rewrite_model(f, lambda model: model.pop("action_queries.weight")), "action_queries"),
    "zero queries": (lambda f: rewrite_model(f, lambda model: model["action_queries.weight"].zero_()), "got zeros"),
    "more weights": (lambda f: rewrite_model(f, lambda model: model.update(new=torch.ones(1))), "left over: new"),
    "head": (lambda f: rewrite_part(f, HEAD, lambda head: head.pop(f"module.{VALUES}")), f"missing: {VALUES}"),
    "more state": (
        lambda f: rewrite_part(f, STATE, lambda state: state.update({"module.more": torch.ones(1)})),
        "left over: more",
    ),
    "no state": (lambda f: (f / STATE).unlink(), "takes the robot's state"),
    "two steps": (lambda f: shutil.copy(f / HEAD, f / "action_head--9_checkpoint.pt"), "a single step"),
    "cut head": (lambda f: rewrite_bytes(f, HEAD, lambda content: content[:5000]), "damaged"),
    "cut model": (lambda f: rewrite_bytes(f, MODEL, lambda content: content[:-4]), "expected complete safetensors"),
    "no statistics": (lambda f: (f / "dataset_statistics.json").unlink(), "dataset_statistics"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "a tokenizer without <"),
    "broken tokenizer": (lambda f: rewrite_tokenizer(f, model={"type": "none"}), "expected a fast tokenizer"),
    "llama": (lambda f: rewrite_config(f, model_type="llama"), "model_type: got llama"),
    "window": (lambda f: rewrite_config(f, use_sliding_window=True), "use_sliding_window: got True"),
    "layers": (lambda f: rewrite_config(f, num_hidden_layers=12), "left over: language_model.model.layers.12"),
    "heads": (lambda f: rewrite_config(f, num_attention_heads=3), "architecture.trunk_width"),
    "feed-forward": (lambda f: rewrite_config(f, intermediate_size=96), "gate_proj.weight: got shape"),
    "adapter alone": (lambda f: (f / MODEL).unlink(), "an adapter without the model"),
    "merged skills": (lambda f: torch.save({"base": torch.ones(1)}, f / "task2idx.pt"), "Import the single skills"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_refuses_what_does_not_fit(copy, fault):
    spoil, message = SPOILT[fault]
    spoil(copy)
    with pytest.raises(InputError, match=re.escape(message)):
        imported(copy)


def test_refuses_merged_skills_whose_extra_files_are_gone(copy):
    torch.save({"model.mlp_resnet_moe_blocks.0.gating_factor": torch.ones(4)}, copy / HEAD)
    with pytest.raises(InputError, match="several skills merged by MergeVLA"):
        imported(copy)


def test_refuses_the_head_of_another_method(copy):
    torch.save({"module.model.mlp_resnet_blocks.0.ffn.1.weight": torch.ones(4, 4)}, copy / HEAD)
    with pytest.raises(InputError, match="the head of another method"):
        imported(copy)


@pytest.mark.parametrize("platform", ["aloha", "bridge"])
def test_refuses_another_platform(released, platform):
    with pytest.raises(InputError, match=f"platform {platform}"):
        imported(released["vla_adapter"], platform)


def test_refuses_statistics_of_another_dataset(released):
    with pytest.raises(InputError, match="libero_spatial_no_noops"):
        imported(released["vla_adapter"], statistics="libero_goal_no_noops")


class Code:
    """Writes a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_never_runs_code_in_a_pickle(copy, tmp_path):
    for name in (HEAD, STATE):
        kept = (copy / name).read_bytes()
        torch.save({"module.model.fc1.weight": Code(tmp_path / "ran")}, copy / name)
        with pytest.raises(InputError, match="tensors and nothing else"):
            imported(copy)
        (copy / name).write_bytes(kept)
    assert not (tmp_path / "ran").exists()
