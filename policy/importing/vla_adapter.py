"""VLA-Adapter and MergeVLA: their released folders as policies of ours, weight by weight.

VLA-Adapter (Wang et al., 2025) and MergeVLA's single skills (Fu et al., 2025) share all but the expert: towers whose
patches all enter a Qwen2, 64 learned action queries, and an expert that reads every layer of it. Which expert a folder
holds is told by the names of its tensors, and by nothing else that is in it.
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
from .released import ADAPTER, ImportedPolicy, ImportOptions, ReleasedCheckpoint
from .towers import RELEASED_NAMES, add_linears, add_tower, image_size, released_colour_normalization, tower_names
from .weights import Conversion, WeightSource

if TYPE_CHECKING:
    from ..network.model import SaccadeModel

PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Tokens that the prompt is made of, and last the one that pads it."""

EMBEDDINGS, ACTION_QUERIES = "language_model.model.embed_tokens.weight", "action_queries.weight"
MERGED_SKILL_FILES = ("task2idx.pt", "tall_masks.pt")
"""Files that only a folder of several merged skills has."""

EXPERT_HEADS = 8
TRUNK_DEFAULTS = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
"""What a Qwen2 is where text_config does not say it: the library that wrote it left out what is usual."""

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
    """One of the released experts: the fields of an architecture, and whose tensors make each of our projections.

    `distinctive_layer` is a tensor that every block of it has and no block of the others.
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
        # Nothing in it tells the steps apart but the noise that only training starts them from.
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
    """The weights of a folder by what they are."""

    model: WeightSource
    head: WeightSource
    state: WeightSource

    @property
    def all(self) -> tuple[WeightSource, ...]:
        return (self.model, self.head, self.state)


def import_vla_adapter(released: ReleasedCheckpoint, options: ImportOptions) -> ImportedPolicy:
    """Read a folder of VLA-Adapter, or of one skill of MergeVLA, with the adapter merged into the model.

    Raises InputError for what is missing, left over, damaged, of another method, several skills merged into one, and an
    adapter alone.
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
    make_tokenizer(architecture, tokenizer_text)  # refuses one that does not fit before the weights are read
    # Only names and shapes of the network matter here, so it gets no memory.
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
    """Open all that the policy consists of and tell which expert it has."""
    skills = [name for name in MERGED_SKILL_FILES if released.has(name)]
    if skills:
        raise _several_skills_error(released, " and ".join(skills))
    if not released.merged and released.has(ADAPTER):
        raise InputError(
            str(released.folder),
            got="an adapter without the model that it was merged into",
            expected="model.safetensors with the adapter merged, as training writes it",
            fix="The learned action queries are only there: take the folder with model.safetensors from the release.",
        )
    weights = released.read_part("action_head")
    if any("mlp_resnet_moe_blocks." in name for name in weights):
        raise _several_skills_error(released, f"an expert in several versions in {weights.source}")
    blocks = "model.mlp_resnet_blocks.0."
    head = next((each for each in RELEASED_HEADS if f"{blocks}{each.distinctive_layer}.weight" in weights), None)
    if head is None:
        raise InputError(
            weights.source,
            got="the head of another method",
            expected=f"{blocks}NAME.weight with {', '.join(each.distinctive_layer for each in RELEASED_HEADS)} for NAME",
            fix="CogVLA and OpenVLA-OFT have a layout of their own: see --layout.",
        )
    if not released.has_part("proprio_projector"):
        raise InputError(
            "proprio_projector--STEP_checkpoint.pt",
            got="no such file",
            expected="a policy that is told the arm's state",
            fix="Copy it from the release; policies trained without it cannot be imported.",
        )
    return _VlaAdapterWeights(released.model(), weights, released.read_part("proprio_projector")), head


