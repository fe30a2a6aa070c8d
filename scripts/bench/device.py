"""Find the device to measure on, and word why a contestant could not be measured on it."""

from __future__ import annotations

from ...errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def find_device(name: str) -> str:
    """Return cpu or cuda; raises InputError for a GPU that is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        fix = "Leave --device away: operations are counted without one."
        raise InputError("device", got="cuda", expected="a CUDA device on this machine", fix=fix)
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


MAX_ERROR_CHARACTERS = 90
"""Characters of another project's error that are shown."""


def short_error(error: Exception) -> str:
    """Return in a few words why a contestant cannot take part."""
    said = " ".join(str(error).split()).split(". ")[0]
    return (
        f"{type(error).__name__}: {said}"
        if len(said) <= MAX_ERROR_CHARACTERS
        else f"{said[:MAX_ERROR_CHARACTERS].rsplit(' ', 1)[0]} ..."
    )
