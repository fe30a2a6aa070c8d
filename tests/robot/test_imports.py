"""The robot layer runs on machines without torch: importing it brings along neither that nor any other heavy thing."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "mujoco", "lerobot", "transformers", "scipy")
MODULES = (
    *("arm", "client", "chunk_policy", "limits"),
    *(f"control.{name}" for name in ("channel", "link", "loop", "loop_metrics", "messages", "process")),
    *(f"drivers.{name}" for name in ("lerobot_arm", "serial_bus")),
    *(
        f"governor.{name}"
        for name in ("chunk", "governor", "chunk_checks", "motion", "recorder", "rules", "action_queue", "outputs")
    ),
    *(f"session.{name}" for name in ("cameras", "decision_thread", "episode", "session", "summary")),
)


@pytest.mark.parametrize("module", ["control.process", "session.session", "governor.governor", "all"])
def test_nothing_heavy_is_imported(module):
    names = MODULES if module == "all" else (module,)
    program = "".join(f"import saccade.robot.{name}\n" for name in names)
    program += f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