def _several_skills_error(released: ReleasedCheckpoint, got: str) -> InputError:
    return InputError(
        str(released.folder),
        got=f"several skills merged by MergeVLA ({got}): differences to a base and masks, not a policy's weights",
        expected="the folder of one skill",
        fix="Import the single skills that were merged, each from its own folder.",
    )


def _architecture(
    config: Mapping[str, Any], files: _VlaAdapterWeights, head: ReleasedHead, padding: int, options: ImportOptions
) -> Architecture:
    text = config.get("text_config")
    if not isinstance(text, dict):
        fix = "Copy config.json again from the release."
        raise InputError("config.json: text_config", got=text, expected="the trunk's sizes", fix=fix)
    for field, expected in TRUNK_FIXED.items():
        if text.get(field, expected) != expected:
            fix = "Only checkpoints whose trunk is a plain Qwen2 can be imported by this layout."
            raise InputError(f"config.json: text_config.{field}", got=text[field], expected=expected, fix=fix)
    trunk = {field: text.get(field, default) for field, default in TRUNK_DEFAULTS.items()}
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
        # Nothing here listens to the instruction's vector, and a mean has no weights.
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
    """Return the number of the token that pads a prompt; config.json's is Llama's, and an ordinary word of Qwen2.

    Raises InputError unless the tokenizer is Qwen2's.
    """
    added = released.read_json(TOKENIZER_FILE).get("added_tokens")
    try:
        numbers = {token["content"]: int(token["id"]) for token in added}
    except (TypeError, KeyError, ValueError):
        numbers = {}
    if missing := [token for token in SPECIAL_TOKENS if token not in numbers]:
        raise InputError(
            f"{released.folder}/{TOKENIZER_FILE}",
            got=f"a tokenizer without {', '.join(missing)}",
            expected="that of Qwen2, which the policy was trained with",
            fix="Copy the file from the release, or from the Qwen2.5-0.5B that it was trained from.",
        )
    return numbers[SPECIAL_TOKENS[-1]]


def _add_vision(
    conversion: Conversion, released: ReleasedCheckpoint, model: WeightSource, network: SaccadeModel
) -> None:
    """Convert the towers and what brings their patches to the trunk's width."""
    colour_normalization = released_colour_normalization(released)
    for number, name in enumerate(RELEASED_NAMES):
        tower, prefix = network.tower.towers[number], f"vision_backbone.{name}."
        add_tower(
            conversion, f"tower.towers.{number}.encoder.", tower, model, prefix, colour_normalization[number], 1.0
        )
    add_linears(conversion, model, {f"tower.fusion.project.{2 * n}": f"projector.fc{n + 1}" for n in range(3)})
    views = network.view_condition.shape
    conversion.add("view_condition", make=lambda: torch.zeros(views))


def _add_trunk(conversion: Conversion, model: WeightSource, network: SaccadeModel) -> None:
    """Convert the decoder, which has the same names, and the action queries."""
    prefix = "trunk.decoder."
    for target in network.state_dict():
        if target.startswith(prefix):
            conversion.add(target, (model, f"language_model.model.{target.removeprefix(prefix)}"))
    conversion.add("slots", (model, ACTION_QUERIES), make=_slots)
    model.ignore(r"language_model\.lm_head\.", "output of the language model, which no action comes from")


def _slots(queries: torch.Tensor) -> torch.Tensor:
    if not queries.any():
        raise InputError(
            ACTION_QUERIES,
            got="zeros",
            expected="what was learned",
            fix="They were lost when the adapter was merged: take the model.safetensors that training itself wrote.",
        )
    return queries[None]


def _add_expert(
    conversion: Conversion, files: _VlaAdapterWeights, head: ReleasedHead, architecture: Architecture
) -> None:
    """Convert the expert and the projection of the state."""
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
    theirs.ignore(r"model\.mlp_resnet_blocks\.\d+\.film_gen\.", "modulation in the expert that is never run")
    add_linears(conversion, files.state, {"state.0": "fc1", "state.2": "fc2"})
