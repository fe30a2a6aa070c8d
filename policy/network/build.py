"""Build the parts of the network that an architecture asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from ...errors import unknown_name
from ...perception.tower import Tower
from .action_heads.expert import Expert
from .action_heads.released_expert import BridgeExpert, BridgeOptions
from .action_heads.slot_head import SlotHead
from .architecture import Architecture
from .history import History

if TYPE_CHECKING:
    from ...perception.tower_set import PretrainedTowers


def trunk_configuration(shape: Architecture, length: int) -> PretrainedConfig:
    """Return the trunk's configuration as transformers knows it, for sequences of `length`.

    Raises InputError for a family that the library does not have.
    """
    if shape.trunk_family not in CONFIG_MAPPING:
        raise unknown_name("architecture.trunk_family", shape.trunk_family, CONFIG_MAPPING)
    return AutoConfig.for_model(
        shape.trunk_family,
        vocab_size=shape.vocabulary,
        pad_token_id=shape.padding,
        hidden_size=shape.trunk_width,
        intermediate_size=shape.trunk_feed_forward,
        num_hidden_layers=shape.trunk_layers,
        num_attention_heads=shape.trunk_heads,
        num_key_value_heads=shape.trunk_key_value_heads or shape.trunk_heads,
        head_dim=shape.trunk_head_size or shape.trunk_width // shape.trunk_heads,
        max_position_embeddings=length,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rotary_base},
        initializer_range=0.04,
        use_cache=False,
    )


def build_tower(shape: Architecture, image_size: int) -> Tower | PretrainedTowers:
    if shape.towers:
        # timm takes seconds to import, which a policy without pretrained towers need not wait for.
        from ...perception.tower_set import PretrainedTowers

        return PretrainedTowers(
            shape.towers,
            image_size=image_size,
            aggregation_tokens=shape.aggregation_tokens,
            film=shape.tower_film,
            fusion=shape.fusion,
            condition=shape.condition_width,
            output=shape.trunk_width,
        )
    return Tower(
        image_size=image_size,
        stem_width=shape.stem_width,
        stem_blocks=shape.stem_blocks,
        points=shape.points,
        width=shape.tower_width,
        blocks=shape.tower_blocks,
        heads=shape.tower_heads,
        aggregation_tokens=shape.aggregation_tokens,
        condition=shape.condition_width,
        output=shape.trunk_width,
    )


def build_history(shape: Architecture) -> History | None:
    if not shape.history:
        return None
    return History(
        width=shape.trunk_width, heads=shape.trunk_heads, frames=shape.history, selected=shape.history_selected
    )


def build_expert(shape: Architecture, *, chunk: int, slots: int, action: int) -> nn.Module:
    if shape.readout == "slots":
        return SlotHead(
            trunk=shape.trunk_width,
            slots_per_step=(slots - shape.extra_slots) // chunk,
            width=shape.expert_width,
            blocks=shape.expert_blocks,
            actions=action,
        )
    if shape.readout == "expert":
        return Expert(
            chunk=chunk,
            width=shape.expert_width,
            trunk=shape.trunk_width,
            blocks=shape.expert_blocks,
            heads=shape.expert_heads,
            actions=action,
            kernels=shape.kernels,
        )
    return BridgeExpert(
        BridgeOptions(
            width=shape.expert_width,
            blocks=shape.expert_blocks,
            steps=chunk,
            actions=action,
            heads=shape.expert_heads,
            self_attention=shape.readout == "vla_adapter",
            gate="tanh" if shape.readout == "vla_adapter" else "sigmoid",
            rotation=shape.expert_rotation,
            start=shape.expert_start,
            kernels=shape.kernels,
        )
    )
