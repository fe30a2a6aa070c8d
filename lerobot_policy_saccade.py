"""LeRobot's door to Saccade: importing it registers the policy `saccade`, the world `saccade_desk`, and the cameras of
the virtual arm, `saccade_virtual`.

LeRobot imports every installed distribution whose name begins with `lerobot_policy_`. The processors have to be
imported here too: a checkpoint names them, and LeRobot looks them up before it has met the policy.
"""

from saccade.policy.configuration_saccade import SaccadeConfig
from saccade.policy.processor_saccade import make_saccade_pre_post_processors
from saccade.sim.desk.lerobot_environment import SaccadeDeskEnvConfig
from saccade.sim.virtual_arm.config_camera import VirtualCameraConfig

__all__ = ["SaccadeConfig", "SaccadeDeskEnvConfig", "VirtualCameraConfig", "make_saccade_pre_post_processors"]
