"""The names of the trunk's spans and masks; without torch, for options that are read before it is needed."""

from __future__ import annotations

from ...errors import InputError, unknown_name

MASKS = ("coupled", "causal", "bidirectional_vision", "mutual", "full")
"""Who sees whom, see `TokenLayout.levels`."""

SPANS = ("start", "visual", "text", "state", "slots")
"""What a sequence is made of; `start` is the text's first token where it stands apart from the others."""


def check_order(order: tuple[str, ...]) -> None:
    """Raise InputError unless `order` names each span once at most, vision and text among them, and the slots last."""
    for name in order:
        if name not in SPANS:
            raise unknown_name("sequence", name, SPANS)
    repeated = len(set(order)) < len(order)
    if repeated or not {"visual", "text", "slots"} <= set(order) or order[-1] != "slots":
        raise InputError(
            "sequence",
            got=" ".join(order) or "nothing",
            expected="visual and text once each, start and state at most once, slots last",
            fix="The usual order is: visual text state slots.",
        )
    if "start" in order and order.index("start") > order.index("text"):
        raise InputError(
            "sequence", got=" ".join(order), expected="start before text", fix="It is the text's first token."
        )
