"""The log of a training: `log.jsonl`, one JSON object a line, at most one line for a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..disk import report_disk_errors, write_atomically


class TrainingLog:
    """Appends lines to the log of a training.

    Lines after `step` come from a run that was killed before it saved a checkpoint. Their steps are run again, so the
    constructor removes them, and a line that the kill left incomplete.

    Attributes:
        lines: The lines of the log so far.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self.lines = [line for line in read_log(path) if line["step"] <= step]
        with report_disk_errors(path):
            write_atomically(path, "".join(map(_as_text, self.lines)))

    def write(self, line: dict[str, Any]) -> None:
        """Append a line.

        Args:
            line: Metrics of a step; `step` is among the keys.

        Raises:
            InputError: The disk is full or cannot be written.
        """
        self.lines.append(line)
        with report_disk_errors(self._path), self._path.open("a", encoding="utf-8") as log:
            log.write(_as_text(line))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a log, or an empty list if the file does not exist."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut short by a kill or a full disk
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _as_text(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"
