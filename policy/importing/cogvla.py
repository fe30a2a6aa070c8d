"""Import of released CogVLA and OpenVLA-OFT checkpoints.

CogVLA (Li et al., 2025) and OpenVLA-OFT (Kim et al., 2025) share towers, prompt, slots and action head. CogVLA adds
aggregation tokens, a fusion router, a coupled mask and pruning. OpenVLA-OFT may have FiLM in its towers: config.json
does not say so, but the files do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InputError
from ..core import build_model
from ..network.architecture import Architecture
from .platforms import released_contract
from .released import ADAPTER, ImportedPolicy, ImportOptions, ReleasedCheckpoint, read_state_projection
from .towers import (
    RELEASED_NAMES,
    add_linears,
    add_modulation,
    add_tower,
    image_size,
    pretrained_towers,
    released_colour_normalization,
    tower_names,
)
from .trunk import text_config, trunk_sizes
from .weights import Conversion, WeightSource, with_adapter

if TYPE_CHECKING:
    from ..network.model import SaccadeModel

PROMPT = "In: What action should the robot take to {instruction}?\nOut: "
"""The space at the end is a separate token, which the released code appends by its number."""

STOP_TOKEN = 2
EMBEDDINGS = "language_model.model.embed_tokens.weight"
SCHEDULE = re.compile(r"shiftedcos_decay_(0?\.\d+)_(0?\.\d+)")

TRUNK_DEFAULTS = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""Defaults of the released code for fields that config.json lacks. The epsilon is not that of Llama 2, 1e-5."""

