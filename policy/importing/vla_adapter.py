"""Import of released VLA-Adapter checkpoints and single skills of MergeVLA.

VLA-Adapter (Wang et al., 2025) and MergeVLA's single skills (Fu et al., 2025) differ in the expert only. Both have
two towers whose patches all enter a Qwen2, 64 learned action queries, and an expert that reads every layer of it.
Only the names of its tensors tell which expert a folder holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InputError
from ..core import build_model
from ..network.architecture import Architecture
from ..network.tokenizer import TOKENIZER_FILE, make_tokenizer
from .platforms import released_contract
from .released import ADAPTER, ImportedPolicy, ImportOptions, ReleasedCheckpoint, read_state_projection
from .towers import (
    RELEASED_NAMES,
    add_linears,
    add_tower,
    image_size,
    pretrained_towers,
    released_colour_normalization,
    tower_names,
)
from .trunk import text_config, trunk_sizes
from .weights import Conversion, WeightSource

if TYPE_CHECKING:
    from ..network.model import SaccadeModel

PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Special tokens of the prompt; the last one is the padding."""

EMBEDDINGS, ACTION_QUERIES = "language_model.model.embed_tokens.weight", "action_queries.weight"
MERGED_SKILL_FILES = ("task2idx.pt", "tall_masks.pt")
"""Files that exist only in a folder of several merged skills."""

EXPERT_HEADS = 8
TRUNK_DEFAULTS = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
"""Defaults of Qwen2 for fields that text_config lacks: transformers does not write default values."""

TRUNK_FIXED = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_mrope": False,
    "rope_scaling": None,
    "rope_parameters": None,
}


@dataclass(frozen=True)
class ReleasedHead:
    """One of the released experts.

    Attributes:
        method: What it is, for the description.
        distinctive_layer: A layer of every block that the other experts do not have.
        readout: Field of `Architecture`.
        rotation: `expert_rotation` of `Architecture`.
        projections: Names of the released layers that are concatenated for each of our projections.
    """

    method: str
    distinctive_layer: str
    readout: str
    rotation: str
    projections: Mapping[str, tuple[str, ...]]


RELEASED_HEADS = (
    ReleasedHead(
        "MergeVLA, a single skill",
        distinctive_layer="q_proj_task",
        readout="mergevla",
        rotation="mixed",
        projections={
            "query": ("q_proj_adapter",),
            "query_seen": ("q_proj_task",),
            "key_value_decided": ("k_adapter", "v_adapter"),
            "key_value_seen": ("k_task", "v_task"),
        },
    ),
    ReleasedHead(
        "VLA-Adapter Pro",
        distinctive_layer="k_self",
        readout="vla_adapter",
        rotation="mixed",
        projections={
            "query": ("q_proj",),
            "key_value_self": ("k_self", "v_self"),
            "key_value_decided": ("k_adapter", "v_adapter"),
            "key_value_seen": ("k_task", "v_task"),
        },
    ),
    ReleasedHead(
        # Only the noise at the start of training distinguishes the steps of a chunk.
        "VLA-Adapter before Pro, whose chunks repeat one and the same action for all their steps",
        distinctive_layer="k_proj",
        readout="vla_adapter",
        rotation="none",
        projections={
            "query": ("q_proj",),
            "key_value_self": ("k_proj", "v_proj"),
            "key_value_decided": ("k_proj", "v_proj"),
            "key_value_seen": ("k_proj", "v_proj"),
        },
    ),
)


@dataclass(frozen=True)
class _VlaAdapterWeights:
    """The weights of a folder: the model, the action head and the projection of the robot's state."""

    model: WeightSource
    head: WeightSource
    state: WeightSource

    @property
    def all(self) -> tuple[WeightSource, ...]:
        return (self.model, self.head, self.state)


