"""Test the import of LIBERO: no prompt, no file in the user's home, clear errors."""

import importlib.util
import os
import subprocess
import sys

import pytest

from saccade.errors import InputError, WorldError
from saccade.sim.libero import installation

IMPORT = """
import os, sys
from saccade.sim.libero.installation import import_libero
before = os.environ.get("LIBERO_CONFIG_PATH")
found = import_libero()
assert import_libero() is found and os.environ.get("LIBERO_CONFIG_PATH") == before
print(found.settings_folder.name)
"""


def test_import_prompts_for_nothing_and_leaves_no_file(installed, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    environment.pop("LIBERO_CONFIG_PATH", None)
    completed = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    settings_folder = completed.stdout.strip()
    assert settings_folder.startswith(str(tmp_path / "temporary")), "the import must print nothing"
    assert not (tmp_path / ".libero").exists() and not os.path.exists(settings_folder)
    assert "Do you want" not in completed.stdout + completed.stderr and "macro" not in completed.stderr


def test_missing_packages_error_names_the_command_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'uv sync --extra libero, or pip install "lerobot_policy_saccade\[libero\]"'):
        installation.package_folder()


def test_renderer_that_robosuite_would_replace_is_refused(installed, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    installation.import_libero.cache_clear()
    with pytest.raises(InputError, match="MUJOCO_GL: got glfw, expected egl or osmesa"):
        installation.import_libero()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "/tmp/robosuite.log"),
            "got no permission to write /tmp/robosuite.log",
        ),
        (ImportError("no EGL"), r"could not be imported with renderer egl: no EGL\. Install it: uv sync"),
    ],
)
def test_failed_import_gives_one_clear_error(installed, monkeypatch, error, message):
    def fail(name):
        raise error

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(installation.importlib, "import_module", fail)
    installation.import_libero.cache_clear()
    with pytest.raises(WorldError, match=message):
        installation.import_libero()
