"""The robot package imports without torch, MuJoCo and other heavy libraries: it runs on machines without them."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "mujoco", "lerobot", "transformers", "scipy")
MODULES = {
    "": ("arm", "client", "chunk_policy", "limits"),
    "control.": ("channel", "link", "loop", "loop_metrics", "messages", "process", "system_events"),
    "drivers.": ("lerobot_arm", "serial_bus"),
    "governor.": (
        *("action_queue", "chunk", "chunk_checks", "governor", "monitors"),
        *("motion", "outputs", "recorder", "rules", "step_checks"),
    ),
    "session.": ("cameras", "decision_thread", "episode", "operator_commands", "session", "settings", "summary"),
}
ALL = tuple(prefix + name for prefix, names in MODULES.items() for name in names)


@pytest.mark.parametrize("module", ["control.process", "session.session", "governor.governor", "all"])
def test_heavy_libraries_are_not_imported(module):
    names = ALL if module == "all" else (module,)
    program = "".join(f"import saccade.robot.{name}\n" for name in names)
    program += f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
