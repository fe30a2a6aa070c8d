"""LIBERO as a world to evaluate and to demonstrate in."""

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
    from .environment import LiberoEnv
    from .options import LiberoOptions
    from .visuals import Visuals


@dataclass(frozen=True)
class LiberoWorld:
    """LIBERO under one policy's conventions; `settling_result` is how its physics was found to behave."""

    conventions: Conventions
    assets: Assets
    protocol: EvaluationProtocol
    visuals: Visuals
    settling_result: SettlingResult
    robot_type: str = "panda_libero"

    def offer(self) -> Offer:
        return self.conventions.offer()

    def environment(self, suite: str, task: str) -> LiberoEnv:
        from .environment import LiberoEnv

        return LiberoEnv(
            suite,
            task,
            conventions=self.conventions,
            protocol=self.protocol,
            visuals=self.visuals,
            assets=same_assets(self.assets),
        )

    def demonstrator(self, environment: LiberoEnv, generator: np.random.Generator) -> Any:
        from .demonstrator.demonstrator import LiberoDemonstrator

        return LiberoDemonstrator(environment, generator)

    def describe(self) -> dict[str, Any]:
        return {
            "benchmark": self.protocol.describe(),
            "visuals": self.visuals,
            "render_size": self.conventions.rendered_size,
            "physics_as_published": self.settling_result.as_published,
        }

    def fingerprint(self) -> dict[str, Any]:
        packages = (*PACKAGES, "robosuite", "hf-libero")
        world = {"assets": self.assets.describe(), "settle_task5_mm": self.settling_result.settle_task5_mm}
        return {**environment_fingerprint(Path(__file__).parent, packages), "libero": world}


def libero_world(conventions: Conventions, options: LiberoOptions) -> LiberoWorld:
    """Return LIBERO as the options say, once its packages, its assets and its physics have been looked at.

    Raises InputError for what is missing, and WorldError for a physics that is not that of published results.
    """
    package_folder()
    assets = find_assets(options.libero_assets)
    settling_result = check_settling(assets)
    settling_result.require_published(allowed=options.allow_physics)
    return LiberoWorld(conventions, assets, find_protocol(options.protocol), options.visuals, settling_result)
