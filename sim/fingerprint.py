"""What a result depends on besides the policy: simulator, renderer, packages, processor and the world's own sources."""

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

PACKAGES = ("lerobot_policy_saccade", "mujoco", "gymnasium", "numpy", "torch", "transformers", "lerobot", "pillow")
"""Distributions whose version can move a result."""

SOURCE_SUFFIXES = (".py", ".xml", ".json")


def environment_fingerprint(sources: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return what tells this environment from another, as plain JSON values.

    `sources` is the folder that holds the world's code and models. Two runs of one checkpoint whose fingerprints are
    equal agree episode by episode. Raises WorldError when nothing can be drawn here.
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


def hash_sources(folder: Path) -> str:
    """Return one sha256 over the names and contents of a world's sources, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in SOURCE_SUFFIXES and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return a fingerprint's own sha256: equal for equal environments."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return a line for each value in which two fingerprints differ, such as `packages.mujoco: 3.3.2 and 3.4.0`."""
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
    """Return the processor's model name, or its architecture where the system does not tell."""
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
