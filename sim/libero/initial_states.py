"""The benchmark's initial states, read from verified files and only by a restricted unpickler."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ...errors import InputError, WorldError
from ..reset import EVALUATION_STATES
from .tasks import LiberoTask

REINSTALL = "Install hf-libero 0.1.4 again: uv sync --extra libero --reinstall-package hf-libero."


def problem_file(package: Path, task: LiberoTask) -> Path:
    """Return a task's problem file (BDDL).

    Args:
        package: Folder of the package `libero.libero`.
        task: The task.

    Raises:
        InputError: The file is missing or differs from the published one.
    """
    path = package / "bddl_files" / task.suite / f"{task.name}.bddl"
    _read_verified(path, task.problem_sha256)
    return path


def read_initial_states(package: Path, task: LiberoTask) -> np.ndarray:
    """Return a task's initial states.

    The file is a pickle. Its sha256 is compared with the published one, and torch's restricted unpickler then accepts
    only a numpy array.

    Args:
        package: Folder of the package `libero.libero`.
        task: The task.

    Returns:
        float64 [50, D], D = 1 + nq + nv: time, then MuJoCo's qpos and qvel.

    Raises:
        InputError: The file is missing or differs from the published one.
        WorldError: The file contains no such array.
    """
    path = package / "init_files" / task.suite / f"{task.name}.pruned_init"
    return parse_initial_states(_read_verified(path, task.initial_states_sha256), path.name)


def parse_initial_states(content: bytes, name: str) -> np.ndarray:
    """Return the array float64 [50, D] in the content of a file.

    Args:
        content: The file's bytes.
        name: Name of the file, for the error.

    Raises:
        WorldError: The content is no such array.
    """
    import io

    import torch
    from numpy._core.multiarray import _reconstruct

    allowed = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Float64DType,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            states = torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise WorldError(f"initial states {name}: cannot be read ({type(error).__name__}). {REINSTALL}") from error
    fits = isinstance(states, np.ndarray) and states.dtype == np.float64 and states.ndim == 2
    if not fits or len(states) != EVALUATION_STATES or not np.isfinite(states).all():
        got = f"{getattr(states, 'dtype', type(states).__name__)} {list(getattr(states, 'shape', ()))}"
        raise WorldError(f"initial states {name}: got {got}, expected float64 [{EVALUATION_STATES}, D]. {REINSTALL}")
    return states


def _read_verified(path: Path, sha256: str) -> bytes:
    """Return a file's content; raises InputError if it is missing or its sha256 differs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), got=error.strerror, expected="a file of hf-libero", fix=REINSTALL) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            str(path), got=f"sha256 {found[:16]}…", expected=f"{sha256[:16]}…, as published", fix=REINSTALL
        )
    return content
