"""The choice of a rendering backend, and the environment fingerprint."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from saccade.errors import WorldError
from saccade.sim import rendering
from saccade.sim.fingerprint import differences, environment_fingerprint, fingerprint_digest


@pytest.fixture
def before_mujoco(monkeypatch):
    """A process that has not chosen a backend or imported mujoco."""
    monkeypatch.setattr(rendering.platform, "system", lambda: "Linux")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop("MUJOCO_GL", None)  # choose_backend sets it behind monkeypatch


def probe_with(*working):
    def probe_renderer(backend):
        return ({"vendor": backend}, "") if backend in working else (None, f"no {backend} here")

    return probe_renderer


@pytest.mark.parametrize(("working", "chosen"), [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")])
def test_first_working_backend_is_chosen_and_exported(before_mujoco, monkeypatch, working, chosen):
    monkeypatch.setattr(rendering, "probe_renderer", probe_with(*working))
    assert rendering.choose_backend() == chosen
    assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.setattr(rendering, "probe_renderer", probe_with())  # a second call probes nothing
    assert rendering.choose_backend() == chosen


def test_missing_renderer_names_the_packages_to_install(before_mujoco, monkeypatch):
    monkeypatch.setattr(rendering, "probe_renderer", probe_with())
    with pytest.raises(WorldError, match=r"no egl here; osmesa: no osmesa here.*libegl1.*libosmesa6"):
        rendering.choose_backend()
    assert "MUJOCO_GL" not in os.environ


def test_user_choice_of_the_backend_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setattr(rendering, "probe_renderer", probe_with())
    assert rendering.choose_backend() == "glfw"
    with pytest.raises(WorldError, match="renderer glfw"):
        rendering.describe_renderer()


def test_choice_after_the_import_of_mujoco_is_refused(before_mujoco, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", object())
    with pytest.raises(WorldError, match="imported before"):
        rendering.choose_backend()
    monkeypatch.setenv("DISPLAY", ":0")
    assert rendering.choose_backend() == "glfw"


def test_probe_of_an_unknown_backend_gives_the_reason():
    found, problem = rendering.probe_renderer("nonsense")
    assert found is None
    assert "nonsense" in problem


def test_rendering_does_not_import_mujoco():
    code = "import sys, saccade.sim.rendering; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_fingerprint_differences_are_named(tmp_path, monkeypatch):
    renderer = {"backend": "egl", "renderer": "a GPU"}
    monkeypatch.setattr("saccade.sim.fingerprint.describe_renderer", lambda: renderer)
    here = environment_fingerprint(tmp_path, packages=("numpy", "no-such-package"))
    assert here["packages"]["no-such-package"] is None
    there = {**here, "packages": {**here["packages"], "numpy": "1.0"}}
    assert differences(here, dict(here)) == []
    assert differences(here, there) == [f"packages.numpy: {here['packages']['numpy']} and 1.0"]
    assert fingerprint_digest(here) == fingerprint_digest(dict(reversed(here.items()))) != fingerprint_digest(there)
