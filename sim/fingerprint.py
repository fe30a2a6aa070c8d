"""Fingerprint of an environment: what a result depends on besides the policy.

That is the renderer, the packages, the processor and the world's sources.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .rendering import describe_renderer
from .source_hash import hash_sources

PACKAGES = ("lerobot_policy_saccade", "mujoco", "gymnasium", "numpy", "torch", "transformers", "lerobot", "pillow")
"""Packages whose version can change a result."""


def environment_fingerprint(sources: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return the fingerprint of this environment.

    Two runs of one checkpoint with equal fingerprints agree episode by episode.

    Args:
        sources: Folder of the world's code and models.
        packages: Names of the packages whose versions are recorded.

    Returns:
        Plain JSON values.

    Raises:
        WorldError: No renderer works on this machine.
    """
    return {
        "renderer": describe_renderer(),
        "packages": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]).strip(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "world_sha256": hash_sources(sources),
    }


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the sha256 of a fingerprint: equal for equal environments."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return one line for each value that differs, such as `packages.mujoco: 3.3.2 and 3.4.0`."""
    left, right = dict(flatten(first)), dict(flatten(second))
    names = [*left, *(name for name in right if name not in left)]
    return [f"{name}: {left.get(name)} and {right.get(name)}" for name in names if left.get(name) != right.get(name)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested values as (dotted name, value) pairs, in their order."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def processor_name() -> str:
    """Return the processor's model name, or the architecture where the system does not report it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
