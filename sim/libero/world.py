"""LIBERO as a world for evaluation and for demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fingerprint import PACKAGES, environment_fingerprint
from .assets import Assets, find_assets, same_assets
from .conventions import Conventions
from .installation import package_folder
from .physics_check import SettlingResult, check_settling
from .protocols import EvaluationProtocol, find_protocol

if TYPE_CHECKING:
    import numpy as np

    from ...policy.contract import Offer
    from .demonstrator.demonstrator import LiberoDemonstrator
    from .environment import LiberoEnv
    from .options import LiberoOptions
    from .visuals import Visuals


@dataclass(frozen=True)
class LiberoWorld:
    """LIBERO under one policy's conventions.

    Attributes:
        conventions: Conventions of images, states and actions.
        assets: LIBERO's assets.
        protocol: Step limits and settling steps.
        visuals: `stock` or `fast`.
        settling_result: Result of the physics check on this machine.
        robot_type: Robot type of recorded datasets.
    """

    conventions: Conventions
    assets: Assets
    protocol: EvaluationProtocol
    visuals: Visuals
    settling_result: SettlingResult
    robot_type: str = "panda_libero"

    def offer(self) -> Offer:
        """Return the observations and actions that LIBERO offers to a policy."""
        return self.conventions.offer()

    def environment(self, suite: str, task: str) -> LiberoEnv:
        """Build the environment of a task."""
        from .environment import LiberoEnv

        return LiberoEnv(
            suite,
            task,
            conventions=self.conventions,
            protocol=self.protocol,
            visuals=self.visuals,
            assets=same_assets(self.assets),
        )

    def demonstrator(self, environment: LiberoEnv, generator: np.random.Generator) -> LiberoDemonstrator:
        """Return the scripted demonstrator of the episode that `environment.reset` began."""
        from .demonstrator.demonstrator import LiberoDemonstrator

        return LiberoDemonstrator(environment, generator)

    def describe(self) -> dict[str, Any]:
        """Return LIBERO's part of the evaluation protocol, as plain JSON values."""
        return {
            "benchmark": self.protocol.describe(),
            "visuals": self.visuals,
            "render_size": self.conventions.rendered_size,
            "physics_as_published": self.settling_result.as_published,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of packages, source code, assets and physics; raises WorldError without a renderer."""
        packages = (*PACKAGES, "robosuite", "hf-libero")
        world = {"assets": self.assets.describe(), "settle_task5_mm": self.settling_result.settle_task5_mm}
        return {**environment_fingerprint(Path(__file__).parent, packages), "libero": world}


def libero_world(conventions: Conventions, options: LiberoOptions) -> LiberoWorld:
    """Check LIBERO's packages, assets and physics, and return it as a world.

    Args:
        conventions: Conventions of images, states and actions.
        options: How to build LIBERO's environments.

    Raises:
        InputError: Packages or assets are missing.
        WorldError: The physics differs from that of published results.
    """
    package_folder()
    assets = find_assets(options.libero_assets)
    settling_result = check_settling(assets)
    settling_result.require_published(allowed=options.allow_physics)
    return LiberoWorld(conventions, assets, find_protocol(options.protocol), options.visuals, settling_result)
