"""Choose MuJoCo's rendering backend on a machine without a display, before `mujoco` is imported."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

from ..errors import WorldError

HEADLESS_BACKENDS = ("egl", "osmesa")
"""Backends in order of preference: EGL uses a GPU if there is one, OSMesa renders on the CPU."""

PROBE_SECONDS = 120

# Renders a small scene: some backends create a context but cannot render.
_PROBE = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
pixels = renderer.render()
if pixels.max() == 0:
    raise SystemExit("the image is black")
from OpenGL import GL
names = {"vendor": GL.GL_VENDOR, "renderer": GL.GL_RENDERER, "version": GL.GL_VERSION}
print(json.dumps({key: GL.glGetString(name).decode() for key, name in names.items()}))
"""


def probe_renderer(backend: str | None) -> tuple[dict[str, str] | None, str]:
    """Render once in a separate process.

    Args:
        backend: A value of MUJOCO_GL; None keeps the variable as it is.

    Returns:
        GL vendor, renderer and version, or None if rendering failed; and what failed, or "".
    """
    environment = dict(os.environ)
    if backend is not None:
        environment["MUJOCO_GL"] = backend
        # PyOpenGL keeps its first platform; an old one would make every other backend fail.
        environment.pop("PYOPENGL_PLATFORM", None)
    try:
        # -P keeps the current folder off the path: a user's folder could hide a library.
        completed_process = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no image within {PROBE_SECONDS} s"
    if completed_process.returncode:
        # Skip the interpreter's messages from its shutdown after the error.
        reason = completed_process.stderr.split("Exception ignored")[0].strip().splitlines()
        return None, reason[-1].strip() if reason else f"exit code {completed_process.returncode}"
    return json.loads(completed_process.stdout.splitlines()[-1]), ""


def choose_backend() -> str:
    """Set MUJOCO_GL to a backend that works without a display, for this process and its children.

    Returns:
        The backend; a value that the user set is kept.

    Raises:
        WorldError: No backend works; the error names the packages to install.
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
        f"renderer: got none that works ({'; '.join(problems)}), expected EGL or OSMesa. "
        "Install one: apt-get install libegl1 libgl1 libgl1-mesa-dri (EGL), or apt-get install libosmesa6 (OSMesa)."
    )


def describe_renderer() -> dict[str, str]:
    """Return the backend and its GL vendor, renderer and version; raises WorldError if none works."""
    backend = choose_backend()
    found, problem = probe_renderer(None if backend == "default" else backend)
    if found is None:
        raise WorldError(
            f"renderer {backend}: got no image ({problem}), expected one. "
            "Unset MUJOCO_GL to choose a working backend automatically, or install the driver that it names."
        )
    return {"backend": backend, **found}
