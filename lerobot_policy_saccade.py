"""LeRobot plugin: importing it registers the policy, the environment and the camera of Saccade.

They are the policy `saccade`, the environment `saccade_desk` and the camera `saccade_virtual`. LeRobot
imports every installed distribution whose name begins with `lerobot_policy_`. The processors are imported, too: a
checkpoint names them, and LeRobot looks them up before it loads the policy.
"""

# pyright reads no import hooks, and an editable install finds the package by one.
# pyright: reportMissingImports=false

from saccade.policy.configuration_saccade import SaccadeConfig
from saccade.policy.processor_saccade import make_saccade_pre_post_processors
from saccade.sim.desk.lerobot_environment import SaccadeDeskEnvConfig
from saccade.sim.virtual_arm.config_camera import VirtualCameraConfig

__all__ = ["SaccadeConfig", "SaccadeDeskEnvConfig", "VirtualCameraConfig", "make_saccade_pre_post_processors"]