TRUNK_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Fields with the only value that is supported; they may be absent."""


@dataclass(frozen=True)
class _CogvlaWeights:
    """The weights of a folder.

    Attributes:
        model: The language model, with the towers if they have no separate file.
        vision: The trained towers, if they have a separate file.
        head: The action head.
        state: The projection of the robot's state.
        others: Files whose weights are folded into `model`.
    """

    model: WeightSource
    vision: WeightSource | None
    head: WeightSource
    state: WeightSource
    others: tuple[WeightSource, ...] = ()

    @property
    def all(self) -> tuple[WeightSource, ...]:
        return (self.model, *((self.vision,) if self.vision else ()), self.head, self.state, *self.others)


def is_cogvla(config: Mapping[str, Any]) -> bool:
    """Tell whether a released config.json is from CogVLA rather than from OpenVLA-OFT."""
    return "use_aggr" in config or "use_lfp" in text_config(config)


def import_cogvla(released: ReleasedCheckpoint, options: ImportOptions) -> ImportedPolicy:
    """Import a CogVLA or OpenVLA-OFT checkpoint, merged, or as an adapter with its base model (`options.base`).

    Args:
        released: The folder of the checkpoint.
        options: What the folder does not tell.

    Raises:
        InputError: A tensor or file is missing, unexpected, damaged, of another method, or not supported.
    """
    files, config = _open(released, options)
    architecture = _architecture(config, files, options.text_length)
    contract = released_contract(
        options.platform,
        released.read_json("dataset_statistics.json"),
        options.statistics,
        image_size=image_size(config),
        state=files.state.shape("fc1.weight", 2)[1],
        action=files.head.shape("model.fc2.weight", 2)[0],
    )
    tokenizer_text = released.read_text_file("tokenizer.json")
    # Only names and shapes are needed here: the meta device allocates no memory.
    with torch.device("meta"):
        network = build_model(architecture, contract)
    conversion = Conversion()
    _add_vision(conversion, released, files, network)
    _add_trunk(conversion, files.model, network)
    _add_head(conversion, files, architecture)
    views, slots = network.view_condition.shape, network.slots.shape
    conversion.add("view_condition", make=lambda: torch.zeros(views))
    conversion.add("slots", (files.model, EMBEDDINGS), make=lambda table: _slots(table, slots))
    files.model.ignore(
        r"language_model\.lm_head\.", "output layer of the language model, which the policy does not use"
    )
    tensors = conversion.run(files.all, network.state_dict(), progress=options.progress)
    return ImportedPolicy(
        description=_describe(config, architecture, merged=released.merged),
        architecture=architecture,
        contract=contract,
        tensors=tensors,
        tokenizer_text=tokenizer_text,
        files=files.all,
    )


def _open(released: ReleasedCheckpoint, options: ImportOptions) -> tuple[_CogvlaWeights, dict[str, Any]]:
    """Open all weights of the policy, and its config.json: that of the base model if the folder has none."""
    head = released.read_part("action_head")
    state = read_state_projection(released)
    vision = released.read_part("vision_backbone") if released.has_part("vision_backbone") else None
    if released.merged:
        config = released.read_json("config.json")
        files = _CogvlaWeights(released.model(), vision, head, state)
    else:
        if options.base is None:
            raise InputError(
                str(released.folder),
                got="an adapter without the model that it adapts",
                expected="the merged model, or --trunk-base",
                fix="Give the folder of the base model, such as openvla-7b, with --trunk-base.",
            )
        config = (released if released.has("config.json") else options.base).read_json("config.json")
        adapter = released.adapter()
        trained = released.read_part("non_lora_trainables") if released.has_part("non_lora_trainables") else None
        model = with_adapter(options.base.model(), adapter, trained, released.lora_scaling())
        if vision:
            adapter.ignore(
                r"base_model\.model\.vision_backbone\.", "adapter of the towers, which is in their separate file too"
            )
        adapter.ignore(
            r"base_model\.model\.language_model\.lm_head\.",
            "adapter of the output layer, which the policy does not use",
        )
        files = _CogvlaWeights(model, vision, head, state, (adapter, *((trained,) if trained else ())))
    if is_cogvla(config) and config.get("use_film") and vision is None:
        released.read_part("vision_backbone")  # raises: it is missing
    return files, config


def _architecture(config: Mapping[str, Any], files: _CogvlaWeights, text_length: int) -> Architecture:
    vision, head, cogvla = files.vision, files.head, is_cogvla(config)
    text = text_config(config)
    trunk = trunk_sizes(text, defaults=TRUNK_DEFAULTS, fixed=TRUNK_FIXED, family="Llama 2")
    vocabulary, width = files.model.shape(EMBEDDINGS, 2)
    layers = trunk["num_hidden_layers"]
    first, floor = _pruning(text, layers)
    aggregation = f"vision_aggr_{RELEASED_NAMES[0]}"
    return Architecture(
        text_length=text_length,
        tokenizer="trunk",
        prompt=PROMPT,
        instruction_features="mean",
        condition_width=width,
        towers=tower_names(config),
        tower_film=vision is not None and any(name.endswith(".scale.weight") for name in vision),
        aggregation_tokens=vision.shape(aggregation, 3)[1] if vision and aggregation in vision else 0,
        fusion="gated" if f"{RELEASED_NAMES[0]}_proj.fc1.weight" in files.model else "concatenated",
        trunk_family="llama",
        trunk_width=width,
        trunk_layers=layers,
        trunk_heads=trunk["num_attention_heads"],
        trunk_key_value_heads=text.get("num_key_value_heads") or 0,
        trunk_feed_forward=trunk["intermediate_size"],
        vocabulary=vocabulary,
        padding=config.get("pad_token_id", 32000),
        rotary_base=trunk["rope_theta"],
        norm_epsilon=trunk["rms_norm_eps"],
        sequence=("start", "visual", "state", "text", "slots"),
        mask="coupled" if cogvla else "full",
        positions="renumbered" if cogvla else "counted",
        prune_from=first,
        keep_floor=floor,
        prune_per_view=False,
        router="original" if first < layers else "direction",
        slot_queries="zero",
        slot_unit="element",
        extra_slots=1,
        read_shifted=True,
        readout="slots",
        expert_width=head.shape("model.fc1.weight", 2)[0],
        expert_blocks=len({name.split(".")[2] for name in head if name.startswith("model.mlp_resnet_blocks.")}),
    )


def _pruning(text: Mapping[str, Any], layers: int) -> tuple[int, float]:
    """Return the first layer that prunes (`layers` if none does) and the minimum fraction of tokens that is kept."""
    if not text.get("use_lfp"):
        return layers, 1.0
    kind, average = text.get("lfp_type"), text.get("lfp_average_factor", 0.5)
    match = SCHEDULE.fullmatch(str(kind))
    if not match or average != 0.5 or layers != 32:
        raise InputError(
            "config.json: text_config.lfp_type",
            got=f"{kind} with lfp_average_factor {average} over {layers} layers",
            expected="shiftedcos_decay_BEGIN_FLOOR with 0.5 over 32 layers, as released",
            fix="Import a checkpoint with the published pruning schedule.",
        )
    begin, floor = map(float, match.groups())
    fractions = [max(0.5 + 0.5 * math.cos(math.pi * layer / (layers - 1)), floor) for layer in range(layers)]
    return next((layer for layer, fraction in enumerate(fractions) if fraction <= begin), layers), floor


def _add_vision(
    conversion: Conversion, released: ReleasedCheckpoint, files: _CogvlaWeights, network: SaccadeModel
) -> None:
    """Convert the towers, their FiLM layers and aggregation tokens, and the projection to the trunk's width."""
    model, shape = files.model, network.architecture
    weights = files.vision or model
    colour_normalization = released_colour_normalization(released)
    for number, (name, tower) in enumerate(zip(RELEASED_NAMES, pretrained_towers(network), strict=True)):
        target, prefix = f"tower.towers.{number}.", f"vision_backbone.{name}."
        add_tower(
            conversion,
            f"{target}encoder.",
            tower,
            weights,
            prefix,
            colour_normalization[number],
            released.lora_scaling(),
        )
        if shape.tower_film:
            add_modulation(conversion, f"{target}film.", tower, weights, prefix)
        if shape.aggregation_tokens:
            conversion.add(f"{target}aggregation", (weights, f"vision_aggr_{name}"))
    if files.vision:
        model.ignore(r"vision_backbone\.", "towers before training: the trained ones have a separate file")
    if shape.fusion == "concatenated":
        add_linears(conversion, model, {f"tower.fusion.project.{2 * n}": f"projector.fc{n + 1}" for n in range(3)})
        return
    model.ignore(r"projector\.", "projector of the base model, which the policy replaces")
    for number, name in enumerate(RELEASED_NAMES):
        target = f"tower.fusion.projectors.{number}."
        add_linears(conversion, model, {f"{target}0": f"{name}_proj.fc1", f"{target}2": f"{name}_proj.fc2"})
    router = "aggregation_router.router."
    add_linears(conversion, model, {f"tower.fusion.router.{n}": f"{router}{n}" for n in (0, 2)})


