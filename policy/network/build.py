"""Build the parts of the network that an architecture asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def trunk_configuration(architecture: Architecture, length: int) -> PretrainedConfig:
    """Return the trunk's configuration in transformers.

    Args:
        architecture: Sizes and family of the trunk.
        length: Greatest length of a sequence, cached text included.

    Raises:
        InputError: The library does not have the family.
    """
    if architecture.trunk_family not in CONFIG_MAPPING:
        raise unknown_name("architecture.trunk_family", architecture.trunk_family, CONFIG_MAPPING)
    return AutoConfig.for_model(
        architecture.trunk_family,
        vocab_size=architecture.vocabulary,
        pad_token_id=architecture.padding,
        hidden_size=architecture.trunk_width,
        intermediate_size=architecture.trunk_feed_forward,
        num_hidden_layers=architecture.trunk_layers,
        num_attention_heads=architecture.trunk_heads,
        num_key_value_heads=architecture.trunk_key_value_heads or architecture.trunk_heads,
        head_dim=architecture.trunk_head_size or architecture.trunk_width // architecture.trunk_heads,
        max_position_embeddings=length,
        rms_norm_eps=architecture.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rotary_base},
        initializer_range=0.04,
        use_cache=False,
    )


def build_tower(architecture: Architecture, image_size: int) -> Tower | PretrainedTowers:
    """Build the pretrained towers, or the small tower that is trained from scratch, for square images."""
    if architecture.towers:
        # timm takes seconds to import, and a policy without pretrained towers does not need it.
        from ...perception.tower_set import PretrainedTowers

        return PretrainedTowers(
            architecture.towers,
            image_size=image_size,
            aggregation_tokens=architecture.aggregation_tokens,
            film=architecture.tower_film,
            fusion=architecture.fusion,
            condition_width=architecture.condition_width,
            output_width=architecture.trunk_width,
        )
    return Tower(
        image_size=image_size,
        stem_width=architecture.stem_width,
        stem_blocks=architecture.stem_blocks,
        points=architecture.points,
        width=architecture.tower_width,
        blocks=architecture.tower_blocks,
        heads=architecture.tower_heads,
        aggregation_tokens=architecture.aggregation_tokens,
        condition_width=architecture.condition_width,
        output_width=architecture.trunk_width,
    )


def build_history(architecture: Architecture) -> History | None:
    """Build the part that attends to remembered frames; None for a policy without history."""
    if not architecture.history:
        return None
    return History(
        width=architecture.trunk_width,
        heads=architecture.trunk_heads,
        frames=architecture.history,
        selected=architecture.history_selected,
    )


def build_action_head(
    architecture: Architecture, *, chunk: int, slots: int, action: int
) -> SlotHead | Expert | BridgeExpert:
    """Build the action head that `Architecture.readout` names, for T = `chunk` steps of A = `action` dimensions."""
    if architecture.readout == "slots":
        return SlotHead(
            trunk=architecture.trunk_width,
            slots_per_step=(slots - architecture.extra_slots) // chunk,
            width=architecture.expert_width,
            blocks=architecture.expert_blocks,
            actions=action,
        )
    if architecture.readout == "expert":
        return Expert(
            chunk=chunk,
            width=architecture.expert_width,
            trunk=architecture.trunk_width,
            blocks=architecture.expert_blocks,
            heads=architecture.expert_heads,
            actions=action,
            kernels=architecture.kernels,
        )
    return BridgeExpert(
        BridgeOptions(
            width=architecture.expert_width,
            blocks=architecture.expert_blocks,
            steps=chunk,
            actions=action,
            heads=architecture.expert_heads,
            self_attention=architecture.readout == "vla_adapter",
            gate="tanh" if architecture.readout == "vla_adapter" else "sigmoid",
            rotation=architecture.expert_rotation,
            start=architecture.expert_start,
            kernels=architecture.kernels,
        )
    )
