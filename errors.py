"""The errors a user meets: one clear line each, and the exit code that goes with it."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable


class SaccadeError(Exception):
    """Base of every error that Saccade raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(SaccadeError, ValueError):
    """Something the user gave does not fit: names what, what was got, what was expected and how to fix it."""

    exit_code = 2

    def __init__(self, what: str, *, got: object, expected: object, fix: str) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        super().__init__(f"{what}: got {got}, expected {expected}. {fix}")

    def __reduce__(self) -> tuple:
        # Keyword-only arguments do not survive pickling, and an error must cross back from a worker process.
        rebuild = functools.partial(type(self), got=str(self.got), expected=str(self.expected), fix=self.fix)
        return rebuild, (self.what,)


class WorldError(SaccadeError, RuntimeError):
    """The world itself failed (no renderer, a worker that died): not the user's input and not the policy."""

    exit_code = 3


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return a fix for an unknown name: the nearest of `choices`, or all of them."""
    choices = list(choices)
    closest = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if closest:
        return f"Did you mean {closest[0]!r}?"
    return f"Choose one of: {', '.join(choices)}."


def unknown_name(what: str, name: str, choices: Iterable[str]) -> InputError:
    """Build the error for a name that is not one of `choices`."""
    choices = list(choices)
    return InputError(
        what,
        got=repr(name),
        expected=f"one of {len(choices)} names",
        fix=suggest(name, choices),
    )
