"""Protocols of published results on LIBERO: step limits, settling steps, episodes of each task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import unknown_name


@dataclass(frozen=True)
class EvaluationProtocol:
    """The numbers that two comparable results share.

    Attributes:
        name: Name of the protocol.
        limits: Pairs of a suite and the step limit of its episodes.
        settle_steps: Steps without motion before an episode; they do not count towards the limit.
        episodes: Episodes of each task.
    """

    name: str
    limits: tuple[tuple[str, int], ...]
    settle_steps: int = 10
    episodes: int = 50

    def steps(self, suite: str) -> int:
        """Return the step limit of a suite's episodes, without the settling steps."""
        return dict(self.limits)[suite]

    def describe(self) -> dict[str, Any]:
        """Return the protocol's part of a result."""
        return {**asdict(self), "limits": dict(self.limits)}


def _limits(spatial: int, object_: int, goal: int, long: int) -> tuple[tuple[str, int], ...]:
    return (("libero_spatial", spatial), ("libero_object", object_), ("libero_goal", goal), ("libero_10", long))


OPENVLA = EvaluationProtocol("openvla", _limits(220, 280, 300, 520))
"""OpenVLA (Kim et al., 2024, arXiv 2406.09246) and policies derived from it: one episode from each of 50 states."""

LEROBOT = EvaluationProtocol("lerobot", _limits(280, 280, 300, 520))
"""LeRobot's evaluation: a higher limit in libero_spatial."""

PROTOCOLS = {protocol.name: protocol for protocol in (OPENVLA, LEROBOT)}


def find_protocol(name: str) -> EvaluationProtocol:
    """Return a protocol by name; raises InputError, with the nearest name, for an unknown one."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
