"""Find the device to measure on, and say why something could not be measured on it."""

from __future__ import annotations

from ...machine import has_cuda, require_device

DEVICES = ("auto", "cpu", "cuda")

MAX_ERROR_CHARACTERS = 90
"""Characters of another library's error that are shown."""


def find_device(name: str) -> str:
    """Return "cpu" or "cuda" for one of `DEVICES`.

    Raises:
        InputError: PyTorch sees no GPU and `name` is "cuda".
    """
    if name == "auto":
        return "cuda" if has_cuda() else "cpu"
    require_device(name, fix="Leave out --device, or use --device cpu.")
    return name


def short_error(error: Exception) -> str:
    """Return the first sentence of an error with its type, or the beginning of a long sentence."""
    message = " ".join(str(error).split()).split(". ")[0]
    if len(message) <= MAX_ERROR_CHARACTERS:
        return f"{type(error).__name__}: {message}"
    return f"{message[:MAX_ERROR_CHARACTERS].rsplit(' ', 1)[0]} ..."
