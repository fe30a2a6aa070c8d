"""A camera of the virtual arm as LeRobot configures it: `--robot.cameras="{front: {type: saccade_virtual, ...}}"`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.cameras.configs import CameraConfig

TYPE = "saccade_virtual"


@CameraConfig.register_subclass(TYPE)
@dataclass(kw_only=True)
class VirtualCameraConfig(CameraConfig):
    """Configuration of one camera; `source` is the file with its frames."""

    source: str = ""
