"""The client without a server: what it imports, and the addresses and timeouts that it refuses."""

import subprocess
import sys

import pytest

from saccade.errors import InputError
from saccade.robot.remote.client import RemotePolicy
from saccade_testing.toy_policy import TOKEN

ALONE = """
import importlib.abc, importlib.metadata, sys

ALLOWED = {"numpy", "msgpack", "websockets", "saccade", "_distutils_hack"}
INSTALLED = set(importlib.metadata.packages_distributions())

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in INSTALLED - ALLOWED - set(sys.stdlib_module_names):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Blocker())
from saccade.robot.remote.client import RemotePolicy
import saccade.robot.remote.codec, saccade.robot.remote.protocol
try:
    import torch
except ImportError:
    ours = sorted(name for name in sys.modules if name.startswith("saccade"))
    print("alone", *ours)
"""


def test_client_imports_with_numpy_msgpack_and_websockets_alone(tmp_path):
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, *ours = done.stdout.split()
    assert alone == "alone" and "saccade.robot.remote.client" in ours
    assert not [name for name in ours if name.startswith(("saccade.sim", "saccade.perception", "saccade.scripts"))]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "ws://HOST:PORT"),
        ("http://127.0.0.1:8000", "ws://HOST:PORT"),
        ("ws://127.0.0.1", "ws://HOST:PORT"),
        ("ws://127.0.0.1:port", "ws://HOST:PORT"),
        ("ws://name:secret@127.0.0.1:8000", "ws://HOST:PORT"),
        ("ws://192.168.1.7:8000", "wss:// to another machine"),
    ],
)
def test_invalid_addresses_are_refused(url, message):
    with pytest.raises(InputError, match=message):
        RemotePolicy(url, TOKEN)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e6, "1"])
def test_invalid_timeouts_are_refused(seconds):
    for name in ("timeout", "reset_timeout", "connect_timeout"):
        with pytest.raises(InputError, match=name):
            RemotePolicy("ws://127.0.0.1:1", TOKEN, **{name: seconds})
