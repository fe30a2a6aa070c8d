"""Pretrained sources: their sizes, tokenizer and weights arrive whole, or it is said what does not fit."""

import json

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, SmolLM3Config
from transformers.utils import logging

from saccade.errors import InputError
from saccade.perception.tower_set import PretrainedTowers
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.build import trunk_configuration
from saccade.policy.network.layout import TokenLayout
from saccade.policy.network.presets import PRESETS
from saccade.policy.network.trunk import Trunk
from saccade.policy.pretrained import backbones
from saccade.policy.pretrained.backbones import load_towers, load_trunk, read_tokenizer, trunk_fields

# One slot: then the coupled mask is causal, as the library's.
LAYOUT = TokenLayout(visual=6, text=4, slots=1)
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
KINDS = [
    LlamaConfig(**SIZES, head_dim=8),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=8),
    SmolLM3Config(**SIZES, no_rope_layer_interval=4),
]


def saved(folder, configuration=KINDS[1], tokenizer=True):
    """Write a decoder with its output layer, as models are published, and a tokenizer; return the folder's name."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
    if tokenizer:
        words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "take": 2}, unk_token="<unk>"))
        words.add_special_tokens([AddedToken("<pad>")])
        words.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "eos_token": "take"}))
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("qwen2"))


def trunk_for(fields, **changes):
    shape = Architecture(**fields | {"prune_from": 1, "expert_blocks": 1} | changes)
    keep = (6,) * shape.trunk_layers
    return Trunk(trunk_configuration(shape, LAYOUT.length), LAYOUT, groups=1, keep=keep, condition=5)


@pytest.mark.parametrize("configuration", KINDS, ids=lambda each: each.model_type)
def test_loaded_trunk_equals_the_model_of_transformers(tmp_path, configuration):
    folder = saved(tmp_path, configuration)
    trunk = trunk_for(trunk_fields(folder))
    load_trunk(trunk, folder)
    sequence, valid = torch.randn(2, LAYOUT.length, 16), torch.ones(2, 4, dtype=torch.bool)
    plan = trunk.plan(sequence[:, LAYOUT.span("text")], valid, torch.randn(2, 5))
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager")
    expected = reference(inputs_embeds=sequence, output_hidden_states=True).hidden_states[1:]
    for ours, theirs in zip(trunk(sequence, plan).hidden, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    tokens = torch.tensor([[2, 1]])
    assert trunk.embed(tokens).equal(reference.get_input_embeddings()(tokens))


def test_the_architecture_follows_from_the_source(source):
    assert trunk_fields(source) == {
        "tokenizer": "trunk",
        "trunk_family": "qwen2",
        "trunk_width": 16,
        "trunk_layers": 4,
        "trunk_heads": 4,
        "trunk_key_value_heads": 2,
        "trunk_head_size": 4,
        "trunk_feed_forward": 32,
        "vocabulary": 32,
        "rotary_base": 500.0,
        "norm_epsilon": 1e-5,
        "padding": 1,
    }


def test_a_published_configuration_gives_the_sizes_of_the_preset(tmp_path):
    # As Qwen2.5-0.5B has it, with what says nothing for a decoder.
    published = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    fields, preset = trunk_fields(str(tmp_path), padding=False), PRESETS["small"]
    assert fields.pop("trunk_head_size") * preset.trunk_heads == preset.trunk_width
    assert fields == {name: getattr(preset, name) for name in fields}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (LlamaConfig(**SIZES, attention_bias=True), "attention_bias: got True, expected False"),
        (LlamaConfig(**SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
         "rope_parameters: got .*'linear'"),
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=2), "sliding_window: got 3"),
        (SmolLM3Config(**SIZES, no_rope_layers=[1, 1, 0, 0]), r"no_rope_layers: got \[1, 1, 0, 0\]"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act: got gelu, expected silu"),
    ],
)  # fmt: skip
def test_a_decoder_that_the_trunk_cannot_express_is_refused_by_field(tmp_path, configuration, message):
    configuration.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"trunk .*: {message}"):
        trunk_fields(str(tmp_path), padding=False)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3", "mistral"])
def test_another_kind_of_decoder_is_refused(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(InputError, match="trunk .*: (hidden_size|intermediate_size|sliding_window): got"):
        trunk_fields(str(tmp_path), padding=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk_family": "llama"}, "architecture.trunk_family: got qwen2, expected llama"),
        ({"trunk_width": 32}, "architecture.trunk_width: got 16, expected 32"),
        ({"trunk_layers": 3}, "architecture.trunk_layers: got 4, expected 3"),
        ({"vocabulary": 40}, "architecture.vocabulary: got 32, expected 40"),
        ({"trunk_key_value_heads": 4}, "architecture.trunk_key_value_heads: got 2, expected 4"),
        ({"rotary_base": 900.0}, "architecture.rotary_base: got"),
    ],
)
def test_weights_of_other_sizes_are_refused_by_field(source, changes, message):
    trunk = trunk_for(trunk_fields(source), **changes)
    with pytest.raises(InputError, match=message):
        load_trunk(trunk, source)


def test_missing_and_pickled_weights_are_refused(source, tmp_path):
    configuration = KINDS[1]
    folder = saved(tmp_path / "whole", configuration)
    trunk = trunk_for(trunk_fields(folder))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    path = tmp_path / "whole" / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing \(layers.2.mlp.up_proj.weight"):
        load_trunk(trunk, folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="expected whole safetensors"):
        load_trunk(trunk, folder)
    path.unlink()
    torch.save(weights, tmp_path / "whole" / "pytorch_model.bin")
    with pytest.raises(InputError, match="expected whole safetensors"):
        load_trunk(trunk, folder)
    assert all(tensor.equal(before[name]) for name, tensor in trunk.state_dict().items())


def test_a_tokenizer_without_padding_says_how_to_give_one(tmp_path):
    folder = saved(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"pad_token": None, "eos_token": "take"}))
    with pytest.raises(InputError, match="padding token: got none.*--change padding=NUMBER.*<pad> is 1"):
        trunk_fields(folder)
    assert "padding" not in trunk_fields(folder, padding=False)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    assert trunk_fields(folder)["padding"] == 1
    settings.write_text("[")
    with pytest.raises(InputError, match="tokenizer_config.json of .*: got a damaged file"):
        read_tokenizer(folder)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer of .*: got no tokenizer.json"):
        read_tokenizer(folder)


def test_invalid_source_is_refused(tmp_path):
    with pytest.raises(InputError, match="trunk .*: got .*expected a model's config"):
        trunk_fields(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "big"}, ": got .*hidden_size"),
        ({"num_hidden_layers": None}, ": got .*num_hidden_layers"),
        ({"rope_parameters": []}, ": got .*rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": [1]}}, ": rope_parameters: got"),
        ({"rms_norm_eps": "x"}, ": got .*rms_norm_eps"),
        ({"num_attention_heads": 0}, ": num_attention_heads: got 0"),
        ({"head_dim": "x"}, ": head_dim: got 'x'"),
        ({"dtype": "banana"}, ": got .*banana"),
        ({"quantization_config": {"quant_method": "gptq"}}, ": quantization_config: got .*gptq"),
        ([], ": config.json: got a damaged file, expected a JSON object"),
        (None, ": config.json: got a damaged file, expected a JSON object"),
        ("x", ": config.json: got a damaged file, expected a JSON object"),
    ],
    ids=str,
)
def test_a_damaged_configuration_is_refused(source, tmp_path, change, message):
    trunk = trunk_for(trunk_fields(source))
    document = Qwen2Config(**SIZES).to_dict() | change if isinstance(change, dict) else change
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"trunk {tmp_path}{message}"):
        trunk_fields(str(tmp_path), padding=False)
    with pytest.raises(InputError, match=f"trunk {tmp_path}{message}"):
        load_trunk(trunk, str(tmp_path))


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', "nothing"])
def test_a_damaged_index_is_refused(tmp_path, index):
    folder = saved(tmp_path)
    trunk = trunk_for(trunk_fields(folder))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=f"weights of the trunk from {folder}: got .*expected whole safetensors"):
        load_trunk(trunk, folder)


def test_unreachable_hub_is_not_reported_as_a_missing_file(monkeypatch):
    def offline(source, name):
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(backbones, "hf_hub_download", offline)
    for read, name in ((read_tokenizer, "tokenizer.json of"), (trunk_fields, "trunk")):
        with pytest.raises(InputError, match=f"{name} some/model: got no connection .*Check the connection"):
            read("some/model")


def test_loading_prints_nothing(source, capfd):
    # The output layer that the decoder leaves out would be reported.
    trunk, before = trunk_for(trunk_fields(source)), (logging.get_verbosity(), logging.is_progress_bar_enabled())
    capfd.readouterr()
    load_trunk(trunk, source)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_towers_get_their_weights_in_order(tmp_path):
    def towers():
        sizes = {"image_size": 32, "aggregation_tokens": 2, "film": True, "fusion": "gated"}
        return PretrainedTowers(("test_vit", "test_vit2"), **sizes, condition_width=5, output_width=8)

    import timm

    sources = []
    for name in ("test_vit", "test_vit2"):
        sources.append(str(tmp_path / f"{name}.safetensors"))
        save_file(timm.create_model(name, num_classes=0).state_dict(), sources[-1])
    one, other = towers(), towers()
    load_towers(one, sources)
    load_towers(other, sources)
    for first, second in zip(one.towers, other.towers, strict=True):
        assert all(value.equal(second.encoder.state_dict()[name]) for name, value in first.encoder.state_dict().items())
    with pytest.raises(InputError, match="weights of the towers: got 1, expected 2"):
        load_towers(one, sources[:1])
    with pytest.raises(InputError, match="weights of the towers: got no pretrained tower"):
        load_towers(torch.nn.Linear(1, 1), sources)
