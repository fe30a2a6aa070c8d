"""The log of a training: `log.jsonl`, a line of JSON for every few steps, no step twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..disk import report_disk_errors, write_atomically


class TrainingLog:
    """Append lines to a training's log, from `step` on.

    Lines past `step` come from a run that was killed before it saved: their steps are run again, so they are cut off,
    with whatever the kill left half-written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self.lines = [line for line in read_log(path) if line["step"] <= step]
        with report_disk_errors(path):
            write_atomically(path, "".join(map(_as_text, self.lines)))

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, which has a `step`; raises InputError when the disk refuses."""
        self.lines.append(line)
        with report_disk_errors(self._path), self._path.open("a", encoding="utf-8") as log:
            log.write(_as_text(line))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; none when there is no such file."""
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
