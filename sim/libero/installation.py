"""Import hf-libero and robosuite without prompts and without files outside a temporary folder."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, WorldError
from ..rendering import choose_backend

BACKENDS = ("egl", "osmesa", "glx", "default")
"""Values of MUJOCO_GL that robosuite accepts; it silently replaces all others by EGL."""

INSTALL = 'Install it: uv sync --extra libero, or pip install "lerobot_policy_saccade[libero]".'


def package_folder() -> Path:
    """Return the folder of the package `libero.libero`, without importing it.

    Raises:
        InputError: hf-libero or robosuite is not installed.
    """
    found = importlib.util.find_spec("libero")
    if found is None or importlib.util.find_spec("robosuite") is None:
        raise InputError("LIBERO", got="no packages hf-libero and robosuite", expected="both", fix=INSTALL)
    return Path(next(iter(found.submodule_search_locations or ()))) / "libero"


@dataclass(frozen=True)
class LiberoLibrary:
    """The imported library.

    Attributes:
        root: The module `libero.libero`; typed as Any because `Simulation` sets its private assets folder.
        settings_folder: Temporary folder of its settings file, removed when the process ends; None if something else
            imported the library before.
    """

    root: Any
    settings_folder: tempfile.TemporaryDirectory[str] | None


@functools.cache
def import_libero() -> LiberoLibrary:
    """Import `libero.libero` and its environments; later calls return the same object.

    Raises:
        InputError: The packages are missing, or MUJOCO_GL names a renderer that robosuite does not have.
        WorldError: The packages cannot be imported.
    """
    folder = package_folder()
    backend = choose_backend()
    if backend not in BACKENDS:
        fix = "Unset MUJOCO_GL: a renderer that works is then chosen."
        raise InputError("MUJOCO_GL", got=backend, expected="egl or osmesa", fix=fix)
    try:
        with _quiet(), _private_settings(folder) as settings_folder:
            root = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.envs")
    except PermissionError as error:
        raise WorldError(
            f"LIBERO: got no permission to write {error.filename}, expected a log file that you own. "
            "robosuite has one log file for all users of a machine; ask its owner to remove it."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise WorldError(f"LIBERO could not be imported with renderer {backend}: {error}. {INSTALL}") from error
    return LiberoLibrary(root, settings_folder)


@contextlib.contextmanager
def _private_settings(package: Path) -> Iterator[tempfile.TemporaryDirectory[str] | None]:
    """Provide a temporary settings file during the import; without a file LIBERO prompts the user for one.

    LIBERO reads the file once, from the folder that LIBERO_CONFIG_PATH names. A user's own, in ~/.libero, is not
    touched.
    """
    if "libero.libero" in sys.modules:
        yield None
        return
    before = os.environ.get("LIBERO_CONFIG_PATH")
    settings_folder = tempfile.TemporaryDirectory(prefix="saccade-libero-")
    paths = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": Path(settings_folder.name) / "datasets",
        "assets": package / "assets",
    }
    (Path(settings_folder.name) / "config.yaml").write_text(
        "".join(f'{key}: "{path}"\n' for key, path in paths.items())
    )
    os.environ["LIBERO_CONFIG_PATH"] = settings_folder.name
    try:
        yield settings_folder
    finally:
        if before is None:
            os.environ.pop("LIBERO_CONFIG_PATH", None)
        else:
            os.environ["LIBERO_CONFIG_PATH"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages and warnings of the import; later warnings are shown."""
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
