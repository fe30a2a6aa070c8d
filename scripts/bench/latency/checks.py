"""Correctness checks that must pass before `saccade bench latency` reports a time."""

from __future__ import annotations

import torch

from ....errors import WorldError
from .contestants import SMALL_VARIANT_SIZES, SaccadeContestant, small_variant

FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2
"""Largest difference of two decisions, relative to the largest action, in float32 and in bfloat16."""


def check_decisions(contestant: SaccadeContestant, counted_flops: int) -> None:
    """Check the actions and the FLOPs of a contestant.

    Args:
        contestant: The policy; its actions are checked on a small variant.
        counted_flops: Counted FLOPs of the trunk in a decision.

    Raises:
        WorldError: An encoded instruction changes the actions, or the FLOPs are not those of the pruning schedule.
    """
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
            expected, decision = network(images, tokens, state), network.decide(images, instruction_plan, state)
            what = f"a decision of {contestant.name} with an encoded instruction"
            require_equal(what, decision.actions, expected.actions, FP32_TOLERANCE)
    expected_flops = scheduled_flops(contestant)
    if abs(counted_flops - expected_flops) > 1e-3 * expected_flops:
        raise WorldError(
            f"the trunk of {contestant.name} computes {counted_flops:.4g} FLOPs, but its pruning schedule needs "
            f"{expected_flops:.4g}: no speed is given"
        )


def scheduled_flops(contestant: SaccadeContestant) -> int:
    """Return the FLOPs of the trunk in a decision by formula.

    Each layer computes on the kept visual tokens, the state and the slots, and also attends to the cached text.

    Args:
        contestant: The policy.
    """
    with torch.device("meta"):
        network = contestant.build()
    trunk, layout, shape = network.trunk, network.layout, contestant.architecture
    configuration = trunk.decoder.config
    head = shape.trunk_head_size or shape.trunk_width // shape.trunk_heads
    total = 0
    for index, (layer, keep_count) in enumerate(zip(trunk.decoder.layers, trunk.keep, strict=True)):
        queries = layout.length - layout.visual + keep_count * trunk.groups
        weight_count = sum(each.numel() for each in layer.parameters() if each.ndim == 2)
        keys = queries + layout.cached_text_length
        total += 2 * queries * weight_count + 4 * configuration.num_attention_heads * queries * keys * head
        total += 2 * layout.visual * shape.trunk_width if str(index) in trunk.routers else 0
    return total * contestant.sizes.batch


def require_equal(what: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Check that two tensors are equal to a tolerance.

    Args:
        what: Name of the result for the error text.
        got: The tensor to check.
        expected: The reference.
        tolerance: Largest error, relative to the largest element of `expected`.

    Raises:
        WorldError: The error is larger, or not a number.
    """
    error = float((got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12))
    if not error <= tolerance:
        raise WorldError(f"{what} is off by {error:.1e} of the largest action, over {tolerance:g}: no speed is given")