def import_vla_adapter(released: ReleasedCheckpoint, options: ImportOptions) -> ImportedPolicy:
    """Import a VLA-Adapter checkpoint or a single skill of MergeVLA, with the adapter merged into the model.

    Args:
        released: The folder of the checkpoint.
        options: What the folder does not tell.

    Raises:
        InputError: A tensor or file is missing, unexpected, damaged or of another method, or the folder holds several
            merged skills or only an adapter.
    """
    files, head = _open(released)
    config = released.read_json("config.json")
    architecture = _architecture(config, files, head, _padding(released), options)
    contract = released_contract(
        options.platform,
        released.read_json("dataset_statistics.json"),
        options.statistics,
        image_size=image_size(config),
        state=files.state.shape("fc1.weight")[1],
        action=files.head.shape("model.fc2.weight")[0],
    )
    tokenizer_text = released.read_text_file(TOKENIZER_FILE)
    make_tokenizer(architecture, tokenizer_text)  # checks it before the weights are read
    # Only names and shapes are needed here: the meta device allocates no memory.
    with torch.device("meta"):
        network = build_model(architecture, contract)
    conversion = Conversion()
    _add_vision(conversion, released, files.model, network)
    _add_trunk(conversion, files.model, network)
    _add_expert(conversion, files, head, architecture)
    tensors = conversion.run(files.all, network.state_dict(), progress=options.progress)
    return ImportedPolicy(
        description=f"{head.method}: all patches of {' and '.join(architecture.towers)}",
        architecture=architecture,
        contract=contract,
        tensors=tensors,
        tokenizer_text=tokenizer_text,
        files=files.all,
    )


def _open(released: ReleasedCheckpoint) -> tuple[_VlaAdapterWeights, ReleasedHead]:
    """Open all weights of the policy and find out which expert it has."""
    skills = [name for name in MERGED_SKILL_FILES if released.has(name)]
    if skills:
        raise _several_skills_error(released, " and ".join(skills))
    if not released.merged and released.has(ADAPTER):
        raise InputError(
            str(released.folder),
            got="an adapter without the model that it was merged into",
            expected="model.safetensors with the adapter merged, as training writes it",
            fix="Take the folder with model.safetensors from the release: only there are the learned queries.",
        )
    weights = released.read_part("action_head")
    if any("mlp_resnet_moe_blocks." in name for name in weights):
        raise _several_skills_error(released, f"several versions of the expert in {weights.source}")
    blocks = "model.mlp_resnet_blocks.0."
    head = next((each for each in RELEASED_HEADS if f"{blocks}{each.distinctive_layer}.weight" in weights), None)
    if head is None:
        raise InputError(
            weights.source,
            got="the head of another method",
            expected=f"{blocks}NAME.weight, NAME one of {', '.join(each.distinctive_layer for each in RELEASED_HEADS)}",
            fix="Use --layout cogvla or --layout openvla-oft if it is one of these.",
        )
    state = read_state_projection(released)
    return _VlaAdapterWeights(released.model(), weights, state), head


def _several_skills_error(released: ReleasedCheckpoint, got: str) -> InputError:
    return InputError(
        str(released.folder),
        got=f"several skills merged by MergeVLA ({got}): task vectors and masks, not the weights of a policy",
        expected="the folder of one skill",
        fix="Import the single skills that were merged, each from its folder.",
    )


def _architecture(
    config: Mapping[str, Any], files: _VlaAdapterWeights, head: ReleasedHead, padding: int, options: ImportOptions
) -> Architecture:
    text = text_config(config, required=True)
    trunk = trunk_sizes(text, defaults=TRUNK_DEFAULTS, fixed=TRUNK_FIXED, family="Qwen2")
    vocabulary, width = files.model.shape(EMBEDDINGS)
    layers, queries = trunk["num_hidden_layers"], files.model.shape(ACTION_QUERIES)[0]
    steps = options.platform.chunk
    if queries < steps:
        got, fix = f"{steps} steps", "Choose the platform that the policy was trained for."
        raise InputError(f"platform {options.platform.name}: chunk", got=got, expected=f"at most {queries}", fix=fix)
    return Architecture(
        text_length=options.text_length,
        tokenizer="trunk",
        prompt=PROMPT,
        # No part of this policy uses the instruction's vector, and a mean needs no weights.
        instruction_features="mean",
        condition_width=width,
        towers=tower_names(config),
        tower_film=False,
        aggregation_tokens=0,
        fusion="concatenated",
        trunk_family="qwen2",
        trunk_width=width,
        trunk_layers=layers,
        trunk_heads=trunk["num_attention_heads"],
        trunk_key_value_heads=trunk["num_key_value_heads"],
        trunk_feed_forward=trunk["intermediate_size"],
        vocabulary=vocabulary,
        padding=padding,
        rotary_base=trunk["rope_theta"],
        norm_epsilon=trunk["rms_norm_eps"],
        sequence=("start", "visual", "text", "slots"),
        mask="causal",
        positions="counted",
        prune_from=layers,
        slot_queries="learned",
        extra_slots=queries - steps,
        read_shifted=True,
        readout=head.readout,
        expert_width=width,
        expert_blocks=layers,
        expert_heads=EXPERT_HEADS,
        expert_rotation=head.rotation,
        expert_start="zero",
    )


