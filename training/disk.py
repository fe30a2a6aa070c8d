"""Files of a training: whole or not there at all, and one clear line when the disk refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import InputError
from ..policy.checkpoint.folder import flush


@contextmanager
def disk_errors_to_input_error(path: Path) -> Iterator[None]:
    """Turn a disk's refusal (full, read-only, gone) into an InputError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            str(path),
            got=getattr(error, "strerror", None) or error,
            expected="a disk that takes it",
            fix="Free some space and run again with --resume: what was saved before is untouched.",
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that, whenever the process stops, holds either the old text or the new one.

    Raises InputError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with disk_errors_to_input_error(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
