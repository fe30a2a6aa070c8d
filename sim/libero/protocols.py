"""How results on LIBERO were published: steps an episode may take, steps to settle, trials of each task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import unknown_name


@dataclass(frozen=True)
class EvaluationProtocol:
    """The numbers that make two results comparable; `limits` are the greatest steps of an episode, by suite."""

    name: str
    limits: tuple[tuple[str, int], ...]
    settle_steps: int = 10
    episodes: int = 50

    def steps(self, suite: str) -> int:
        """Return the greatest number of steps of an episode; those to settle come before and do not count."""
        return dict(self.limits)[suite]

    def describe(self) -> dict[str, Any]:
        """Return what goes into a result."""
        return {**asdict(self), "limits": dict(self.limits)}


def _limits(spatial: int, object_: int, goal: int, long: int) -> tuple[tuple[str, int], ...]:
    return (("libero_spatial", spatial), ("libero_object", object_), ("libero_goal", goal), ("libero_10", long))


OPENVLA = EvaluationProtocol("openvla", _limits(220, 280, 300, 520))
"""OpenVLA (Kim et al., 2024) and the policies that descend from it: 50 trials, one from each initial state."""

LEROBOT = EvaluationProtocol("lerobot", _limits(280, 280, 300, 520))
"""LeRobot's evaluation: longer in the spatial suite."""

PROTOCOLS = {protocol.name: protocol for protocol in (OPENVLA, LEROBOT)}


def find_protocol(name: str) -> EvaluationProtocol:
    """Return a protocol; an unknown name is an InputError with the nearest one."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
