"""hf-libero and robosuite, imported without a question asked and without a file written outside a private folder."""

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
from types import ModuleType

from ...errors import InputError, WorldError
from ..rendering import choose_backend

BACKENDS = ("egl", "osmesa", "glx", "default")
"""What robosuite draws with: it turns every other value of MUJOCO_GL into EGL without a word."""

INSTALL = 'Install it: uv sync --extra libero, or pip install "lerobot_policy_saccade[libero]".'


def package_folder() -> Path:
    """Return the folder of the package `libero.libero`, which is not imported; InputError when it is not installed."""
    found = importlib.util.find_spec("libero")
    if found is None or importlib.util.find_spec("robosuite") is None:
        raise InputError("LIBERO", got="no packages hf-libero and robosuite", expected="both", fix=INSTALL)
    return Path(next(iter(found.submodule_search_locations or ()))) / "libero"


@dataclass(frozen=True)
class LiberoLibrary:
    """The imported module `libero.libero`, and the private folder that its settings are in until the process ends."""

    root: ModuleType
    settings_folder: tempfile.TemporaryDirectory[str] | None


@functools.cache
def import_libero() -> LiberoLibrary:
    """Import `libero.libero`, its environments included; a second call costs nothing.

    Raises InputError where the packages are missing or the chosen renderer is none of robosuite's, and WorldError when
    they cannot be imported.
    """
    folder = package_folder()
    backend = choose_backend()
    if backend not in BACKENDS:
        raise InputError(
            "MUJOCO_GL", got=backend, expected="egl or osmesa", fix="Unset it to have the one that works chosen."
        )
    try:
        with _quiet(), _private_settings(folder) as settings_folder:
            root = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.envs")
    except PermissionError as error:
        raise WorldError(
            f"LIBERO: got no permission to write {error.filename}, expected a log file of your own. "
            "robosuite keeps one for all users of a machine; ask its owner to remove it."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise WorldError(f"LIBERO could not be imported with renderer {backend}: {error}. {INSTALL}") from error
    return LiberoLibrary(root, settings_folder)


@contextlib.contextmanager
def _private_settings(package: Path) -> Iterator[tempfile.TemporaryDirectory[str] | None]:
    """Give the library, while it is imported, the file of settings that it would otherwise ask the user for.

    It looks for the file once, in the folder that LIBERO_CONFIG_PATH names; a user's own, in ~/.libero, stays as it is.
    """
    if "libero.libero" in sys.modules:
        yield None
        return
    before = os.environ.get("LIBERO_CONFIG_PATH")
    settings_folder = tempfile.TemporaryDirectory(prefix="saccade-libero-")
    places = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": Path(settings_folder.name) / "datasets",
        "assets": package / "assets",
    }
    (Path(settings_folder.name) / "config.yaml").write_text(
        "".join(f'{key}: "{place}"\n' for key, place in places.items())
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
    """Keep the import's advertisements off the terminal; warnings that are raised later are shown as ever."""
    logger = logging.getLogger("robosuite_logs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
