"""The robot layer runs on machines without torch: importing it brings along neither that nor any other heavy thing."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "mujoco", "lerobot", "transformers", "scipy")
MODULES = (
    *("arm", "cameras", "channel", "chunk", "control", "decider", "deciding", "episode", "figures", "governor"),
    *("judgement", "lerobot_arm", "limits", "loop", "motion", "recorder", "rules", "schedule", "serial_bus"),
    *("session", "summary", "verdict"),
)


@pytest.mark.parametrize("module", ["control", "session", "governor", "all"])
def test_nothing_heavy_is_imported(module):
    names = MODULES if module == "all" else (module,)
    program = "".join(f"import saccade.robot.{name}\n" for name in names)
    program += f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