def _padding(released: ReleasedCheckpoint) -> int:
    """Return the number of the padding token; that in config.json is Llama's, and an ordinary token of Qwen2.

    Raises InputError if the tokenizer is not that of Qwen2.
    """
    added = released.read_json(TOKENIZER_FILE).get("added_tokens")
    try:
        numbers = {token["content"]: int(token["id"]) for token in added or ()}
    except (TypeError, KeyError, ValueError):
        numbers = {}
    if missing := [token for token in SPECIAL_TOKENS if token not in numbers]:
        raise InputError(
            f"{released.folder}/{TOKENIZER_FILE}",
            got=f"a tokenizer without {', '.join(missing)}",
            expected="the tokenizer of Qwen2, which the policy was trained with",
            fix="Copy the file from the release, or from Qwen2.5-0.5B.",
        )
    return numbers[SPECIAL_TOKENS[-1]]


def _add_vision(
    conversion: Conversion, released: ReleasedCheckpoint, model: WeightSource, network: SaccadeModel
) -> None:
    """Convert the towers and the projection of their patches to the trunk's width."""
    colour_normalization = released_colour_normalization(released)
    for number, (name, tower) in enumerate(zip(RELEASED_NAMES, pretrained_towers(network), strict=True)):
        prefix = f"vision_backbone.{name}."
        add_tower(
            conversion, f"tower.towers.{number}.encoder.", tower, model, prefix, colour_normalization[number], 1.0
        )
    add_linears(conversion, model, {f"tower.fusion.project.{2 * n}": f"projector.fc{n + 1}" for n in range(3)})
    views = network.view_condition.shape
    conversion.add("view_condition", make=lambda: torch.zeros(views))


def _add_trunk(conversion: Conversion, model: WeightSource, network: SaccadeModel) -> None:
    """Convert the decoder, whose names are the same, and the action queries."""
    prefix = "trunk.decoder."
    for target in network.state_dict():
        if target.startswith(prefix):
            conversion.add(target, (model, f"language_model.model.{target.removeprefix(prefix)}"))
    conversion.add("slots", (model, ACTION_QUERIES), make=_slots)
    model.ignore(r"language_model\.lm_head\.", "output layer of the language model, which the policy does not use")


def _slots(queries: torch.Tensor) -> torch.Tensor:
    """Return the slots [1, n, D] from the action queries [n, D]."""
    if not queries.any():
        raise InputError(
            ACTION_QUERIES,
            got="zeros",
            expected="learned action queries",
            fix="Take the model.safetensors that training wrote: merging the adapter later has lost the queries.",
        )
    return queries[None]


def _add_expert(
    conversion: Conversion, files: _VlaAdapterWeights, head: ReleasedHead, architecture: Architecture
) -> None:
    """Convert the expert and the projection of the robot's state."""
    theirs = files.head
    names = {"start.norm": "layer_norm1", "start.project": "fc1", "norm": "layer_norm2", "head": "fc2"}
    add_linears(conversion, theirs, {f"expert.{ours}": f"model.{name}" for ours, name in names.items()})
    for number in range(architecture.expert_blocks):
        ours, block = f"expert.blocks.{number}.", f"model.mlp_resnet_blocks.{number}."
        names = {"output": "o_proj", "feed_forward_norm": "ffn.0", "feed_forward": "ffn.1"}
        add_linears(conversion, theirs, {ours + mine: block + name for mine, name in names.items()})
        conversion.add(f"{ours}gate", (theirs, f"{block}gating_factor"))
        for mine, parts in head.projections.items():
            for leaf in ("weight", "bias"):
                sources = [(theirs, f"{block}{part}.{leaf}") for part in parts]
                conversion.add(f"{ours}{mine}.{leaf}", *sources, make=lambda *each: torch.cat(each))
    theirs.ignore(r"model\.mlp_resnet_blocks\.\d+\.film_gen\.", "FiLM in the expert, which is never run")
    add_linears(conversion, files.state, {"state.0": "fc1", "state.2": "fc2"})
