"""MuJoCo's own stubs lack the names that its binding makes at run time (constants, `MjModel.joint`, `MjSpec`...)."""

from typing import Any

def __getattr__(name: str) -> Any: ...
