"""The errors that users see: one clear line each, and the exit code of the command line."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable


class SaccadeError(Exception):
    """Base class of the errors that Saccade raises on purpose.

    Attributes:
        exit_code: Exit code of the command line.
    """

    exit_code = 1


class InputError(SaccadeError, ValueError):
    """An input of the user is wrong: an option, a file, or an argument of a function.

    Args:
        what: Name of the input.
        got: Its value.
        expected: What would be valid.
        fix: The next step to take, as a sentence.

    Example:
        >>> raise InputError("--workers", got=0, expected="1 or more", fix="Raise --workers.")
        InputError: --workers: got 0, expected 1 or more. Raise --workers.
    """

    exit_code = 2

    def __init__(self, what: str, *, got: object, expected: object, fix: str) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        super().__init__(f"{what}: got {got}, expected {expected}. {fix}")

    def __reduce__(self) -> tuple:
        # Worker processes send errors back as pickles, which would lose the keyword-only arguments.
        rebuild = functools.partial(type(self), got=str(self.got), expected=str(self.expected), fix=self.fix)
        return rebuild, (self.what,)


class WorldError(SaccadeError, RuntimeError):
    """The simulator or the machine failed (no renderer, a dead worker process), neither the input nor the policy."""

    exit_code = 3


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return the fix for an unknown name: the nearest name, or all of them if none is near.

    Args:
        name: The unknown name.
        choices: The valid names.
    """
    choices = list(choices)
    closest = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if closest:
        return f"Did you mean {closest[0]!r}?"
    return f"Choose one of: {', '.join(choices)}."


def unknown_name(what: str, name: str, choices: Iterable[str]) -> InputError:
    """Build the error for an unknown name.

    Args:
        what: What the name stands for, such as "suite".
        name: The unknown name.
        choices: The valid names.
    """
    choices = list(choices)
    return InputError(
        what,
        got=repr(name),
        expected=f"one of {len(choices)} names",
        fix=suggest(name, choices),
    )
