"""The desk as a world to evaluate and to demonstrate in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...policy.contract import Offer


@dataclass(frozen=True)
class DeskWorld:
    """The desk and its scripted demonstrator; cameras are `image_size` pixels square."""

    image_size: int = 128
    robot_type: str = "so101_desk"

    def offer(self) -> Offer:
        from .environment import desk_offer

        return desk_offer(self.image_size)

    def environment(self, suite: str, task: str) -> Any:
        from .environment import DeskEnv

        return DeskEnv(suite, task, image_size=self.image_size)

    def demonstrator(self, environment: Any, generator: np.random.Generator) -> Any:
        from .demonstrator.demonstrator import DeskDemonstrator

        return DeskDemonstrator(environment, generator)

    def describe(self) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> dict[str, Any]:
        from ..fingerprint import environment_fingerprint

        return environment_fingerprint(Path(__file__).parent)
