"""Presets of the architecture by name, and changes of single fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace

from ...errors import InputError, unknown_name
from .architecture import ENABLEABLE_FIELDS, Architecture

_TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224.webli")


PRESETS = {
    "tiny": Architecture(),
    "small": Architecture(
        tokenizer="trunk",
        prompt="<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n"
        "<|im_start|>assistant\n",
        condition_width=512,
        towers=_TOWERS,
        aggregation_tokens=64,
        trunk_family="qwen2",
        trunk_width=896,
        trunk_layers=24,
        trunk_heads=14,
        trunk_key_value_heads=2,
        trunk_feed_forward=4864,
        vocabulary=151936,
        rotary_base=1_000_000.0,
        sequence=("text", "visual", "state", "slots"),
        positions="counted",
        prune_from=6,
        keep_floor=0.15,
        extra_slots=32,
        expert_width=512,
        expert_blocks=12,
        expert_heads=8,
    ),
    "large": Architecture(
        tokenizer="trunk",
        prompt="In: What action should the robot take to {instruction}?\nOut:",
        condition_width=1024,
        towers=_TOWERS,
        aggregation_tokens=64,
        trunk_family="llama",
        trunk_width=4096,
        trunk_layers=32,
        trunk_heads=32,
        trunk_feed_forward=11008,
        vocabulary=32064,
        norm_epsilon=1e-5,
        sequence=("text", "visual", "state", "slots"),
        positions="counted",
        prune_from=8,
        keep_floor=0.15,
        extra_slots=16,
        readout="slots",
        expert_width=4096,
        expert_blocks=2,
    ),
}


def find_preset(name: str) -> Architecture:
    """Return the preset of a name; InputError suggests the nearest name for an unknown one."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def with_changes(architecture: Architecture, changes: Sequence[str]) -> Architecture:
    """Return an architecture with some fields changed.

    Args:
        architecture: The architecture to start from.
        changes: Texts FIELD=VALUE; lists are names with commas between them.

    Raises:
        InputError: A field is unknown, or a value is invalid or does not fit the others.

    Example:
        >>> with_changes(PRESETS["tiny"], ["router=original", "mask=mutual"]).router
        'original'
    """
    kinds = {field.name: str(field.type) for field in fields(Architecture)}
    values: dict[str, object] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise InputError("change", got=change, expected="FIELD=VALUE", fix="Write it as in router=original.")
        if name not in kinds:
            raise unknown_name("architecture field", name, kinds)
        values[name] = _parse_value(text, kinds[name])
    return replace(architecture, **values)


def with_enabled_fields(architecture: Architecture, changes: Sequence[str]) -> Architecture:
    """Return a trained policy's architecture with some of the `ENABLEABLE_FIELDS` changed.

    Args:
        architecture: The architecture of the trained policy.
        changes: As in `with_changes`.

    Raises:
        InputError: A field is not one of `ENABLEABLE_FIELDS`, or as in `with_changes`.
    """
    names = [change.partition("=")[0] for change in changes]
    for name in names:
        if name in Architecture.__dataclass_fields__ and name not in ENABLEABLE_FIELDS:
            raise InputError(
                "change",
                got=f"{name}, in a policy that is trained",
                expected=f"one of {', '.join(ENABLEABLE_FIELDS)}: what they add changes nothing at first",
                fix="Leave it out, as the checkpoint keeps its shape, or train from scratch.",
            )
    return with_changes(architecture, changes)


def _parse_value(text: str, kind: str) -> object:
    """Return a field's value; a text that is no JSON stays a text, which the field's own check refuses."""
    if kind.startswith("tuple"):
        return tuple(filter(None, text.split(",")))
    if kind == "str":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
