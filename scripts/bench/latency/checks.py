"""Correctness checks that must pass before `saccade bench latency` reports a time."""

from __future__ import annotations

import torch

from ....errors import WorldError
from .contestants import SMALL_VARIANT_SIZES, SaccadeContestant, small_variant

FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2
"""How far two ways to decide may be apart, relative to the largest action: in float32 and in bfloat16."""


def check_decisions(contestant: SaccadeContestant, counted_flops: int) -> None:
    """Raise WorldError unless a small twin decides the same with a prepared instruction, and operations add up."""
    torch.manual_seed(0)
    architecture = small_variant(contestant.architecture)
    network = SMALL_VARIANT_SIZES.build(architecture).eval()
    with torch.inference_mode():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        tokens, state = SMALL_VARIANT_SIZES.tokens(architecture), SMALL_VARIANT_SIZES.states()
        instruction_plan = network.encode_instruction(tokens)
        for _ in range(2):
            images = SMALL_VARIANT_SIZES.images()
            whole, prepared = network(images, tokens, state), network.decide(images, instruction_plan, state)
            require_equal(f"a prepared decision of {contestant.name}", prepared.actions, whole.actions, FP32_TOLERANCE)
    expected = scheduled_flops(contestant)
    if abs(counted_flops - expected) > 1e-3 * expected:
        raise WorldError(
            f"the trunk of {contestant.name} computes {counted_flops:.4g} operations where its schedule of pruning asks"
            f" for {expected:.4g}: no speed is given"
        )


def scheduled_flops(contestant: SaccadeContestant) -> int:
    """Return by formula what a decision's trunk computes: in each layer the kept tokens, the state and the slots."""
    with torch.device("meta"):
        network = contestant.build()
    trunk, layout, shape = network.trunk, network.layout, contestant.architecture
    configuration = trunk.decoder.config
    head = shape.trunk_head_size or shape.trunk_width // shape.trunk_heads
    total = 0
    for number, (layer, kept) in enumerate(zip(trunk.decoder.layers, trunk.keep, strict=True)):
        working = layout.length - layout.visual + kept * trunk.groups
        weights = sum(each.numel() for each in layer.parameters() if each.ndim == 2)
        seen = working + layout.cached_text_length
        total += 2 * working * weights + 4 * configuration.num_attention_heads * working * seen * head
        total += 2 * layout.visual * shape.trunk_width if str(number) in trunk.routers else 0
    return total * contestant.sizes.batch


def require_equal(what: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raise WorldError unless two tensors are equal to a tolerance, relative to the largest number of the wanted."""
    error = float((got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12))
    if not error <= tolerance:
        raise WorldError(f"{what} is off by {error:.1e} of the largest action, over {tolerance:g}: no speed is given")
