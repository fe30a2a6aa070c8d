"""All kernels under Triton's interpreter, in one process of their own: the tests in `interpreted/`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_kernels_agree_with_their_references_under_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", HERE / "interpreted", "-q", "--tb=short", "--durations=8", "-x"]
    root = HERE.parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"{done.stdout[-8000:]}{done.stderr[-2000:]}", pytrace=False)
