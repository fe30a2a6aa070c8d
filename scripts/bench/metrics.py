"""Metrics on disk: numbers by name, with the command, commit and machine that they come from."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ...machine import usable_cores

Metrics = Mapping[str, float | int | None]
"""Numbers by name; None for what was not measured."""


def write_metrics(path: Path, metrics: Metrics, command: str) -> None:
    """Write metrics and where they come from as JSON.

    Args:
        path: The file; a kill leaves the old content or the new one.
        metrics: The numbers.
        command: The command line that measured them.

    Raises:
        InputError: The disk refuses.
    """
    from ...sim.json_files import write_json

    write_json(path, {"figures": dict(metrics), **collect_run_metadata(command)})


def collect_run_metadata(command: str) -> dict[str, Any]:
    """Return where metrics come from: the command, commit, machine, versions and date."""
    from ...policy.checkpoint.folder import collect_provenance

    origin = collect_provenance([command], {}, None)
    return {
        "command": command,
        "commit": origin["commit"],
        "machine": describe_machine(),
        "versions": {"python": origin["python"], **origin["versions"]},
        "date": origin["date"],
    }


def describe_machine() -> dict[str, Any]:
    """Return what a speed depends on: processor, usable cores, memory in GiB and system."""
    import platform

    from ...sim.fingerprint import processor_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1) or None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def command_line(command: str, options: Any) -> str:
    """Return the command line that gives these options; options with their default value are omitted.

    Args:
        command: The command after `saccade`, such as "bench sim".
        options: The dataclass of its options.

    Example:
        >>> command_line("bench sim", SimBenchConfig(runs=1))
        'saccade bench sim --runs 1'
    """
    words = ["saccade", *command.split()]
    for field in fields(options):
        value = getattr(options, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value == default:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)