def _add_trunk(conversion: Conversion, model: WeightSource, network: SaccadeModel) -> None:
    """Convert the decoder, whose names are the same, and its routers; without FiLM these scale by 1 and shift by 0."""
    own = network.state_dict()
    for target in own:
        if target.startswith("trunk.decoder."):
            conversion.add(target, (model, f"language_model.model.{target.removeprefix('trunk.decoder.')}"))
    for layer in network.trunk.routers:
        ours, theirs = f"trunk.routers.{layer}.", f"language_model.model.layers.{layer}.router."
        add_linears(conversion, model, {f"{ours}weigh": f"{theirs}router"})
        for part in ("scale.0", "scale.2", "shift.0", "shift.2"):
            if f"{theirs}scale.0.weight" in model:
                add_linears(conversion, model, {ours + part: theirs + part})
                continue
            for leaf in ("weight", "bias"):
                name = f"{ours}{part}.{leaf}"
                conversion.add(name, make=lambda size=own[name].shape: torch.zeros(size))


def _add_head(conversion: Conversion, files: _CogvlaWeights, architecture: Architecture) -> None:
    names = {"enter_norm": "layer_norm1", "enter": "fc1", "norm": "layer_norm2", "head": "fc2"}
    for block in range(architecture.expert_blocks):
        names |= {f"blocks.{block}.{part}": f"mlp_resnet_blocks.{block}.ffn.{part}" for part in (0, 1)}
    add_linears(conversion, files.head, {f"expert.{ours}": f"model.{theirs}" for ours, theirs in names.items()})
    add_linears(conversion, files.state, {"state.0": "fc1", "state.2": "fc2"})


def _slots(embeddings: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the slots [1, n, D]: zeros, but the last is the embedding of the stop token."""
    slots = embeddings.new_zeros(shape)
    slots[:, -1] = embeddings[STOP_TOKEN]
    return slots


def _describe(config: Mapping[str, Any], shape: Architecture, *, merged: bool) -> str:
    parts = [
        f"{shape.aggregation_tokens} aggregation tokens" if shape.aggregation_tokens else "all patches",
        "FiLM in the towers" if shape.tower_film else "no FiLM",
        f"{shape.fusion} fusion of {' and '.join(shape.towers)}",
    ]
    if shape.prune_from < shape.trunk_layers:
        parts.append(f"pruning from layer {shape.prune_from} on")
    parts.append("merged" if merged else f"base with {ADAPTER}")
    return f"{'CogVLA' if is_cogvla(config) else 'OpenVLA-OFT'}: {', '.join(parts)}"
