"""The desk as a world for evaluation and demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...policy.contract import Offer


@dataclass(frozen=True)
class DeskWorld:
    """The desk and its scripted demonstrator.

    Attributes:
        image_size: Height and width of the cameras' images, in pixels.
        robot_type: Name of the robot in datasets.
    """

    image_size: int = 128
    robot_type: str = "so101_desk"

    def offer(self) -> Offer:
        """Return the observations and actions that the desk offers to a policy."""
        from .environment import desk_offer

        return desk_offer(self.image_size)

    def environment(self, suite: str, task: str) -> Any:
        """Build the `DeskEnv` of a task."""
        from .environment import DeskEnv

        return DeskEnv(suite, task, image_size=self.image_size)

    def demonstrator(self, environment: Any, generator: np.random.Generator) -> Any:
        """Build the `DeskDemonstrator` of an episode."""
        from .demonstrator.demonstrator import DeskDemonstrator

        return DeskDemonstrator(environment, generator)

    def describe(self) -> dict[str, Any]:
        """Return the desk's part of the evaluation protocol: nothing."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """Return the environment's fingerprint; raises WorldError if no renderer works."""
        from ..fingerprint import environment_fingerprint

        return environment_fingerprint(Path(__file__).parent)
