"""The names of the trunk's spans and masks, without torch: command lines read them before they need it."""

from __future__ import annotations

from ...errors import InputError, unknown_name

MASKS = ("coupled", "causal", "bidirectional_vision", "mutual", "full")
"""The attention masks, see `TokenLayout.levels`."""

SPANS = ("start", "visual", "text", "state", "slots")
"""The spans of a sequence; `start` is the text's first token where it is apart from the others."""


def check_order(order: tuple[str, ...]) -> None:
    """Check the order of a sequence's spans.

    Raises:
        InputError: `order` repeats a span, lacks vision or text, has `start` after `text`, or does not end in slots.
    """
    for name in order:
        if name not in SPANS:
            raise unknown_name("sequence", name, SPANS)
    repeated = len(set(order)) < len(order)
    if repeated or not {"visual", "text", "slots"} <= set(order) or order[-1] != "slots":
        raise InputError(
            "sequence",
            got=" ".join(order) or "nothing",
            expected="visual and text once each, start and state at most once, slots last",
            fix="Use the usual order: visual text state slots.",
        )
    if "start" in order and order.index("start") > order.index("text"):
        raise InputError(
            "sequence",
            got=" ".join(order),
            expected="start before text",
            fix="Put start first: it is the text's first token.",
        )
