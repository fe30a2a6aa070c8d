"""The library is imported without a question, and without a file where the user would find one."""

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


def test_the_import_asks_nothing_and_leaves_nothing(installed, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    environment.pop("LIBERO_CONFIG_PATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    settings_folder = done.stdout.strip()
    assert settings_folder.startswith(str(tmp_path / "temporary")), "the import must print nothing of its own"
    assert not (tmp_path / ".libero").exists() and not os.path.exists(settings_folder)
    assert "Do you want" not in done.stdout + done.stderr and "macro" not in done.stderr


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'uv sync --extra libero, or pip install "lerobot_policy_saccade\[libero\]"'):
        installation.package_folder()


def test_a_renderer_that_robosuite_would_replace_is_refused(installed, monkeypatch):
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
def test_a_failing_import_is_one_clear_line(installed, monkeypatch, error, message):
    def fail(name):
        raise error

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(installation.importlib, "import_module", fail)
    installation.import_libero.cache_clear()
    with pytest.raises(WorldError, match=message):
        installation.import_libero()
