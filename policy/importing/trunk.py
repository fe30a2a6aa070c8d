"""The configuration of the trunk (language model) in a released config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import InputError


def text_config(config: Mapping[str, Any], *, required: bool = False) -> Mapping[str, Any]:
    """Return the `text_config` of a released config.json; an empty one if it is absent and not `required`.

    Raises:
        InputError: It is not an object, or it is absent but `required`.
    """
    text = config.get("text_config")
    if not text and not required:
        return {}
    if not isinstance(text, dict):
        fix = "Copy config.json again from the release."
        got = type(text).__name__ if text is not None else "none"
        raise InputError("config.json: text_config", got=got, expected="an object with the trunk's sizes", fix=fix)
    return text


def trunk_sizes(
    text: Mapping[str, Any], *, defaults: Mapping[str, Any], fixed: Mapping[str, Any], family: str
) -> dict[str, Any]:
    """Return the sizes of a trunk, and check that the network supports its other fields.

    Args:
        text: The `text_config`.
        defaults: The sizes to return, with the values that the released code uses for absent fields.
        fixed: Fields with the only value that is supported; an absent field has this value.
        family: The trunk's model family, for the error.

    Raises:
        InputError: A field has a value that is not supported.
    """
    for field, expected in fixed.items():
        if text.get(field, expected) != expected:
            fix = f"Import a checkpoint whose trunk is a plain {family}, or choose another --layout."
            raise InputError(f"config.json: text_config.{field}", got=text[field], expected=expected, fix=fix)
    return {field: text.get(field, value) for field, value in defaults.items()}
