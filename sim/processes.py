"""What processes and their parent agree on: how they end together, and how an InputError crosses between them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from typing import Any

from ..errors import InputError, WorldError


def exit_with_parent(clean_up: Callable[[], object] | None = None) -> None:
    """End this process as soon as its parent ends: a killed parent cannot ask its children to stop.

    Args:
        clean_up: Called before the process ends, for example to remove a folder.
    """
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        if clean_up is not None:
            clean_up()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def refused_message(error: InputError) -> tuple[str, str, str, str, str]:
    """Return the message ("refused", what, got, expected, fix) by which a process reports an InputError."""
    return "refused", error.what, str(error.got), str(error.expected), error.fix


def raise_from_process(kind: str, content: Sequence[Any], who: str) -> None:
    """Raise the error that a message of another process reports; do nothing for other messages.

    Args:
        kind: First item of the message, such as "refused", "broken" or "finished".
        content: The other items.
        who: Names the process in the error.

    Raises:
        InputError: The process refused its input (`refused_message`).
        WorldError: Something else stopped it, ("broken", reason).
    """
    if kind == "refused":
        what, got, expected, fix = content
        raise InputError(what, got=got, expected=expected, fix=fix)
    if kind == "broken":
        raise WorldError(f"{who} could not start: {content[0].strip()}")
