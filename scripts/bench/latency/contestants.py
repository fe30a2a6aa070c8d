"""The contestants of `saccade bench latency`: our presets, dense variants of them, and LeRobot's policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from ....policy.network.architecture import Architecture
from ....policy.network.capture import CapturedPolicy
from ....policy.network.model import SaccadeModel
from ....policy.profiling.cost import InputSizes


class Contestant(Protocol):
    """A policy with random weights."""

    @property
    def name(self) -> str:
        """Name in the table."""
        ...

    @property
    def sizes(self) -> InputSizes:
        """Sizes of its inputs and actions."""
        ...

    def build(self) -> nn.Module:
        """Return the network in evaluation mode, without gradients."""
        ...

    def prepare(self, network: Any, *, device: str, capture: bool) -> Callable[[], torch.Tensor]:
        """Return a function that computes one decision on fixed images and state.

        Args:
            network: The network of `build`.
            device: Device of the inputs.
            capture: Capture the decision in a CUDA graph.

        Returns:
            A function that returns the actions [B, T, A].
        """
        ...


@dataclass(frozen=True)
class SaccadeContestant:
    """A policy of ours; its instruction is encoded before the first decision."""

    name: str
    architecture: Architecture
    sizes: InputSizes

    def build(self) -> SaccadeModel:
        return self.sizes.build(self.architecture).requires_grad_(False).eval()

    def prepare(self, network: Any, *, device: str, capture: bool) -> Callable[[], torch.Tensor]:
        # The same images every time, so that captured and uncaptured decisions can be compared.
        torch.manual_seed(0)
        images, state = self.sizes.images(device), self.sizes.states(device)
        instruction_plan = network.encode_instruction(self.sizes.tokens(self.architecture, device))
        memory = network.empty_memory(self.sizes.batch)
        if capture:
            captured = CapturedPolicy(network, images, instruction_plan, state)
            return lambda: captured.decide(images, state, memory).actions
        return lambda: network.decide(images, instruction_plan, state, memory).actions


@dataclass(frozen=True)
class LerobotContestant:
    """A policy of LeRobot with its default configuration, except for the sizes and `changes`.

    Its inputs are those that LeRobot's processors return: images in float32 from 0 to 1, and instruction tokens.

    Attributes:
        name: Type of the policy in LeRobot.
        sizes: Sizes of inputs and actions.
        changes: Fields of its configuration that differ from the defaults.
        text_tokens: Length of the instruction.
    """

    name: str
    sizes: InputSizes
    changes: Mapping[str, Any] = field(default_factory=dict)
    text_tokens: int = 56

    def build(self) -> nn.Module:
        from lerobot.configs import FeatureType, PolicyFeature
        from lerobot.policies.factory import get_policy_class, make_policy_config

        image_shape = (3, self.sizes.image_size, self.sizes.image_size)
        cameras = {f"observation.images.view_{view}": image_shape for view in range(self.sizes.views)}
        input_features = {name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in cameras.items()}
        input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (self.sizes.state,))
        output_features = {"action": PolicyFeature(FeatureType.ACTION, (self.sizes.action,))}
        configuration = make_policy_config(
            self.name, input_features=input_features, output_features=output_features, device="cpu", **self.changes
        )
        # Some policies move themselves to the device of their configuration: set it to the current default device.
        configuration.device = str(torch.get_default_device())
        return get_policy_class(self.name)(configuration).requires_grad_(False).eval()

    def prepare(self, network: Any, *, device: str, capture: bool) -> Callable[[], torch.Tensor]:
        batch, size = self.sizes.batch, self.sizes.image_size
        observation = {
            f"observation.images.view_{view}": torch.rand(batch, 3, size, size, device=device)
            for view in range(self.sizes.views)
        }
        observation["observation.state"] = self.sizes.states(device)
        attention_mask = torch.ones(batch, self.text_tokens, dtype=torch.bool, device=device)  # [B, L]
        observation["observation.language.tokens"] = attention_mask.long()
        observation["observation.language.attention_mask"] = attention_mask
        network.config.device = device
        return lambda: network.predict_action_chunk(dict(observation))


CHUNK = InputSizes().chunk
LEROBOT = {
    "act": {"chunk_size": CHUNK, "n_action_steps": CHUNK, "pretrained_backbone_weights": None},
    "diffusion": {"pretrained_backbone_weights": None},
    "pi0": {"chunk_size": CHUNK, "n_action_steps": CHUNK, "dtype": "bfloat16"},
    "pi05": {"chunk_size": CHUNK, "n_action_steps": CHUNK, "dtype": "bfloat16"},
    "smolvla": {"chunk_size": CHUNK, "n_action_steps": CHUNK},
    "vqbet": {"pretrained_backbone_weights": None},
}
"""LeRobot's policies, with the settings for the same chunk size and for random weights."""


def make_saccade_contestant(name: str, architecture: Architecture) -> SaccadeContestant:
    """Return a policy of ours at the sizes of its suite: LIBERO with pretrained towers, else the desk.

    Args:
        name: Name in the table.
        architecture: The network.
    """
    desk = InputSizes(image_size=128, state=6, action=6, chunk=16)
    return SaccadeContestant(name, architecture, InputSizes() if architecture.towers else desk)


def dense_variant(architecture: Architecture) -> Architecture:
    """Return the dense baseline of the same widths: every patch enters the trunk, and no layer prunes tokens.

    It has the design of OpenVLA-OFT (Kim et al., 2025): the patches of two towers are concatenated and projected,
    attention is full, and each element of the chunk has an action slot that a residual head reads out.

    Args:
        architecture: The architecture with aggregation and pruning.
    """
    return replace(
        architecture,
        aggregation_tokens=0,
        tower_film=False,
        fusion="concatenated",
        sequence=("start", "visual", "text", "state", "slots"),
        mask="full",
        prune_from=architecture.trunk_layers,
        slot_unit="element",
        extra_slots=1,
        readout="slots",
        expert_width=architecture.trunk_width,
        expert_blocks=2,
        expert_heads=architecture.trunk_heads,
    )


def small_variant(architecture: Architecture) -> Architecture:
    """Return an architecture with the same design and minimal sizes, to check its computation on any machine.

    Args:
        architecture: The full-size architecture.
    """
    layers = 4
    return replace(
        architecture,
        condition_width=64,
        towers=("vit_tiny_patch16_224.augreg_in21k",) * len(architecture.towers),
        aggregation_tokens=min(architecture.aggregation_tokens, 9),
        trunk_width=64,
        trunk_layers=layers,
        trunk_heads=4,
        trunk_key_value_heads=2 if architecture.trunk_key_value_heads else 0,
        trunk_head_size=0,
        trunk_feed_forward=128,
        vocabulary=512,
        padding=256,
        tokenizer="bytes",
        prompt="{instruction}",
        prune_from=layers if architecture.prune_from == architecture.trunk_layers else 1,
        expert_width=64,
        expert_blocks=2,
        expert_heads=4,
    )


SMALL_VARIANT_SIZES = InputSizes(image_size=64)
"""Input sizes of small variants."""
