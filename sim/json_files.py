"""Read and write files that hold one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..disk import RESUME, report_disk_errors, write_atomically
from ..errors import InputError


def read_json(path: Path, *, fix: str = "Evaluate again into a new folder.") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        fix: The next step that an error suggests.

    Raises:
        InputError: The file is missing, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(str(path), got=f"no JSON ({error})", expected="a JSON object", fix=fix) from error
    if not isinstance(content, dict):
        raise InputError(str(path), got=type(content).__name__, expected="a JSON object", fix=fix)
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, and its folder if it is missing.

    Raises:
        InputError: The disk refused to write; the old file is untouched.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, and its folder if it is missing; raises as `write_json`."""
    with report_disk_errors(path, fix=RESUME):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
