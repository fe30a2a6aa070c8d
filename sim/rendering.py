"""Choose how MuJoCo draws on a machine without a display; call it before `mujoco` is imported anywhere."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

from ..errors import WorldError

HEADLESS_BACKENDS = ("egl", "osmesa")
"""Backends in the order of preference: EGL reaches a GPU where there is one, OSMesa always draws on the CPU."""

PROBE_SECONDS = 120

# Draws one pixel of a real scene: a context that can be made but not drawn with is of no use.
_PROBE = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
pixels = renderer.render()
if pixels.max() == 0:
    raise SystemExit("the picture is black")
from OpenGL import GL
names = {"vendor": GL.GL_VENDOR, "renderer": GL.GL_RENDERER, "version": GL.GL_VERSION}
print(json.dumps({key: GL.glGetString(name).decode() for key, name in names.items()}))
"""


def probe_renderer(backend: str | None) -> tuple[dict[str, str] | None, str]:
    """Draw once in a process of its own and return (GL vendor, renderer and version or None, what went wrong).

    `backend` is a value of MUJOCO_GL, or `None` to leave it as it is.
    """
    environment = dict(os.environ)
    if backend is not None:
        environment["MUJOCO_GL"] = backend
        # PyOpenGL keeps its first choice of platform; a stale one would make every other backend fail.
        environment.pop("PYOPENGL_PLATFORM", None)
    try:
        # -P keeps the current folder off the path: a folder of the user's could pass for a library.
        completed_process = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no picture within {PROBE_SECONDS} s"
    if completed_process.returncode:
        # What the interpreter says while it tidies up after the error is not the reason.
        reason = completed_process.stderr.split("Exception ignored")[0].strip().splitlines()
        return None, reason[-1].strip() if reason else f"exit code {completed_process.returncode}"
    return json.loads(completed_process.stdout.splitlines()[-1]), ""


def choose_backend() -> str:
    """Set MUJOCO_GL to a backend that draws without a display, for this process and its children; return it.

    A value that the user set is left alone. Raises WorldError, with the packages to install, when nothing draws.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return chosen
    if platform.system() != "Linux":
        return "default"
    if "mujoco" in sys.modules:
        if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            return "glfw"
        raise WorldError(
            "renderer: mujoco was imported before a backend was chosen, and there is no display. "
            f"Set MUJOCO_GL={HEADLESS_BACKENDS[0]} in the environment, or import saccade's worlds before mujoco."
        )
    problems = []
    for backend in HEADLESS_BACKENDS:
        found, problem = probe_renderer(backend)
        if found is not None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        problems.append(f"{backend}: {problem}")
    raise WorldError(
        f"renderer: got none that draws ({'; '.join(problems)}), expected EGL or OSMesa. "
        "Install one: apt-get install libegl1 libgl1 libgl1-mesa-dri (EGL), or apt-get install libosmesa6 (OSMesa)."
    )


def describe_renderer() -> dict[str, str]:
    """Return the backend and the GL vendor, renderer and version that draw; raises WorldError when nothing does."""
    backend = choose_backend()
    found, problem = probe_renderer(None if backend == "default" else backend)
    if found is None:
        raise WorldError(
            f"renderer {backend}: got no picture ({problem}), expected one. "
            "Unset MUJOCO_GL to have a working backend chosen, or install the driver that it names."
        )
    return {"backend": backend, **found}
